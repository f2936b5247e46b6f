//! The driver: turns what happens into events for the supervisor, and the supervisor's actions into system calls.
//! `select!` only learns what happened; everything is decided and done in plain functions after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::future;
use std::io;
use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::deploy::access_log::AccessLogFile;
use super::deploy::certificates::{CertifiedSets, FilesRead};
use super::deploy::change::{Answered, Change, Follower, Settled, Wanted};
use super::deploy::generations::Generations;
use super::deploy::saver::{Saved, Saver};
use super::deploy::watch::{FollowedImage, Watch, Watched};
use super::desk::admin::Administration;
use super::desk::events::Events;
use super::desk::exporter::Exporting;
use super::desk::ledger::Ledger;
use super::desk::manager::Manager;
use super::desk::socket::{Query, Refusable, Refused};
use super::fleet::builder::Builder;
use super::fleet::helper::HelperNews;
use super::fleet::output::Output;
use super::fleet::process::{Deployment, WorkerProcess};
use super::signals::{SignalRequest, Signals};
use super::supervisor::{
    Action, Answers, Degradation, Ending, Event, Haste, Report, Supervisor, Vitals, Why, WorkerState,
};
use crate::control::protocol::{Empty, Happening, ReloadRequest, ReloadResult, Scale, Scaled};
use crate::logging::Volume;
use crate::os::child::reap_orphans;
use crate::os::listener::Listener;
use crate::settings::{Changes, LiveConfig, MAX_WORKERS, Policy, Settings, SettingsSources};
use crate::tls::certificates::Certificates;
use crate::wire::channel::IpcError;
use crate::wire::counter::Counter;
use crate::wire::ids::{Generation, RequestId, Slot, WorkerId};
use crate::wire::messages::{FromAdmin, FromExporter, FromKeeper, Identity, Inherited, ToPrimary, ToWorker};
use crate::wire::revisions::Revision;

mod admin;
mod certificates;
mod deploying;
mod exporter;
mod keeping;
mod status;

use certificates::Askers;
use keeping::Keeping;

/// How often the workers are looked at within the hang timeout.
const READS_PER_HANG_TIMEOUT: u32 = 40;
/// The errors of a new version are seen within this.
const LONGEST_BETWEEN_READS: Duration = Duration::from_millis(250);
/// Messages of workers, and questions of commands, that wait for the driver.
pub(super) const MAX_QUEUED: usize = 64;
/// How long a worker may take to confirm a change of the configuration. Then it is killed: all workers have it, or none.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(3);
/// Messages of a worker that are still heard after its end.
const MAX_LAST_WORDS: usize = 64;
/// Requests that a worker took along and that a log line names.
const MAX_NAMED: usize = 16;

/// A worker process as the driver knows it.
struct Running {
    process: Arc<WorkerProcess>,
    generation: Generation,
    /// Also if its generation is forgotten while it drains.
    deployment: Rc<Deployment>,
    since: Instant,
    listening: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Something the driver learned.
enum News {
    Heard(WorkerId, Heard),
    BuilderEnded(String),
    Signal(SignalRequest),
    DeadlinePassed,
    ObservationDue,
    Asked(Query),
    Prepared(Answered),
    PreparationIsLate,
    ConfirmationIsLate,
    Saved(Saved),
    SavingIsLate,
    SpawnDue,
    FileChanged(Watched),
    CertificatesRead(Vec<FilesRead>),
    CertificatesDue,
    Keeper(u64, HelperNews<FromKeeper>),
    KeeperDue,
    Admin(u64, HelperNews<FromAdmin>),
    AdminDue,
    Exporter(u64, HelperNews<FromExporter>),
    ExporterDue,
    AccessLogOpened(io::Result<File>),
}

/// What came of a worker.
enum Heard {
    Said(ToPrimary),
    /// It broke the protocol.
    Nonsense(IpcError),
    /// It has closed its channel.
    HungUp,
    /// The process has ended; how.
    Ended(String),
}

/// A change of the configuration that not every worker has confirmed.
struct Reconfiguration {
    revision: u64,
    missing: BTreeSet<WorkerId>,
    /// When those that are missing are killed; None if they were.
    deadline: Option<Instant>,
    done: oneshot::Sender<Refusable<()>>,
}

pub(super) struct Driver<'a> {
    /// Of the start. Those of what is served are with its generation.
    settings: &'a Settings,
    sources: SettingsSources,
    generations: Generations,
    /// Empty once the cluster stops.
    listeners: Vec<Listener>,
    urls: Vec<String>,
    output: &'a Output,
    volume: Volume,
    live: Revision,
    /// The same as workers are given it.
    live_file: OwnedFd,
    reconfigurations: Vec<Reconfiguration>,
    /// Empty if no listener speaks TLS.
    certified: CertifiedSets,
    askers: Askers,
    /// Where certificates come in that were read again.
    reads: mpsc::Sender<Vec<FilesRead>>,
    read: mpsc::Receiver<Vec<FilesRead>>,
    /// When the primary began, as `status` shows it.
    up_since: Instant,
    /// When it began to supervise: the zero of the supervisor's time.
    started: Instant,
    supervisor: Supervisor,
    workers: BTreeMap<WorkerId, Running>,
    /// Workers that are yet to be started: one a turn, as that takes milliseconds, and there may be hundreds.
    to_spawn: VecDeque<(WorkerId, Slot, Generation)>,
    /// Where the workers' messages come together.
    hears: mpsc::Sender<(WorkerId, Heard)>,
    heard: mpsc::Receiver<(WorkerId, Heard)>,
    events: Events,
    ledger: Ledger,
    /// The requests that the worker whose end is being told took along.
    lost_requests: Vec<RequestId>,
    /// What the worker that ends ran.
    ended_generation: Option<Generation>,
    change: Option<Change>,
    /// What is to be reloaded as soon as that is possible.
    file_changed: Option<Watched>,
    settled: Vec<Settled>,
    /// How many generations were prepared, or tried to be.
    preparations: u64,
    /// Where comes in what they are made of.
    answers: mpsc::Sender<Answered>,
    answered: mpsc::Receiver<Answered>,
    /// None if no state is kept.
    saver: Option<Saver>,
    saved: mpsc::Receiver<Saved>,
    /// What is committed is not written down, which was said.
    is_unsaved: bool,
    outcome: Option<Ending>,
    builder: Option<Builder>,
    keeping: Keeping,
    administration: Administration,
    exporting: Exporting,
    /// None if nobody asked for it.
    access_log: Option<AccessLogFile>,
    /// What `--watch` knows of a component in a registry.
    followed: FollowedImage,
}

