//! The supervisor: a pure state machine that decides what happens to workers. It does no I/O and reads no clock; the
//! driver tells it what happened and when, and carries out what it answers.
//!
//! ```text
//!                       all first workers ready
//!   Booting ────────────────────────────────────────▶ Running
//!      │ │                                              │
//!      │ └── typed failure, or three deaths ──▶ Failing │ shutdown
//!      │     before any worker was ready           │    ▼
//!      └──────────── shutdown ─────────────────────┼─▶ Stopping ──▶ exit, when the last worker is gone
//!                                                  └──────────────▶ exit with the worker's own error
//!
//!   a slot:  Spawn ─▶ starting ─▶ ready ─▶ (crash, or drained by somebody else) ─▶ Spawn at once
//!                        └─ (crash) ─▶ back-off: at once, 100 ms, doubling to 30 s ─▶ Spawn
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::{Slot, WorkerId};

/// Time since the primary started.
pub(crate) type Time = Duration;

/// Deaths before any worker was ever ready after which the boot has failed.
const BOOT_DEATHS: u32 = 3;
/// The second wait of a slot whose workers die before they are ready; the first is none.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest such wait, before jitter.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Workers that die right after they were ready are not started faster than this, one after the other.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// How far a wait is moved at random, up or down.
const JITTER: f64 = 0.2;
/// How long a worker that hangs may take to die of SIGABRT, before SIGKILL.
const ABORT_GRACE: Duration = Duration::from_secs(2);
/// The time over which crashes are counted.
const STORM_WINDOW: Duration = Duration::from_secs(60);
/// A boot that takes so long must not hold back any longer what its workers say.
const BOOT_PATIENCE: Duration = Duration::from_secs(10);
/// A worker that was ready for so long clears its slot's history.
const HEALTHY: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A [`Action::Spawn`] could not be carried out.
    SpawnFailed { worker: WorkerId, reason: String },
    /// The worker loaded and instantiated the component.
    BecameReady { worker: WorkerId },
    /// Somebody else told the worker to drain. It exits when it is done, and that is no crash.
    BeganDraining { worker: WorkerId },
    /// The worker says that the component cannot be loaded or instantiated.
    LoadFailed { worker: WorkerId, reason: String },
    /// The worker said something that no worker says, or does not read what it is told.
    Misbehaved { worker: WorkerId, reason: String },
    /// How often each worker's executor has turned, by its own account. To be sent several times within the hang timeout.
    HeartbeatsRead(Vec<(WorkerId, u64)>),
    /// The process is gone.
    Exited { worker: WorkerId, how: String },
    /// Somebody wants the cluster to stop: in an orderly way, or, said again, at once.
    ShutdownRequested(Haste),
    /// Somebody wants another number of workers, at least one.
    ScaleRequested { slots: u32 },
    /// The time that [`Supervisor::next_deadline`] named has come.
    DeadlinePassed,
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
    Spawn { worker: WorkerId, slot: Slot },
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
    /// Every first worker is ready: tell the user.
    AnnounceServing,
    /// Do not wait for the announcement with the lines that workers and primary write. Can be said more than once.
    ReleaseOutput,
    /// Tell the user of a death that was not planned, and when the slot gets another worker.
    ReportCrash { worker: WorkerId, slot: Slot, reason: String, retry_in: Duration },
    /// Crashes have become a storm, or are none any more.
    ReportDegraded(bool),
    /// Everything is over.
    Exit(Outcome),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was asked to stop, and did.
    Stopped,
    /// No worker could be made to serve; why.
    BootFailed(String),
}

/// What the driver may want to show of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    Starting,
    Ready,
    Draining,
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

#[derive(Debug, Default)]
struct SlotState {
    incumbent: Option<WorkerId>,
    /// Deaths before ready since a worker was last healthy here.
    failures: u32,
    /// Workers that were started here after the first.
    restarts: u64,
    restart_at: Option<Time>,
}

