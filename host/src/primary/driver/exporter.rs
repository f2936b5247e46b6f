//! The driver's part in traces: a process that takes spans to a collector, kept alive.

use std::time::{Duration, Instant};

use super::Driver;
use crate::control::protocol::ExporterStatus;
use crate::primary::fleet::helper::HelperNews;
use crate::primary::fleet::helping::HelperTurn;
use crate::wire::messages::FromExporter;

/// How long it may take with the last spans.
const END_PATIENCE: Duration = Duration::from_secs(3);

impl Driver<'_> {
    pub(super) fn exporter_deadline(&self) -> Option<Instant> {
        self.exporting.exporter.watch.deadline().map(|time| self.started + time)
    }

    pub(super) fn exporter_is_due(&mut self) {
        self.exporting.exporter.look_after(self.started.elapsed());
        while let Ok((number, news)) = self.exporting.exporter.told.try_recv() {
            self.exporter_told(number, news);
        }
        match self.exporting.turn(self.started.elapsed()) {
            None => {}
            Some(HelperTurn::Hung) => tracing::error!("the exporter of traces hangs, and is killed"),
            Some(HelperTurn::Gone(how)) => self.exporter_is_gone(&how),
            Some(HelperTurn::Started(pid)) => {
                tracing::debug!(pid = pid.as_raw(), "started the exporter of traces");
                self.exporting.start();
            }
        }
    }

    pub(super) fn exporter_told(&mut self, number: u64, news: HelperNews<FromExporter>) {
        // Of one that has been replaced nothing matters any more.
        if !self.exporting.exporter.is_of_this(number) {
            return;
        }
        match news {
            HelperNews::Said(FromExporter::Alive { exported, lost }) => {
                self.exporting.counted(exported, lost);
                self.exporting.exporter.watch.heard(self.started.elapsed());
            }
            HelperNews::Said(FromExporter::Trouble { text }) => tracing::warn!("{text}"),
            HelperNews::Said(FromExporter::Well { text }) => tracing::info!("{text}"),
            HelperNews::Nonsense(error) => tracing::error!("the exporter of traces broke the protocol: {error}"),
            HelperNews::Ended(how) => self.exporter_is_gone(&how),
        }
    }

    fn exporter_is_gone(&mut self, how: &str) {
        let retry_ms = self.exporting.is_gone(self.started.elapsed()).as_millis() as u64;
        tracing::error!(retry_ms, "the exporter of traces {how}; until there is another, spans wait, or are lost");
    }

    pub(super) fn exporter_status(&self) -> Option<ExporterStatus> {
        let (pid, restarts) = self.exporting.exporter.life()?;
        let [exported, lost] = self.exporting.totals();
        Some(ExporterStatus { pid, restarts, exported, lost })
    }

    /// After the last worker.
    pub(super) async fn end_exporter(&mut self) {
        self.exporting.end(END_PATIENCE).await;
    }
}
