//! The hot swap: from one generation to the next, slot by slot, or back.
//!
//! ```text
//!   Waiting ─▶ Canary ──────────▶ Rolling ─────────▶ Soaking ──────────▶ committed
//!              one worker more,   slot by slot,      all slots, under
//!              no connections     surge first        traffic
//!                 │                  │                  │
//!                 └──── a gate fails, or time is up ────┴──▶ RollingBack ─▶ rolled back
//! ```
//!
//! What is next depends on the state alone: [`Supervisor::advance_reload`] looks after every event, and does what can be
//! done. A slot's `generation` says what its workers are to be; it changes when a successor takes over, so a respawn never
//! brings the candidate to a slot that is not rolled, nor the old generation to one that is.

use std::collections::BTreeSet;
use std::time::Duration;

use super::errors::{FEW_ANSWERS, Trial};
use super::{Action, Answers, Report, STORM_WINDOW, Supervisor, Time, Vitals, Why, WorkerState};
use crate::settings::Policy;
use crate::wire::ids::{Generation, Slot, WorkerId};

/// Generations that may drain at the same time.
const MAX_DRAINING: usize = 2;
/// Crashes of the candidate's ready workers that may be by chance.
const CRASHES_BY_CHANCE: u32 = 1;
/// The longest canary of a version that was served before.
const SHORT_CANARY: Duration = Duration::from_millis(100);
/// How often a soak that is over looks whether answers have come that it waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// By how much the share of errors may be above the old generation's if nobody says another number, in thousandths.
const MAX_ERROR_INCREASE: u32 = 50;

/// What a candidate must stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gates {
    /// Crashes and errors do not count once the canary has passed.
    pub(crate) force: bool,
    /// By how much the share of errors among the answers may be above the old generation's, in thousandths.
    pub(crate) max_error_increase: u32,
    /// It is a version that is known to do well, and that is needed soon: a short canary, and no soak.
    pub(crate) served_before: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self { force: false, max_error_increase: MAX_ERROR_INCREASE, served_before: false }
    }
}

/// How a reload goes, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SwapProgress {
    /// The canary is to become ready, and to stay so for this long.
    Canary(Duration),
    /// So many slots are rolled.
    Rolling(u32),
    /// All slots are rolled; it is to go well for this long.
    Soaking(Duration),
    Committed,
    /// It goes back; so many slots are still to.
    RollingBack(Cause, u32),
    RolledBack(Cause),
}

/// Why a reload was rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// What the candidate did not stand.
    Gate(String),
    TimedOut,
}

#[derive(Debug)]
enum SwapPhase {
    /// Another successor has the canary's place.
    Waiting,
    Canary {
        worker: WorkerId,
        /// When it has been ready for long enough, once it is ready.
        passes_at: Option<Time>,
        /// When it last proved to be well.
        well_at: Option<Time>,
    },
    /// The canary has passed; it may serve as soon as not too many generations drain.
    Passed {
        worker: WorkerId,
    },
    Rolling,
    Soaking {
        until: Time,
        /// If answers are due that could decide, it waits for them, but not longer than this.
        latest: Time,
    },
    RollingBack(Cause),
}

#[derive(Debug)]
pub(super) struct Reload {
    candidate: Generation,
    /// Of the candidate.
    policy: Policy,
    gates: Gates,
    phase: SwapPhase,
    /// When it has taken too long.
    deadline: Option<Time>,
    /// Crashes per second and worker of the old generation, lately.
    crash_rate_before: f64,
    /// Crashes of the candidate's workers after they were ready.
    crashes: u32,
    /// How long workers of the candidate that are gone were ready, all told.
    served: Duration,
    trial: Trial,
}

impl Reload {
    fn canary(&self) -> Option<WorkerId> {
        match self.phase {
            SwapPhase::Canary { worker, .. } | SwapPhase::Passed { worker } => Some(worker),
            SwapPhase::Waiting | SwapPhase::Rolling | SwapPhase::Soaking { .. } | SwapPhase::RollingBack(_) => None,
        }
    }

