//! The driver's part in a reload: has the next version compiled and its settings read, hands it to the supervisor, tells how it goes, and keeps
//! what was deployed.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::Driver;
use crate::control::protocol::{Happening, LastReload, ReloadRequest, ReloadResult, ReloadStatus};
use crate::primary::deploy::change::{
    Answered, Assembly, Change, ChangeStage, Draft, Follower, PreparationNews, Preparing, SettingsAndCertificates,
    Settled, Subject, Wanted, keep_settings, read_settings,
};
use crate::primary::deploy::generations::Provenance;
use crate::primary::deploy::saver::{SAVED_WITHIN, Saved};
use crate::primary::deploy::watch::Watched;
use crate::primary::desk::socket::{Refusable, Refused};
use crate::primary::fleet::errands::{Supply, WantedComponent};
use crate::primary::fleet::process::Deployment;
use crate::primary::supervisor::{Cause, Event, Gates, Supervisor, SwapProgress};
use crate::settings::{App, Policy, Reread, SettingChange, short_digest};
use crate::wire::ids::Generation;

/// Changes of settings that are told one by one.
const MAX_CHANGES: usize = 100;

impl Driver<'_> {
    /// Begins a reload; how it goes comes as lines of JSON.
    pub(crate) fn reload(&mut self, request: ReloadRequest) -> Refusable<mpsc::Receiver<Bytes>> {
        let (listener, lines) = Follower::new();
        if request.to.is_some() {
            return Err(Refused::Wrong("`to` is for a rollback; a reload does not take it".into()));
        }
        let wanted = match (request.dry_run, request.if_new) {
            (true, _) => Wanted::DryRun,
            (_, true) => Wanted::IfNew,
            _ => Wanted::Always,
        };
        self.begin_reload(request, wanted, listener.clone())?;
        if wanted != Wanted::DryRun {
            self.read_certificates(listener);
        }
        Ok(lines)
    }

    /// The component that is watched is the one that `serve` was given; new settings are for the one that is served.
    pub(crate) fn reload_changed(&mut self, what: Watched) {
        let app = match what {
            Watched::Component => self.settings.app.absolute().ok(),
            Watched::Settings => None,
        };
        let request = ReloadRequest { app, ..ReloadRequest::default() };
        self.reload_unasked("a file change", request, Wanted::IfNew);
    }

    pub(crate) fn reload_unasked(&mut self, by: &str, request: ReloadRequest, wanted: Wanted) {
        let begun = self.begin_reload(request, wanted, Follower::default());
        if let Err(refused) = begun {
            tracing::warn!("{by} asked for a reload, but {}", refused.reason());
        }
    }

    fn begin_reload(&mut self, request: ReloadRequest, wanted: Wanted, listener: Follower) -> Refusable<()> {
        let source = match &request.app {
            Some(App::Path(path)) if !path.is_absolute() => {
                return Err(Refused::Wrong(format!("{} is not an absolute path", path.display())));
            }
            Some(app) => app.clone(),
            None => self.generations.current().1.source.clone(),
        };
        if request.force && wanted != Wanted::DryRun && self.supervisor.is_rolling_back() {
            // The old version may be what cannot be served any more; a fix must not have to wait for it.
            self.end_change(ReloadResult::RolledBack, Some("another reload replaced it".into()));
        } else {
            self.expect_calm()?;
        }
        if wanted != Wanted::DryRun {
            self.end_dry_run();
        } else if self.change.is_some() {
            return Err(Refused::Busy("another dry run is in progress".into()));
        }
        match wanted {
            Wanted::DryRun => tracing::info!("looking what a reload of {source} would change"),
            Wanted::Always | Wanted::IfNew => tracing::info!("reloading {source}"),
        }
        let subject = Subject::Wanted(WantedComponent::Present(source));
        let plan = ReloadPlan { request, wanted, origin: Provenance::Compiled, subject };
        // A dry run reads all of them, and tells what is wrong with them.
        let known = if wanted == Wanted::DryRun { Vec::new() } else { self.certified.settings() };
        let (_, current) = self.generations.current();
        let read = read_settings(self.sources.clone(), self.settings.cluster.clone(), current.table.clone(), known);
        self.prepare(plan, read, listener);
        Ok(())
    }

    /// Has everything got together that the next generation is made of.
    fn prepare(
        &mut self,
        plan: ReloadPlan,
        read: impl Future<Output = anyhow::Result<SettingsAndCertificates>> + Send + 'static,
        listener: Follower,
    ) {
        let ReloadPlan { request, wanted, origin, subject } = plan;
        let since = Instant::now();
        let component = match &subject {
            Subject::Wanted(component) => Some(component.clone()),
            Subject::Kept(_) => None,
        };
        let has_to_pull = component.as_ref().is_some_and(|it| it.image().is_some());
        let (step, is_told) = (if has_to_pull { "pulling" } else { "compiling" }, component.is_some());
        let deadline = since + request.patience(least_time(self.policy(), origin));
        self.preparations += 1;
        let component = component.map(|it| (self.supply(), it));
        let preparing = Preparing::start(self.preparations, read, component, self.answers.clone());
        let stage =
            ChangeStage::Preparing(Box::new(Draft { preparing, request, deadline, wanted, origin, subject, step }));
        self.change = Some(Change { listener, stage, since });
        if is_told {
            self.tell_reload(None, step, None, None);
        }
    }

    /// Where components come from.
    pub(crate) fn supply(&self) -> Supply {
        Supply::new(&self.settings.cluster, &self.generations.current().1.application)
    }

    /// Begins to bring back an earlier generation, as a new one.
    pub(crate) fn rollback(&mut self, request: ReloadRequest) -> Refusable<mpsc::Receiver<Bytes>> {
        if request.app.is_some() || request.if_new || request.dry_run {
            return Err(Refused::Wrong("a rollback takes none of `app`, `if_new` and `dry_run`".into()));
        }
        self.expect_calm()?;
        self.end_dry_run();
        let (wanted, (listener, lines)) = (Wanted::Always, Follower::new());
        let previous = self.generations.previous().map(|(previous, _)| previous);
        if let Some(target) = request.to.or(previous) {
            let deployment = self.generations.committed(target)?.clone();
            tracing::info!("rolling back to generation {target}, {}", deployment.described());
            let (origin, subject) = (Provenance::Kept(target), Subject::Kept(deployment.clone()));
            let kept = (deployment.application.clone(), deployment.table.clone());
            let read = keep_settings(self.sources.clone(), kept.0, kept.1);
            self.prepare(ReloadPlan { request, wanted, origin, subject }, read, listener);
        } else if let Some(version) = self.generations.remembered() {
            tracing::info!("rolling back to the version served before, {}", version.source);
            let version = version.clone();
            // What it had then, nobody knows. What is in force is known to do well.
            let (_, current) = self.generations.current();
            let read = keep_settings(self.sources.clone(), current.application.clone(), current.table.clone());
            let (origin, subject) = (Provenance::Remembered, Subject::Wanted(WantedComponent::Former(version)));
            self.prepare(ReloadPlan { request, wanted, origin, subject }, read, listener);
        } else {
            return Err(self.generations.no_previous().into());
        }
        Ok(lines)
    }

    pub(crate) fn preparation_deadline(&self) -> Option<Instant> {
        Some(self.change.as_ref()?.draft()?.deadline)
    }

    /// Something is there for a new generation, or cannot be had.
    pub(crate) fn prepared(&mut self, (number, news): Answered) {
        // One that was given up may still have ended.
        let is_meant = |change: &mut Change| change.draft().is_some_and(|draft| draft.preparing.number == number);
        let parts = match news {
            PreparationNews::Pulled(manifest) => {
                if self.change.as_mut().is_some_and(is_meant) {
                    self.pulled(&manifest);
                }
                return;
            }
            PreparationNews::Done(parts) => parts,
        };
        let Some(Change { listener, stage: ChangeStage::Preparing(draft), since }) = self.change.take_if(is_meant)
        else {
            return;
        };
        let is_dry = draft.wanted == Wanted::DryRun;
        match parts.and_then(|parts| self.assemble(&draft, *parts, &listener)) {
            Err(reason) => {
                let reason = Some(format!("{reason:#}"));
                self.end_reload(Ended { generation: None, result: ReloadResult::Refused, reason, is_dry }, &listener);
            }
            Ok(deployment) if draft.wanted != Wanted::Always && self.serves(&deployment) => {
                let generation = Some(self.generations.current().0);
                self.end_reload(Ended { generation, result: ReloadResult::Unchanged, reason: None, is_dry }, &listener);
            }
            Ok(_) if is_dry => {
                self.end_reload(
                    Ended { generation: None, result: ReloadResult::DryRun, reason: None, is_dry },
                    &listener,
                );
            }
            Ok(deployment) => self.swap(deployment, *draft, listener, since),
        }
    }

    /// The component is here that a reload is about.
    fn pulled(&mut self, manifest: &str) {
        let Some(draft) = self.change.as_mut().and_then(Change::draft_mut) else { return };
        draft.step = "compiling";
        let source = match &draft.subject {
            Subject::Wanted(component) => Some(component.source().clone()),
            Subject::Kept(_) => None,
        };
        if source.as_ref() == Some(&self.settings.app) {
            self.followed.was_tried(manifest);
        }
        self.tell_reload(None, "compiling", None, None);
    }

    /// Makes a deployment of what was got together, and tells what is new about it.
    fn assemble(&mut self, draft: &Draft, parts: Assembly, listener: &Follower) -> anyhow::Result<Rc<Deployment>> {
        let Assembly { settings: Reread { application, table, doubts }, certificates, component } = parts;
        match application.values.check(&self.live.config.changed) {
            Err(reason) if draft.origin == Provenance::Compiled => bail!(reason),
            Err(reason) => self.note(format!("with what `config set` has changed, {reason}"), listener),
            Ok(()) => {}
        }
        let cluster = &self.settings.cluster;
        let deployment = match (&draft.subject, component) {
            (Subject::Kept(kept), _) if kept.application == application => kept.clone(),
            (Subject::Kept(kept), _) => Rc::new(kept.with(cluster, application)?),
            (Subject::Wanted(_), Some(component)) => {
                Rc::new(Deployment::new(cluster, (application, table), component)?)
            }
            (Subject::Wanted(wanted), None) => bail!("{} was not compiled", wanted.source()),
        };
        let is_dry = draft.wanted == Wanted::DryRun;
        for text in doubts.into_iter().filter(|doubt| !self.settings.doubts.contains(doubt)) {
            self.note(text, listener);
        }
        if draft.origin == Provenance::Compiled
            && let Some(text) = self.sources.waiting(&self.settings.table, &deployment.table)
        {
            self.note(text, listener);
        }
        if let Some((files, read)) = deployment.application.tls.as_ref().zip(certificates.as_ref()).filter(|_| is_dry)
            && self.certified.of(Some(files)).is_some_and(|certified| !certified.is_like(read))
        {
            listener.tell(&Happening::Note { text: "new certificates would be served".into() });
        }
        if draft.wanted != Wanted::Always && self.serves(&deployment) {
            return Ok(deployment);
        }
        self.tell_changes(&deployment, is_dry, listener);
        let is_new = draft.origin == Provenance::Compiled && !is_dry;
        if let Some(text) = draft.request.doubt(&deployment.application.policy).filter(|_| is_new) {
            self.note(text, listener);
        }
        let Some(files) = deployment.application.tls.clone().filter(|_| !is_dry) else { return Ok(deployment) };
        match (certificates, self.certified.of(Some(&files))) {
            (_, Some(_)) => {}
            (Some(read), None) => {
                for text in &read.doubts {
                    self.note(text.clone(), listener);
                }
                self.certified.add(files, read, self.started.elapsed())?;
            }
            (None, None) => bail!("its certificates were forgotten meanwhile with another generation; try it again"),
        }
        Ok(deployment)
    }

    /// What whoever asked for a reload should know.
    fn note(&self, text: String, listener: &Follower) {
        tracing::warn!("{text}");
        listener.tell(&Happening::Note { text });
    }

    /// What is not as it is served now.
    fn tell_changes(&mut self, deployment: &Deployment, is_dry: bool, listener: &Follower) {
        let (_, current) = self.generations.current();
        let (before, now) = ((&current.application, &current.table), (&deployment.application, &deployment.table));
        let mut changes = self.sources.changes(before, now);
        let [from, to] = [current, deployment].map(|it| short_digest(&it.compiled.digest).to_owned());
        if is_dry && from != to {
            changes.insert(0, SettingChange { what: "component".into(), from: Some(from), to: Some(to) });
        }
        let named: Vec<&str> = changes.iter().map(|change| change.what.as_str()).collect();
        if !named.is_empty() && !is_dry {
            tracing::info!("new settings: {}", named.join(", "));
        }
        for SettingChange { what, from, to } in changes.into_iter().take(MAX_CHANGES) {
            let happening = Happening::Change { what, from, to };
            listener.tell(&happening);
            if !is_dry {
                self.publish(&happening);
            }
        }
        let set = self.live.config.changed.keys().filter(|key| deployment.application.values.has(key));
        let set: Vec<&str> = set.map(String::as_str).collect();
        if !set.is_empty() {
            let text = format!("`config set` has the last word on {}, whatever the settings say", set.join(", "));
            listener.tell(&Happening::Note { text });
        }
    }

    fn serves(&self, deployment: &Deployment) -> bool {
        self.generations.current().1.is_same_as(deployment)
    }

    /// Hands a candidate to the supervisor.
    fn swap(&mut self, deployment: Rc<Deployment>, draft: Draft, listener: Follower, since: Instant) {
        let Draft { request, origin, .. } = draft;
        let policy = deployment.application.policy;
        let served_before = origin != Provenance::Compiled;
        let gates = Gates { served_before, ..request.gates(deployment.application.max_error_increase) };
        let deadline = since + request.patience(least_time(&policy, origin));
        let candidate = self.generations.add(deployment, origin);
        self.change = Some(Change { listener: listener.clone(), stage: ChangeStage::Swapping(candidate), since });
        if served_before {
            // Nobody has looked at its certificates since.
            self.read_certificates(listener);
        }
        let deadline = Some(deadline.saturating_duration_since(self.started));
        // What is new is compared with all that the old has answered: also since it was looked at last.
        self.observe();
        self.tell(Event::ReloadRequested { candidate, policy, gates, deadline });
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
        if !self.change.as_ref().is_some_and(Change::is_dry) {
            self.publish(&happening);
        }
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
        let (generation, is_dry) = (change.generation(), change.is_dry());
        self.end_reload(Ended { generation, result, reason, is_dry }, &change.listener);
    }

    fn end_reload(&mut self, ended: Ended, listener: &Follower) {
        let Ended { generation, result, reason, is_dry } = ended;
        match (result, &reason) {
            (ReloadResult::Committed, _) => {
                tracing::info!(generation = generation.map(|it| it.0), "the reload is done")
            }
            (ReloadResult::CommittedUnsaved, _) => {
                tracing::warn!(generation = generation.map(|it| it.0), "the reload is done, but could not be saved")
            }
            (ReloadResult::Unchanged, _) => tracing::info!("unchanged: this is already being served"),
            (ReloadResult::DryRun, _) => tracing::info!("nothing was changed: it was a dry run"),
            (_, reason) => {
                let what = if is_dry { "the reload would fail" } else { "the reload failed" };
                let generation = generation.map(|it| it.0);
                tracing::error!(generation, "{what}: {}", reason.as_deref().unwrap_or("no reason"));
            }
        }
        let happening = Happening::ReloadEnded { generation, result, reason: reason.clone() };
        listener.tell(&happening);
        if !is_dry {
            self.publish(&happening);
            self.ledger.reloaded(LastReload { generation, result, reason });
        }
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
                let reason = self.generations.get(candidate).and_then(|deployment| self.what_is_new(deployment));
                self.generations.commit(candidate);
                self.followed.supply_by(self.supply());
                self.forget_secrets_that_were_set();
                self.keeping.keeper.watch.hang_timeout = self.policy().hang_timeout;
                self.forget_certificates();
                self.save_commit();
                self.tell_reload(some, "committed", None, None);
                self.settle(candidate, ReloadResult::Committed, reason);
            }
            SwapProgress::RolledBack(cause) => {
                self.generations.forget_others();
                self.forget_certificates();
                let (result, reason) = explain_failure(cause);
                self.settle(candidate, result, Some(reason));
            }
        }
    }

    /// What was set by `config set` before it became a secret is not to stay in the state folder.
    fn forget_secrets_that_were_set(&mut self) {
        let (_, current) = self.generations.current();
        self.live.config.forget_secrets(&current.application.values);
        match self.live.write() {
            Ok(file) => self.live_file = file,
            Err(error) => tracing::error!("cannot pass the configuration to workers to come: {error}"),
        }
    }

    /// A real change does not wait for somebody who only looks.
    pub(crate) fn end_dry_run(&mut self) {
        if self.change.as_ref().is_some_and(Change::is_dry) {
            self.end_change(ReloadResult::Failed, Some("a real change took the place of this dry run".into()));
        }
    }

    /// What is to be said if the component is not.
    fn what_is_new(&self, deployment: &Deployment) -> Option<String> {
        let (_, current) = self.generations.current();
        let is_same = current.compiled.digest == deployment.compiled.digest;
        let what = if self.serves(deployment) { "workers" } else { "settings" };
        is_same.then(|| format!("the component is the same as before, its {what} are new"))
    }

    /// Has it written down what is committed, for a primary that is to go on with it.
    pub(crate) fn save_commit(&self) {
        if let Some(saver) = &self.saver {
            let app = self.settings.app.absolute().unwrap_or_else(|_| self.settings.app.clone());
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
            let generation = Some(generation);
            self.end_reload(Ended { generation, result, reason, is_dry: false }, &listener);
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
            None => {
                let step = self.change.as_ref().and_then(Change::draft).map_or("compiling", |draft| draft.step);
                ReloadStatus { generation: None, phase: step.into(), rolled: 0, of, elapsed_ms }
            }
            Some((candidate, phase)) => {
                let rolled = self.supervisor.slots_of(candidate);
                ReloadStatus { generation: Some(candidate.0), phase: phase.into(), rolled, of, elapsed_ms }
            }
        }
    }
}

/// What is to be deployed, and on which terms.
struct ReloadPlan {
    request: ReloadRequest,
    wanted: Wanted,
    origin: Provenance,
    subject: Subject,
}

/// How a reload ended.
struct Ended {
    generation: Option<Generation>,
    result: ReloadResult,
    reason: Option<String>,
    is_dry: bool,
}

/// What a deployment takes if nothing has to be waited for but the gates. One that was served before has next to none.
fn least_time(policy: &Policy, origin: Provenance) -> Duration {
    match origin {
        Provenance::Compiled => policy.min_ready.saturating_add(policy.soak),
        Provenance::Kept(_) | Provenance::Remembered => Duration::ZERO,
    }
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
