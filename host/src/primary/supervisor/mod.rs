//! The supervisor: a pure state machine that decides what happens to workers. It does no I/O and reads no clock; the
//! driver tells it what happened and when, and carries out what it answers.
//!
//! ```text
//!                         a worker is ready
//!   Booting ────────────────────────────────────────▶ Running
//!      │ │                                              │
//!      │ └── typed failure, or three deaths ──▶ Failing │ shutdown
//!      │     before any worker was ready           │    ▼
//!      └──────────── shutdown ─────────────────────┼─▶ Stopping ──▶ exit, when the last worker is gone
//!                                                  └──────────────▶ exit with the worker's own error
//!
//!   a slot:  Spawn ─▶ starting ─▶ ready ─▶ (crash, or drained by somebody else) ─▶ Spawn at once
//!                        └─ (crash) ─▶ back-off: at once, 100 ms, doubling to 30 s ─▶ Spawn
//!
//!   an end:  SIGKILL ─▶ exited, or, when it cannot die: given up, replaced, and no longer waited for
//!
//!   surge:   Spawn the successor ─▶ it is ready ─▶ it accepts ─▶ it is the incumbent, the old one drains
//! ```
//!
//! A slot has at most one incumbent and one successor; workers that drain have been let go of already. How a new version
//! comes is in `swap.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::settings::{Policy, Recycle};
use crate::wire::ids::{Generation, Slot, WorkerId};
use errors::Recent;
use swap::Reload;

pub(crate) use errors::Answers;
pub(crate) use helper::{HelperStep, HelperWatch};
pub(crate) use swap::{Cause, Gates, SwapProgress};

mod errors;
mod helper;
mod swap;

/// Time since the primary started.
pub(crate) type Time = Duration;

/// Deaths before any worker was ever ready after which the boot has failed.
const BOOT_DEATHS: u32 = 3;
/// The second wait of a slot whose workers die before they are ready; the first is none.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest such wait, before jitter.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Failures in a row after which a slot counts as one that gets no worker.
const MISSING_AFTER: u32 = 2;
/// The wait of a slot that has two workers which do not die; doubles with each more.
const STUCK_BACKOFF: Duration = Duration::from_secs(30);
/// Workers that die right after they were ready are not started faster than this, one after the other.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// How far a wait is moved at random, up or down.
const JITTER: f64 = 0.2;
/// How long a worker whose drain timeout has come may take to cut what is left and exit, before SIGKILL.
const CUT_GRACE: Duration = Duration::from_secs(1);
/// Each worker draws its share of the limits that it is recycled at, down to this, so that not all reach them at once.
const LEAST_SHARE: f64 = 0.8;
/// How long a worker that hangs may take to die of SIGABRT, before SIGKILL.
const ABORT_GRACE: Duration = Duration::from_secs(2);
/// The time over which crashes are counted.
const STORM_WINDOW: Duration = Duration::from_secs(60);
/// Crashes that are remembered: more than make a storm of any cluster.
const MAX_CRASHES: usize = 4096;
/// A boot that takes so long must not hold back any longer what its workers say.
const BOOT_PATIENCE: Duration = Duration::from_secs(10);
/// A worker that was ready for so long clears its slot's history.
const HEALTHY: Duration = Duration::from_secs(30);
/// A worker that does not say in this time whether it is ready, is not: what it does before has shorter limits of its own.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a worker may take to accept once it was told to.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(30);
/// How long a worker may live that said it cannot load the component, or says nothing more, before SIGKILL.
const EXIT_GRACE: Duration = Duration::from_secs(2);
/// How long SIGKILL may take. A process that waits in the kernel (state D) for a file system or a device that does not
/// answer dies later, or never.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Workers of one slot that may drain at the same time; for one more, the oldest is killed.
const MAX_DRAINING_OF_SLOT: usize = 4;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A [`Action::Spawn`] could not be carried out.
    SpawnFailed { worker: WorkerId, reason: String },
    /// The worker loaded and instantiated the component.
    BecameReady { worker: WorkerId },
    /// The worker accepts connections.
    BeganAccepting { worker: WorkerId },
    /// Somebody else told the worker to drain. It exits when it is done, and that is no crash.
    BeganDraining { worker: WorkerId },
    /// The worker says that the component cannot be loaded or instantiated.
    LoadFailed { worker: WorkerId, reason: String },
    /// The worker has closed its channel: it is about to exit, if it behaves.
    HungUp { worker: WorkerId },
    /// The worker said something that no worker says, or does not read what it is told.
    Misbehaved { worker: WorkerId, reason: String },
    /// How the workers are. To be sent several times within the hang timeout.
    Observed(Vec<(WorkerId, Vitals)>),
    /// The process is gone.
    Exited { worker: WorkerId, how: String },
    /// Somebody wants the cluster to stop: in an orderly way, or, said again, at once.
    ShutdownRequested(Haste),
    /// The canary, which serves nobody yet, has answered its health check well once more.
    ProvedHealthy { worker: WorkerId },
    /// The canary, which serves nobody yet, does not answer its health check well any more.
    BecameUnhealthy { worker: WorkerId, reason: String },
    /// Somebody wants another number of workers, at least one.
    ScaleRequested { slots: u32 },
    /// Somebody wants the next version, by `deadline`.
    ReloadRequested { candidate: Generation, policy: Policy, gates: Gates, deadline: Option<Time> },
    /// The time that [`Supervisor::next_deadline`] named has come.
    DeadlinePassed,
}