    /// When to look again, if at all.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        let phase = match self.phase {
            // One that proves to be well does so again and again: the next proof is what is waited for.
            SwapPhase::Canary { passes_at, well_at: None, .. } => passes_at,
            SwapPhase::Canary { .. } => None,
            SwapPhase::Soaking { until, .. } => Some(until),
            SwapPhase::Waiting | SwapPhase::Passed { .. } | SwapPhase::Rolling | SwapPhase::RollingBack(_) => None,
        };
        phase.into_iter().chain(self.deadline).min()
    }

    fn is_rolling_back(&self) -> bool {
        matches!(self.phase, SwapPhase::RollingBack(_))
    }
}

impl Supervisor {
    /// Whether a reload can begin now.
    pub(crate) fn can_reload(&self) -> bool {
        matches!(self.stage, super::Stage::Running) && self.stop_at.is_none() && self.reload.is_none()
    }

    pub(super) fn is_canary(&self, worker: WorkerId) -> bool {
        self.reload.as_ref().and_then(Reload::canary) == Some(worker)
    }

    /// Whether the old generation is being brought back. A reload that is to be forced can take over then.
    pub(crate) fn is_rolling_back(&self) -> bool {
        self.reload.as_ref().is_some_and(Reload::is_rolling_back)
    }

    /// The generation on its way, and what is being done about it.
    pub(crate) fn reloading(&self) -> Option<(Generation, &'static str)> {
        let reload = self.reload.as_ref()?;
        let phase = match reload.phase {
            SwapPhase::Waiting | SwapPhase::Canary { .. } | SwapPhase::Passed { .. } => "canary",
            SwapPhase::Rolling => "rolling",
            SwapPhase::Soaking { .. } => "soaking",
            SwapPhase::RollingBack(_) => "rolling_back",
        };
        Some((reload.candidate, phase))
    }

    /// Slots whose workers are to be of this generation.
    pub(crate) fn slots_of(&self, generation: Generation) -> u32 {
        self.slots.iter().filter(|slot| slot.generation == generation).count() as u32
    }

    pub(super) fn begin_reload(
        &mut self,
        now: Time,
        candidate: Generation,
        policy: Policy,
        gates: Gates,
        deadline: Option<Time>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if gates.force && self.is_rolling_back() {
            actions.extend(self.abandon_reload(now));
        }
        if !self.can_reload() {
            return actions;
        }
        let lately = now.saturating_sub(self.current_since).min(STORM_WINDOW);
        let lately = lately.as_secs_f64().max(1.0) * f64::from(self.slots());
        let crashes = self.current_crashes.iter().filter(|&&at| at + STORM_WINDOW > now).count();
        self.reload = Some(Reload {
            candidate,
            policy,
            gates,
            phase: SwapPhase::Waiting,
            deadline,
            crash_rate_before: crashes as f64 / lately,
            crashes: 0,
            served: Duration::ZERO,
            trial: Trial::default(),
        });
        actions.push(Action::Report(Report::Reload(candidate, SwapProgress::Canary(self.min_ready()))));
        actions
    }

    /// Does what can be done now.
    pub(super) fn advance_reload(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.surge_after <= now {
            self.surge_after = Time::ZERO;
        }
        if self.reload.as_ref().is_some_and(|it| !it.is_rolling_back() && it.deadline.is_some_and(|at| at <= now)) {
            actions.extend(self.roll_back(now, Cause::TimedOut));
        }
        // Each turn begins one thing; a bound against a mistake here.
        for _ in 0..=2 * self.slots.len() + 5 {
            match self.next_turn(now) {
                Some(turn) => actions.extend(turn),
                None => break,
            }
        }
        actions
    }

