//! The driver's part in a reload: has the next version compiled, hands it to the supervisor, tells how it goes, and keeps
//! what was deployed.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Driver;
use crate::control::protocol::{Happening, LastReload, ReloadRequest, ReloadResult, ReloadStatus};
use crate::os::files;
use crate::primary::deploy::change::{Answered, Change, ChangeStage, Compiling, Draft, Follower, Settled, Wanted};
use crate::primary::deploy::generations::Provenance;
use crate::primary::deploy::saver::{SAVED_WITHIN, Saved};
use crate::primary::desk::socket::{Refusable, Refused};
use crate::primary::fleet::process::Deployment;
use crate::primary::supervisor::{Cause, Event, Gates, Supervisor, SwapProgress};
use crate::settings::Policy;
use crate::wire::ids::Generation;
use crate::wire::messages::ToCompiler;

impl Driver<'_> {
    /// Begins a reload; how it goes comes as lines of JSON.
    pub(crate) fn reload(&mut self, request: &ReloadRequest) -> Refusable<mpsc::Receiver<Bytes>> {
        let (listener, lines) = Follower::new();
        if request.to.is_some() {
            return Err(Refused::Wrong("`to` is for a rollback; a reload does not take it".into()));
        }
        let wanted = if request.if_new { Wanted::IfNew } else { Wanted::Always };
        self.begin_reload(request, wanted, listener.clone())?;
        if let Some(text) = request.doubt(&self.settings.cluster.policy) {
            tracing::warn!("{text}");
            listener.tell(&Happening::Note { text });
        }
        self.tell_changed_settings(listener.clone());
        self.read_certificates(listener);
        Ok(lines)
    }

    /// The file that is watched is the one that `serve` was given.
    pub(crate) fn reload_changed(&mut self) {
        // What has changed in the settings, the watch tells itself.
        let app = files::absolute(&self.settings.application.app).ok();
        let request = ReloadRequest { app, ..ReloadRequest::default() };
        self.reload_unasked("a file change", &request, Wanted::IfNew);
    }

    pub(crate) fn reload_unasked(&mut self, by: &str, request: &ReloadRequest, wanted: Wanted) {
        let begun = self.begin_reload(request, wanted, Follower::default());
        if let Err(refused) = begun {
            tracing::warn!("{by} asked for a reload, but {}", refused.reason());
        }
    }

    /// The settings are those of the start. Whoever changed their file since should not have to find out.
    pub(crate) fn tell_changed_settings(&self, listener: Follower) {
        if let Some(file) = &self.settings.file {
            file.look(move |text| {
                tracing::warn!("{text}");
                listener.tell(&Happening::Note { text });
            });
        }
    }

    fn begin_reload(&mut self, request: &ReloadRequest, wanted: Wanted, listener: Follower) -> Refusable<()> {
        let source = match &request.app {
            Some(app) if app.is_absolute() => app.clone(),
            Some(app) => return Err(Refused::Wrong(format!("{} is not an absolute path", app.display()))),
            None => self.generations.current().1.source.clone(),
        };
        if request.force && self.supervisor.is_rolling_back() {
            // The old version may be what cannot be served any more; a fix must not have to wait for it.
            self.end_change(ReloadResult::RolledBack, Some("another reload replaced it".into()));
        } else {
            self.expect_calm()?;
        }
        let ask = ToCompiler::Compile {
            source: source.clone(),
            store: self.settings.cluster.store.clone(),
            state: self.settings.cluster.state_dir.clone(),
        };
        tracing::info!("reloading {}", source.display());
        let gates = request.gates(self.settings.cluster.max_error_increase);
        let Policy { min_ready, soak, .. } = self.settings.cluster.policy;
        let deadline = request.deadline(min_ready.saturating_add(soak));
        self.compile(&ask, ReloadPlan { source, gates, deadline, wanted, origin: Provenance::Compiled }, listener)
    }

    fn compile(&mut self, ask: &ToCompiler, plan: ReloadPlan, listener: Follower) -> Refusable<()> {
        let compiling = Compiling::start(ask, self.answers.clone())
            .map_err(|error| format!("the compiler cannot be started: {error}"))?;
        let ReloadPlan { source, gates, deadline, wanted, origin } = plan;
        let stage = ChangeStage::Compiling(Draft { compiling, source, gates, deadline, wanted, origin });
        self.change = Some(Change { listener, stage, since: Instant::now() });
        self.tell_reload(None, "compiling", None, None);
        Ok(())
    }

    /// Begins to bring back an earlier generation, as a new one.
    pub(crate) fn rollback(&mut self, request: &ReloadRequest) -> Refusable<mpsc::Receiver<Bytes>> {
        if request.app.is_some() || request.if_new {
            return Err(Refused::Wrong("a rollback takes neither `app` nor `if_new`".into()));
        }
        self.expect_calm()?;
        let gates = Gates { served_before: true, ..request.gates(self.settings.cluster.max_error_increase) };
        let (deadline, (listener, lines)) = (request.deadline(Duration::ZERO), Follower::new());
        let previous = self.generations.previous().map(|(previous, _)| previous);
        if let Some(target) = request.to.or(previous) {
            let deployment = self.generations.committed(target)?.clone();
            tracing::info!("rolling back to generation {target}, {}", deployment.source.display());
            self.swap(deployment, Provenance::Kept(target), gates, deadline, listener, Instant::now());
        } else if let Some(version) = self.generations.remembered() {
            tracing::info!("rolling back to the version served before, {}", version.source.display());
            let (version, source) = (version.clone(), version.source.clone());
            let (store, state) = (self.settings.cluster.store.clone(), self.settings.cluster.state_dir.clone());
            let ask = ToCompiler::Find { version, store, state };
            let plan = ReloadPlan { source, gates, deadline, wanted: Wanted::Always, origin: Provenance::Remembered };
            self.compile(&ask, plan, listener)?;
        } else {
            return Err(self.generations.no_previous().into());
        }
        Ok(lines)
    }

    pub(crate) fn compilation_deadline(&self) -> Option<Instant> {
        Some(self.change.as_ref()?.draft()?.deadline)
    }

    pub(crate) fn compiled(&mut self, (compiler, answer): Answered) {
        // One that was given up may still have answered.
        let Some(draft) = self.change.as_mut().and_then(Change::draft_mut) else { return };
        if draft.compiling.pid() != compiler {
            return;
        }
        let (gates, deadline, wanted, origin) = (draft.gates, draft.deadline, draft.wanted, draft.origin);
        match Deployment::new(self.settings, &draft.source, answer) {
            Ok(deployment) if wanted == Wanted::IfNew && self.serves(&deployment) => {
                if let Some(Change { listener, .. }) = self.change.take() {
                    let (current, _) = self.generations.current();
                    self.end_reload(Some(current), ReloadResult::Unchanged, None, &listener);
                }
            }
            Ok(deployment) => {
                if let Some(Change { listener, since, .. }) = self.change.take() {
                    self.swap(Rc::new(deployment), origin, gates, deadline, listener, since);
                }
            }
            Err(reason) => self.end_change(ReloadResult::Refused, Some(format!("{reason:#}"))),
        }
    }

    fn serves(&self, deployment: &Deployment) -> bool {
        self.generations.current().1.compiled.digest == deployment.compiled.digest
    }

    /// Hands a candidate to the supervisor.
    fn swap(
        &mut self,
        deployment: Rc<Deployment>,
        origin: Provenance,
        gates: Gates,
        deadline: Instant,
        listener: Follower,
        since: Instant,
    ) {
        let candidate = self.generations.add(deployment, origin);
        self.change = Some(Change { listener, stage: ChangeStage::Swapping(candidate), since });
        let deadline = Some(deadline.saturating_duration_since(self.started));
        self.tell(Event::ReloadRequested { candidate, gates, deadline });
    }

    /// Tells how the reload goes to whoever asked for it, and to all who follow the events.
    fn tell_reload(
        &mut self,
        generation: Option<Generation>,
        phase: &'static str,
        done: Option<(u32, u32)>,
        detail: Option<Detail>,
    ) {
        let (done, of) = done.unzip();
        let (lasts_ms, reason) = match detail {
            Some(Detail::Lasts(time)) => (Some(time.as_millis() as u64), None),
            Some(Detail::Because(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let happening = Happening::Reload { generation, phase, done, of, lasts_ms, reason };
        self.events.publish(&happening);
        if let Some(change) = self.change.as_ref().filter(|change| change.generation() == generation) {
            change.listener.tell(&happening);
        }
        for settled in self.settled.iter().filter(|settled| Some(settled.generation) == generation) {
            settled.listener.tell(&happening);
        }
    }

    /// The change that was under way is none any more: it was refused, or cannot go on.
    pub(crate) fn end_change(&mut self, result: ReloadResult, reason: Option<String>) {
        let Some(change) = self.change.take() else { return };
        self.end_reload(change.generation(), result, reason, &change.listener);
    }

    fn end_reload(
        &mut self,
        generation: Option<Generation>,
        result: ReloadResult,
        reason: Option<String>,
        listener: &Follower,
    ) {
        match (result, &reason) {
            (ReloadResult::Committed, _) => {
                tracing::info!(generation = generation.map(|it| it.0), "the reload is done")
            }
            (ReloadResult::CommittedUnsaved, _) => {
                tracing::warn!(generation = generation.map(|it| it.0), "the reload is done, but could not be saved")
            }
            (ReloadResult::Unchanged, _) => tracing::info!("unchanged: this component is already being served"),
            (_, reason) => tracing::error!("the reload failed: {}", reason.as_deref().unwrap_or("no reason")),
        }
        let happening = Happening::ReloadEnded { generation, result, reason: reason.clone() };
        self.events.publish(&happening);
        listener.tell(&happening);
        self.ledger.reloaded(LastReload { generation, result, reason });
    }

    pub(crate) fn reload_progresses(&mut self, candidate: Generation, progress: SwapProgress) {
        let of = self.supervisor.slots();
        let some = Some(candidate);
        match progress {
            SwapProgress::Canary(time) => self.tell_reload(some, "canary", None, Some(Detail::Lasts(time))),
            SwapProgress::Rolling(done) => self.tell_reload(some, "rolling", Some((done, of)), None),
            SwapProgress::Soaking(time) => self.tell_reload(some, "soaking", None, Some(Detail::Lasts(time))),
            SwapProgress::RollingBack(cause, left) => {
                let (_, reason) = explain_failure(cause);
                self.tell_reload(some, "rolling_back", Some((of - left.min(of), of)), Some(Detail::Because(reason)));
            }
            SwapProgress::Committed => {
                let same = self.generations.get(candidate).is_some_and(|deployment| self.serves(deployment));
                let reason = same.then(|| "the component is the same as before, its workers are new".to_owned());
                self.generations.commit(candidate);
                self.save_commit();
                self.tell_reload(some, "committed", None, None);
                self.settle(candidate, ReloadResult::Committed, reason);
            }
            SwapProgress::RolledBack(cause) => {
                self.generations.forget_others();
                let (result, reason) = explain_failure(cause);
                self.settle(candidate, result, Some(reason));
            }
        }
    }

    /// Has it written down what is committed, for a primary that is to go on with it.
    pub(crate) fn save_commit(&self) {
        if let Some(saver) = &self.saver {
            let app = files::absolute(&self.settings.application.app)
                .unwrap_or_else(|_| self.settings.application.app.clone());
            saver.save(self.generations.to_keep(app, self.live.config.changed.clone()));
        }
    }

    pub(crate) fn saved(&mut self, Saved { generation, result }: Saved) {
        match result {
            Ok(()) => {
                for settled in self.settled.iter_mut().filter(|settled| settled.generation <= generation) {
                    settled.saved_by = None;
                }
                if std::mem::take(&mut self.is_unsaved) {
                    tracing::info!("generation {generation} is saved now: --resume will start it");
                    self.ledger.saved();
                }
            }
            Err(reason) => {
                self.warn_unsaved(generation, &reason);
                self.give_up_saving(&reason, |settled| settled.generation <= generation);
            }
        }
        self.end_settled();
    }

    pub(crate) fn saving_deadline(&self) -> Option<Instant> {
        self.settled.iter().filter_map(|settled| settled.saved_by).min()
    }

    pub(crate) fn saving_is_late(&mut self) {
        let (now, folder) = (Instant::now(), self.settings.cluster.state_dir.clone().unwrap_or_default());
        let reason = format!("state folder {}: writing did not finish within {SAVED_WITHIN:?}", folder.display());
        self.warn_unsaved(self.generations.current().0, &reason);
        self.give_up_saving(&reason, |settled| settled.saved_by.is_some_and(|deadline| deadline <= now));
        self.end_settled();
    }

    /// Lets what is committed be written before the end, but does not wait for long.
    pub(crate) fn finish_saving(&mut self) {
        self.saver = None;
        while let Ok(saved) = self.saved.try_recv() {
            self.saved(saved);
        }
        self.give_up_saving("the cluster stopped before it was saved", |_| true);
        self.end_settled();
    }

    fn give_up_saving(&mut self, reason: &str, is_meant: impl Fn(&Settled) -> bool) {
        for settled in self.settled.iter_mut().filter(|settled| is_meant(settled)) {
            if settled.saved_by.take().is_some() {
                (settled.result, settled.reason) = (ReloadResult::CommittedUnsaved, Some(reason.to_owned()));
            }
        }
    }

    fn warn_unsaved(&mut self, generation: Generation, reason: &str) {
        if !std::mem::replace(&mut self.is_unsaved, true) {
            tracing::warn!("generation {generation} is not saved, so --resume would not start it: {reason}. Retrying");
        }
    }

    /// It is decided; what is left is to see superfluous workers go.
    fn settle(&mut self, generation: Generation, result: ReloadResult, reason: Option<String>) {
        if let Some(Change { listener, .. }) = self.change.take_if(|change| change.generation() == Some(generation)) {
            let is_saved = result != ReloadResult::Committed || self.saver.is_none();
            let saved_by = (!is_saved).then(|| Instant::now() + SAVED_WITHIN);
            let mut settled = Settled { generation, result, reason, listener, to_drain: 0, left: 0, saved_by };
            settled.left = superfluous(&self.supervisor, &settled);
            settled.to_drain = settled.left;
            let to_drain = settled.to_drain;
            self.settled.push(settled);
            self.tell_reload(Some(generation), "draining", Some((0, to_drain)), None);
        }
    }

    /// Ends the reloads that nothing is left to be done for.
    pub(crate) fn end_settled(&mut self) {
        self.tell_drained();
        let stopping = self.supervisor.is_stopping();
        let over = |settled: &mut Settled| {
            settled.saved_by.is_none() && (stopping || superfluous(&self.supervisor, settled) == 0)
        };
        let ended: Vec<Settled> = self.settled.extract_if(.., over).collect();
        for Settled { generation, result, reason, listener, .. } in ended {
            self.end_reload(Some(generation), result, reason, &listener);
        }
    }

    /// Tells how many workers have drained, if more have since it was last told.
    fn tell_drained(&mut self) {
        let mut drained = Vec::new();
        for settled in &mut self.settled {
            let left = superfluous(&self.supervisor, settled);
            if left < settled.left {
                settled.left = left;
                drained.push((settled.generation, settled.to_drain - left, settled.to_drain));
            }
        }
        for (generation, done, of) in drained {
            self.tell_reload(Some(generation), "draining", Some((done, of)), None);
        }
    }

    pub(crate) fn reload_status(&self) -> ReloadStatus {
        let of = self.supervisor.slots();
        let since = self.change.as_ref().map(|change| change.since);
        let elapsed_ms = since.map_or(0, |since| since.elapsed().as_millis() as u64);
        match self.supervisor.reloading() {
            None => ReloadStatus { generation: None, phase: "compiling".into(), rolled: 0, of, elapsed_ms },
            Some((candidate, phase)) => {
                let rolled = self.supervisor.slots_of(candidate);
                ReloadStatus { generation: Some(candidate.0), phase: phase.into(), rolled, of, elapsed_ms }
            }
        }
    }
}

/// What is to be compiled, and on which terms.
struct ReloadPlan {
    source: PathBuf,
    gates: Gates,
    deadline: Instant,
    wanted: Wanted,
    origin: Provenance,
}

/// What there is to say of a phase of a reload.
enum Detail {
    Lasts(Duration),
    Because(String),
}

/// Workers that have to be gone before a reload is over.
fn superfluous(supervisor: &Supervisor, settled: &Settled) -> u32 {
    supervisor.workers_of(|generation| settled.waits_for(generation))
}

fn explain_failure(cause: Cause) -> (ReloadResult, String) {
    match cause {
        Cause::Gate(reason) => (ReloadResult::RolledBack, reason),
        Cause::TimedOut => (ReloadResult::TimedOut, "it took too long".into()),
    }
}
