//! The driver's part in key-value stores: one keeper as long as there are workers that need it, and a connection to it for
//! each of them.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Driver;
use crate::control::protocol::KeeperStatus;
use crate::primary::fleet::helper::HelperNews;
use crate::primary::fleet::helping::{HelperTurn, Helping};
use crate::primary::supervisor::Event;
use crate::wire::channel::IpcError;
use crate::wire::ids::WorkerId;
use crate::wire::messages::{FromKeeper, ToKeeper, ToWorker};

/// How long the keeper may take to end once the last worker has. Everything that was answered is on the disk.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The keeper, and who needs it.
pub(super) struct Keeping {
    pub(super) keeper: Helping<ToKeeper, FromKeeper>,
    users: BTreeSet<WorkerId>,
}

impl Keeping {
    pub(super) fn new(hang_timeout: Duration) -> Self {
        Self { keeper: Helping::new("keeper", hang_timeout), users: BTreeSet::new() }
    }

    pub(super) fn status(&self) -> Option<KeeperStatus> {
        self.keeper.life().map(|(pid, restarts)| KeeperStatus { pid, restarts })
    }
}

impl Driver<'_> {
    pub(super) fn keeper_deadline(&self) -> Option<Instant> {
        self.keeping.keeper.watch.deadline().map(|time| self.started + time)
    }

    /// A worker has something to write, from its start on.
    pub(super) fn keeper_needed(&mut self, worker: WorkerId) {
        if !self.keeping.users.insert(worker) {
            return self.tell(Event::Misbehaved { worker, reason: "asked for the keeper twice".into() });
        }
        self.keeping.keeper.watch.needed(self.started.elapsed());
        self.connect_to_keeper(worker);
    }

    pub(super) fn keeper_is_due(&mut self) {
        self.keeping.keeper.look_after(self.started.elapsed());
        while let Ok((number, news)) = self.keeping.keeper.told.try_recv() {
            self.keeper_told(number, news);
        }
        match self.keeping.keeper.turn(self.started.elapsed()) {
            None => {}
            Some(HelperTurn::Hung) => {
                let timeout = humantime::format_duration(self.policy().hang_timeout);
                tracing::error!("the keeper of the key-value stores hangs: it was silent for {timeout}, and is killed");
            }
            Some(HelperTurn::Gone(how)) => self.keeper_is_gone(&how),
            Some(HelperTurn::Started(pid)) => {
                tracing::debug!(pid = pid.as_raw(), "started the keeper of the key-value stores");
                for worker in self.keeping.users.clone() {
                    self.connect_to_keeper(worker);
                }
            }
        }
    }

    pub(super) fn keeper_told(&mut self, number: u64, news: HelperNews<FromKeeper>) {
        // Of one that has been replaced nothing matters any more.
        if !self.keeping.keeper.is_of_this(number) {
            return;
        }
        match news {
            HelperNews::Said(FromKeeper::Alive) => self.keeping.keeper.watch.heard(self.started.elapsed()),
            HelperNews::Said(FromKeeper::Trouble { text }) => tracing::error!("{text}"),
            HelperNews::Nonsense(error) => {
                tracing::error!("the keeper of the key-value stores broke the protocol: {error}")
            }
            HelperNews::Ended(how) => self.keeper_is_gone(&how),
        }
    }

    fn keeper_is_gone(&mut self, how: &str) {
        let retry_ms = self.keeping.keeper.is_gone(self.started.elapsed()).as_millis() as u64;
        tracing::error!(
            retry_ms,
            "the keeper of the key-value stores {how}; until there is another, they can only be read"
        );
    }

    /// What its process left behind in the stores may be cleared.
    pub(super) fn keeper_user_is_gone(&mut self, worker: WorkerId) {
        if self.keeping.users.remove(&worker)
            && let Some(keeper) = self.keeping.keeper.process()
            && let Err(error) = keeper.tell(&ToKeeper::Gone { worker }, &[])
        {
            self.keeper_cannot_be_reached(&error);
        }
    }

    fn connect_to_keeper(&mut self, worker: WorkerId) {
        let (Some(keeper), Some(user)) = (self.keeping.keeper.process(), self.workers.get(&worker)) else { return };
        let connect = || {
            let (ours, theirs) = UnixStream::pair()?;
            let stores = user.deployment.file_stores.clone();
            keeper.tell(&ToKeeper::Serve { worker, stores }, &[ours.as_fd()])?;
            Ok::<_, IpcError>(theirs)
        };
        match connect() {
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
        self.keeping.keeper.kill();
    }

    /// After the last worker.
    pub(super) async fn end_keeper(&mut self) {
        self.keeping.keeper.end(END_PATIENCE).await;
    }
}