impl<'a> Driver<'a> {
    #[expect(clippy::too_many_arguments, reason = "called once, with all that the start has made")]
    pub(super) fn new(
        settings: &'a Settings,
        sources: SettingsSources,
        generations: Generations,
        listeners: Vec<Listener>,
        certificates: Option<Certificates>,
        output: &'a Output,
        volume: Volume,
        builder: Option<Builder>,
        events: Events,
        up_since: Instant,
        administration: Administration,
        access_log: Option<AccessLogFile>,
        followed: FollowedImage,
    ) -> anyhow::Result<Self> {
        // The thread does not wait for the driver at the end.
        let (saves, saved) = mpsc::channel(2);
        let saver =
            settings.cluster.state_dir.clone().map(|folder| Saver::start(folder, settings.cluster.name.clone(), saves));
        let (hears, heard) = mpsc::channel(MAX_QUEUED);
        let (answers, answered) = mpsc::channel(MAX_QUEUED);
        // One is read at a time.
        let (reads, read) = mpsc::channel(1);
        let mut certified = CertifiedSets::default();
        if let Some((files, read)) = settings.application.tls.clone().zip(certificates) {
            certified.add(files, read, Duration::ZERO)?;
        }
        let (first, _) = generations.current();
        let policy = settings.application.policy;
        let live = Revision { number: 0, config: settings.cluster.live.clone() };
        Ok(Self {
            settings,
            sources,
            generations,
            urls: listeners.iter().map(|listener| listener.url().to_owned()).collect(),
            listeners,
            output,
            volume,
            live_file: live.write()?,
            live,
            reconfigurations: Vec::new(),
            certified,
            askers: Askers::default(),
            reads,
            read,
            up_since,
            started: Instant::now(),
            supervisor: Supervisor::new(settings.cluster.workers, first, policy, fastrand::u64(..)),
            workers: BTreeMap::new(),
            to_spawn: VecDeque::new(),
            hears,
            heard,
            events,
            ledger: Ledger::default(),
            lost_requests: Vec::new(),
            ended_generation: None,
            change: None,
            file_changed: None,
            settled: Vec::new(),
            preparations: 0,
            answers,
            answered,
            saver: saver.transpose()?,
            saved,
            is_unsaved: false,
            outcome: None,
            builder,
            keeping: Keeping::new(policy.hang_timeout),
            administration,
            exporting: Exporting::new(settings.cluster.otlp.as_ref(), &settings.cluster.name, policy.hang_timeout)?,
            access_log,
            followed,
        })
    }

