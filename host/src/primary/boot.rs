//! From settings to a running cluster: takes the name, binds, has the component compiled, then hands over to the driver.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::control::Control;
use super::driver::{Driver, MAX_QUEUED};
use super::output::Output;
use super::process::{CompilerProcess, Deployment, reap};
use super::signals::{Request, Signals};
use crate::config::{Settings, WorkerSettings};
use crate::ids::Generation;
use crate::ipc::{FromCompiler, ToCompiler};
use crate::limits;
use crate::listener::{BindError, ListenAddr, Listener};

/// How long a busy address is tried again: the workers of a primary that was killed keep theirs for a second.
const BIND_PATIENCE: Duration = Duration::from_secs(3);
const BIND_AGAIN: Duration = Duration::from_millis(100);

/// Serves `settings.app` until it is told to stop. An error means that it never served, or cannot any more.
pub(crate) fn serve(settings: Settings) -> anyhow::Result<()> {
    limits::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = Control::bind(&settings.name, &settings.control)?;
        let listeners = bind_all(&settings.listen, settings.backlog).await?;
        let mut signals = Signals::install()?;
        let (output, volume) = Output::start(settings.logging, settings.live.log_level)?;
        let served = async {
            let Some(deployment) = compile_first(&settings, &mut signals).await? else {
                return Ok(());
            };
            let (queries, asked) = mpsc::channel(MAX_QUEUED);
            control.serve(queries)?;
            Driver::new(&settings, deployment, listeners, &output, volume).run(signals, asked).await
        }
        .await;
        control.finish().await;
        output.finish();
        served
    })
}

async fn bind_all(addresses: &[ListenAddr], backlog: i32) -> Result<Vec<Listener>, BindError> {
    let deadline = Instant::now() + BIND_PATIENCE;
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(loop {
            match Listener::bind(address, backlog) {
                Err(BindError::InUse(_)) if Instant::now() < deadline => tokio::time::sleep(BIND_AGAIN).await,
                bound => break bound?,
            }
        });
    }
    Ok(listeners)
}

/// Has the component compiled, or found in the store. `None` when a signal ended it.
async fn compile_first(settings: &Settings, signals: &mut Signals) -> anyhow::Result<Option<Deployment>> {
    let _progress = Progress::start(format!("Compiling {}", settings.app.display()));
    let request = ToCompiler::Compile { source: settings.app.clone(), store: settings.store.clone() };
    let compiler = CompilerProcess::spawn(&request).context("cannot start the compiler")?;
    let (mut answered, mut ended) = (false, None);
    loop {
        if let (true, Some(how)) = (answered, &ended) {
            bail!("cannot serve {}: the compiler {how}", settings.app.display());
        }
        tokio::select! {
            answer = compiler.answer(), if !answered => match answer.context("the compiler's answer makes no sense")? {
                Some(answer) => return deploy(settings, Generation(1), answer).map(Some),
                None => answered = true,
            },
            request = signals.next() => match request? {
                Request::Stop(_) => return Ok(None),
                Request::LookAfterChildren => {
                    ended = reap().into_iter().find(|(pid, _)| *pid == compiler.pid).map(|(_, how)| how).or(ended);
                }
                Request::Grow | Request::Shrink => {}
            },
        }
    }
}

fn deploy(
    settings: &Settings,
    generation: Generation,
    answer: (FromCompiler, Option<OwnedFd>),
) -> anyhow::Result<Deployment> {
    let (compiled, artifact) = match answer {
        (FromCompiler::Done(compiled), Some(artifact)) => (compiled, artifact),
        (FromCompiler::Done(_), None) => bail!("the compiler's answer came without an artifact"),
        (FromCompiler::Refused { reason }, _) => bail!(reason),
    };
    tracing::debug!(digest = compiled.digest, cached = compiled.cached, "the component is compiled");
    let worker_settings = WorkerSettings {
        http: compiled.http,
        env: settings.env.clone(),
        drain_timeout: settings.policy.drain_timeout,
        drain_idle_grace: settings.drain_idle_grace,
        logging: settings.logging,
    };
    Deployment::new(generation, compiled, artifact, &worker_settings)
}

/// A line on a terminal that says what takes so long, from the first second on, and vanishes afterwards.
struct Progress(Option<AbortHandle>);

impl Progress {
    fn start(what: String) -> Self {
        use std::io::IsTerminal;
        if !io::stderr().is_terminal() {
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
