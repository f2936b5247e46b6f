//! The guardian: a plain thread that listens to the primary and to SIGTERM, so that a wedged executor can keep the worker
//! neither from hearing its orders nor from ending in time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::logging::Volume;
use crate::os::log_file::LogFile;
use crate::os::signal::divert;
use crate::tls::credentials::Credentials;
use crate::tls::material::Material;
use crate::wire::channel::{Received, Wait};
use crate::wire::messages::{ToPrimary, ToWorker, WorkerEnd};
use crate::wire::revisions::Revision;
use crate::wire::stats::Stats;
use crate::worker::keeper::KeeperLink;
use crate::worker::values::LiveValues;
use crate::worker::{Phase, advance};

/// What a worker without a primary still has for the requests it began.
const LAST_SECOND: Duration = Duration::from_secs(1);
/// How long its last lines of the access log may take, before its primary ends it.
const LAST_LINES: Duration = Duration::from_millis(500);
/// A worker that is told nothing looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// What a terminal sends to everything that was started from it: to be handled by the primary alone.
const OF_THE_TERMINAL: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// Takes SIGTERM from its usual handling, and ignores what terminals send. To be called before there are other threads,
/// which inherit what is blocked.
pub(crate) fn take_signals() -> io::Result<SignalFd> {
    for ignored in OF_THE_TERMINAL {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    divert([Signal::SIGTERM as i32])
}

/// What a revision changes.
#[derive(Clone)]
pub(crate) struct Configurable {
    pub(crate) volume: Volume,
    /// None if no listener speaks TLS.
    pub(crate) tls: Option<Arc<Credentials>>,
    /// Of guests.
    pub(crate) values: Arc<LiveValues>,
    /// Whose other end the primary hands over.
    pub(crate) keeper: Arc<KeeperLink>,
    /// None if nobody asked for it.
    pub(crate) access_log: Option<Arc<LogFile>>,
}

/// The thread's own things.
pub(crate) struct Guardian {
    pub(crate) primary: Arc<WorkerEnd>,
    pub(crate) sigterm: SignalFd,
    pub(crate) phase: Arc<watch::Sender<Phase>>,
    pub(crate) changes: Configurable,
    pub(crate) stats: &'static Stats,
    pub(crate) drain_timeout: Duration,
}

/// What came.
enum FromPrimary {
    /// With what came beside it.
    Order(ToWorker, Vec<OwnedFd>),
    Sigterm,
    Nothing,
    /// The primary is gone, or talks nonsense.
    PrimaryLost,
}

impl Guardian {
    /// Passes orders on to the executor. Ends the process when its drain takes too long, or its primary is gone.
    pub(crate) fn start(self) -> io::Result<()> {
        let span = tracing::Span::current();
        std::thread::Builder::new().name("guardian".into()).spawn(move || {
            let _span = span.enter();
            self.watch();
            if let Some(log) = &self.changes.access_log {
                log.finish(LAST_LINES);
            }
            // Destructors could wait for the executor, and would take the requests that are cut from the stats page, where
            // the primary looks for them.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        })?;
        Ok(())
    }

    fn watch(&self) {
        let mut cut_at = None;
        while cut_at.is_none_or(|at| Instant::now() < at) {
            match self.hear(cut_at) {
                FromPrimary::Order(ToWorker::StartAccepting, _) => advance(&self.phase, Phase::Accepting),
                FromPrimary::Order(ToWorker::Configure, beside) => self.configure(&beside),
                FromPrimary::Order(ToWorker::Keeper, beside) => {
                    beside.into_iter().for_each(|socket| self.changes.keeper.hand(socket));
                }
                FromPrimary::Order(ToWorker::AccessLog, beside) => {
                    if let (Some(log), Some(file)) = (&self.changes.access_log, beside.into_iter().next()) {
                        log.reopen(file);
                    }
                }
                FromPrimary::Order(ToWorker::Drain, _) => {
                    cut_at.get_or_insert(self.drain(self.drain_timeout));
                }
                FromPrimary::Sigterm => {
                    // If the primary is gone, it does not matter what it believes.
                    let _ = self.primary.send(&ToPrimary::Draining, &[]);
                    cut_at.get_or_insert(self.drain(self.drain_timeout));
                }
                FromPrimary::Order(ToWorker::Start { .. }, _) | FromPrimary::Nothing => {}
                FromPrimary::PrimaryLost => {
                    self.drain(LAST_SECOND);
                    return std::thread::sleep(LAST_SECOND);
                }
            }
        }
    }

    /// What cannot be read is not confirmed, and the primary replaces a worker that does not confirm.
    fn configure(&self, beside: &[OwnedFd]) {
        match self.take_over(beside) {
            Ok(revision) => {
                // A primary that does not read it is gone, which is heard next.
                let _ = self.primary.send(&ToPrimary::Configured { revision }, &[]);
            }
            Err(error) => tracing::error!("cannot apply a configuration change: {error:#}"),
        }
    }

    /// Which revision it goes by from now on. The executor does not wait for it: keys are parsed here.
    fn take_over(&self, beside: &[OwnedFd]) -> anyhow::Result<u64> {
        let Revision { number, config } = Revision::read(beside.first().context("it came without a descriptor")?)?;
        let Configurable { volume, tls, values, .. } = &self.changes;
        if let Some(credentials) = tls {
            credentials.replace(&Material::read(beside.get(1).context("it came without certificates")?)?)?;
        }
        volume.set(config.log_level);
        values.change(&config.changed);
        Ok(number)
    }

    /// Begins the drain; when what is left of it is to be cut.
    fn drain(&self, timeout: Duration) -> Instant {
        advance(&self.phase, Phase::Draining);
        Instant::now() + timeout
    }

    fn hear(&self, until: Option<Instant>) -> FromPrimary {
        let wait = until.map_or(LOOK_AGAIN, |until| until.saturating_duration_since(Instant::now()));
        // Rounded up, so that it does not look again and again in the last millisecond.
        let timeout =
            PollTimeout::try_from(wait.min(LOOK_AGAIN) + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut polled = [
            PollFd::new(self.primary.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sigterm.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted poll has told nothing.
        if poll(&mut polled, timeout).is_err() {
            return FromPrimary::Nothing;
        }
        if matches!(self.sigterm.read_signal(), Ok(Some(_))) {
            return FromPrimary::Sigterm;
        }
        match self.primary.receive(Wait::No) {
            Ok(Received::Message(order, beside)) => {
                self.stats.frames.increment();
                FromPrimary::Order(order, beside)
            }
            Ok(Received::Nothing) => FromPrimary::Nothing,
            Ok(Received::Closed) => FromPrimary::PrimaryLost,
            Err(error) => {
                tracing::error!("got an invalid message from the primary: {error}");
                FromPrimary::PrimaryLost
            }
        }
    }
}