#[derive(Debug)]
struct Worker {
    slot: Slot,
    state: WorkerState,
    ready_since: Option<Time>,
    /// When it is killed if it still lives: it drains because somebody else said so, or was aborted.
    kill_at: Option<Time>,
    heartbeats: u64,
    /// When `heartbeats` last grew.
    beat_at: Time,
    /// Why it will be gone soon, if it or the driver said so already.
    last_words: Option<String>,
}

impl Worker {
    /// Kills it at `time`, or sooner if that was decided before.
    fn kill_by(&mut self, time: Time) {
        self.kill_at = Some(self.kill_at.map_or(time, |earlier| earlier.min(time)));
    }
}

/// What a user may choose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Workers that live longer than this after a drain began are killed.
    pub(crate) shutdown_timeout: Duration,
    /// An executor that did not turn for so long hangs.
    pub(crate) hang_timeout: Duration,
}

/// The supervisor of one cluster.
#[derive(Debug)]
pub(crate) struct Supervisor {
    policy: Policy,
    stage: Stage,
    slots: Vec<SlotState>,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u64,
    boot_deaths: u32,
    /// From the first ready worker on, the cluster never gives up.
    ever_ready: bool,
    release_output_at: Option<Time>,
    heartbeats_read_at: Time,
    /// When workers crashed in the last minute; as many as make a storm, and one more.
    crashes: VecDeque<Time>,
    degraded: bool,
    random: fastrand::Rng,
}

impl Supervisor {
    /// A supervisor of `slots` workers, which must be at least one. Equal seeds make equal decisions.
    pub(crate) fn new(slots: u32, policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            stage: Stage::Booting,
            slots: (0..slots).map(|_| SlotState::default()).collect(),
            workers: BTreeMap::new(),
            next_worker: 1,
            boot_deaths: 0,
            ever_ready: false,
            release_output_at: Some(BOOT_PATIENCE),
            heartbeats_read_at: Time::ZERO,
            crashes: VecDeque::new(),
            degraded: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The first actions: a worker for every slot.
    pub(crate) fn start(&mut self) -> Vec<Action> {
        (0..self.slots()).map(|slot| self.spawn(Time::ZERO, Slot(slot))).collect()
    }

    /// Takes note of what happened at `now` and answers what is to be done. Events of workers that are gone already
    /// are ignored.
    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = match event {
            Event::BecameReady { worker } => self.became_ready(now, worker),
            Event::BeganDraining { worker } => self.began_draining(now, worker),
            Event::LoadFailed { worker, reason } => self.load_failed(worker, reason),
            Event::Misbehaved { worker, reason } => self.misbehaved(worker, reason),
            Event::HeartbeatsRead(heartbeats) => self.heartbeats_read(now, heartbeats),
            Event::Exited { worker, how } | Event::SpawnFailed { worker, reason: how } => self.exited(now, worker, how),
            Event::ScaleRequested { slots } => self.scale(now, slots),
            Event::ShutdownRequested(haste) => self.shut_down(now, haste),
            Event::DeadlinePassed => self.deadline_passed(now),
        };
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
        let kills = self.workers.values().filter_map(|worker| worker.kill_at);
        let calm = self.crashes.front().filter(|_| self.degraded).map(|&oldest| oldest + STORM_WINDOW);
        restarts.chain(kills).chain(kill_at).chain(self.release_output_at).chain(calm).min()
    }

    /// The worker's state and the workers that its slot had before it.
    pub(crate) fn describe(&self, worker: WorkerId) -> Option<(Slot, WorkerState, u64)> {
        let found = self.workers.get(&worker)?;
        let restarts = self.slots.get(found.slot.0 as usize).map_or(0, |slot| slot.restarts);
        Some((found.slot, found.state, restarts))
    }