/// What can be seen of a worker from outside, or by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// How often its executor has turned.
    pub(crate) heartbeats: u64,
    pub(crate) requests: u64,
    /// Of the requests, those that are not over.
    pub(crate) in_flight: u64,
    /// What became of the requests that its guests got.
    pub(crate) answers: Answers,
    /// Resident memory, in bytes.
    pub(crate) rss: u64,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Haste {
    /// Finish what was begun.
    Drain,
    /// Kill.
    Now,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the worker process.
    Spawn { worker: WorkerId, slot: Slot, generation: Generation },
    /// Let the worker accept connections.
    StartAccepting { worker: WorkerId },
    /// Close the primary's listening sockets: when the workers have closed theirs, connections are refused.
    CloseListeners,
    /// Let the worker finish what it has begun and exit.
    SendDrain { worker: WorkerId },
    /// End the worker process, and let it leave a core dump.
    Abort { worker: WorkerId },
    /// End the worker process now.
    Kill { worker: WorkerId },
    /// The cluster serves: every first worker is ready, or some are and the others take long or fail. Tell the user.
    AnnounceServing,
    /// Do not wait for the announcement with the lines that workers and primary write. Can be said more than once.
    ReleaseOutput,
    /// Tell whoever wants to know.
    Report(Report),
    /// Everything is over.
    Exit(Ending),
}

/// What people may want to know, from logs and events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The worker accepts connections from now on.
    Ready { worker: WorkerId },
    /// The worker finishes what it has begun; why.
    Draining { worker: WorkerId, why: Why },
    /// The worker is gone, as planned.
    Left { worker: WorkerId, slot: Slot, how: String },
    /// The worker is gone, and nobody wanted it; when its slot gets another.
    Crashed { worker: WorkerId, slot: Slot, reason: String, retry_in: Duration },
    /// The worker does not die of SIGKILL. Its slot gets another, and nobody waits for it any more.
    Unkillable { worker: WorkerId },
    /// What keeps the cluster from being as it should, or that nothing does any more.
    Degraded(Option<Degradation>),
    /// How the reload to this generation goes.
    Reload(Generation, SwapProgress),
}

/// What keeps a cluster that serves from being as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Degradation {
    /// Workers crash again and again.
    CrashStorm,
    /// Some slot's workers die before they are ready, or do not die when they should.
    MissingWorkers,
}

/// Why a worker drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Somebody else told it to.
    Asked,
    /// There are to be fewer workers.
    Scaled,
    /// It served as many requests as one worker shall.
    MaxRequests,
    /// It lived as long as one worker shall.
    MaxLifetime,
    /// Its memory grew as far as one worker's shall.
    MaxRss,
    /// A worker of the next version has taken its place.
    Reloaded,
    /// The version that it is of is not to be served.
    RolledBack,
    /// The cluster stops.
    Stopping,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was asked to stop, and did.
    Stopped,
    /// No worker could be made to serve; why.
    BootFailed(String),
}

/// What a worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    Starting,
    Ready,
    Draining,
    /// It does not die, see [`Report::Unkillable`].
    Unkillable,
}

/// What the driver may want to show of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) slot: Slot,
    pub(crate) generation: Generation,
    pub(crate) role: Role,
    pub(crate) state: WorkerState,
    /// Workers that the slot had before.
    pub(crate) restarts: u64,
}

/// A slot that waits for a new worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) slot: Slot,
    pub(crate) generation: Generation,
    /// When it gets one.
    pub(crate) due: Time,
    /// Workers that it had before.
    pub(crate) restarts: u64,
}

#[derive(Debug)]
enum Stage {
    Booting,
    Running,
    /// No worker can serve: the others are killed, then the primary ends with `reason`.
    Failing {
        reason: String,
    },
    /// Workers that still live at `kill_at` are killed.
    Stopping {
        kill_at: Option<Time>,
    },
    Exited,
}

/// A worker's part in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Incumbent,
    /// Takes the incumbent's place as soon as it accepts.
    Successor,
}

#[derive(Debug)]
struct SlotState {
    /// What its workers are to be.
    generation: Generation,
    incumbent: Option<WorkerId>,
    successor: Option<Successor>,
    /// Deaths before ready since a worker was last healthy here.
    failures: u32,
    /// Workers that were started here after the first.
    restarts: u64,
    restart_at: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Successor {
    worker: WorkerId,
    /// Why the incumbent is to go.
    why: Why,
}

impl SlotState {
    fn new(generation: Generation) -> Self {
        Self { generation, incumbent: None, successor: None, failures: 0, restarts: 0, restart_at: None }
    }
}

#[derive(Clone, Debug)]
struct Worker {
    slot: Slot,
    generation: Generation,
    /// Of its generation.
    policy: Policy,
    state: WorkerState,
    started: Time,
    ready_since: Option<Time>,
    /// Its part of the limits that it is recycled at.
    share: f64,
    /// When it is killed if it still lives: it drains because somebody else said so, or was aborted.
    kill_at: Option<Time>,
    vitals: Vitals,
    /// When its heartbeats last grew.
    beat_at: Time,
    /// What it is to do next, from when on.
    owes: Option<(WorkerDuty, Time)>,
    /// It says nothing more.
    hung_up: bool,
    /// When it is given up: it was sent SIGKILL.
    given_up_at: Option<Time>,
    /// Why it will be gone soon, if it or the driver said so already.
    last_words: Option<String>,
}

/// What a worker has to do in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerDuty {
    BecomeReady,
    Accept,
}

