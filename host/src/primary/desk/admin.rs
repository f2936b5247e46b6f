//! The admin server, as the primary has it: what it is given to show.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::control::sample::Sample;
use crate::os::listener::Listener;
use crate::primary::fleet::helper::HelperNews;
use crate::primary::fleet::helping::{HelperTurn, Helping};
use crate::wire::channel::IpcError;
use crate::wire::messages::{FromAdmin, ToAdmin};

/// What it was told last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToldState {
    pub(crate) at: Instant,
    pub(crate) state: &'static str,
    /// Enough workers were ready.
    pub(crate) is_ready: bool,
}

/// The admin server, if there is to be one.
pub(crate) struct Administration {
    pub(crate) server: Helping<ToAdmin, FromAdmin>,
    listeners: Vec<Listener>,
    pub(crate) ready_min: u32,
    pub(crate) told: Option<ToldState>,
    /// When it is told again what it did not take.
    pub(crate) retry: Option<Instant>,
}

impl Administration {
    pub(crate) fn new(ready_min: u32, hang_timeout: Duration) -> Self {
        Self { server: Helping::new("admin", hang_timeout), listeners: Vec::new(), ready_min, told: None, retry: None }
    }

    /// Begins to listen there: before there is a driver, so that probes are answered while the cluster starts.
    pub(crate) fn begin(&mut self, listeners: Vec<Listener>) {
        if !listeners.is_empty() {
            self.listeners = listeners;
            self.server.watch.needed(Duration::ZERO);
            if let Some(HelperTurn::Started(_)) = self.server.turn(Duration::ZERO) {
                self.start();
            }
        }
    }

    /// Tells a new process what it is to do.
    pub(crate) fn start(&mut self) {
        let sockets: Vec<BorrowedFd<'_>> = self.listeners.iter().map(AsFd::as_fd).collect();
        let start = ToAdmin::Start { ready_min: self.ready_min };
        if self.server.process().is_some_and(|process| process.tell(&start, &sockets).is_err()) {
            self.server.kill();
        }
        self.told = None;
    }

    /// Has it show this from now on. Whether it has taken it.
    pub(crate) fn show(&self, sample: &Sample) -> bool {
        let Some(process) = self.server.process() else { return true };
        let sent = sample.write().map_err(IpcError::from);
        match sent.and_then(|file| process.tell(&ToAdmin::Sample, &[file.as_fd()])) {
            Ok(()) => true,
            Err(IpcError::Full) => false,
            // One that has just died is about to be noticed.
            Err(error) => {
                tracing::debug!("the admin server was not told how the cluster is: {error}");
                true
            }
        }
    }

    /// Before there is a driver: another is started if it has died.
    pub(crate) fn keep(&mut self, now: Duration) {
        while let Ok((number, news)) = self.server.told.try_recv() {
            match news {
                HelperNews::Ended(how) if self.server.is_of_this(number) => {
                    tracing::error!("the admin server {how}");
                    self.server.is_gone(now);
                }
                _ => self.server.watch.heard(now),
            }
        }
        match self.server.turn(now) {
            Some(HelperTurn::Started(_)) => self.start(),
            Some(HelperTurn::Gone(how)) => {
                tracing::error!("the admin server {how}");
                self.server.is_gone(now);
            }
            Some(HelperTurn::Hung) | None => {}
        }
    }
}
