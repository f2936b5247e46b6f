//! The admin server: a process of its own that shows what the primary publishes, to probes, to Prometheus and to people.
//!
//! The primary hands over samples and events, and asks it nothing; whatever comes in at the admin address stays here.

mod metrics;
mod server;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};

use crate::control::sample::Sample;
use crate::os::signal::ignore;
use crate::wire::channel::{self, Channel, IpcError, bounded};
use crate::wire::messages::{FromAdmin, ToAdmin};

/// How often it says that it is at work.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// Events that a reader may leave unread.
const MAX_UNREAD: usize = 1024;
/// A sample that is older tells nothing of now.
const FRESH: Duration = Duration::from_secs(5);
/// The primary lets it end.
const IGNORED: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1];

type AdminEnd = Channel<FromAdmin, ToAdmin>;

/// What there is to show.
#[derive(Clone)]
struct Board {
    ready_min: u32,
    latest: watch::Receiver<Option<Arc<Latest>>>,
    events: broadcast::Sender<Arc<str>>,
}

/// A sample, and since when there is no newer one.
struct Latest {
    sample: Sample,
    since: Instant,
    /// What was made of it, once for all who ask.
    status: OnceLock<Bytes>,
    metrics: [OnceLock<Bytes>; 2],
}

impl Latest {
    fn new(sample: Sample) -> Self {
        Self { sample, since: Instant::now(), status: OnceLock::new(), metrics: Default::default() }
    }

    fn status(&self) -> Bytes {
        let status =
            || serde_json::to_string(&self.sample.status).map_or_else(|_| Bytes::new(), |it| format!("{it}\n").into());
        self.status.get_or_init(status).clone()
    }

    fn metrics(&self, format: metrics::Format) -> Bytes {
        self.metrics[format as usize].get_or_init(|| metrics::render(&self.sample, format).into()).clone()
    }
}

/// Whether traffic may be sent here, and why, or why not.
#[derive(Debug, PartialEq, Eq)]
struct Readiness {
    is_ready: bool,
    reason: String,
}

impl Board {
    /// What there is now, unless it is old.
    fn fresh(&self) -> Option<Arc<Latest>> {
        self.latest.borrow().clone().filter(|latest| latest.since.elapsed() < FRESH)
    }

    fn readiness(&self) -> Readiness {
        let Some(latest) = self.fresh() else {
            return Readiness { is_ready: false, reason: "nothing was heard of the cluster for 5 s".into() };
        };
        readiness(&latest.sample.status.state, latest.sample.ready() as u32, self.ready_min)
    }
}

fn readiness(state: &str, ready: u32, ready_min: u32) -> Readiness {
    let workers = if ready == 1 { "1 worker is ready".into() } else { format!("{ready} workers are ready") };
    let (is_ready, reason) = match state {
        "starting" | "stopping" => (false, format!("the cluster is {state}")),
        _ if ready < ready_min => (false, format!("{workers}, of at least {ready_min}")),
        _ => (true, workers),
    };
    Readiness { is_ready, reason }
}

/// The process: its channel to the primary is its standard input.
pub(crate) fn admin_main() -> anyhow::Result<()> {
    for signal in IGNORED {
        ignore(signal as i32)?;
    }
    let primary = AdminEnd::from(io::stdin().as_fd().try_clone_to_owned()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { run(primary.into_async()?).await })
}

async fn run(primary: AsyncFd<AdminEnd>) -> anyhow::Result<()> {
    let Some((ToAdmin::Start { ready_min }, listeners)) = channel::next(&primary).await? else {
        bail!("this command is started by wasmcluster itself");
    };
    let (show, latest) = watch::channel(None);
    let (events, _) = broadcast::channel(MAX_UNREAD);
    let board = Board { ready_min, latest, events: events.clone() };
    let serving: Vec<_> = listeners.into_iter().map(|listener| server::serve(listener, board.clone())).collect();
    let mut serving = serving.into_iter().collect::<io::Result<tokio::task::JoinSet<()>>>()?;
    let mut turns = tokio::time::interval(ALIVE_EVERY);
    loop {
        tokio::select! {
            received = channel::next(&primary) => match received {
                // There was no descriptor left for what came with it: the next one comes in a second.
                Err(IpcError::Truncated) => {}
                Err(error) => return Err(error.into()),
                Ok(Some((ToAdmin::Sample, beside))) => match read(&beside) {
                    Ok(sample) => drop(show.send(Some(Arc::new(Latest::new(sample))))),
                    Err(error) => {
                        let text = bounded(format!("the admin server cannot read what it is to show: {error:#}"));
                        let _ = primary.get_ref().send(&FromAdmin::Trouble { text }, &[]);
                    }
                },
                // Nobody listens, as a rule.
                Ok(Some((ToAdmin::Event { line }, _))) => drop(events.send(line.into())),
                Ok(Some((ToAdmin::Start { .. }, _))) => bail!("it was started twice"),
                Ok(None) => return Ok(()),
            },
            _ = turns.tick() => {
                // A primary that takes nothing now is told again.
                let _ = primary.get_ref().send(&FromAdmin::Alive, &[]);
            }
            Some(ended) = serving.join_next() => ended.context("it stopped listening")?,
        }
    }
}

fn read(beside: &[OwnedFd]) -> anyhow::Result<Sample> {
    Ok(Sample::read(beside.first().context("it came without a file")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_ready_while_enough_workers_are() {
        let check = |state: &str, ready, ready_min, is_ready, reason: &str| {
            assert_eq!(readiness(state, ready, ready_min), Readiness { is_ready, reason: reason.into() });
        };
        check("running", 2, 1, true, "2 workers are ready");
        check("reloading", 1, 1, true, "1 worker is ready");
        check("degraded", 1, 2, false, "1 worker is ready, of at least 2");
        check("running", 0, 1, false, "0 workers are ready, of at least 1");
        check("starting", 2, 1, false, "the cluster is starting");
        check("stopping", 2, 1, false, "the cluster is stopping");
    }
}