impl WorkerDuty {
    fn patience(self) -> Duration {
        match self {
            Self::BecomeReady => START_PATIENCE,
            Self::Accept => ACCEPT_PATIENCE,
        }
    }

    fn neglected(self) -> String {
        let what = match self {
            Self::BecomeReady => "become ready",
            Self::Accept => "accept connections",
        };
        format!("did not {what} within {:?}", self.patience())
    }
}

impl Worker {
    /// Its drain begins. One that takes too long is killed.
    fn drain(&mut self, now: Time) {
        self.state = WorkerState::Draining;
        self.kill_by(now + self.policy.drain_timeout + CUT_GRACE);
    }

    /// Kills it at `time`, or sooner if that was decided before.
    fn kill_by(&mut self, time: Time) {
        self.kill_at = Some(self.kill_at.map_or(time, |earlier| earlier.min(time)));
    }
}

/// The supervisor of one cluster.
#[derive(Debug)]
pub(crate) struct Supervisor {
    /// Of the generation that is committed.
    policy: Policy,
    stage: Stage,
    /// The generation that is committed.
    current: Generation,
    reload: Option<Reload>,
    slots: Vec<SlotState>,
    workers: BTreeMap<WorkerId, Worker>,
    /// Those that do not die.
    unkillable: BTreeMap<WorkerId, Worker>,
    next_worker: u64,
    boot_deaths: u32,
    /// From the first ready worker on, the cluster never gives up.
    ever_ready: bool,
    announced: bool,
    release_output_at: Option<Time>,
    /// When the workers are to be drained, if the cluster is about to stop.
    stop_at: Option<Time>,
    observed_at: Time,
    /// The last successor died before it was ready: no other is tried before this.
    surge_after: Time,
    /// When workers crashed in the last minute, [`MAX_CRASHES`] at most.
    crashes: VecDeque<Time>,
    /// Likewise, of ready workers of the current generation.
    current_crashes: VecDeque<Time>,
    /// When the current generation was committed.
    current_since: Time,
    /// What became of the last requests to workers of the current generation.
    current_answers: Recent,
    degradation: Option<Degradation>,
    random: fastrand::Rng,
}

impl Supervisor {
    /// A supervisor of `slots` workers of one generation; at least one worker. Equal seeds make equal decisions.
    pub(crate) fn new(slots: u32, current: Generation, policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            stage: Stage::Booting,
            current,
            reload: None,
            slots: (0..slots).map(|_| SlotState::new(current)).collect(),
            workers: BTreeMap::new(),
            unkillable: BTreeMap::new(),
            next_worker: 1,
            boot_deaths: 0,
            ever_ready: false,
            announced: false,
            release_output_at: Some(BOOT_PATIENCE),
            stop_at: None,
            observed_at: Time::ZERO,
            surge_after: Time::ZERO,
            crashes: VecDeque::new(),
            current_crashes: VecDeque::new(),
            current_since: Time::ZERO,
            current_answers: Recent::default(),
            degradation: None,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The first actions: a worker for every slot.
    pub(crate) fn start(&mut self) -> Vec<Action> {
        (0..self.slots()).map(|slot| self.fill(Time::ZERO, Slot(slot))).collect()
    }

    /// Takes note of what happened at `now` and answers what is to be done. Events of workers that are gone already
    /// are ignored.
    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = match event {
            Event::BecameReady { worker } => self.became_ready(now, worker),
            Event::BeganAccepting { worker } => self.began_accepting(now, worker),
            Event::BeganDraining { worker } => self.began_draining(now, worker),
            Event::LoadFailed { worker, reason } => self.load_failed(now, worker, reason),
            Event::HungUp { worker } => self.hung_up(now, worker),
            Event::Misbehaved { worker, reason } => self.misbehaved(worker, reason),
            Event::Observed(vitals) => self.observed(now, &vitals),
            Event::Exited { worker, how } | Event::SpawnFailed { worker, reason: how } => self.exited(now, worker, how),
            Event::ProvedHealthy { worker } => self.canary_is_well(now, worker),
            Event::BecameUnhealthy { worker, reason } => self.canary_failed(now, worker, &reason),
            Event::ScaleRequested { slots } => self.scale(now, slots),
            Event::ReloadRequested { candidate, policy, gates, deadline } => {
                self.begin_reload(now, candidate, policy, gates, deadline)
            }
            Event::ShutdownRequested(haste) => self.shut_down(now, haste),
            Event::DeadlinePassed => self.deadline_passed(now),
        };
        actions.extend(self.announce_if_due(now));
        actions.extend(self.advance_reload(now));
        actions.extend(self.weigh_state(now));
        for action in &actions {
            if let Action::Kill { worker } = action
                && let Some(killed) = self.workers.get_mut(worker)
            {
                killed.given_up_at.get_or_insert(now + KILL_PATIENCE);
            }
        }
        actions.extend(self.exit_if_alone());
        actions
    }

