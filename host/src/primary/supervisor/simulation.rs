//! A cluster in virtual time: workers that start slowly or not at all, crash, hang, and ignore orders; people who scale
//! and stop. Ten thousand histories, each from a seed of its own.
//!
//! A failure names its seed; `WASMCLUSTER_SEED=N cargo test -p wasmcluster simulation -- --nocapture` replays that one
//! history and prints it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::errors::{FEW_ANSWERS, RECENT};
use super::*;

const HISTORIES: u64 = 10_000;
/// Nobody asks for anything later than this; what goes on is then seen to its end.
const LENGTH: Time = Duration::from_secs(60);
const POLICY: Policy = Policy {
    drain_timeout: Duration::from_secs(12),
    shutdown_delay: Duration::ZERO,
    shutdown_timeout: Duration::from_secs(15),
    hang_timeout: Duration::from_secs(10),
    min_ready: Duration::from_secs(1),
    soak: Duration::from_secs(5),
    request_timeout: Duration::from_secs(30),
    checks_health: false,
    recycle: Recycle { max_requests: Some(30_000), max_lifetime: Some(Duration::from_secs(40)), max_rss: None },
};
const READ_EVERY: Duration = Duration::from_secs(1);
/// A worker that hangs is dead within this: the timeout, the grace after SIGABRT, and two readings.
const FREED_WITHIN: Duration = Duration::from_secs(14);
/// A worker that never becomes ready is killed within this.
const SILENT_FOR: Duration = Duration::from_secs(63);
/// A reload has this long until it is rolled back.
const RELOADED_WITHIN: Duration = Duration::from_secs(30);
/// A slot whose ready worker crashed has a new one within this.
const REPLACED_WITHIN: Duration = Duration::from_secs(1);

/// What is going to happen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    BecomesReady(WorkerId),
    Accepts(WorkerId),
    FailsToLoad(WorkerId),
    Hangs(WorkerId),
    BreaksTheProtocol(WorkerId),
    HangsUp(WorkerId),
    /// From now on it does not die of SIGKILL.
    Sticks(WorkerId),
    IsToldToDrain(WorkerId),
    Dies(WorkerId),
    HeartbeatsAreRead,
    Scale(u32),
    Reload {
        force: bool,
    },
    Stop,
}

struct Process {
    slot: Slot,
    generation: Generation,
    accepts: bool,
    /// When it began to get requests.
    accepts_since: Option<Time>,
    started: Time,
    ready: bool,
    drain_began: Option<Time>,
    hung_at: Option<Time>,
    /// It waits in the kernel; when it was sent SIGKILL.
    sticks: bool,
    killed_at: Option<Time>,
    /// It turns, but says nothing.
    silent: bool,
}

struct Simulation {
    random: fastrand::Rng,
    supervisor: Supervisor,
    now: Time,
    future: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    planned: u64,
    processes: BTreeMap<WorkerId, Process>,
    never_started: BTreeSet<WorkerId>,
    /// Slots that lost a ready worker, with the time by which they have another process.
    owed: BTreeMap<Slot, Time>,
    ever_ready: bool,
    stopped_at: Option<Time>,
    outcome: Option<Ending>,
    verbose: bool,
    current: Generation,
    candidate: Option<Generation>,
    /// Whether the candidate's errors are ignored.
    forced: bool,
    /// How many of a hundred answers of a generation are errors.
    errors: BTreeMap<Generation, u64>,
    /// Requests that each of the candidate's workers was seen to have answered: of one that dies soon, that is none.
    seen: BTreeMap<WorkerId, u64>,
    /// When a worker of the current generation was last seen to answer.
    compared_at: Option<Time>,
    /// The highest number so far.
    last: Generation,
    /// The worker that died last, if it was an incumbent, with its generation; and the slot that is to get such a one again.
    died_last: Option<(WorkerId, Generation)>,
    respawn: Option<(Slot, Generation)>,
}

