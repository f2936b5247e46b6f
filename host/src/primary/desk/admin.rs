//! The admin server, as the primary has it: what it is given to show.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::control::sample::Sample;
use crate::os::listener::Listener;
use crate::primary::fleet::helping::{HelperTurn, Helping};
use crate::wire::channel::IpcError;
use crate::wire::messages::{FromAdmin, ToAdmin};

/// The admin server, if there is to be one.
pub(crate) struct Administration {
    pub(crate) server: Helping<ToAdmin, FromAdmin>,
    listeners: Vec<Listener>,
    ready_min: u32,
    /// When it was last told how the cluster is, and in which state that was, with how many workers.
    pub(crate) told: Option<(Instant, &'static str, usize)>,
}

impl Administration {
    pub(crate) fn new(ready_min: u32, hang_timeout: Duration) -> Self {
        Self { server: Helping::new("admin", hang_timeout), listeners: Vec::new(), ready_min, told: None }
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

    /// Has it show this from now on.
    pub(crate) fn show(&self, sample: &Sample) {
        let Some(process) = self.server.process() else { return };
        let sent = sample.write().map_err(IpcError::from);
        match sent.and_then(|file| process.tell(&ToAdmin::Sample, &[file.as_fd()])) {
            // One that does not read, or has just died, is about to be noticed.
            Ok(()) | Err(IpcError::Full) => {}
            Err(error) => tracing::debug!("the admin server was not told how the cluster is: {error}"),
        }
    }
}
