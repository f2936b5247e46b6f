//! The driver's part in the admin address: a process that listens there, and is told how the cluster is, once a second and
//! whenever its state changes.

use std::time::{Duration, Instant};

use super::Driver;
use crate::control::protocol::Happening;
use crate::primary::desk::admin::ToldState;
use crate::primary::fleet::helper::HelperNews;
use crate::primary::fleet::helping::HelperTurn;
use crate::wire::messages::{FromAdmin, ToAdmin};

/// How often there is something new to show.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// When one that did not take a sample is told again.
const RETRY: Duration = Duration::from_millis(100);
/// How long it may take to end: whoever asks has been told that the cluster stops.
const END_PATIENCE: Duration = Duration::from_secs(1);

impl Driver<'_> {
    pub(super) fn admin_deadline(&self) -> Option<Instant> {
        self.administration.server.watch.deadline().map(|time| self.started + time)
    }

    pub(super) fn admin_is_due(&mut self) {
        self.administration.server.look_after(self.started.elapsed());
        while let Ok((number, news)) = self.administration.server.told.try_recv() {
            self.admin_told(number, news);
        }
        match self.administration.server.turn(self.started.elapsed()) {
            None => {}
            Some(HelperTurn::Hung) => tracing::error!("the admin server hangs, and is killed"),
            Some(HelperTurn::Gone(how)) => self.admin_is_gone(&how),
            Some(HelperTurn::Started(pid)) => {
                tracing::debug!(pid = pid.as_raw(), "started the admin server");
                self.administration.start();
                self.show();
            }
        }
    }

    pub(super) fn admin_told(&mut self, number: u64, news: HelperNews<FromAdmin>) {
        // Of one that has been replaced nothing matters any more.
        if !self.administration.server.is_of_this(number) {
            return;
        }
        match news {
            HelperNews::Said(FromAdmin::Alive) => self.administration.server.watch.heard(self.started.elapsed()),
            HelperNews::Said(FromAdmin::Trouble { text }) => tracing::error!("{text}"),
            HelperNews::Nonsense(error) => tracing::error!("the admin server broke the protocol: {error}"),
            HelperNews::Ended(how) => self.admin_is_gone(&how),
        }
    }

    fn admin_is_gone(&mut self, how: &str) {
        let retry_ms = self.administration.server.is_gone(self.started.elapsed()).as_millis() as u64;
        tracing::error!(
            retry_ms,
            "the admin server {how}; until there is another, probes and metrics are not answered"
        );
    }

    /// Tells the admin server how the cluster is, if that is due.
    pub(super) fn show(&mut self) {
        if self.administration.server.process().is_none() {
            return;
        }
        // How many are ready matters at once only where it makes the difference.
        let is_ready = self.supervisor.ready() >= self.administration.ready_min as usize;
        let (now, state) = (Instant::now(), self.state());
        let is_due = self.administration.told.is_none_or(|told| {
            (told.state, told.is_ready) != (state, is_ready) || now.saturating_duration_since(told.at) >= SAMPLE_EVERY
        });
        if self.administration.retry.is_some_and(|at| now < at) || !is_due {
            return;
        }
        let is_taken = self.administration.show(&self.sample());
        self.administration.retry = (!is_taken).then(|| now + RETRY);
        if is_taken {
            self.administration.told = Some(ToldState { at: now, state, is_ready });
        }
    }

    /// Publishes an event: to commands, and to the admin server.
    pub(super) fn publish(&mut self, happening: &Happening) {
        let line = self.events.publish(happening);
        if let Some(process) = self.administration.server.process() {
            let line = String::from_utf8_lossy(&line).into_owned();
            // One that does not read misses it.
            let _ = process.tell(&ToAdmin::Event { line }, &[]);
        }
    }

    /// After the last worker.
    pub(super) async fn end_admin(&mut self) {
        self.administration.server.end(END_PATIENCE).await;
    }
}