    pub(super) async fn run(
        mut self,
        mut signals: Signals,
        mut asked: mpsc::Receiver<Query>,
        mut watch: Watch,
        mut manager: Manager,
    ) -> anyhow::Result<()> {
        let mut observations = tokio::time::interval(self.read_every());
        observations.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first = self.supervisor.start();
        self.carry_out(first);
        loop {
            match self.outcome.take() {
                Some(Ending::Stopped) => {
                    self.end_keeper().await;
                    self.finish_saving();
                    self.end_exporter().await;
                    self.tell_stopped();
                    self.end_admin().await;
                    return Ok(());
                }
                Some(Ending::BootFailed(reason)) => {
                    return Err(anyhow!("cannot serve {}: {reason}", self.settings.app));
                }
                None => {}
            }
            let preparation_deadline = self.preparation_deadline();
            let saving_deadline = self.saving_deadline();
            let confirmation_deadline = self.reconfigurations.iter().filter_map(|change| change.deadline).min();
            let certificates_deadline = self.certificates_deadline();
            let keeper_deadline = self.keeper_deadline();
            let admin_deadline = self.admin_deadline();
            let exporter_deadline = self.exporter_deadline();
            let has_to_spawn = !self.to_spawn.is_empty();
            let news = tokio::select! {
                Some((worker, heard)) = self.heard.recv() => News::Heard(worker, heard),
                how = builder_ended(self.builder.as_ref()) => News::BuilderEnded(how),
                request = signals.next() => News::Signal(request?),
                () = at(self.supervisor.next_deadline().map(|time| self.started + time)) => News::DeadlinePassed,
                _ = observations.tick() => News::ObservationDue,
                Some(query) = asked.recv() => News::Asked(query),
                Some(answer) = self.answered.recv() => News::Prepared(answer),
                () = at(preparation_deadline) => News::PreparationIsLate,
                () = at(confirmation_deadline) => News::ConfirmationIsLate,
                Some(saved) = self.saved.recv() => News::Saved(saved),
                () = at(saving_deadline) => News::SavingIsLate,
                what = watch.changed() => News::FileChanged(what),
                Some(read) = self.read.recv() => News::CertificatesRead(read),
                () = at(certificates_deadline) => News::CertificatesDue,
                Some((number, news)) = self.keeping.keeper.told.recv() => News::Keeper(number, news),
                () = at(keeper_deadline) => News::KeeperDue,
                Some((number, news)) = self.administration.server.told.recv() => News::Admin(number, news),
                () = at(admin_deadline) => News::AdminDue,
                Some((number, news)) = self.exporting.exporter.told.recv() => News::Exporter(number, news),
                () = at(exporter_deadline) => News::ExporterDue,
                opened = opened_again(self.access_log.as_mut()) => News::AccessLogOpened(opened),
                () = tokio::task::yield_now(), if has_to_spawn => News::SpawnDue,
            };
            match news {
                News::ObservationDue => manager.turns(),
                News::Signal(SignalRequest::Reload) => manager.asks_for_reload(),
                _ => {}
            }
            if matches!(
                news,
                News::DeadlinePassed | News::ConfirmationIsLate | News::KeeperDue | News::AdminDue | News::ExporterDue
            ) {
                self.hear_what_has_arrived().await;
            }
            self.take(news);
            if let Some(what) = self.file_changed
                && self.expect_calm().is_ok()
            {
                self.file_changed = None;
                self.reload_changed(what);
            }
            self.show();
            if manager.is_there() {
                let Policy { shutdown_delay, shutdown_timeout, .. } = *self.policy();
                manager.longest_stop = shutdown_delay.saturating_add(shutdown_timeout);
                manager.is(self.state(), self.in_words());
            }
        }
    }

    /// Before somebody is blamed for being late: the primary itself may be, as after a pause of all processes.
    async fn hear_what_has_arrived(&mut self) {
        for _ in 0..MAX_WORKERS {
            // Lets the executor look at descriptors, then the tasks that read them.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let mut is_silent = true;
            while let Ok((worker, heard)) = self.heard.try_recv() {
                is_silent = false;
                self.hear(worker, heard);
            }
            if is_silent {
                return;
            }
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Heard(worker, heard) => self.hear(worker, heard),
            News::BuilderEnded(how) => {
                if let Some(builder) = self.builder.take() {
                    builder.ended(&how);
                }
            }
            News::Signal(SignalRequest::LookAfterChildren) => reap_orphans(),
            News::Signal(SignalRequest::Stop(haste)) => self.stop(haste),
            News::Signal(SignalRequest::Hangup) if self.supervisor.is_about_to_stop() => {}
            News::Signal(SignalRequest::Hangup) => self.stop(Haste::Drain),
            News::Signal(SignalRequest::Reload) => {
                self.reload_unasked("a signal", ReloadRequest::default(), Wanted::Always);
                self.read_certificates(Follower::default());
            }
            // Not to be forgotten if a reload is under way.
            News::FileChanged(what) => self.file_changed = self.file_changed.max(Some(what)),
            News::Prepared(answer) => self.prepared(answer),
            News::PreparationIsLate => {
                let reason = "it did not compile in time, or the component or its settings could not be had in time";
                self.end_change(ReloadResult::TimedOut, Some(reason.into()));
            }
            News::ConfirmationIsLate => self.replace_unconfirmed(),
            News::Saved(saved) => self.saved(saved),
            News::SavingIsLate => self.saving_is_late(),
            News::CertificatesRead(read) => self.certificates_read(read),
            News::CertificatesDue => self.look_after_certificates(),
            News::Keeper(number, news) => self.keeper_told(number, news),
            News::KeeperDue => self.keeper_is_due(),
            News::Admin(number, news) => self.admin_told(number, news),
            News::AdminDue => self.admin_is_due(),
            News::Exporter(number, news) => self.exporter_told(number, news),
            News::ExporterDue => self.exporter_is_due(),
            News::AccessLogOpened(opened) => self.access_log_opened(opened),
            News::Signal(SignalRequest::ReopenLogs) => {
                self.output.reopen();
                if let Some(log) = &self.access_log {
                    log.reopen();
                }
            }
            News::SpawnDue => self.spawn_next(),
            News::Signal(SignalRequest::Grow) => self.scale_by_signal(1),
            News::Signal(SignalRequest::Shrink) => self.scale_by_signal(-1),
            News::DeadlinePassed => self.tell(Event::DeadlinePassed),
            News::ObservationDue => {
                reap_orphans();
                self.keeping.keeper.look_after(self.started.elapsed());
                self.administration.server.look_after(self.started.elapsed());
                self.exporting.exporter.look_after(self.started.elapsed());
                self.observe();
            }
            News::Asked(query) => self.answer(query),
        }
    }

