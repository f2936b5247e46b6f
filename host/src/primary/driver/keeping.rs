//! The driver's part in key-value stores: one keeper as long as there are workers that need it, and a connection to it for
//! each of them.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Driver;
use crate::control::protocol::KeeperStatus;
use crate::primary::fleet::keeper::{KeeperNews, KeeperProcess};
use crate::primary::supervisor::{Event, KeeperStep, KeeperWatch};
use crate::wire::channel::IpcError;
use crate::wire::ids::WorkerId;
use crate::wire::messages::{FromKeeper, ToWorker};

/// How long the keeper may take to end once the last worker has. Everything that was answered is on the disk.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// News of keepers that wait for the driver.
const MAX_NEWS: usize = 8;
/// The driver looks several times a second; if it has not, it was stopped itself.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The keeper, and who needs it.
pub(super) struct Keeping {
    watch: KeeperWatch,
    running: Option<RunningKeeper>,
    users: BTreeSet<WorkerId>,
    /// When it was last looked after.
    looked: Duration,
    /// Keepers that were started.
    starts: u64,
    tells: mpsc::Sender<(u64, KeeperNews)>,
    pub(super) told: mpsc::Receiver<(u64, KeeperNews)>,
}

struct RunningKeeper {
    process: Arc<KeeperProcess>,
    listening: AbortHandle,
}

impl Drop for RunningKeeper {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Keeping {
    pub(super) fn new(hang_timeout: Duration) -> Self {
        let (tells, told) = mpsc::channel(MAX_NEWS);
        let watch = KeeperWatch::new(hang_timeout);
        Self { watch, running: None, users: BTreeSet::new(), looked: Duration::ZERO, starts: 0, tells, told }
    }

    /// It hangs if it is silent for so long.
    pub(super) fn hangs_after(&mut self, hang_timeout: Duration) {
        self.watch.hang_timeout = hang_timeout;
    }

    pub(super) fn status(&self) -> Option<KeeperStatus> {
        let pid = self.running.as_ref().map(|running| running.process.child.pid.as_raw());
        (self.starts > 0).then(|| KeeperStatus { pid, restarts: self.starts - 1 })
    }

    /// Starts it. Each has a number, so that news of the one before are not taken for this one's.
    fn start(&mut self) -> std::io::Result<Pid> {
        let process = Arc::new(KeeperProcess::spawn()?);
        self.starts += 1;
        let (number, tells, listened) = (self.starts, self.tells.clone(), process.clone());
        let listening = tokio::spawn(async move {
            loop {
                let news = listened.next().await;
                let is_last = matches!(news, KeeperNews::Ended(_));
                if matches!(news, KeeperNews::Nonsense(_)) {
                    listened.child.signal(Signal::SIGKILL);
                }
                if tells.send((number, news)).await.is_err() || is_last {
                    return;
                }
            }
        });
        let pid = process.child.pid;
        self.running = Some(RunningKeeper { process, listening: listening.abort_handle() });
        Ok(pid)
    }
}

impl Driver<'_> {
    pub(super) fn keeper_deadline(&self) -> Option<Instant> {
        self.keeping.watch.deadline().map(|time| self.started + time)
    }

    /// A worker has something to write, from its start on.
    pub(super) fn keeper_needed(&mut self, worker: WorkerId) {
        if !self.keeping.users.insert(worker) {
            return self.tell(Event::Misbehaved { worker, reason: "asked for the keeper twice".into() });
        }
        self.keeping.watch.needed(self.started.elapsed());
        self.connect_to_keeper(worker);
    }

    /// Called often. After a pause of all processes it is not the keeper that was silent.
    pub(super) fn look_after_keeper(&mut self) {
        let now = self.started.elapsed();
        if now.saturating_sub(self.keeping.looked) > MAX_PAUSE {
            self.keeping.watch.heard(now);
        }
        self.keeping.looked = now;
    }

    pub(super) fn keeper_is_due(&mut self) {
        self.look_after_keeper();
        while let Ok((number, news)) = self.keeping.told.try_recv() {
            self.keeper_told(number, news);
        }
        let now = self.started.elapsed();
        match self.keeping.watch.next(now) {
            None => {}
            Some(KeeperStep::Kill) => {
                let timeout = humantime::format_duration(self.policy().hang_timeout);
                tracing::error!("the keeper of the key-value stores hangs: it was silent for {timeout}, and is killed");
                self.kill_keeper();
            }
            Some(KeeperStep::GiveUp) => self.keeper_is_gone("does not die of SIGKILL: it is blocked in the kernel"),
            Some(KeeperStep::Start) => match self.keeping.start() {
                Ok(pid) => {
                    tracing::debug!(pid = pid.as_raw(), "started the keeper of the key-value stores");
                    self.keeping.watch.started(now);
                    for worker in self.keeping.users.clone() {
                        self.connect_to_keeper(worker);
                    }
                }
                Err(error) => self.keeper_is_gone(&format!("could not be started: {error}")),
            },
        }
    }

    pub(super) fn keeper_told(&mut self, number: u64, news: KeeperNews) {
        // Of one that has been replaced nothing matters any more.
        if number != self.keeping.starts || self.keeping.running.is_none() {
            return;
        }
        match news {
            KeeperNews::Said(FromKeeper::Alive) => self.keeping.watch.heard(self.started.elapsed()),
            KeeperNews::Said(FromKeeper::Trouble { text }) => tracing::error!("{text}"),
            KeeperNews::Nonsense(error) => {
                tracing::error!("the keeper of the key-value stores broke the protocol: {error}")
            }
            KeeperNews::Ended(how) => self.keeper_is_gone(&how),
        }
    }

    fn keeper_is_gone(&mut self, how: &str) {
        self.keeping.running = None;
        let retry_ms = self.keeping.watch.ended(self.started.elapsed()).as_millis() as u64;
        tracing::error!(
            retry_ms,
            "the keeper of the key-value stores {how}; until there is another, they can only be read"
        );
    }

    fn kill_keeper(&self) {
        if let Some(running) = &self.keeping.running {
            running.process.child.signal(Signal::SIGKILL);
        }
    }

    /// What its process left behind in the stores may be cleared.
    pub(super) fn keeper_user_is_gone(&mut self, worker: WorkerId) {
        if self.keeping.users.remove(&worker)
            && let Some(running) = &self.keeping.running
            && let Err(error) = running.process.tell_gone(worker)
        {
            self.keeper_cannot_be_reached(&error);
        }
    }

    fn connect_to_keeper(&mut self, worker: WorkerId) {
        let (Some(running), Some(user)) = (&self.keeping.running, self.workers.get(&worker)) else { return };
        match running.process.serve(worker, user.deployment.file_stores.clone()) {
            Ok(socket) => {
                if let Some(failure) = self.send(worker, &ToWorker::Keeper, &[socket.as_fd()]) {
                    self.tell(failure);
                }
            }
            Err(error) => self.keeper_cannot_be_reached(&error),
        }
    }

    /// One that has just died is about to be noticed.
    fn keeper_cannot_be_reached(&self, error: &IpcError) {
        tracing::debug!("the keeper of the key-value stores cannot be reached: {error}");
        self.kill_keeper();
    }

    /// After the last worker.
    pub(super) async fn end_keeper(&mut self) {
        let Some(running) = self.keeping.running.take() else { return };
        running.listening.abort();
        let process = running.process.clone();
        drop(running);
        process.hang_up();
        if tokio::time::timeout(END_PATIENCE, process.child.end()).await.is_err() {
            process.child.signal(Signal::SIGKILL);
        }
    }
}
