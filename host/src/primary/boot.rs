//! From settings to a running cluster: takes the name, binds, has the component compiled, then hands over to the driver.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::builder::Builder;
use super::control::Control;
use super::driver::{Driver, MAX_QUEUED};
use super::generations::{Committed, Generations, Version, pinned};
use super::output::Output;
use super::process::Deployment;
use super::reload::Compiling;
use super::signals::{Request, Signals};
use super::watch::Watch;
use crate::child::reap_orphans;
use crate::config::Settings;
use crate::folders;
use crate::ids::Generation;
use crate::ipc::ToCompiler;
use crate::limits;
use crate::listener::{self, BindError, ListenAddr, Listener};
use crate::logging::{self, LogLevel};

/// How long a busy address is tried again: the workers of a primary that was killed keep theirs for a second.
const BIND_PATIENCE: Duration = Duration::from_secs(3);
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// How long the first compilation may take.
const COMPILE_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Serves `settings.app` until it is told to stop. An error means that it never served, or cannot any more.
pub(crate) fn serve(settings: Settings) -> anyhow::Result<()> {
    limits::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut control = take_name(&settings)?;
        let listeners = bind_all(&settings.listen, settings.backlog).await?;
        let mut signals = Signals::install()?;
        let (output, volume) = Output::start(settings.logging, settings.live.log_level)?;
        limits::warn_of_surroundings();
        for doubt in &settings.doubts {
            tracing::warn!("{doubt}");
        }
        let served = async {
            // From here on a change is seen, also one during the first compilation.
            let watch = Watch::start(&settings, &folders::absolute(&settings.app)?);
            let Some(generations) = compile_first(&settings, &mut signals).await? else {
                return Ok(());
            };
            let (queries, asked) = mpsc::channel(MAX_QUEUED);
            control.serve(queries)?;
            let builder = Builder::start(settings.rebuild.as_ref());
            Driver::new(&settings, generations, listeners, &output, volume, builder).run(signals, asked, watch).await
        }
        .await;
        control.finish().await;
        output.finish();
        served
    })
}

/// Takes the cluster's name, once there is everything that a start needs of the machine.
fn take_name(settings: &Settings) -> anyhow::Result<Control> {
    let (state, control) = (settings.state_dir.as_deref(), &settings.control);
    let itself = "/proc/self/exe";
    std::fs::metadata(itself).with_context(|| {
        format!("cannot start workers from {itself}: /proc is not mounted here; `mount -t proc proc /proc` does so")
    })?;
    folders::prepare(&settings.store, state, control)?;
    Control::bind(&settings.name, control, state)
}

async fn bind_all(addresses: &[ListenAddr], backlog: i32) -> Result<Vec<Listener>, BindError> {
    let deadline = Instant::now() + BIND_PATIENCE;
    let mut listeners = Vec::new();
    for binding in listener::resolve(addresses)? {
        let mut is_told = false;
        let bound = loop {
            match binding.bind(&listeners, backlog) {
                Err(BindError::InUse(address)) if Instant::now() < deadline => {
                    if !is_told {
                        logging::say(
                            LogLevel::Warn,
                            format_args!("{address} is in use; trying again for {BIND_PATIENCE:?}"),
                        );
                        is_told = true;
                    }
                    tokio::time::sleep(BIND_AGAIN).await;
                }
                bound => break bound?,
            }
        };
        listeners.extend(bound);
    }
    Ok(listeners)
}

/// Has the component compiled, or found in the store. `None` when a signal ended it.
async fn compile_first(settings: &Settings, signals: &mut Signals) -> anyhow::Result<Option<Generations>> {
    let _progress = Progress::start(format!("Compiling {}", settings.app.display()));
    let First { generation, source, request, previous } = first_request(settings)?;
    let (answers, mut answered) = mpsc::channel(1);
    let _compiling = Compiling::start(&request, answers).context("cannot start the compiler")?;
    let mut given_up = pin!(tokio::time::sleep(COMPILE_PATIENCE));
    loop {
        tokio::select! {
            Some((_, answer)) = answered.recv() => {
                let deployment = Deployment::new(settings, &source, answer)?;
                return Ok(Some(Generations::new(generation, deployment, previous)));
            },
            request = signals.next() => match request? {
                Request::Stop(_) | Request::Hangup => return Ok(None),
                Request::LookAfterChildren => reap_orphans(),
                Request::Grow | Request::Shrink | Request::Reload => {}
            },
            () = &mut given_up => {
                bail!("cannot serve {}: it does not compile within {COMPILE_PATIENCE:?}", settings.app.display());
            }
        }
    }
}

/// What is deployed first.
struct First {
    generation: Generation,
    source: PathBuf,
    request: ToCompiler,
    previous: Option<Version>,
}

/// What to deploy first: the file, or with `--resume` what was committed last under this name, if it came from there.
fn first_request(settings: &Settings) -> anyhow::Result<First> {
    let (app, store, state) = (&settings.app, settings.store.clone(), settings.state_dir.as_deref());
    if settings.resume
        && let Some(folder) = state
        && let Some(Committed { generation, app: committed_app, current, previous, .. }) =
            Committed::read(folder, &settings.name)?
    {
        ensure!(
            is_same(&committed_app, &folders::absolute(app)?),
            "cannot resume: the cluster '{}' was started with {} last; give that one, or leave out --resume",
            settings.name,
            committed_app.display()
        );
        return Ok(First { generation, source: current.source.clone(), request: current.find(store), previous });
    }
    let pinned = pinned(state);
    let request = ToCompiler::Compile { source: app.clone(), store, pinned };
    Ok(First { generation: Generation(1), source: app.clone(), request, previous: None })
}

/// Whether two names are of one file: by a link or without it.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().ok().is_some_and(|file| other.canonicalize().is_ok_and(|other| file == other))
}

/// A line on a terminal that says what takes so long, from the first second on, and vanishes afterwards.
struct Progress(Option<AbortHandle>);

impl Progress {
    fn start(what: String) -> Self {
        use std::io::IsTerminal;
        if !io::stderr().is_terminal() || logging::is_json() {
            return Self(None);
        }
        let task = tokio::spawn(async move {
            for seconds in 1.. {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _ = write!(io::stderr(), "\r{what} … {seconds} s\x1b[K");
            }
        });
        Self(Some(task.abort_handle()))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