    /// What the generation that is served goes by.
    fn policy(&self) -> &Policy {
        &self.generations.current().1.application.policy
    }

    /// Errors are weighed as often, however long a worker may hang.
    fn read_every(&self) -> Duration {
        (self.settings.application.policy.hang_timeout / READS_PER_HANG_TIMEOUT).min(LONGEST_BETWEEN_READS)
    }

    fn observe(&mut self) {
        let vitals = self.workers.iter().map(|(&id, running)| (id, self.vitals(running))).collect();
        self.tell(Event::Observed(vitals));
    }

    fn vitals(&self, running: &Running) -> Vitals {
        let process = &running.process;
        Vitals {
            heartbeats: process.stats.heartbeats.get(),
            requests: process.stats.requests.get(),
            in_flight: process.stats.in_flight.get(),
            answers: Answers { all: process.stats.guest_answers.get(), errors: process.stats.guest_errors.get() },
            // Not read for nothing.
            rss: self.policy().recycle.max_rss.map_or(0, |_| process.rss()),
        }
    }

    fn hear(&mut self, worker: WorkerId, heard: Heard) {
        let said = match heard {
            Heard::Said(said) => said,
            Heard::Nonsense(error) => {
                return self.tell(Event::Misbehaved { worker, reason: format!("broke the protocol: {error}") });
            }
            Heard::HungUp => return self.tell(Event::HungUp { worker }),
            Heard::Ended(how) => return self.worker_ended(worker, how),
        };
        self.tell(match said {
            ToPrimary::Ready => Event::BecameReady { worker },
            ToPrimary::Healthy => Event::ProvedHealthy { worker },
            ToPrimary::Unhealthy { reason } => Event::BecameUnhealthy { worker, reason },
            ToPrimary::Accepting => Event::BeganAccepting { worker },
            ToPrimary::Draining => Event::BeganDraining { worker },
            ToPrimary::LoadFailed { reason } => Event::LoadFailed { worker, reason },
            ToPrimary::NeedsKeeper => return self.keeper_needed(worker),
            ToPrimary::Configured { revision } => return self.confirmed(worker, |expected| expected <= revision),
        });
    }

    /// Answers a command, which may have given up by now.
    fn answer(&mut self, query: Query) {
        match query {
            Query::Status(back) => drop(back.send(self.sample().status)),
            Query::Config(back) => {
                let values = &self.generations.current().1.application.values;
                drop(back.send(self.live.config.entries(values)));
            }
            Query::Events(request, back) => drop(back.send(self.events.subscribe(&request))),
            Query::Reload(request, back) => drop(back.send(self.reload(request))),
            Query::Rollback(request, back) => drop(back.send(self.rollback(request))),
            Query::Scale(scale, back) => drop(back.send(self.scale(scale))),
            Query::Stop(stop, back) => {
                // Said twice, the command does not mean haste, as a second signal does.
                if stop.now || !self.supervisor.is_about_to_stop() {
                    self.stop(if stop.now { Haste::Now } else { Haste::Drain });
                }
                drop(back.send(Ok(())));
            }
            Query::Configure(entries, back) => self.configure(&entries, back),
            Query::ReadCertificates(Empty {}, back) => self.refresh_certificates(back),
        }
    }

