//! `build --watch`, and the builder, the process that does the same for a primary: builds whenever the sources change.
//!
//! The primary itself neither looks at sources nor starts compilers: it sees a new component in place, and reloads.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setpgid};
use serde::{Deserialize, Serialize};

use super::bell::Bell;
use super::{Plan, Sources, say};
use crate::logging::{self, LogFormat, Relay, complain};
use crate::os::files;

const LOOK_EVERY: Duration = Duration::from_millis(150);
/// Looks that find the sources as the one before did, until they count as saved: an editor may save several files.
const SETTLED: u32 = 2;

/// What a primary tells its builder, as a line on its standard input: what was built, and of which sources.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    folder: PathBuf,
    roots: Vec<PathBuf>,
    component: PathBuf,
    /// The sources before that build; see [`Sources::look`].
    digest: u64,
    format: LogFormat,
}

impl Handover {
    /// Of a component that was built when the sources were `digest`.
    pub(crate) fn new(folder: &Path, sources: &Sources, component: &Path, digest: u64) -> io::Result<Self> {
        Ok(Self {
            format: if logging::is_json() { LogFormat::Json } else { LogFormat::Pretty },
            folder: files::absolute(folder)?,
            roots: sources.roots().to_vec(),
            component: files::absolute(component)?,
            digest,
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What a builder is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Build once, and answer with a `Result<Built, String>`.
    Build { folder: PathBuf, watch: bool, format: LogFormat },
    /// Build again whenever the sources change.
    Watch(Handover),
}

/// What came of a first build.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Built {
    pub(crate) component: PathBuf,
    /// For the builder that watches, if there is to be one.
    pub(crate) handover: Option<Handover>,
}

/// Builds a folder. What the tools say goes to standard error.
pub(crate) fn build_once(folder: &Path, watch: bool) -> anyhow::Result<Built> {
    let plan = Plan::read(folder)?;
    let mut sources = Sources::of(&plan);
    let digest = if watch { Some(sources.look(&Bell::default())?) } else { None };
    let outcome = plan.carry_out();
    let component = outcome.component?;
    sources.add(&outcome.uses);
    let handover = digest.map(|digest| Handover::new(folder, &sources, &component, digest)).transpose()?;
    Ok(Built { component, handover })
}

/// Builds whenever the sources are not what they were at the last build (`built`). Ends only if it cannot go on.
pub(crate) fn watch(folder: &Path, mut sources: Sources, mut built: Option<u64>) -> anyhow::Result<Infallible> {
    let bell = Bell::new();
    // A primary has it built anew, and serves what was built before.
    let instead = if built.is_some() { "; the previous build is still served" } else { "" };
    loop {
        // Taken before the build: what is saved while it runs differs from it, and is built next.
        built = Some(next_change(&mut sources, &bell, built)?);
        // Read anew: what says how to build may be what has changed.
        match Plan::read(folder) {
            Err(error) => complain(&format_args!("{error}{instead}")),
            Ok(plan) => {
                let outcome = plan.carry_out();
                sources.add(&outcome.uses);
                match outcome.component {
                    Ok(component) => {
                        sources.leave_out(&component);
                        tell(&component);
                    }
                    Err(error) => complain(&format_args!("{error:#}{instead}")),
                }
            }
        }
    }
}

/// Waits until the sources are others than `built`, and nobody writes to them any more.
fn next_change(sources: &mut Sources, bell: &Bell, built: Option<u64>) -> anyhow::Result<u64> {
    let (mut last, mut equal_looks) = (sources.look(bell)?, if built.is_none() { SETTLED } else { 0 });
    loop {
        if Some(last) != built && equal_looks >= SETTLED {
            return Ok(last);
        }
        if equal_looks >= SETTLED {
            bell.wait(LOOK_EVERY);
        }
        // What rings may be no source, and ring all the time.
        std::thread::sleep(LOOK_EVERY);
        let seen = sources.look(bell)?;
        equal_looks = if seen == last { equal_looks.saturating_add(1) } else { 0 };
        last = seen;
    }
}

/// Says where a component is, and how large.
pub(crate) fn tell(component: &Path) {
    say(format_args!("{}", describe(component)));
}

/// Where a component is, and how large.
pub(crate) fn describe(component: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = component.strip_prefix(here).unwrap_or(component).display();
    let size = bytesize::ByteSize(component.metadata().map_or(0, |metadata| metadata.len()));
    format!("Built {shown} ({})", size.display().iec())
}

/// The builder process. It is told what to do on its standard input, and ends with it, together with all that it started:
/// they are one process group.
pub(crate) fn builder_main() -> anyhow::Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let order = serde_json::from_str(&line).context("this command is started by wasmcluster itself")?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).context("cannot lead a process group")?;
    std::thread::Builder::new().name("primary".into()).spawn(end_with_the_primary)?;
    let Handover { folder, roots, component, digest, format } = match order {
        Order::Watch(handover) => handover,
        Order::Build { folder, watch, format } => {
            logging::speak(format);
            let relay = Relay::start()?;
            let built = build_once(&folder, watch).map_err(|error| format!("{error:#}"));
            drop(relay);
            serde_json::to_writer(io::stdout(), &built)?;
            return Ok(());
        }
    };
    logging::speak(format);
    let _relay = Relay::start()?;
    let mut sources = Sources::below(&folder);
    sources.add(&roots);
    sources.leave_out(&component);
    match watch(&folder, sources, Some(digest))? {}
}

/// Nobody wants the component any more, and half of one is no harm.
fn end_with_the_primary() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    // The whole group, this process included.
    let _ = kill(Pid::from_raw(0), Signal::SIGKILL);
}