impl Simulation {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let slots = random.u32(1..=4);
        let supervisor = Supervisor::new(slots, Generation(1), POLICY, seed);
        let mut simulation = Self {
            random,
            supervisor,
            now: Time::ZERO,
            future: BinaryHeap::new(),
            planned: 0,
            processes: BTreeMap::new(),
            never_started: BTreeSet::new(),
            owed: BTreeMap::new(),
            ever_ready: false,
            stopped_at: None,
            outcome: None,
            verbose,
            current: Generation(1),
            candidate: None,
            forced: false,
            errors: BTreeMap::new(),
            seen: BTreeMap::new(),
            compared_at: None,
            last: Generation(1),
            respawn: None,
            died_last: None,
        };
        simulation.draw_errors(Generation(1));
        simulation.plan(READ_EVERY, Happening::HeartbeatsAreRead);
        for _ in 0..simulation.random.u32(0..4) {
            let slots = simulation.random.u32(1..=6);
            simulation.plan_within(LENGTH, Happening::Scale(slots));
        }
        for _ in 0..simulation.random.u32(0..5) {
            let force = simulation.random.bool();
            simulation.plan_within(LENGTH, Happening::Reload { force });
        }
        for _ in 0..simulation.random.u32(0..3) {
            simulation.plan_within(LENGTH, Happening::Stop);
        }
        let first = simulation.supervisor.start();
        simulation.carry_out(first);
        simulation
    }

    /// Most versions do well, some fail now and then, some always.
    fn draw_errors(&mut self, generation: Generation) {
        let errors = [0, 0, 0, 10, 30, 100][self.random.usize(0..6)];
        self.errors.insert(generation, errors);
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.planned += 1;
        self.future.push(Reverse((self.now + after, self.planned, happening)));
    }

    fn plan_within(&mut self, longest: Duration, happening: Happening) {
        let after = longest.mul_f64(self.random.f64());
        self.plan(after, happening);
    }

    fn run(mut self) {
        loop {
            let next = self.future.peek().map(|Reverse((time, ..))| *time);
            let deadline = self.supervisor.next_deadline();
            let Some(time) = next.into_iter().chain(deadline).min() else { break };
            if self.outcome.is_some() || time > LENGTH + Duration::from_secs(240) {
                break;
            }
            self.now = self.now.max(time);
            for (slot, by) in &self.owed {
                assert!(self.now <= *by, "slot {slot} waits for its worker since {by:?} at {:?}", self.now);
            }
            if deadline == Some(time) {
                self.tell(Event::DeadlinePassed);
            } else if let Some(Reverse((_, _, happening))) = self.future.pop() {
                self.happen(happening);
            }
        }
        self.check_end();
    }

    fn happen(&mut self, happening: Happening) {
        let is_alive = |worker: &WorkerId| self.processes.contains_key(worker);
        match happening {
            Happening::HeartbeatsAreRead => {
                let beat = self.now.as_millis() as u64;
                let unready = self.processes.values().filter(|it| it.silent && !it.ready);
                for process in unready {
                    let silent_for = self.now - process.started;
                    assert!(silent_for <= SILENT_FOR, "a worker is not ready for {silent_for:?}");
                }
                // A request a millisecond, as long as it accepts and lives well.
                let served = |process: &Process| {
                    let until = process.hung_at.unwrap_or(self.now);
                    process.accepts_since.map_or(Time::ZERO, |since| until.saturating_sub(since))
                };
                let vitals = |process: &Process| {
                    let heartbeats = if process.hung_at.is_some() { 1 } else { beat };
                    let requests = served(process).as_millis() as u64;
                    let answers = Answers { all: requests, errors: requests * self.errors[&process.generation] / 100 };
                    // Of one that hangs, they are stuck.
                    let in_flight = process.hung_at.map_or(0, |at| (self.now - at).as_millis() as u64);
                    Vitals { heartbeats, requests, in_flight, answers, ..Vitals::default() }
                };
                let observed: Vec<_> = self.processes.iter().map(|(&id, process)| (id, vitals(process))).collect();
                let of_candidate = |id: &WorkerId| Some(self.processes[id].generation) == self.candidate;
                self.seen.extend(observed.iter().filter(|(id, _)| of_candidate(id)).map(|(id, it)| (*id, it.requests)));
                for (worker, process) in &self.processes {
                    let hung_for = process.hung_at.map_or(Time::ZERO, |at| self.now - at);
                    let freed_within = FREED_WITHIN + if process.sticks { KILL_PATIENCE } else { Time::ZERO };
                    assert!(hung_for <= freed_within, "worker {worker} hangs for {hung_for:?}");
                }
                let compares = |process: &Process| {
                    let does_well = process.hung_at.is_none() && process.drain_began.is_none();
                    does_well && process.generation == self.current && served(process) >= READ_EVERY
                };
                if self.processes.values().any(compares) {
                    self.compared_at = Some(self.now);
                }
                self.tell(Event::Observed(observed));
                self.plan(READ_EVERY, Happening::HeartbeatsAreRead);
            }
            Happening::Scale(slots) => self.tell(Event::ScaleRequested { slots }),
            Happening::Reload { force } if self.supervisor.can_reload() => {
                self.last = Generation(self.last.0 + 1);
                self.candidate = Some(self.last);
                self.seen.clear();
                self.forced = force;
                self.draw_errors(self.last);
                let gates = Gates { force, ..Gates::default() };
                let deadline = Some(self.now + RELOADED_WITHIN);
                self.tell(Event::ReloadRequested { candidate: self.last, policy: POLICY, gates, deadline });
            }
            Happening::Reload { .. } => {}
            Happening::Stop => {
                self.stopped_at.get_or_insert(self.now);
                self.tell(Event::ShutdownRequested(Haste::Drain));
            }
            Happening::BecomesReady(worker) if is_alive(&worker) => {
                self.ever_ready |= !self.supervisor.is_stopping();
                self.processes.get_mut(&worker).expect("alive").ready = true;
                self.tell(Event::BecameReady { worker });
            }
            Happening::Accepts(worker) if is_alive(&worker) => {
                let process = self.processes.get_mut(&worker).expect("alive");
                process.accepts = true;
                process.accepts_since.get_or_insert(self.now);
                self.tell(Event::BeganAccepting { worker });
                self.live(worker);
            }
            Happening::FailsToLoad(worker) if is_alive(&worker) => {
                self.tell(Event::LoadFailed { worker, reason: "cannot load".into() });
                self.plan_within(Duration::from_millis(50), Happening::Dies(worker));
            }
            Happening::HangsUp(worker) if is_alive(&worker) => {
                self.tell(Event::HungUp { worker });
                // Some exit, as they should.
                if self.chance(50) {
                    self.plan_within(Duration::from_secs(1), Happening::Dies(worker));
                }
            }
            Happening::Sticks(worker) if is_alive(&worker) => {
                self.processes.get_mut(&worker).expect("alive").sticks = true;
            }
            Happening::BreaksTheProtocol(worker) if is_alive(&worker) => {
                self.tell(Event::Misbehaved { worker, reason: "nonsense".into() });
            }
            Happening::IsToldToDrain(worker) if is_alive(&worker) => {
                self.drain(worker);
                self.tell(Event::BeganDraining { worker });
            }
            Happening::Hangs(worker) if is_alive(&worker) => {
                self.processes.get_mut(&worker).expect("alive").hung_at = Some(self.now);
            }
            Happening::Dies(worker) if is_alive(&worker) => {
                let dead = self.processes.remove(&worker).expect("alive");
                let is_kept = dead.slot.0 < self.supervisor.slots() && !self.supervisor.is_stopping();
                if dead.ready && dead.drain_began.is_none() && is_kept && self.members(dead.slot) == 0 {
                    self.owed.insert(dead.slot, self.now + REPLACED_WITHIN);
                }
                let others = self.processes.values().filter(|it| it.slot == dead.slot && it.drain_began.is_none());
                // Beside one that accepts it was a successor, whose place another kind may take.
                let alone = others.filter(|other| other.accepts).count() == 0;
                self.died_last = alone.then_some((worker, dead.generation));
                self.tell(Event::Exited { worker, how: "died".into() });
                self.died_last = None;
            }
            _ => {}
        }
    }

    /// What becomes of a worker that accepts connections.
    fn live(&mut self, worker: WorkerId) {
        if self.chance(5) {
            self.plan_within(Duration::from_secs(30), Happening::Sticks(worker));
        }
        let happening = match self.random.u32(0..11) {
            0..=2 => Happening::Dies(worker),
            3 => Happening::Hangs(worker),
            4 => Happening::BreaksTheProtocol(worker),
            5 => Happening::IsToldToDrain(worker),
            6 => Happening::HangsUp(worker),
            _ => return,
        };
        self.plan_within(Duration::from_secs(40), happening);
    }

    fn drain(&mut self, worker: WorkerId) {
        self.processes.get_mut(&worker).expect("alive").drain_began.get_or_insert(self.now);
        // Some never come to an end by themselves.
        if self.chance(80) {
            self.plan_within(Duration::from_secs(20), Happening::Dies(worker));
        }
    }

    fn tell(&mut self, event: Event) {
        if self.verbose && !matches!(event, Event::Observed(_)) {
            tell_reader(&format!("{:>9.3}  {event:?}", self.now.as_secs_f64()));
        }
        let actions = self.supervisor.step(self.now, event);
        self.carry_out(actions);
    }

    /// As the driver does: what fails comes back as an event, whose actions are done after these.
    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            assert!(self.outcome.is_none(), "{action:?} after the end");
            if self.verbose {
                tell_reader(&format!("           → {action:?}"));
            }
            match action {
                Action::Spawn { worker, slot, generation } => {
                    if let Some(failure) = self.spawn(worker, slot, generation) {
                        actions.extend(self.supervisor.step(self.now, failure));
                    }
                }
                Action::SendDrain { worker } => {
                    assert!(self.processes.contains_key(&worker), "an order for dead worker {worker}");
                    self.drain(worker);
                }
                Action::Abort { worker } => {
                    let process = &self.processes[&worker];
                    assert!(process.hung_at.is_some() || !process.ready, "aborted healthy worker {worker}");
                    // A stopped process does not die of it.
                    if !process.sticks && self.chance(50) {
                        self.plan(Duration::from_millis(1), Happening::Dies(worker));
                    }
                }
                // Decided before the supervisor could know that there is no such process.
                Action::Kill { worker } if self.never_started.contains(&worker) => {}
                Action::Kill { worker } => {
                    let now = self.now;
                    let process = self.processes.get_mut(&worker);
                    let process = process.unwrap_or_else(|| panic!("a signal for dead worker {worker}"));
                    process.killed_at.get_or_insert(now);
                    if !process.sticks {
                        self.plan(Duration::from_millis(1), Happening::Dies(worker));
                    }
                }
                Action::Report(Report::Unkillable { worker }) => {
                    let stuck = self.processes.remove(&worker).expect("alive");
                    assert!(stuck.sticks, "gave up worker {worker}, which dies");
                    assert_eq!(stuck.killed_at.map(|at| self.now - at), Some(KILL_PATIENCE));
                }
                Action::Exit(outcome) => {
                    assert!(self.processes.is_empty(), "left workers behind");
                    self.outcome = Some(outcome);
                }
                Action::Report(Report::Crashed { worker, slot, retry_in, .. }) if retry_in.is_zero() => {
                    let died = self.died_last.filter(|(died, _)| *died == worker);
                    self.respawn = died.map(|(_, generation)| (slot, generation));
                }
                Action::StartAccepting { worker } => {
                    assert!(self.processes[&worker].ready, "worker {worker} is not ready");
                    self.plan_within(Duration::from_millis(20), Happening::Accepts(worker));
                }
                Action::Report(Report::Draining { worker, why }) if !matches!(why, Why::Reloaded | Why::RolledBack) => {
                    if let Some(process) = self.processes.get_mut(&worker) {
                        process.drain_began.get_or_insert(self.now);
                    }
                }
                Action::Report(Report::Draining { worker, .. }) if self.never_started.contains(&worker) => {}
                Action::Report(Report::Draining { worker, .. }) => {
                    self.processes.get_mut(&worker).expect("alive").drain_began.get_or_insert(self.now);
                    let slot = self.processes[&worker].slot;
                    let others = self.processes.values().filter(|it| it.slot == slot && it.drain_began.is_none());
                    let goes_on = others.filter(|other| other.accepts).count() > 0;
                    let served = self.processes[&worker].accepts;
                    assert!(goes_on || !served, "the reload took the ready worker {worker} from slot {slot}");
                }
                Action::Report(Report::Reload(generation, SwapProgress::Committed)) => {
                    assert_eq!(self.candidate.take(), Some(generation), "committed something else");
                    let is_worse = self.errors[&generation] > self.errors[&self.current] + 5;
                    let is_judged = self.seen.values().sum::<u64>() >= FEW_ANSWERS;
                    assert!(self.forced || !is_worse || !is_judged, "a version with more errors was committed");
                    (self.current, self.compared_at) = (generation, None);
                }
                Action::Report(Report::Reload(generation, SwapProgress::RolledBack(cause))) => {
                    let blamed = matches!(cause, Cause::Gate(reason) if reason.contains("answers were errors"));
                    let is_worse = self.errors[&generation] > self.errors[&self.current];
                    // Of an old version that has not answered lately nothing is known; a new one that fails is blamed.
                    let is_known = self.compared_at.is_some_and(|at| self.now - at < RECENT);
                    assert!(!blamed || is_worse || !is_known, "blamed for errors that the old version has too");
                    assert_eq!(self.candidate.take(), Some(generation), "rolled back something else");
                }
                Action::CloseListeners => assert!(self.stopped_at.is_some()),
                Action::AnnounceServing | Action::ReleaseOutput | Action::Report(_) => {}
            }
        }
        self.respawn = None;
        if self.supervisor.is_stopping() {
            self.candidate = None;
            self.owed.clear();
        }
        self.owed.retain(|slot, _| slot.0 < self.supervisor.slots());
    }

    /// How many workers are the slot's incumbent or successor.
    fn members(&self, slot: Slot) -> usize {
        self.processes.values().filter(|process| process.slot == slot && process.drain_began.is_none()).count()
    }

    fn spawn(&mut self, worker: WorkerId, slot: Slot, generation: Generation) -> Option<Event> {
        assert!(self.members(slot) <= 1, "a third worker in slot {slot}");
        assert!(generation == self.current || Some(generation) == self.candidate, "generation {generation} is over");
        // All but a canary would be a successor that has taken over, beside which anything may be started.
        let is_canary = |it: &Process| Some(it.generation) == self.candidate && !it.accepts;
        let others = self.processes.values().filter(|it| it.slot == slot && it.drain_began.is_none());
        let empty = others.filter(|other| !is_canary(other)).count() == 0;
        if let Some((_, before)) = self.respawn.take_if(|(respawned, _)| *respawned == slot && empty) {
            assert_eq!(generation, before, "a respawn in slot {slot} is of another generation");
        }
        self.owed.remove(&slot);
        if self.chance(5) {
            self.never_started.insert(worker);
            return Some(Event::SpawnFailed { worker, reason: "no process".into() });
        }
        self.processes.insert(
            worker,
            Process {
                slot,
                generation,
                accepts: false,
                accepts_since: None,
                started: self.now,
                ready: false,
                drain_began: None,
                hung_at: None,
                sticks: false,
                killed_at: None,
                silent: false,
            },
        );
        match self.random.u32(0..20) {
            0 => self.plan_within(Duration::from_secs(2), Happening::Dies(worker)),
            1 => self.plan_within(Duration::from_secs(2), Happening::FailsToLoad(worker)),
            2 => self.plan_within(Duration::from_secs(2), Happening::Hangs(worker)),
            3 if self.chance(20) => self.processes.get_mut(&worker).expect("alive").silent = true,
            _ => self.plan_within(Duration::from_secs(2), Happening::BecomesReady(worker)),
        }
        None
    }

    fn check_end(self) {
        match (&self.outcome, self.stopped_at) {
            (Some(Ending::BootFailed(_)), _) => assert!(!self.ever_ready, "gave up after a worker was ready"),
            (Some(Ending::Stopped), Some(at)) => {
                let longest = POLICY.shutdown_timeout + KILL_PATIENCE + Duration::from_millis(10);
                assert!(self.now <= at + longest, "the stop took from {at:?} to {:?}", self.now);
            }
            (Some(Ending::Stopped), None) => panic!("stopped by itself"),
            (None, Some(at)) => panic!("asked to stop at {at:?}, and still there at {:?}", self.now),
            (None, None) => {
                let waiting: Vec<Slot> = self.supervisor.waiting().map(|waiting| waiting.slot).collect();
                for slot in (0..self.supervisor.slots()).map(Slot) {
                    let (members, waits) = (self.members(slot), waiting.contains(&slot));
                    assert!(if waits { members == 0 } else { (1..=2).contains(&members) }, "{members} in slot {slot}");
                }
                assert_eq!(self.candidate, None, "a reload without end");
                assert!(
                    !self
                        .processes
                        .values()
                        .any(|process| { process.drain_began.is_none() && process.generation != self.current }),
                    "a worker of generation that is over"
                );
                let drained_by = self.now.saturating_sub(POLICY.drain_timeout + CUT_GRACE + Duration::from_millis(10));
                let late =
                    |process: &&Process| !process.sticks && process.drain_began.is_some_and(|began| began < drained_by);
                assert_eq!(self.processes.values().filter(late).count(), 0, "a drain without end");
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "a replay is there to be read")]
fn tell_reader(line: &str) {
    println!("{line}");
}

#[test]
fn ten_thousand_histories_keep_the_rules() {
    if let Some(seed) = std::env::var("WASMCLUSTER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return Simulation::new(seed, true).run();
    }
    let histories = std::env::var("WASMCLUSTER_HISTORIES").ok().and_then(|number| number.parse().ok());
    let histories: u64 = histories.unwrap_or(HISTORIES);
    let first = fastrand::u64(..u64::MAX - histories);
    tell_reader(&format!("histories from seed {first}"));
    for seed in first..first + histories {
        let run = std::panic::catch_unwind(|| Simulation::new(seed, false).run());
        assert!(run.is_ok(), "the history of seed {seed} broke a rule; replay it with WASMCLUSTER_SEED={seed}");
    }
}