    fn stop(&mut self, haste: Haste) {
        // The numbers are the workers' own: they may be any.
        let in_flight = self.workers.values().map(|running| running.process.stats.in_flight.get());
        let active = in_flight.fold(0, u64::saturating_add);
        match haste {
            // Whoever kills before that cuts without a word.
            Haste::Drain if active > 0 => {
                let time = humantime::format_duration(self.policy().shutdown_timeout);
                tracing::info!(
                    "stopping; {} to finish within --shutdown-timeout {time}",
                    requests(active, "has", "have")
                );
            }
            Haste::Drain | Haste::Now => tracing::info!("stopping"),
        }
        self.publish(&Happening::Stopping);
        self.end_change(ReloadResult::Failed, Some("the cluster is stopping".into()));
        self.tell(Event::ShutdownRequested(haste));
    }

    fn tell_stopped(&mut self) {
        let stuck: Vec<String> = self.workers.values().map(|running| running.process.pid().to_string()).collect();
        if !stuck.is_empty() {
            tracing::warn!(
                "SIGKILL did not end some workers, which are left behind: process {}. They hold their memory and the \
                 cluster's addresses until the kernel ends them",
                stuck.join(", process ")
            );
        }
        match self.ledger.cut() {
            0 => tracing::info!("stopped"),
            cut => tracing::warn!("stopped; {} cut", requests(cut, "was", "were")),
        }
        self.publish(&Happening::Stopped { requests_cut: self.ledger.cut() });
    }

    fn scale_by_signal(&mut self, by: i32) {
        if let Err(refused) = self.scale(Scale::By(by)) {
            tracing::warn!("a signal asked for {by:+} workers, but {}", refused.reason());
        }
    }

    fn scale(&mut self, scale: Scale) -> Refusable<Scaled> {
        let from = self.supervisor.slots();
        let to = match scale {
            Scale::Workers(workers) => i64::from(workers.get()),
            Scale::By(by) => i64::from(from) + i64::from(by),
        };
        if to < 1 {
            let running = if from == 1 { "1 worker is".into() } else { format!("{from} workers are") };
            return Err(format!("{running} running, and a cluster has at least one worker").into());
        }
        let Some(to) = u32::try_from(to).ok().filter(|&to| to <= MAX_WORKERS) else {
            let reason = format!("{to} workers are over the limit of {MAX_WORKERS}");
            return Err(match scale {
                Scale::Workers(_) => Refused::Wrong(reason),
                Scale::By(_) => Refused::Impossible(reason),
            });
        };
        self.expect_calm()?;
        self.end_dry_run();
        tracing::info!(from, to, "scaling");
        self.publish(&Happening::Scaling { from, to });
        self.tell(Event::ScaleRequested { slots: to });
        Ok(Scaled { from, to })
    }

    /// One change at a time.
    fn expect_calm(&self) -> Refusable<()> {
        if self.change.as_ref().is_some_and(|change| !change.is_dry()) || self.supervisor.reloading().is_some() {
            return Err(Refused::Busy("a reload is in progress; see `wasmcluster status`".into()));
        }
        if self.supervisor.is_about_to_stop() {
            return Err(Refused::Impossible("the cluster is stopping".into()));
        }
        if self.supervisor.is_booting() {
            return Err(Refused::Busy("the cluster is still starting; see `wasmcluster status`".into()));
        }
        Ok(())
    }

    /// Changes values of the live configuration, all of them or none.
    fn configure(&mut self, changes: &Changes, done: oneshot::Sender<Refusable<()>>) {
        let config = match self.live.config.with(&self.generations.current().1.application.values, changes) {
            Ok(config) => config,
            Err(reason) => return drop(done.send(Err(Refused::Wrong(reason)))),
        };
        if self.pass_on(config, done) {
            self.volume.set(self.live.config.log_level);
            self.save_commit();
            for (key, value) in changes.clone() {
                self.publish(&Happening::Configured { key, value });
            }
        }
    }

    /// Changes what every worker goes by: those that live confirm it, those to come begin with it. One that does not take
    /// the order, or does not confirm it in time, is killed, so in the end all have it.
    fn pass_on(&mut self, config: LiveConfig, done: oneshot::Sender<Refusable<()>>) -> bool {
        let live = Revision { number: self.live.number + 1, config };
        match live.write() {
            Ok(file) => (self.live, self.live_file) = (live, file),
            Err(error) => {
                let reason = format!("cannot pass the configuration to the workers: {error}");
                tracing::error!("{reason}");
                drop(done.send(Err(reason.into())));
                return false;
            }
        }
        let revision = self.live.number;
        let is_lost = |worker: &WorkerId| {
            self.supervisor.describe(*worker).is_none_or(|found| found.state == WorkerState::Unkillable)
        };
        let missing: BTreeSet<WorkerId> = self.workers.keys().copied().filter(|worker| !is_lost(worker)).collect();
        let deadline = Some(Instant::now() + CONFIRMED_WITHIN);
        self.reconfigurations.push(Reconfiguration { revision, missing: missing.clone(), deadline, done });
        for worker in missing {
            let certificates = self.certified_for(worker).map(|certified| certified.file.as_fd());
            let beside: Vec<BorrowedFd<'_>> = [self.live_file.as_fd()].into_iter().chain(certificates).collect();
            if let Some(failure) = self.send(worker, &ToWorker::Configure, &beside) {
                self.tell(failure);
            }
        }
        self.end_reconfigurations();
        true
    }

