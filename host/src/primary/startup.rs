//! What answers commands and signals until there is a driver: while addresses are bound, a folder is built, and the
//! component is compiled for the first time.

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::desk::admin::Administration;
use super::desk::events::Events;
use super::desk::manager::Manager;
use super::desk::socket::{Query, Refused};
use super::desk::status::of_start;
use super::fleet::output::Output;
use super::signals::{SignalRequest, Signals};
use crate::control::protocol::{Happening, Starting};
use crate::control::sample::Sample;
use crate::os::child::reap_orphans;
use crate::settings::Settings;
use crate::wire::stats::Snapshot;

/// What takes longer than this is told to whoever started the cluster, and how long it takes on a terminal.
const TELL_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Startup<'a> {
    pub(super) signals: Signals,
    pub(super) asked: mpsc::Receiver<Query>,
    pub(super) events: Events,
    output: &'a Output,
    pub(super) listen: Vec<String>,
    pub(super) started: Instant,
    pub(super) manager: Manager,
    pub(super) administration: Administration,
}

impl<'a> Startup<'a> {
    pub(super) fn new(
        signals: Signals,
        asked: mpsc::Receiver<Query>,
        output: &'a Output,
        manager: Manager,
        administration: Administration,
    ) -> Self {
        let (events, listen) = (Events::default(), Vec::new());
        Self { signals, asked, events, output, listen, started: Instant::now(), manager, administration }
    }

    /// Waits for `work`, which `doing` names, and answers meanwhile. `None` if it was told to stop: then the work is dropped.
    pub(super) async fn during<T>(
        &mut self,
        settings: &Settings,
        doing: &str,
        shown: Shown,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<Option<T>> {
        let (mut work, since) = (pin!(work), Instant::now());
        let mut told = ToldProgress(self.output, false);
        let mut due = tokio::time::interval_at((since + TELL_EVERY).into(), TELL_EVERY);
        self.manager.starts(doing);
        self.show(settings, doing, since);
        loop {
            tokio::select! {
                done = &mut work => return done.map(Some),
                _ = due.tick() => {
                    self.manager.starts(doing);
                    self.show(settings, doing, since);
                    if shown == Shown::Here {
                        told.tell(doing, since.elapsed());
                    }
                }
                request = self.signals.next() => match request? {
                    SignalRequest::Stop(_) | SignalRequest::Hangup => return Ok(self.stop()),
                    SignalRequest::LookAfterChildren => reap_orphans(),
                    // The access log is about to be opened, or just was.
                    SignalRequest::ReopenLogs => self.output.reopen(),
                    SignalRequest::Grow | SignalRequest::Shrink | SignalRequest::Reload => {
                        tracing::warn!("ignored a signal: the cluster is still {doing}");
                    }
                },
                Some(query) = self.asked.recv() => {
                    let starting = Starting { doing: doing.into(), for_ms: since.elapsed().as_millis() as u64 };
                    if self.answer(query, settings, starting).is_break() {
                        return Ok(self.stop());
                    }
                }
            }
        }
    }

    /// To whoever asks at the admin address.
    fn show(&mut self, settings: &Settings, doing: &str, since: Instant) {
        self.administration.keep(self.started.elapsed());
        let starting = Starting { doing: doing.into(), for_ms: since.elapsed().as_millis() as u64 };
        let status = of_start(settings, &self.listen, self.started, Some(starting));
        self.administration.show(&Sample { status, generations: Vec::new(), older: Snapshot::default() });
    }

    fn stop<T>(&mut self) -> Option<T> {
        tracing::info!("stopped before serving");
        self.manager.is("stopping", "stopping".into());
        self.events.publish(&Happening::Stopping);
        self.events.publish(&Happening::Stopped { requests_cut: 0 });
        None
    }

    /// Answers a command, which may have given up by now. Breaks off if it is to stop.
    fn answer(&mut self, query: Query, settings: &Settings, starting: Starting) -> std::ops::ControlFlow<()> {
        match query {
            Query::Status(back) => drop(back.send(of_start(settings, &self.listen, self.started, Some(starting)))),
            Query::Config(back) => drop(back.send(settings.cluster.live.entries(&settings.application.values))),
            Query::Events(request, back) => drop(back.send(self.events.subscribe(&request))),
            Query::Stop(_, back) => {
                drop(back.send(Ok(())));
                return std::ops::ControlFlow::Break(());
            }
            Query::Reload(_, back) | Query::Rollback(_, back) => refuse(back, &starting),
            Query::Scale(_, back) => refuse(back, &starting),
            Query::Configure(_, back) | Query::ReadCertificates(_, back) => refuse(back, &starting),
        }
        std::ops::ControlFlow::Continue(())
    }
}

fn refuse<T>(back: oneshot::Sender<Result<T, Refused>>, starting: &Starting) {
    let reason = format!("the cluster is still starting ({}); see `wasmcluster status`", starting.doing);
    let _ = back.send(Err(Refused::Busy(reason)));
}

/// Who tells that a work takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Here,
    /// Tools that write to the same terminal.
    ByItself,
}

/// What was told of a work that takes long.
struct ToldProgress<'a>(&'a Output, bool);

impl ToldProgress<'_> {
    fn tell(&mut self, doing: &str, time: Duration) {
        self.0.progress(doing, time, self.1);
        self.1 = true;
    }
}

impl Drop for ToldProgress<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.end_progress();
        }
    }
}