    fn next_turn(&mut self, now: Time) -> Option<Vec<Action>> {
        let reload = self.reload.as_ref()?;
        let candidate = reload.candidate;
        match &reload.phase {
            SwapPhase::Waiting if self.slots[0].successor.is_none() => {
                let worker = self.enlist(now, Slot(0), candidate);
                self.set_phase(SwapPhase::Canary { worker, passes_at: None, well_at: None });
                Some(vec![Action::Spawn { worker, slot: Slot(0), generation: candidate }])
            }
            &SwapPhase::Canary { worker, passes_at: Some(at), well_at } if at <= well_at.unwrap_or(now) => {
                self.set_phase(SwapPhase::Passed { worker });
                Some(Vec::new())
            }
            &SwapPhase::Passed { worker } if self.may_drain(self.current) => {
                self.set_phase(SwapPhase::Rolling);
                self.slots[0].successor = Some(super::Successor { worker, why: Why::Reloaded });
                Some(vec![self.start_accepting(now, worker), self.report(SwapProgress::Rolling(0))])
            }
            SwapPhase::Rolling => match self.roll(now, candidate, Why::Reloaded)? {
                Roll::Turn(turn) => Some(turn),
                Roll::Done => Some(vec![self.begin_soak(now)]),
            },
            &SwapPhase::Soaking { until, latest } if until <= now => {
                if now < latest && self.answers_are_due(candidate, &reload.trial) {
                    self.set_phase(SwapPhase::Soaking { until: latest.min(now + LOOK_AGAIN), latest });
                    return Some(Vec::new());
                }
                let committed = self.report(SwapProgress::Committed);
                self.current_answers = reload.trial.recent(now);
                self.policy = reload.policy;
                self.reload = None;
                self.current = candidate;
                self.current_since = now;
                self.current_crashes.clear();
                Some(vec![committed])
            }
            SwapPhase::RollingBack(cause) => {
                let cause = cause.clone();
                match self.roll(now, self.current, Why::RolledBack)? {
                    Roll::Turn(turn) => Some(turn),
                    Roll::Done => {
                        let rolled_back = self.report(SwapProgress::RolledBack(cause));
                        self.reload = None;
                        Some(vec![rolled_back])
                    }
                }
            }
            SwapPhase::Waiting | SwapPhase::Canary { .. } | SwapPhase::Passed { .. } | SwapPhase::Soaking { .. } => {
                None
            }
        }
    }

    fn begin_soak(&mut self, now: Time) -> Action {
        let (served_before, deadline) =
            self.reload.as_ref().map_or((false, None), |it| (it.gates.served_before, it.deadline));
        let policy = self.incoming();
        let soak = if served_before { Duration::ZERO } else { policy.soak };
        // Who asks for no soak does not want to wait.
        let patience = if soak.is_zero() { Duration::ZERO } else { policy.request_timeout };
        let in_time = deadline.map_or(Time::MAX, |at| at.saturating_sub(LOOK_AGAIN));
        self.set_phase(SwapPhase::Soaking { until: now + soak, latest: in_time.min(now + soak + patience) });
        self.report(SwapProgress::Soaking(soak))
    }

    /// Brings the next slot to `generation`; one worker at a time that is not ready.
    fn roll(&mut self, now: Time, generation: Generation, why: Why) -> Option<Roll> {
        let starting = |id: WorkerId| self.workers.get(&id).is_some_and(|it| it.state != WorkerState::Ready);
        let unready =
            self.slots.iter().any(|slot| slot.generation == generation && slot.incumbent.is_none_or(starting));
        if self.slots.iter().any(|slot| slot.successor.is_some()) {
            return None;
        }
        let Some(index) = self.slots.iter().position(|slot| slot.generation != generation) else {
            return (!unready || why == Why::RolledBack).then_some(Roll::Done);
        };
        if unready && why != Why::RolledBack {
            return None;
        }
        let slot = Slot(index as u32);
        if self.slots[index].incumbent.is_none() {
            // It waits in back-off for the other generation, which may be what is wrong with it.
            self.slots[index].generation = generation;
            self.slots[index].failures = 0;
            let mut actions = vec![self.fill(now, slot)];
            actions.extend(self.slot_rolled());
            return Some(Roll::Turn(actions));
        }
        if now < self.surge_after || !self.may_drain(self.slots[index].generation) {
            return None;
        }
        Some(Roll::Turn(vec![self.surge(now, slot, generation, why)]))
    }