    /// Takes note that a worker goes by these revisions, or is gone.
    fn confirmed(&mut self, worker: WorkerId, is_meant: impl Fn(u64) -> bool) {
        for change in self.reconfigurations.iter_mut().filter(|change| is_meant(change.revision)) {
            change.missing.remove(&worker);
        }
        self.end_reconfigurations();
    }

    /// Kills the workers that had time enough to confirm a change. Their replacements begin with it.
    fn replace_unconfirmed(&mut self) {
        let (now, mut late) = (Instant::now(), BTreeSet::new());
        let supervisor = &self.supervisor;
        // One that starts serves nobody yet, and hears of the change before it may accept. A slow start is no fault.
        let serves =
            |worker: &WorkerId| supervisor.describe(*worker).is_some_and(|found| found.state != WorkerState::Starting);
        for change in &mut self.reconfigurations {
            if change.deadline.take_if(|deadline| *deadline <= now).is_some() {
                change.missing.retain(serves);
                late.extend(&change.missing);
            }
        }
        for worker in late {
            let reason = format!("did not confirm a configuration change within {CONFIRMED_WITHIN:?}");
            self.tell(Event::Misbehaved { worker, reason });
        }
        self.end_reconfigurations();
    }

    /// Answers for changes that nobody is missing any more.
    fn end_reconfigurations(&mut self) {
        // Nobody waits for an answer to the others any more, but workers that are missing still have their deadline.
        self.reconfigurations.retain(|change| !change.done.is_closed() || change.deadline.is_some());
        for change in self.reconfigurations.extract_if(.., |change| change.missing.is_empty()) {
            let _ = change.done.send(Ok(()));
        }
    }

    /// Tells the supervisor, and does what it says.
    fn tell(&mut self, event: Event) {
        let actions = self.supervisor.step(self.started.elapsed(), event);
        self.carry_out(actions);
        self.end_settled();
    }