    /// Slots that wait for a new worker, with the time it is due and the workers they had.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (Slot, Time, u64)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, slot)| Some((Slot(index as u32), slot.restart_at?, slot.restarts)))
    }

    /// How many workers are asked for.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn is_booting(&self) -> bool {
        matches!(self.stage, Stage::Booting)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        !matches!(self.stage, Stage::Booting | Stage::Running)
    }

    /// Whether crashes have become a storm. Healthy workers go on.
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded
    }

    fn slot(&self, slot: Slot) -> &SlotState {
        &self.slots[slot.0 as usize]
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut SlotState {
        &mut self.slots[slot.0 as usize]
    }

    fn spawn(&mut self, now: Time, slot: Slot) -> Action {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let state = self.slot_mut(slot);
        state.incumbent = Some(worker);
        state.restart_at = None;
        let starting = Worker {
            slot,
            state: WorkerState::Starting,
            ready_since: None,
            kill_at: None,
            heartbeats: 0,
            beat_at: now,
            last_words: None,
        };
        self.workers.insert(worker, starting);
        Action::Spawn { worker, slot }
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
        self.ever_ready = true;
        let mut actions = vec![Action::StartAccepting { worker }];
        let all_ready = self.workers.values().filter(|worker| worker.ready_since.is_some()).count() == self.slots.len();
        if self.is_booting() && all_ready {
            self.stage = Stage::Running;
            self.release_output_at = None;
            actions.push(Action::AnnounceServing);
        }
        actions
    }

    fn began_draining(&mut self, now: Time, worker: WorkerId) -> Vec<Action> {
        let kill_at = now + self.policy.shutdown_timeout;
        if let Some(found) = self.workers.get_mut(&worker)
            && found.state != WorkerState::Draining
        {
            found.state = WorkerState::Draining;
            found.kill_by(kill_at);
        }
        Vec::new()
    }

    /// The worker exits by itself; until then nothing more is expected of it.
    fn load_failed(&mut self, worker: WorkerId, reason: String) -> Vec<Action> {
        let Some(found) = self.workers.get_mut(&worker) else {
            return Vec::new();
        };
        found.last_words = Some(reason.clone());
        if self.ever_ready || self.is_stopping() { Vec::new() } else { self.fail(reason) }
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
            return Vec::new();
        };
        let slot = gone.slot;
        // One whose slot was given up, and perhaps to another since, has no successor.
        let was_incumbent = self.slots.get(slot.0 as usize).is_some_and(|slot| slot.incumbent == Some(worker));
        if !was_incumbent || self.is_stopping() {
            return Vec::new();
        }
        self.slot_mut(slot).incumbent = None;
        if gone.state == WorkerState::Draining {
            // It left as planned.
            self.slot_mut(slot).restarts += 1;
            return vec![self.spawn(now, slot)];
        }
        let reason = gone.last_words.unwrap_or(how);
        let wait = match gone.ready_since {
            Some(since) => {
                let lived = now.saturating_sub(since);
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
        let mut actions = Vec::new();
        if self.ever_ready && self.release_output_at.take().is_some() {
            // The boot may never be complete now, and why must not stay a secret.
            actions.push(Action::ReleaseOutput);
        }
        actions.push(Action::ReportCrash { worker, slot, reason, retry_in: wait });
        self.crashes.push_back(now);
        if self.crashes.len() > self.storm() + 1 {
            self.crashes.pop_front();
        }
        actions.extend(self.weigh_crashes(now));
        self.slot_mut(slot).restarts += 1;
        if wait.is_zero() {
            actions.push(self.spawn(now, slot));
        } else {
            self.slot_mut(slot).restart_at = Some(now + wait);
        }
        actions
    }

    /// More crashes than this within [`STORM_WINDOW`] are a storm.
    fn storm(&self) -> usize {
        (2 * self.slots.len()).max(5)
    }

    fn weigh_crashes(&mut self, now: Time) -> Option<Action> {
        while self.crashes.pop_front_if(|at| *at + STORM_WINDOW <= now).is_some() {}
        let degraded = self.crashes.len() > self.storm();
        let changed = degraded != self.degraded;
        self.degraded = degraded;
        changed.then_some(Action::ReportDegraded(degraded))
    }

    /// Aborts workers whose executor stands still. Heartbeats that were read late prove nothing: the primary itself was
    /// stopped, or the whole machine was.
    fn heartbeats_read(&mut self, now: Time, heartbeats: Vec<(WorkerId, u64)>) -> Vec<Action> {
        let Policy { hang_timeout, .. } = self.policy;
        let late = now.saturating_sub(self.heartbeats_read_at) >= hang_timeout / 2;
        self.heartbeats_read_at = now;
        let mut actions = Vec::new();
        for (id, count) in heartbeats {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            if late || worker.heartbeats != count {
                worker.heartbeats = count;
                worker.beat_at = now;
            } else if now.saturating_sub(worker.beat_at) >= hang_timeout && worker.last_words.is_none() {
                worker.last_words = Some(format!("hung: its executor did not turn for {hang_timeout:?}"));
                worker.kill_by(now + ABORT_GRACE);
                actions.push(Action::Abort { worker: id });
            }
        }
        actions
    }

    /// The slot's next wait; counts one more failure.
    fn backoff(&mut self, slot: Slot) -> Duration {
        let failures = self.slot(slot).failures;
        self.slot_mut(slot).failures = failures.saturating_add(1);
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        // Thirty doublings are far beyond the cap.
        let wait = FIRST_BACKOFF.saturating_mul(1 << doublings.min(30)).min(MAX_BACKOFF);
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
        if !matches!(self.stage, Stage::Running) {
            return Vec::new();
        }
        let kill_at = now + self.policy.shutdown_timeout;
        let mut actions = Vec::new();
        for given_up in self.slots.drain((slots as usize).min(self.slots.len())..) {
            if let Some(worker) = given_up.incumbent
                && let Some(state) = self.workers.get_mut(&worker)
            {
                state.state = WorkerState::Draining;
                state.kill_by(kill_at);
                actions.push(Action::SendDrain { worker });
            }
        }
        for slot in self.slots()..slots {
            self.slots.push(SlotState::default());
            actions.push(self.spawn(now, Slot(slot)));
        }
        actions
    }

    fn shut_down(&mut self, now: Time, haste: Haste) -> Vec<Action> {
        match (&self.stage, haste) {
            (Stage::Booting | Stage::Running, Haste::Drain) => {
                self.stage = Stage::Stopping { kill_at: Some(now + self.policy.shutdown_timeout) };
                self.forget_deadlines();
                let drain = self.workers.iter_mut().map(|(&worker, state)| {
                    state.state = WorkerState::Draining;
                    Action::SendDrain { worker }
                });
                std::iter::once(Action::CloseListeners).chain(drain).collect()
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

    fn forget_deadlines(&mut self) {
        self.release_output_at = None;
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
        let mut actions = Vec::new();
        if self.release_output_at.take_if(|at| *at <= now).is_some() {
            actions.push(Action::ReleaseOutput);
        }
        for (&worker, state) in &mut self.workers {
            if state.kill_at.take_if(|at| *at <= now).is_some() {
                actions.push(Action::Kill { worker });
            }
        }
        if !self.is_stopping() {
            actions.extend(self.weigh_crashes(now));
        }
        let due: Vec<Slot> = self.waiting().filter(|&(_, at, _)| at <= now).map(|(slot, ..)| slot).collect();
        actions.extend(due.into_iter().map(|slot| self.spawn(now, slot)));
        actions
    }

    fn exit_if_alone(&mut self) -> Option<Action> {
        if !self.workers.is_empty() {
            return None;
        }
        let outcome = match &mut self.stage {
            Stage::Failing { reason } => Outcome::BootFailed(std::mem::take(reason)),
            Stage::Stopping { .. } => Outcome::Stopped,
            Stage::Booting | Stage::Running | Stage::Exited => return None,
        };
        self.stage = Stage::Exited;
        Some(Action::Exit(outcome))
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