    /// Whether workers of `generation` may begin to drain: old generations must not pile up.
    fn may_drain(&self, generation: Generation) -> bool {
        let draining = self.workers.values().filter(|worker| worker.state == WorkerState::Draining);
        let generations: BTreeSet<Generation> = draining.map(|worker| worker.generation).collect();
        generations.contains(&generation) || generations.len() < MAX_DRAINING
    }

    fn set_phase(&mut self, phase: SwapPhase) {
        if let Some(reload) = &mut self.reload {
            reload.phase = phase;
        }
    }

    fn report(&self, progress: SwapProgress) -> Action {
        let candidate = self.reload.as_ref().map_or(self.current, |reload| reload.candidate);
        Action::Report(Report::Reload(candidate, progress))
    }

    /// A slot has changed hands.
    pub(super) fn slot_rolled(&self) -> Option<Action> {
        let reload = self.reload.as_ref()?;
        match &reload.phase {
            SwapPhase::Rolling => Some(self.report(SwapProgress::Rolling(self.slots_of(reload.candidate)))),
            SwapPhase::RollingBack(cause) => {
                Some(self.report(SwapProgress::RollingBack(cause.clone(), self.slots_of(reload.candidate))))
            }
            _ => None,
        }
    }

    /// What the workers of a generation go by.
    pub(super) fn policy_of(&self, generation: Generation) -> Policy {
        let is_candidate = self.reload.as_ref().is_some_and(|reload| reload.candidate == generation);
        if is_candidate { self.incoming() } else { self.policy }
    }

    /// What the candidate goes by.
    fn incoming(&self) -> Policy {
        self.reload.as_ref().map_or(self.policy, |reload| reload.policy)
    }

    /// How long the canary must have been well.
    fn min_ready(&self) -> Duration {
        let served_before = self.reload.as_ref().is_some_and(|reload| reload.gates.served_before);
        self.incoming().min_ready.min(if served_before { SHORT_CANARY } else { Duration::MAX })
    }

    /// The canary is ready: it has to stay so for a while.
    pub(super) fn canary_became_ready(&mut self, now: Time, worker: WorkerId) {
        let (passes, proves) = (now + self.min_ready(), self.incoming().checks_health);
        if let Some(Reload { phase: SwapPhase::Canary { worker: canary, passes_at, well_at }, .. }) = &mut self.reload
            && *canary == worker
        {
            passes_at.get_or_insert(passes);
            *well_at = proves.then_some(now);
        }
    }

    pub(super) fn canary_is_well(&mut self, now: Time, worker: WorkerId) -> Vec<Action> {
        if let Some(Reload { phase: SwapPhase::Canary { worker: canary, well_at: Some(at), .. }, .. }) =
            &mut self.reload
            && *canary == worker
        {
            *at = now;
        }
        Vec::new()
    }

    pub(super) fn canary_failed(&mut self, now: Time, worker: WorkerId, reason: &str) -> Vec<Action> {
        if !self.is_canary(worker) {
            return Vec::new();
        }
        self.roll_back(now, Cause::Gate(format!("the canary failed: {reason}")))
    }

    /// A worker crashed that was ready for `served`, or never: what it means for the reload.
    pub(super) fn weigh_crash(
        &mut self,
        now: Time,
        generation: Generation,
        served: Option<Duration>,
        reason: &str,
    ) -> Vec<Action> {
        let Some(reload) = &mut self.reload else { return Vec::new() };
        if reload.candidate != generation || reload.is_rolling_back() {
            return Vec::new();
        }
        reload.crashes += u32::from(served.is_some());
        reload.served += served.unwrap_or_default();
        let (force, crashes, gone) = (reload.gates.force, reload.crashes, reload.served);
        if force {
            return Vec::new();
        }
        if served.is_none() {
            return self.roll_back(
                now,
                Cause::Gate(format!("a worker of the new version died before it was ready: {reason}")),
            );
        }
        let before = reload.crash_rate_before;
        let alive = self.workers.values().filter(|worker| worker.generation == generation);
        let alive: Duration = alive.filter_map(|worker| Some(now.saturating_sub(worker.ready_since?))).sum();
        let rate = f64::from(crashes) / (gone + alive).as_secs_f64().max(f64::MIN_POSITIVE);
        if crashes <= CRASHES_BY_CHANCE || rate <= before {
            return Vec::new();
        }
        let cause = format!("{crashes} workers of the new version crashed, the last one {reason}");
        self.roll_back(now, Cause::Gate(cause))
    }