    /// When to send [`Event::DeadlinePassed`], if at all.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let kill_at = match self.stage {
            Stage::Stopping { kill_at } => kill_at,
            _ => None,
        };
        let restarts = self.slots.iter().filter_map(|slot| slot.restart_at);
        let kills = self.workers.values().flat_map(|worker| [worker.kill_at, worker.given_up_at]).flatten();
        let is_storm = self.degradation == Some(Degradation::CrashStorm);
        let calm = self.crashes.front().filter(|_| is_storm).map(|&oldest| oldest + STORM_WINDOW);
        let reload = self.reload.as_ref().and_then(Reload::next_deadline);
        // Only a reload waits for it; recycling looks again by itself.
        let surge = Some(self.surge_after).filter(|_| self.reload.is_some() && !self.surge_after.is_zero());
        let others = kill_at.into_iter().chain(self.stop_at).chain(self.release_output_at).chain(calm);
        let others = others.chain(reload).chain(surge);
        restarts.chain(kills).chain(others).min()
    }

    /// What is known of a worker that is not gone yet.
    pub(crate) fn describe(&self, worker: WorkerId) -> Option<Description> {
        let found = self.workers.get(&worker).or_else(|| self.unkillable.get(&worker))?;
        let slot = self.slots.get(found.slot.0 as usize);
        let succeeds = slot.and_then(|slot| slot.successor).is_some_and(|successor| successor.worker == worker)
            || self.is_canary(worker);
        Some(Description {
            slot: found.slot,
            generation: found.generation,
            role: if succeeds { Role::Successor } else { Role::Incumbent },
            state: found.state,
            restarts: slot.map_or(0, |slot| slot.restarts),
        })
    }

    /// Slots that wait for a new worker.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Waiting> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, slot)| {
            let (generation, restarts) = (slot.generation, slot.restarts);
            Some(Waiting { slot: Slot(index as u32), generation, due: slot.restart_at?, restarts })
        })
    }

    /// How many processes there are of these generations.
    pub(crate) fn workers_of(&self, is_meant: impl Fn(Generation) -> bool) -> u32 {
        self.workers.values().filter(|worker| is_meant(worker.generation)).count() as u32
    }

    /// How many workers are asked for.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Workers that serve.
    pub(crate) fn ready(&self) -> usize {
        let is_ready = |id: WorkerId| self.workers.get(&id).is_some_and(|it| it.state == WorkerState::Ready);
        self.slots.iter().filter(|slot| slot.incumbent.is_some_and(is_ready)).count()
    }

    pub(crate) fn is_booting(&self) -> bool {
        matches!(self.stage, Stage::Booting)
    }

    /// Whether no worker is started any more.
    pub(crate) fn is_stopping(&self) -> bool {
        !matches!(self.stage, Stage::Booting | Stage::Running)
    }

    /// Whether it stops, or has been told to and waits for its delay.
    pub(crate) fn is_about_to_stop(&self) -> bool {
        self.stop_at.is_some() || self.is_stopping()
    }

    /// What keeps it from being as it should. Healthy workers go on.
    pub(crate) fn degradation(&self) -> Option<Degradation> {
        self.degradation
    }

    fn slot(&self, slot: Slot) -> &SlotState {
        &self.slots[slot.0 as usize]
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut SlotState {
        &mut self.slots[slot.0 as usize]
    }

    /// Gives an empty slot a worker.
    fn fill(&mut self, now: Time, slot: Slot) -> Action {
        let generation = self.slot(slot).generation;
        let worker = self.enlist(now, slot, generation);
        let state = self.slot_mut(slot);
        state.incumbent = Some(worker);
        state.restart_at = None;
        Action::Spawn { worker, slot, generation }
    }

    /// Starts a successor for the slot's incumbent, which goes when the successor accepts.
    fn surge(&mut self, now: Time, slot: Slot, generation: Generation, why: Why) -> Action {
        let worker = self.enlist(now, slot, generation);
        self.slot_mut(slot).successor = Some(Successor { worker, why });
        Action::Spawn { worker, slot, generation }
    }

    fn enlist(&mut self, now: Time, slot: Slot, generation: Generation) -> WorkerId {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let starting = Worker {
            generation,
            policy: self.policy_of(generation),
            slot,
            state: WorkerState::Starting,
            started: now,
            ready_since: None,
            share: 1.0 - (1.0 - LEAST_SHARE) * self.random.f64(),
            kill_at: None,
            vitals: Vitals::default(),
            beat_at: now,
            owes: Some((WorkerDuty::BecomeReady, now)),
            hung_up: false,
            given_up_at: None,
            last_words: None,
        };
        self.workers.insert(worker, starting);
        worker
    }

    fn became_ready(&mut self, now: Time, worker: WorkerId) -> Vec<Action> {
        let stopping = self.is_stopping();
        let Some(found) = self.workers.get_mut(&worker) else {
            return Vec::new();
        };
        // One that is to be killed, or drains already, must not accept.
        if stopping || found.state != WorkerState::Starting {
            return Vec::new();
        }
        found.state = WorkerState::Ready;
        found.ready_since = Some(now);
        found.owes = None;
        self.ever_ready = true;
        if self.is_booting() {
            self.stage = Stage::Running;
        }
        if self.is_canary(worker) {
            self.canary_became_ready(now, worker);
            return vec![Action::Report(Report::Ready { worker })];
        }
        vec![self.start_accepting(now, worker), Action::Report(Report::Ready { worker })]
    }

    fn start_accepting(&mut self, now: Time, worker: WorkerId) -> Action {
        if let Some(found) = self.workers.get_mut(&worker) {
            found.owes = Some((WorkerDuty::Accept, now));
        }
        Action::StartAccepting { worker }
    }

    /// Once, as soon as all are ready; or some are, and the others are not to be waited for.
    fn announce_if_due(&mut self, now: Time) -> Option<Action> {
        let is_late = self.release_output_at.is_none_or(|at| at <= now);
        let due = self.ever_ready && !self.announced && !self.is_stopping() && (is_late || self.is_staffed());
        if !due {
            return None;
        }
        self.announced = true;
        self.release_output_at = None;
        Some(Action::AnnounceServing)
    }

    /// Every slot has a ready worker.
    fn is_staffed(&self) -> bool {
        self.slots.iter().all(|slot| self.is_manned(slot))
    }

    /// Its workers die before they are ready, more than once: the first of such deaths may be by chance.
    fn is_failing(&self, slot: &SlotState) -> bool {
        slot.failures >= MISSING_AFTER && !self.is_manned(slot)
    }

    fn is_manned(&self, slot: &SlotState) -> bool {
        let incumbent = slot.incumbent.and_then(|worker| self.workers.get(&worker));
        incumbent.is_some_and(|worker| worker.state == WorkerState::Ready)
    }

    /// A successor takes over. Until now the incumbent accepted too.
    fn began_accepting(&mut self, now: Time, worker: WorkerId) -> Vec<Action> {
        let stopping = self.is_stopping();
        let is_ready = |found: &&mut Worker| found.state == WorkerState::Ready && !stopping;
        let Some(found) = self.workers.get_mut(&worker).filter(is_ready) else {
            return Vec::new();
        };
        found.owes = None;
        let generation = found.generation;
        let slot = &mut self.slots[found.slot.0 as usize];
        let Some(successor) = slot.successor.take_if(|successor| successor.worker == worker) else {
            return Vec::new();
        };
        slot.restarts += 1;
        slot.generation = generation;
        slot.restart_at = None;
        let old = slot.incumbent.replace(worker);
        let mut actions = self.drain(now, old, successor.why);
        actions.extend(self.slot_rolled());
        actions
    }

    fn drain(&mut self, now: Time, worker: Option<WorkerId>, why: Why) -> Vec<Action> {
        let Some(worker) = worker else { return Vec::new() };
        let Some(state) = self.workers.get_mut(&worker) else { return Vec::new() };
        // One that is not ready has nothing to finish, and may never hear of it.
        let go =
            if state.state == WorkerState::Starting { Action::Kill { worker } } else { Action::SendDrain { worker } };
        state.drain(now);
        vec![go, Action::Report(Report::Draining { worker, why })]
    }

    /// The worker is lost to its slot from now on, though it finishes what it has begun.
    fn began_draining(&mut self, now: Time, worker: WorkerId) -> Vec<Action> {
        let Some(found) = self.workers.get_mut(&worker).filter(|found| found.state != WorkerState::Draining) else {
            return Vec::new();
        };
        found.drain(now);
        let (slot, started) = (found.slot, found.started);
        let mut actions = vec![Action::Report(Report::Draining { worker, why: Why::Asked })];
        actions.extend(self.end_oldest_drain(slot));
        actions.extend(self.canary_failed(now, worker, "it was told to drain"));
        if !self.is_stopping() {
            let wait = MIN_INTERVAL.saturating_sub(now.saturating_sub(started));
            actions.extend(self.let_go(now, slot, worker, wait));
        }
        actions
    }

    /// Workers that say again and again that they drain must not pile up behind their slot.
    fn end_oldest_drain(&self, slot: Slot) -> Option<Action> {
        let of_slot = self.workers.iter().filter(|(_, it)| it.slot == slot && it.state == WorkerState::Draining);
        let mut draining = of_slot.filter(|(_, it)| it.given_up_at.is_none()).map(|(&worker, _)| worker);
        let oldest = draining.next()?;
        (draining.count() >= MAX_DRAINING_OF_SLOT).then_some(Action::Kill { worker: oldest })
    }

    /// Takes the worker off its slot. The slot gets another after `wait`, unless a successor can take over.
    fn let_go(&mut self, now: Time, slot: Slot, worker: WorkerId, wait: Duration) -> Option<Action> {
        let takes_over = self.slot(slot).successor.is_some_and(|successor| self.may_take_over(slot, successor.worker));
        let state = self.slot_mut(slot);
        if state.successor.take_if(|successor| successor.worker == worker).is_some() {
            self.surge_after = now + wait;
            return None;
        }
        // Otherwise it was a canary, or had been let go of already.
        state.incumbent.take_if(|incumbent| *incumbent == worker)?;
        state.restarts += 1;
        if takes_over && let Some(successor) = state.successor.take() {
            state.incumbent = Some(successor.worker);
            return None;
        }
        if wait.is_zero() {
            return Some(self.fill(now, slot));
        }
        state.restart_at = Some(now + wait);
        None
    }

    /// Whether a successor can fill its slot at once: one of another generation only as the reload has it.
    fn may_take_over(&self, slot: Slot, successor: WorkerId) -> bool {
        self.workers.get(&successor).is_some_and(|it| it.generation == self.slot(slot).generation)
    }

    /// The worker exits by itself, or is killed.
    fn load_failed(&mut self, now: Time, worker: WorkerId, reason: String) -> Vec<Action> {
        let Some(found) = self.workers.get_mut(&worker) else {
            return Vec::new();
        };
        found.last_words = Some(reason.clone());
        found.kill_by(now + EXIT_GRACE);
        if self.ever_ready || self.is_stopping() { Vec::new() } else { self.fail(reason) }
    }

    /// It exits by itself, or is killed: nothing more can be heard of it, nor told to it.
    fn hung_up(&mut self, now: Time, worker: WorkerId) -> Vec<Action> {
        if let Some(found) = self.workers.get_mut(&worker) {
            found.hung_up = true;
            found.kill_by(now + EXIT_GRACE);
        }
        Vec::new()
    }

    fn misbehaved(&mut self, worker: WorkerId, reason: String) -> Vec<Action> {
        let Some(found) = self.workers.get_mut(&worker) else {
            return Vec::new();
        };
        found.last_words = Some(reason);
        vec![Action::Kill { worker }]
    }

    fn exited(&mut self, now: Time, worker: WorkerId, how: String) -> Vec<Action> {
        let Some(gone) = self.workers.remove(&worker) else {
            let Some(Worker { slot, .. }) = self.unkillable.remove(&worker) else { return Vec::new() };
            if matches!(self.stage, Stage::Exited) {
                return Vec::new();
            }
            // What held it may have let go of the others too.
            if let Some(restart_at) = self.slots.get_mut(slot.0 as usize).and_then(|it| it.restart_at.as_mut()) {
                *restart_at = (*restart_at).min(now + STUCK_BACKOFF);
            }
            return vec![Action::Report(Report::Left { worker, slot, how })];
        };
        let slot = gone.slot;
        let reason = gone.last_words.unwrap_or(how);
        if gone.state == WorkerState::Draining || self.is_stopping() {
            return vec![Action::Report(Report::Left { worker, slot, how: reason })];
        }
        if self.is_canary(worker) {
            // It served nobody: no crash that the cluster suffers from.
            let report = Report::Crashed { worker, slot, reason: reason.clone(), retry_in: Duration::ZERO };
            let mut actions = vec![Action::Report(report)];
            actions.extend(self.canary_failed(now, worker, &reason));
            return actions;
        }
        let served = gone.ready_since.map(|since| now.saturating_sub(since));
        let wait = match served {
            Some(lived) => {
                if lived >= HEALTHY {
                    self.slot_mut(slot).failures = 0;
                }
                MIN_INTERVAL.saturating_sub(lived)
            }
            None => {
                if !self.ever_ready {
                    self.boot_deaths += 1;
                    if self.boot_deaths >= BOOT_DEATHS {
                        return self.fail(format!("no worker became ready, and the last one {reason}"));
                    }
                }
                self.backoff(slot)
            }
        };
        let wait = if self.unkillable.contains_key(&worker) { wait.max(self.stuck_backoff(slot)) } else { wait };
        if self.ever_ready {
            // It may never be complete now: what serves is announced without it.
            self.release_output_at = None;
        }
        if gone.ready_since.is_some() && gone.generation == self.current {
            remember(&mut self.current_crashes, now);
        }
        remember(&mut self.crashes, now);
        let mut actions =
            vec![Action::Report(Report::Crashed { worker, slot, reason: reason.clone(), retry_in: wait })];
        actions.extend(self.weigh_crash(now, gone.generation, served, &reason));
        actions.extend(self.let_go(now, slot, worker, wait));
        actions
    }

    /// More crashes than this within [`STORM_WINDOW`] are a storm.
    fn storm(&self) -> usize {
        (2 * self.slots.len()).max(5)
    }

    /// Tells when the cluster is not as it should be any more, or is again.
    fn weigh_state(&mut self, now: Time) -> Option<Action> {
        while self.crashes.pop_front_if(|at| *at + STORM_WINDOW <= now).is_some() {}
        let degradation = if !matches!(self.stage, Stage::Running) {
            None
        } else if self.crashes.len() > self.storm() {
            Some(Degradation::CrashStorm)
        } else {
            self.slots.iter().any(|slot| self.is_failing(slot)).then_some(Degradation::MissingWorkers)
        };
        let changed = degradation != self.degradation;
        self.degradation = degradation;
        (changed && !self.is_stopping()).then_some(Action::Report(Report::Degraded(degradation)))
    }

    fn observed(&mut self, now: Time, vitals: &[(WorkerId, Vitals)]) -> Vec<Action> {
        self.count_answers(now, vitals);
        let mut actions = self.abort_hung(now, vitals);
        actions.extend(self.weigh_errors(now));
        actions.extend(self.recycle(now, vitals));
        actions
    }

    /// Aborts workers whose executor stands still. Heartbeats that were read late prove nothing: the primary itself was
    /// stopped, or the whole machine was.
    fn abort_hung(&mut self, now: Time, vitals: &[(WorkerId, Vitals)]) -> Vec<Action> {
        let pause = now.saturating_sub(std::mem::replace(&mut self.observed_at, now));
        let mut actions = Vec::new();
        for &(id, vitals) in vitals {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            let Policy { hang_timeout, .. } = worker.policy;
            let late = pause >= hang_timeout / 2;
            let turns = worker.vitals.heartbeats != vitals.heartbeats;
            worker.vitals = vitals;
            if late {
                worker.owes = worker.owes.map(|(duty, _)| (duty, now));
            }
            let neglected = worker.owes.filter(|(duty, since)| now.saturating_sub(*since) >= duty.patience());
            if late || turns {
                worker.beat_at = now;
                if let Some((duty, _)) = neglected.filter(|_| worker.last_words.is_none()) {
                    worker.last_words = Some(duty.neglected());
                    actions.push(Action::Kill { worker: id });
                }
            } else if now.saturating_sub(worker.beat_at) >= hang_timeout && worker.last_words.is_none() {
                worker.last_words = Some(format!("hung: its event loop made no progress for {hang_timeout:?}"));
                worker.kill_by(now + ABORT_GRACE);
                actions.push(Action::Abort { worker: id });
            }
        }
        actions
    }

    /// No worker comes or goes, but for those that cannot become ready: they must not keep the others from being recycled.
    fn is_calm(&self) -> bool {
        let is_settled = |slot: &SlotState| slot.successor.is_none() && (self.is_manned(slot) || self.is_failing(slot));
        let draining = self.workers.values().any(|worker| worker.state == WorkerState::Draining);
        self.slots.iter().all(is_settled) && !draining
    }

    /// Starts a successor for one worker that has reached a limit: one at a time.
    fn recycle(&mut self, now: Time, vitals: &[(WorkerId, Vitals)]) -> Option<Action> {
        let allowed = self.can_reload() && now >= self.surge_after;
        if !allowed || !self.is_calm() {
            return None;
        }
        let (slot, why) = vitals.iter().find_map(|(id, vitals)| {
            let is_well = |worker: &&Worker| worker.state == WorkerState::Ready && worker.last_words.is_none();
            let worker = self.workers.get(id).filter(is_well)?;
            Some((worker.slot, limit_reached(now, worker, vitals)?))
        })?;
        Some(self.surge(now, slot, self.current, why))
    }

    /// The wait of a slot which has a worker more that does not die. They keep their memory and their descriptors, so the
    /// next is started later each time.
    fn stuck_backoff(&mut self, slot: Slot) -> Duration {
        let stuck = self.unkillable.values().filter(|it| it.slot == slot).count() as u32;
        let Some(doublings) = stuck.checked_sub(2) else {
            return Duration::ZERO;
        };
        let slot = self.slot_mut(slot);
        slot.failures = slot.failures.max(MISSING_AFTER);
        doubled(STUCK_BACKOFF, doublings)
    }

    /// The slot's next wait; counts one more failure.
    fn backoff(&mut self, slot: Slot) -> Duration {
        let failures = self.slot(slot).failures;
        self.slot_mut(slot).failures = failures.saturating_add(1);
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let wait = doubled(FIRST_BACKOFF, doublings).min(MAX_BACKOFF);
        let jitter = 1.0 + JITTER * (2.0 * self.random.f64() - 1.0);
        wait.mul_f64(jitter)
    }

    fn fail(&mut self, reason: String) -> Vec<Action> {
        self.stage = Stage::Failing { reason };
        self.forget_deadlines();
        self.kill_all()
    }

    /// Starts workers for new slots, or drains those of the highest.
    fn scale(&mut self, now: Time, slots: u32) -> Vec<Action> {
        debug_assert!(slots > 0, "a cluster has a worker");
        if !self.can_reload() {
            return Vec::new();
        }
        let mut actions = Vec::new();
        let given_up: Vec<SlotState> = self.slots.drain((slots as usize).min(self.slots.len())..).collect();
        for SlotState { incumbent, successor, .. } in given_up {
            let successor = successor.map(|successor| successor.worker);
            for worker in [incumbent, successor] {
                actions.extend(self.drain(now, worker, Why::Scaled));
            }
        }
        for slot in self.slots()..slots {
            self.slots.push(SlotState::new(self.current));
            actions.push(self.fill(now, Slot(slot)));
        }
        actions
    }

    fn shut_down(&mut self, now: Time, haste: Haste) -> Vec<Action> {
        match (&self.stage, haste) {
            (Stage::Booting | Stage::Running, Haste::Drain) if self.stop_at.is_none() => {
                if self.policy.shutdown_delay.is_zero() {
                    return self.drain_all(now);
                }
                self.stop_at = Some(now + self.policy.shutdown_delay);
                self.abandon_reload(now)
            }
            (Stage::Exited | Stage::Failing { .. }, _) => Vec::new(),
            // Asked again, or asked to hurry.
            (Stage::Booting | Stage::Running | Stage::Stopping { .. }, _) => {
                self.stage = Stage::Stopping { kill_at: None };
                self.forget_deadlines();
                self.kill_all()
            }
        }
    }

    fn drain_all(&mut self, now: Time) -> Vec<Action> {
        self.stage = Stage::Stopping { kill_at: Some(now + self.policy.shutdown_timeout) };
        self.forget_deadlines();
        let serving = self.workers.iter().filter(|(_, worker)| worker.state != WorkerState::Draining);
        let serving: Vec<WorkerId> = serving.map(|(&worker, _)| worker).collect();
        let mut actions = vec![Action::CloseListeners];
        for worker in serving {
            actions.extend(self.drain(now, Some(worker), Why::Stopping));
        }
        actions
    }

    fn forget_deadlines(&mut self) {
        self.release_output_at = None;
        self.stop_at = None;
        self.reload = None;
        self.crashes.clear();
        for slot in &mut self.slots {
            slot.restart_at = None;
        }
    }

    fn kill_all(&self) -> Vec<Action> {
        self.workers.keys().map(|&worker| Action::Kill { worker }).collect()
    }

    fn deadline_passed(&mut self, now: Time) -> Vec<Action> {
        if let Stage::Stopping { kill_at: Some(kill_at) } = self.stage
            && kill_at <= now
        {
            self.stage = Stage::Stopping { kill_at: None };
            return self.kill_all();
        }
        if self.stop_at.take_if(|at| *at <= now).is_some() {
            return self.drain_all(now);
        }
        let mut actions = Vec::new();
        if !self.ever_ready && self.release_output_at.take_if(|at| *at <= now).is_some() {
            actions.push(Action::ReleaseOutput);
        }
        for (&worker, state) in &mut self.workers {
            if state.kill_at.take_if(|at| *at <= now).is_some() {
                if state.hung_up {
                    state.last_words.get_or_insert("closed its channel and did not exit".into());
                }
                actions.push(Action::Kill { worker });
            }
        }
        actions.extend(self.give_up_unkillable(now));
        let due: Vec<Slot> = self.waiting().filter(|waiting| waiting.due <= now).map(|waiting| waiting.slot).collect();
        actions.extend(due.into_iter().map(|slot| self.fill(now, slot)));
        actions
    }

    /// Goes on without those that SIGKILL did not end.
    fn give_up_unkillable(&mut self, now: Time) -> Vec<Action> {
        let is_due = |it: &Worker| it.given_up_at.is_some_and(|at| at <= now);
        let due: Vec<WorkerId> = self.workers.iter().filter(|(_, it)| is_due(it)).map(|(&id, _)| id).collect();
        let mut actions = Vec::new();
        for worker in due {
            let Some(stuck) = self.workers.get(&worker) else { continue };
            let state = WorkerState::Unkillable;
            let kept = Worker { state, kill_at: None, given_up_at: None, last_words: None, ..stuck.clone() };
            actions.push(Action::Report(Report::Unkillable { worker }));
            self.unkillable.insert(worker, kept);
            actions.extend(self.exited(now, worker, "does not die of SIGKILL".into()));
        }
        actions
    }

    fn exit_if_alone(&mut self) -> Option<Action> {
        if !self.workers.is_empty() {
            return None;
        }
        let outcome = match &mut self.stage {
            Stage::Failing { reason } => Ending::BootFailed(std::mem::take(reason)),
            Stage::Stopping { .. } => Ending::Stopped,
            Stage::Booting | Stage::Running | Stage::Exited => return None,
        };
        self.stage = Stage::Exited;
        Some(Action::Exit(outcome))
    }
}

/// Thirty times at most, which is beyond any patience.
fn doubled(time: Duration, times: u32) -> Duration {
    time.saturating_mul(1 << times.min(30))
}

/// Which of its limits the worker has reached.
fn limit_reached(now: Time, worker: &Worker, vitals: &Vitals) -> Option<Why> {
    let Recycle { max_requests, max_lifetime, max_rss } = worker.policy.recycle;
    let share = |limit: u64| ((limit as f64 * worker.share) as u64).max(1);
    let age = now.saturating_sub(worker.started);
    if max_requests.is_some_and(|limit| vitals.requests >= share(limit)) {
        return Some(Why::MaxRequests);
    }
    if max_lifetime.is_some_and(|limit| age >= limit.mul_f64(worker.share)) {
        return Some(Why::MaxLifetime);
    }
    max_rss.is_some_and(|limit| vitals.rss >= share(limit)).then_some(Why::MaxRss)
}

fn remember(crashes: &mut VecDeque<Time>, now: Time) {
    crashes.push_back(now);
    if crashes.len() > MAX_CRASHES {
        crashes.pop_front();
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod swap_tests;
#[cfg(test)]
mod tests;
