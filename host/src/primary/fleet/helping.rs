//! One helper process, kept alive: what there is of the keeper and of the admin server alike.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::helper::{HelperNews, HelperProcess};
use crate::primary::supervisor::{HelperStep, HelperWatch};
use crate::wire::channel::Message;

/// News of helpers that wait for the driver.
const MAX_NEWS: usize = 8;
/// The driver looks several times a second; if it has not, it was stopped itself.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A helper that is told `T` and tells `F`.
pub(crate) struct Helping<T, F> {
    role: &'static str,
    pub(crate) watch: HelperWatch,
    running: Option<RunningHelper<T, F>>,
    /// When it was last looked after.
    looked: Duration,
    /// How many were started.
    starts: u64,
    tells: mpsc::Sender<(u64, HelperNews<F>)>,
    pub(crate) told: mpsc::Receiver<(u64, HelperNews<F>)>,
}

struct RunningHelper<T, F> {
    process: Arc<HelperProcess<T, F>>,
    listening: AbortHandle,
}

impl<T, F> Drop for RunningHelper<T, F> {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl<T, F> Helping<T, F>
where
    T: Message + Serialize + 'static,
    F: Message + Send + 'static,
{
    pub(crate) fn new(role: &'static str, hang_timeout: Duration) -> Self {
        let (tells, told) = mpsc::channel(MAX_NEWS);
        let watch = HelperWatch::new(hang_timeout);
        Self { role, watch, running: None, looked: Duration::ZERO, starts: 0, tells, told }
    }

    pub(crate) fn process(&self) -> Option<&HelperProcess<T, F>> {
        self.running.as_ref().map(|running| &*running.process)
    }

    /// Its process, and how often it was replaced; none if there never was one.
    pub(crate) fn life(&self) -> Option<(Option<i32>, u64)> {
        let pid = self.process().map(|process| process.child.pid.as_raw());
        (self.starts > 0).then(|| (pid, self.starts - 1))
    }

    /// Starts it. Each has a number, so that news of the one before are not taken for this one's.
    fn start(&mut self) -> io::Result<Pid> {
        let process = Arc::new(HelperProcess::<T, F>::spawn(self.role)?);
        self.starts += 1;
        let (number, tells, listened) = (self.starts, self.tells.clone(), process.clone());
        let listening = tokio::spawn(async move {
            loop {
                let news = listened.next().await;
                let is_last = matches!(news, HelperNews::Ended(_));
                if matches!(news, HelperNews::Nonsense(_)) {
                    listened.child.signal(Signal::SIGKILL);
                }
                if tells.send((number, news)).await.is_err() || is_last {
                    return;
                }
            }
        });
        let pid = process.child.pid;
        self.running = Some(RunningHelper { process, listening: listening.abort_handle() });
        Ok(pid)
    }

    /// Called often. After a pause of all processes it is not the helper that was silent.
    pub(crate) fn look_after(&mut self, now: Duration) {
        if now.saturating_sub(self.looked) > MAX_PAUSE {
            self.watch.heard(now);
        }
        self.looked = now;
    }

    /// Whether the news are of the one that runs.
    pub(crate) fn is_of_this(&self, number: u64) -> bool {
        number == self.starts && self.running.is_some()
    }

    /// Does what is due. A new process has yet to be told what it is to do; how one is gone is for the caller.
    pub(crate) fn turn(&mut self, now: Duration) -> Option<HelperTurn> {
        match self.watch.next(now)? {
            HelperStep::Kill => {
                self.kill();
                Some(HelperTurn::Hung)
            }
            HelperStep::GiveUp => Some(HelperTurn::Gone("does not die of SIGKILL: it is blocked in the kernel".into())),
            HelperStep::Start => match self.start() {
                Ok(pid) => {
                    self.watch.started(now);
                    Some(HelperTurn::Started(pid))
                }
                Err(error) => Some(HelperTurn::Gone(format!("could not be started: {error}"))),
            },
        }
    }

    /// In how much time there is another.
    pub(crate) fn is_gone(&mut self, now: Duration) -> Duration {
        self.running = None;
        self.watch.ended(now)
    }

    pub(crate) fn kill(&self) {
        if let Some(process) = self.process() {
            process.child.signal(Signal::SIGKILL);
        }
    }

    /// Lets it end, and ends it if that takes too long.
    pub(crate) async fn end(&mut self, patience: Duration) {
        let Some(running) = self.running.take() else { return };
        running.listening.abort();
        let process = running.process.clone();
        drop(running);
        process.hang_up();
        if tokio::time::timeout(patience, process.child.end()).await.is_err() {
            process.child.signal(Signal::SIGKILL);
        }
    }
}

/// What became of a helper.
pub(crate) enum HelperTurn {
    Started(Pid),
    /// It was silent for too long, and is killed.
    Hung,
    /// How it is gone.
    Gone(String),
}