    /// Takes note of what the workers that serve have answered since they were last looked at. Draining workers are left
    /// out: what they still answer is what took long.
    pub(super) fn count_answers(&mut self, now: Time, vitals: &[(WorkerId, Vitals)]) {
        let (mut old, mut new) = (None::<Answers>, Answers::default());
        let candidate = self.reload.as_ref().map(|reload| reload.candidate);
        for (id, vitals) in vitals {
            let Some(worker) = self.workers.get(id).filter(|worker| worker.state == WorkerState::Ready) else {
                continue;
            };
            let answers = vitals.answers.since(worker.vitals.answers);
            if worker.generation == self.current {
                old = Some(old.unwrap_or_default().plus(answers));
            } else if Some(worker.generation) == candidate {
                new = new.plus(answers);
            }
        }
        // Without workers of the old generation, its last answers stay the measure.
        if let Some(old) = old {
            self.current_answers.add(now, old);
        }
        if let Some(reload) = &mut self.reload {
            reload.trial.add(new, &self.current_answers);
        }
    }

    /// Compares the candidate's share of errors with the old generation's.
    pub(super) fn weigh_errors(&mut self, now: Time) -> Vec<Action> {
        let Some(reload) = self.reload.as_ref().filter(|reload| !reload.gates.force && !reload.is_rolling_back())
        else {
            return Vec::new();
        };
        match reload.trial.verdict(&self.current_answers, reload.gates.max_error_increase) {
            Some(cause) => self.roll_back(now, Cause::Gate(cause)),
            None => Vec::new(),
        }
    }

    /// Whether the candidate has answered too few requests to be judged, but has got enough: they may all be stuck.
    fn answers_are_due(&self, candidate: Generation, trial: &Trial) -> bool {
        let workers = self.workers.values().filter(|worker| worker.generation == candidate);
        let in_flight = workers.fold(0_u64, |sum, worker| sum.saturating_add(worker.vitals.in_flight));
        let answered = trial.answered();
        answered < FEW_ANSWERS && answered.saturating_add(in_flight) >= FEW_ANSWERS
    }

    /// [`Self::advance_reload`] brings back the slots that are rolled.
    fn roll_back(&mut self, now: Time, cause: Cause) -> Vec<Action> {
        let Some(reload) = &mut self.reload else { return Vec::new() };
        let (candidate, canary) = (reload.candidate, reload.canary());
        reload.deadline = None;
        reload.phase = SwapPhase::RollingBack(cause.clone());
        let mut actions = vec![self.report(SwapProgress::RollingBack(cause, self.slots_of(candidate)))];
        actions.extend(self.dismiss(now, candidate, canary));
        actions
    }

    /// Ends it where it is: the cluster stops, or another reload takes over.
    pub(super) fn abandon_reload(&mut self, now: Time) -> Vec<Action> {
        let Some(reload) = self.reload.take() else { return Vec::new() };
        // On the way back it is the old generation's workers that have no place yet.
        let coming = if reload.is_rolling_back() { self.current } else { reload.candidate };
        self.dismiss(now, coming, reload.canary())
    }

    /// Lets go of workers of `generation` that have no slot yet.
    fn dismiss(&mut self, now: Time, generation: Generation, canary: Option<WorkerId>) -> Vec<Action> {
        let is_meant = |id: WorkerId| self.workers.get(&id).is_some_and(|worker| worker.generation == generation);
        let successors = self.slots.iter_mut().filter_map(|slot| {
            slot.successor.take_if(|successor| is_meant(successor.worker)).map(|successor| successor.worker)
        });
        let unwanted: Vec<WorkerId> = canary.into_iter().chain(successors).collect();
        // One may have been told to accept: what it took, it finishes.
        unwanted.into_iter().flat_map(|worker| self.drain(now, Some(worker), Why::RolledBack)).collect()
    }
}

enum Roll {
    Turn(Vec<Action>),
    Done,
}