    /// An action that fails comes back to the supervisor as an event, whose actions are done after these.
    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            if let Some(failure) = self.act(action) {
                actions.extend(self.supervisor.step(self.started.elapsed(), failure));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn { worker, slot, generation } => self.to_spawn.push_back((worker, slot, generation)),
            Action::SendDrain { worker } | Action::Abort { worker } | Action::Kill { worker }
                if self.is_spared(worker) =>
            {
                return Some(Event::Exited { worker, how: "was no longer needed".into() });
            }
            Action::StartAccepting { worker } => return self.send(worker, &ToWorker::StartAccepting, &[]),
            Action::CloseListeners => self.listeners.clear(),
            Action::SendDrain { worker } => return self.send(worker, &ToWorker::Drain, &[]),
            Action::Abort { worker } => self.signal(worker, Signal::SIGABRT),
            Action::Kill { worker } => self.signal(worker, Signal::SIGKILL),
            Action::AnnounceServing => self.announce(),
            Action::ReleaseOutput => self.output.release(),
            Action::Report(report) => self.report(report),
            Action::Exit(outcome) => self.outcome = Some(outcome),
        }
        None
    }

    /// Tells people: in the log, and as an event.
    fn report(&mut self, report: Report) {
        let happening = match report {
            Report::Ready { worker } => {
                tracing::debug!(worker = worker.0, "a worker is ready");
                Happening::WorkerReady { worker }
            }
            Report::Draining { worker, why } => {
                self.ledger.leaves(worker, why);
                let reason = self.explain(why);
                match why {
                    Why::MaxRequests | Why::MaxLifetime | Why::MaxRss => {
                        tracing::info!(worker = worker.0, "recycled a worker: {reason}");
                    }
                    _ => tracing::debug!(worker = worker.0, "a worker drains: {reason}"),
                }
                Happening::WorkerDraining { worker, reason }
            }
            Report::Left { worker, slot, how } => {
                self.ledger.left(worker);
                let lost = std::mem::take(&mut self.lost_requests);
                match named(&lost) {
                    None => tracing::debug!(worker = worker.0, slot = slot.0, "a worker {how}"),
                    requests => {
                        tracing::warn!(
                            worker = worker.0,
                            slot = slot.0,
                            generation = self.ended_generation.map(|generation| generation.0),
                            requests,
                            "a worker {how}, and its requests were lost"
                        );
                    }
                }
                Happening::WorkerExited { worker, slot, reason: how, lost_requests: all(&lost) }
            }
            Report::Crashed { worker, slot, reason, retry_in } => {
                self.ledger.crashed(worker);
                let lost = std::mem::take(&mut self.lost_requests);
                let (retry_ms, requests) = (retry_in.as_millis() as u64, named(&lost));
                let generation = self.ended_generation.map(|generation| generation.0);
                tracing::error!(
                    worker = worker.0,
                    slot = slot.0,
                    generation,
                    retry_ms,
                    requests,
                    "a worker died: {reason}"
                );
                Happening::WorkerCrashed { worker, slot, reason, retry_ms, lost_requests: all(&lost) }
            }
            Report::Reload(candidate, progress) => return self.reload_progresses(candidate, progress),
            Report::Unkillable { worker } => {
                let pid = self.workers.get(&worker).map(|running| running.process.pid().as_raw());
                tracing::error!(
                    worker = worker.0,
                    pid,
                    "a worker does not die of SIGKILL: it is blocked in the kernel, on a file system or a device. A \
                     new worker takes its place"
                );
                self.confirmed(worker, |_| true);
                Happening::WorkerUnkillable { worker, pid }
            }
            Report::Degraded(degradation) => {
                let reason = degradation.map(reason_of);
                match reason {
                    Some(reason) => tracing::error!("the cluster is degraded: {reason}; healthy workers go on"),
                    None => tracing::info!("the cluster is no longer degraded"),
                }
                Happening::Degraded { degraded: degradation.is_some(), reason }
            }
        };
        self.publish(&happening);
    }

    fn explain(&self, why: Why) -> String {
        match why {
            Why::Asked => "it got a SIGTERM".into(),
            Why::Scaled => "the cluster was scaled down".into(),
            Why::Stopping => "the cluster is stopping".into(),
            Why::Reloaded => "a worker of the new version has taken its place".into(),
            Why::RolledBack => "its version was rolled back".into(),
            Why::MaxRequests => "it has reached --max-worker-requests".into(),
            Why::MaxLifetime => "it has reached --max-worker-lifetime".into(),
            Why::MaxRss => "its memory has reached --max-worker-rss".into(),
        }
    }

    fn spawn_next(&mut self) {
        let Some((worker, slot, generation)) = self.to_spawn.pop_front() else { return };
        if let Err(error) = self.spawn(worker, slot, generation) {
            self.tell(Event::SpawnFailed { worker, reason: format!("could not be started: {error}") });
        }
    }

    /// Whether the worker was yet to be started; now it is not.
    fn is_spared(&mut self, worker: WorkerId) -> bool {
        let waiting = self.to_spawn.iter().position(|(waiting, ..)| *waiting == worker);
        waiting.is_some_and(|place| self.to_spawn.remove(place).is_some())
    }

    fn spawn(&mut self, worker: WorkerId, slot: Slot, generation: Generation) -> io::Result<()> {
        let deployment = self.generations.get(generation).cloned();
        let deployment = deployment.ok_or_else(|| io::Error::other("its version is gone"))?;
        let identity = Identity {
            worker,
            slot,
            generation,
            digest: deployment.compiled.digest.clone(),
            workers: self.supervisor.slots(),
        };
        let tls = self.certified.of(deployment.application.tls.as_ref()).map(|certified| certified.file.as_fd());
        let access_log = self.access_log.as_ref().map(AccessLogFile::as_fd);
        let optional =
            [(Inherited::Tls, tls), (Inherited::AccessLog, access_log), (Inherited::Spans, self.exporting.pipe())];
        let process =
            WorkerProcess::spawn(&identity, &self.live_file, &optional, &deployment, &self.listeners, self.output)?;
        let pid = process.pid().as_raw();
        let process = Arc::new(process);
        tracing::debug!(worker = worker.0, slot = slot.0, pid, "started a worker");
        self.publish(&Happening::WorkerStarted { worker, slot, generation, pid });
        let listening = tokio::spawn(listen(worker, process.clone(), self.hears.clone())).abort_handle();
        self.workers.insert(worker, Running { process, generation, deployment, since: Instant::now(), listening });
        Ok(())
    }

    /// Passes on the file that takes the place of the one before.
    fn access_log_opened(&mut self, opened: io::Result<File>) {
        let (Some(log), path) = (&mut self.access_log, self.settings.cluster.access_log.as_ref()) else { return };
        let path = path.and_then(|place| place.path.as_deref()).unwrap_or(Path::new("-")).display();
        match opened {
            Ok(file) => {
                tracing::info!("opened the access log {path} again");
                log.replace(file);
            }
            Err(error) => return tracing::error!("cannot open the access log {path} again: {error}"),
        }
        let Some(log) = &self.access_log else { return };
        let failures: Vec<Event> =
            self.workers.keys().filter_map(|worker| self.send(*worker, &ToWorker::AccessLog, &[log.as_fd()])).collect();
        failures.into_iter().for_each(|failure| self.tell(failure));
    }

    fn send(&self, worker: WorkerId, message: &ToWorker, beside: &[BorrowedFd<'_>]) -> Option<Event> {
        match self.workers.get(&worker)?.process.send(message, beside) {
            Err(error @ IpcError::Full) => Some(Event::Misbehaved { worker, reason: error.to_string() }),
            // It has just died, which is about to be noticed.
            Err(IpcError::Io(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset) => None,
            Err(error) => Some(Event::Misbehaved { worker, reason: format!("cannot be reached: {error}") }),
            Ok(()) => None,
        }
    }

    fn signal(&self, worker: WorkerId, signal: Signal) {
        if let Some(running) = self.workers.get(&worker) {
            running.process.child.signal(signal);
        }
    }

    fn announce(&mut self) {
        self.output.announce(&self.urls);
        self.publish(&Happening::Serving { listen: self.urls.clone() });
        self.save_commit();
        let workers = self.settings.cluster.workers;
        let (generation, deployment) = self.generations.current();
        let doing = if generation == Generation(1) { "serving" } else { "serving the last committed version:" };
        let (digest, source) = (&deployment.compiled.digest, deployment.described());
        tracing::info!(workers, generation = generation.0, digest, "{doing} {source}");
    }

    fn worker_ended(&mut self, worker: WorkerId, how: String) {
        // From here on nothing is sent to it.
        let Some(running) = self.workers.remove(&worker) else { return };
        self.lost_requests = self.remember(worker, &running);
        self.ended_generation = Some(running.generation);
        self.tell(Event::Exited { worker, how });
        self.lost_requests.clear();
        self.ended_generation = None;
        self.keeper_user_is_gone(worker);
        self.confirmed(worker, |_| true);
    }

    /// Keeps what a worker counted, and names the requests that are lost with it.
    fn remember(&mut self, worker: WorkerId, gone: &Running) -> Vec<RequestId> {
        let counted = gone.process.stats.snapshot();
        if self.supervisor.is_about_to_stop() {
            self.ledger.lost_at_the_end(counted.in_flight);
        }
        self.ledger.close(gone.generation, &counted);
        if let Some(lost) = self.ledger.close_metrics(gone.process.stats.metrics.read()) {
            tracing::warn!(
                "the guest metrics of workers that have ended no longer fit in memory: {lost} of the older series \
                 are lost, and more may follow. Use labels with few values"
            );
        }
        let numbers = gone.process.stats.requests_in_flight.iter().map(Counter::get).filter(|&number| number > 0);
        numbers.map(|number| RequestId { worker, number }).collect()
    }
}

/// How many, and what they do.
fn requests(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 request {one}") } else { format!("{number} requests {many}") }
}

/// Requests as a log line names them, if there are any.
fn named(requests: &[RequestId]) -> Option<String> {
    let mut names = all(&requests[..requests.len().min(MAX_NAMED)]).join(" ");
    if requests.len() > MAX_NAMED {
        names.push_str(&format!(" and {} more", requests.len() - MAX_NAMED));
    }
    (!names.is_empty()).then_some(names)
}

fn all(requests: &[RequestId]) -> Vec<String> {
    requests.iter().map(RequestId::to_string).collect()
}

/// Passes on what comes of a worker, until its end.
async fn listen(worker: WorkerId, process: Arc<WorkerProcess>, hears: mpsc::Sender<(WorkerId, Heard)>) {
    let mut listens = true;
    loop {
        let heard = tokio::select! {
            said = process.receive(), if listens => match said {
                Ok(Some(said)) => Heard::Said(said),
                Ok(None) => Heard::HungUp,
                Err(error) => Heard::Nonsense(error),
            },
            how = process.child.end() => Heard::Ended(how),
        };
        let has_ended = matches!(heard, Heard::Ended(_));
        if has_ended && listens {
            // Its last words may still be on their way. Somebody else may hold its end, and speak on.
            for said in (0..MAX_LAST_WORDS).map_while(|_| process.receive_now()) {
                let _ = hears.send((worker, Heard::Said(said))).await;
            }
        }
        listens &= matches!(heard, Heard::Said(_));
        // The driver lives longer than this, or nobody wants to know.
        if hears.send((worker, heard)).await.is_err() || has_ended {
            return;
        }
    }
}

async fn opened_again(log: Option<&mut AccessLogFile>) -> io::Result<File> {
    match log {
        Some(log) => log.opened_again().await,
        None => future::pending().await,
    }
}

async fn builder_ended(builder: Option<&Builder>) -> String {
    match builder {
        Some(builder) => builder.child.end().await,
        None => future::pending().await,
    }
}

fn reason_of(degradation: Degradation) -> &'static str {
    match degradation {
        Degradation::CrashStorm => "workers keep crashing",
        Degradation::MissingWorkers => {
            "a slot has no working worker: its workers die before they are ready, or SIGKILL does not end them"
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}
