//! The supervisor's policies: by script, and by properties over random histories in virtual time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SHUTDOWN: Duration = Duration::from_secs(15);
const HANG: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(35);
pub(super) const POLICY: Policy = Policy {
    drain_timeout: DRAIN,
    shutdown_delay: Duration::ZERO,
    shutdown_timeout: SHUTDOWN,
    hang_timeout: HANG,
    min_ready: Duration::from_secs(1),
    soak: Duration::from_secs(10),
    request_timeout: Duration::from_secs(30),
    checks_health: false,
    recycle: Recycle { max_requests: None, max_lifetime: None, max_rss: None },
};

pub(super) fn ms(milliseconds: u64) -> Time {
    Duration::from_millis(milliseconds)
}

pub(super) fn ready(worker: u64) -> Event {
    Event::BecameReady { worker: WorkerId(worker) }
}

pub(super) fn exited(worker: u64) -> Event {
    Event::Exited { worker: WorkerId(worker), how: "signal 9".into() }
}

pub(super) fn load_failed(worker: u64) -> Event {
    Event::LoadFailed { worker: WorkerId(worker), reason: "no".into() }
}

pub(super) fn accepting(worker: u64) -> Event {
    Event::BeganAccepting { worker: WorkerId(worker) }
}

/// Feeds a script to a supervisor of two slots and compares what it does.
fn check(script: &[(u64, Event, &str)]) {
    check_with(POLICY, script);
}

pub(super) fn check_with(policy: Policy, script: &[(u64, Event, &str)]) {
    let mut supervisor = Supervisor::new(2, Generation(1), policy, 0);
    assert_eq!(text(&supervisor.start()), "spawn 1 in 0, spawn 2 in 1");
    for (at, event, expected) in script {
        let mut event = event.clone();
        if let Event::ReloadRequested { policy: of_candidate, .. } = &mut event {
            *of_candidate = policy;
        }
        let actions = supervisor.step(ms(*at), event.clone());
        assert_eq!(text(&actions), *expected, "at {at} ms, after {event:?}");
    }
}

/// What is done, and those reports that no action goes with.
pub(super) fn text(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::Report(Report::Ready { .. } | Report::Left { .. }) => None,
        Action::Report(Report::Draining { why: Why::Asked | Why::Scaled | Why::Stopping, .. }) => None,
        Action::Report(Report::Draining { why: Why::Reloaded | Why::RolledBack, .. }) => None,
        action => Some(describe(action)),
    };
    actions.iter().filter_map(one).collect::<Vec<_>>().join(", ")
}

fn describe(action: &Action) -> String {
    match action {
        Action::Spawn { worker, slot, generation: Generation(1) } => format!("spawn {worker} in {slot}"),
        Action::Spawn { worker, slot, generation } => format!("spawn {worker} in {slot} of {generation}"),
        Action::StartAccepting { worker } => format!("accept {worker}"),
        Action::CloseListeners => "close".into(),
        Action::SendDrain { worker } => format!("drain {worker}"),
        Action::Abort { worker } => format!("abort {worker}"),
        Action::Kill { worker } => format!("kill {worker}"),
        Action::Report(Report::Degraded(Some(degradation))) => format!("degraded: {degradation:?}"),
        Action::Report(Report::Degraded(None)) => "not degraded".into(),
        Action::Report(Report::Unkillable { worker }) => format!("unkillable {worker}"),
        Action::Report(Report::Draining { why, .. }) => format!("{why:?}"),
        Action::AnnounceServing => "announce".into(),
        Action::ReleaseOutput => "release".into(),
        Action::Report(Report::Crashed { worker, retry_in, .. }) if retry_in.is_zero() => format!("crash {worker}"),
        Action::Report(Report::Crashed { worker, .. }) => format!("crash {worker}, wait"),
        Action::Report(Report::Reload(_, progress)) => format!("{progress:?}"),
        Action::Report(Report::Ready { .. } | Report::Left { .. }) => "".into(),
        Action::Exit(Ending::Stopped) => "stopped".into(),
        Action::Exit(Ending::BootFailed(reason)) => format!("failed: {reason}"),
    }
}

#[test]
fn serving_is_announced_when_every_first_worker_is_ready() {
    check(&[(1, ready(2), "accept 2"), (2, ready(1), "accept 1, announce"), (3, ready(1), "")]);
}

#[test]
fn a_worker_that_crashes_after_ready_is_replaced_at_once_however_often() {
    check(&[
        (1, ready(1), "accept 1"),
        (1, ready(2), "accept 2, announce"),
        (200, exited(1), "crash 1, spawn 3 in 0"),
        (210, ready(3), "accept 3"),
        (400, exited(3), "crash 3, spawn 4 in 0"),
        (410, ready(4), "accept 4"),
        // One that did not live for long: its slot does not spin.
        (420, exited(4), "crash 4, wait"),
        (509, Event::DeadlinePassed, ""),
        (510, Event::DeadlinePassed, "spawn 5 in 0"),
    ]);
}

#[test]
fn a_worker_that_somebody_else_drains_is_replaced_and_no_crash() {
    let draining = || Event::BeganDraining { worker: WorkerId(1) };
    check(&[
        (1, ready(1), "accept 1"),
        (1, ready(2), "accept 2, announce"),
        (110, draining(), "spawn 3 in 0"),
        (120, exited(1), ""),
    ]);
    check(&[
        (1, ready(1), "accept 1"),
        (1, ready(2), "accept 2, announce"),
        // One that was started just now: its slot does not spin.
        (10, draining(), ""),
        (100, Event::DeadlinePassed, "spawn 3 in 0"),
        (36_009, Event::DeadlinePassed, ""),
        (36_010, Event::DeadlinePassed, "kill 1"),
        (36_011, exited(1), ""),
    ]);
}

fn scale(slots: u32) -> Event {
    Event::ScaleRequested { slots }
}

#[test]
fn scaling_adds_slots_and_drains_the_highest() {
    check(&[
        (1, ready(1), "accept 1"),
        (3, ready(2), "accept 2, announce"),
        (4, scale(4), "spawn 3 in 2, spawn 4 in 3"),
        (5, ready(3), "accept 3"),
        (6, scale(4), ""),
        (7, scale(1), "drain 2, drain 3, kill 4"),
        // A slot that is given up can be taken again while its old worker still drains.
        (8, scale(2), "spawn 5 in 1"),
        (9, exited(2), ""),
        (10, exited(4), ""),
        (11, ready(5), "accept 5"),
        (36_007, Event::DeadlinePassed, "kill 3"),
        (36_008, exited(3), ""),
        (36_009, exited(5), "crash 5, spawn 6 in 1"),
    ]);
}

#[test]
fn a_slot_in_back_off_can_be_given_up() {
    check(&[
        (1, ready(1), "accept 1"),
        (1, ready(2), "accept 2, announce"),
        (10, exited(2), "crash 2, wait"),
        (11, scale(1), ""),
        (500, Event::DeadlinePassed, ""),
    ]);
}

#[test]
fn a_cluster_with_one_ready_worker_can_be_changed() {
    // Before there is one, there is nothing to change.
    check(&[(1, scale(4), ""), (2, ready(1), "accept 1")]);
    let start = [
        (1, ready(1), "accept 1"),
        (2, load_failed(2), ""),
        (3, exited(2), "crash 2, spawn 3 in 1, announce"),
        (4, load_failed(3), ""),
        (5, exited(3), "crash 3, wait, degraded: MissingWorkers"),
    ];
    let mut script = start.to_vec();
    script.push((6, scale(3), "spawn 4 in 2"));
    script.push((7, ready(4), "accept 4"));
    script.push((8, scale(1), "drain 4, not degraded"));
    check(&script);
    // Workers are recycled although a slot has none.
    let policy = recycling(Recycle { max_requests: Some(10), ..Recycle::default() });
    let mut script = start.to_vec();
    script.push((50, served(&[(1, 10)]), "spawn 4 in 0"));
    script.push((51, ready(4), "accept 4"));
    script.push((52, accepting(4), "drain 1, MaxRequests"));
    check_with(policy, &script);
    let mut script = start.to_vec();
    script.push((6, Event::ShutdownRequested(Haste::Drain), "close, drain 1"));
    script.push((7, exited(1), "stopped"));
    check(&script);
}

#[test]
fn a_worker_that_does_not_exit_as_it_should_is_killed() {
    let start = [(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")];
    let mut script = start.to_vec();
    script.push((1000, load_failed(2), ""));
    script.push((2999, Event::DeadlinePassed, ""));
    script.push((3000, Event::DeadlinePassed, "kill 2"));
    script.push((3001, exited(2), "crash 2, spawn 3 in 1"));
    check(&script);
    let mut script = start.to_vec();
    script.push((1000, Event::HungUp { worker: WorkerId(2) }, ""));
    script.push((2999, Event::DeadlinePassed, ""));
    script.push((3000, Event::DeadlinePassed, "kill 2"));
    check(&script);
    // One that exits at once was about to.
    let mut script = start.to_vec();
    script.push((1000, Event::HungUp { worker: WorkerId(2) }, ""));
    script.push((1001, exited(2), "crash 2, spawn 3 in 1"));
    script.push((3000, Event::DeadlinePassed, ""));
    check(&script);
}

#[test]
fn a_worker_that_turns_and_does_nothing_is_killed() {
    // The first never says that it accepts, the second never that it is ready.
    let mut script = vec![(1, ready(1), "accept 1")];
    script.extend((1..8).map(|turn| (turn * 4000, beats(turn, turn), if turn == 3 { "announce" } else { "" })));
    script.push((30_001, beats(8, 8), "kill 1"));
    script.push((30_002, exited(1), "crash 1, spawn 3 in 0"));
    script.push((30_003, ready(3), "accept 3"));
    script.push((30_004, accepting(3), ""));
    script.extend((8..15).map(|turn| (turn * 4000, beats(1, turn + 1), "")));
    script.push((60_000, beats(1, 20), "kill 2"));
    check(&script);
    // A primary that was stopped itself gives everybody their time again.
    let mut script = vec![(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")];
    script.extend((0..8).map(|turn| (60_000 + turn * 4000, beats(turn + 1, turn + 1), "")));
    script.push((90_000, beats(9, 9), "kill 1, kill 2"));
    check(&script);
}

#[test]
fn a_worker_that_sigkill_does_not_end_is_replaced_and_not_waited_for() {
    let misbehaved = Event::Misbehaved { worker: WorkerId(2), reason: "frame".into() };
    let start = [(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")];
    let mut script = start.to_vec();
    script.push((1000, misbehaved, "kill 2"));
    script.push((10_999, Event::DeadlinePassed, ""));
    script.push((11_000, Event::DeadlinePassed, "unkillable 2, crash 2, spawn 3 in 1"));
    script.push((11_001, ready(3), "accept 3"));
    let mut dies_late = script.clone();
    dies_late.push((20_000, exited(2), ""));
    check(&dies_late);
    // If others do not die either, the slot has to wait longer each time.
    let misbehaved = |worker| Event::Misbehaved { worker: WorkerId(worker), reason: "frame".into() };
    let mut stuck = script.clone();
    stuck.push((12_000, misbehaved(3), "kill 3"));
    stuck.push((22_000, Event::DeadlinePassed, "unkillable 3, crash 3, wait, degraded: MissingWorkers"));
    stuck.push((51_999, Event::DeadlinePassed, ""));
    stuck.push((52_000, Event::DeadlinePassed, "spawn 4 in 1"));
    stuck.push((52_001, ready(4), "accept 4, not degraded"));
    stuck.push((53_000, misbehaved(4), "kill 4"));
    stuck.push((63_000, Event::DeadlinePassed, "unkillable 4, crash 4, wait, degraded: MissingWorkers"));
    let mut for_ever = stuck.clone();
    for_ever.push((122_999, Event::DeadlinePassed, ""));
    for_ever.push((123_000, Event::DeadlinePassed, "spawn 5 in 1"));
    check(&for_ever);
    // The kernel has let go of one.
    stuck.push((70_000, exited(2), ""));
    stuck.push((99_999, Event::DeadlinePassed, ""));
    stuck.push((100_000, Event::DeadlinePassed, "spawn 5 in 1"));
    check(&stuck);
    script.push((20_000, Event::ShutdownRequested(Haste::Drain), "close, drain 1, drain 3"));
    script.push((20_001, exited(1), ""));
    script.push((20_002, exited(3), "stopped"));
    check(&script);
    // A stop ends, too.
    let mut script = start.to_vec();
    script.push((1000, Event::ShutdownRequested(Haste::Now), "kill 1, kill 2"));
    script.push((1001, exited(1), ""));
    script.push((11_000, Event::DeadlinePassed, "unkillable 2, stopped"));
    check(&script);
}

#[test]
fn workers_that_drain_do_not_pile_up() {
    let draining = |worker| Event::BeganDraining { worker: WorkerId(worker) };
    let mut script = vec![(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")];
    script.push((1000, draining(2), "spawn 3 in 1"));
    script.push((2000, draining(3), "spawn 4 in 1"));
    script.push((3000, draining(4), "spawn 5 in 1"));
    script.push((4000, draining(5), "spawn 6 in 1"));
    script.push((5000, draining(6), "kill 2, spawn 7 in 1"));
    script.push((6000, draining(7), "kill 3, spawn 8 in 1"));
    check(&script);
}

fn beats(one: u64, two: u64) -> Event {
    let beat = |worker, heartbeats| (WorkerId(worker), Vitals { heartbeats, ..Vitals::default() });
    Event::Observed(vec![beat(1, one), beat(2, two), beat(99, 7)])
}

/// Workers that turn, and have answered so many requests.
fn served(requests: &[(u64, u64)]) -> Event {
    let one = |&(worker, requests)| (WorkerId(worker), Vitals { heartbeats: requests, requests, ..Vitals::default() });
    Event::Observed(requests.iter().map(one).collect())
}

fn recycling(recycle: Recycle) -> Policy {
    Policy { recycle, ..POLICY }
}

#[test]
fn workers_are_recycled_one_at_a_time_surge_first() {
    let policy = recycling(Recycle { max_requests: Some(1000), ..Recycle::default() });
    check_with(
        policy,
        &[
            (1, ready(1), "accept 1"),
            (1, ready(2), "accept 2, announce"),
            (1000, served(&[(1, 799), (2, 799)]), ""),
            (2000, served(&[(1, 1000), (2, 1000)]), "spawn 3 in 0"),
            (2500, served(&[(1, 1100), (2, 1100), (3, 0)]), ""),
            (3000, ready(3), "accept 3"),
            (3000, accepting(3), "drain 1, MaxRequests"),
            (3000, accepting(3), ""),
            // Not before the first is gone.
            (3500, served(&[(1, 1200), (2, 1200), (3, 5)]), ""),
            (4000, exited(1), ""),
            (4500, served(&[(2, 1200), (3, 50)]), "spawn 4 in 1"),
            (4600, ready(4), "accept 4"),
            (4700, accepting(4), "drain 2, MaxRequests"),
            (4800, exited(2), ""),
            (5000, served(&[(3, 60), (4, 10)]), ""),
        ],
    );
}

#[test]
fn workers_that_did_nothing_are_not_recycled_for_it() {
    let policy = recycling(Recycle { max_requests: Some(1), ..Recycle::default() });
    check_with(
        policy,
        &[
            (1, ready(1), "accept 1"),
            (1, ready(2), "accept 2, announce"),
            (1000, served(&[(1, 0), (2, 0)]), ""),
            (2000, served(&[(1, 0), (2, 1)]), "spawn 3 in 1"),
        ],
    );
}

#[test]
fn lifetime_and_memory_recycle_too() {
    let start = [(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")];
    let mut script = start.to_vec();
    let lifetime = Recycle { max_lifetime: Some(ms(10_000)), ..Recycle::default() };
    script.push((7_999, served(&[(1, 1), (2, 1)]), ""));
    script.push((10_000, served(&[(1, 2), (2, 2)]), "spawn 3 in 0"));
    script.push((10_001, ready(3), "accept 3"));
    script.push((10_002, accepting(3), "drain 1, MaxLifetime"));
    check_with(recycling(lifetime), &script);

    let grown = |rss| Event::Observed(vec![(WorkerId(2), Vitals { rss, heartbeats: rss, ..Vitals::default() })]);
    let mut script = start.to_vec();
    script.push((1_000, grown(79), ""));
    script.push((2_000, grown(100), "spawn 3 in 1"));
    script.push((2_001, ready(3), "accept 3"));
    script.push((2_002, accepting(3), "drain 2, MaxRss"));
    check_with(recycling(Recycle { max_rss: Some(100), ..Recycle::default() }), &script);
}

#[test]
fn a_crash_in_the_middle_of_a_surge_leaves_the_other_worker() {
    let policy = recycling(Recycle { max_requests: Some(10), ..Recycle::default() });
    let start = [
        (1, ready(1), "accept 1"),
        (1, ready(2), "accept 2, announce"),
        (1000, served(&[(1, 10), (2, 0)]), "spawn 3 in 0"),
    ];
    // The incumbent: its successor is there already.
    let mut script = start.to_vec();
    script.push((1001, exited(1), "crash 1"));
    script.push((1002, ready(3), "accept 3"));
    script.push((1003, accepting(3), ""));
    check_with(policy, &script);
    // A slot without a worker does not make room for a third in another.
    let mut script = start.to_vec();
    script.push((1001, exited(2), "crash 2, spawn 4 in 1"));
    script.push((1002, exited(4), "crash 4, spawn 5 in 1"));
    script.push((1003, exited(5), "crash 5, wait, degraded: MissingWorkers"));
    script.push((1004, ready(3), "accept 3"));
    script.push((1004, served(&[(1, 11), (3, 0)]), ""));
    check_with(policy, &script);
    // The successor: the next is tried later, and later each time.
    let mut script = start.to_vec();
    script.push((1001, exited(3), "crash 3"));
    script.push((2000, served(&[(1, 11), (2, 0)]), "spawn 4 in 0"));
    script.push((2001, exited(4), "crash 4, wait"));
    script.push((2002, served(&[(1, 12), (2, 0)]), ""));
    script.push((3000, served(&[(1, 12), (2, 0)]), "spawn 5 in 0"));
    // Or it is told to drain by somebody else.
    script.push((3001, Event::BeganDraining { worker: WorkerId(5) }, ""));
    script.push((3002, exited(5), ""));
    script.push((4000, served(&[(1, 13), (2, 0)]), "spawn 6 in 0"));
    script.push((4001, scale(1), "drain 2"));
    script.push((4002, ready(6), "accept 6"));
    script.push((4003, Event::ShutdownRequested(Haste::Drain), "close, drain 1, drain 6"));
    script.push((4004, accepting(6), ""));
    check_with(policy, &script);
}

#[test]
fn a_successor_leaves_with_its_slot() {
    let policy = recycling(Recycle { max_requests: Some(10), ..Recycle::default() });
    check_with(
        policy,
        &[
            (1, ready(1), "accept 1"),
            (1, ready(2), "accept 2, announce"),
            (1000, served(&[(1, 0), (2, 10)]), "spawn 3 in 1"),
            (1001, scale(1), "drain 2, kill 3"),
            (1002, ready(3), ""),
            (1003, exited(3), ""),
            (1004, exited(2), ""),
        ],
    );
}

#[test]
fn a_delayed_stop_serves_on_until_its_time() {
    let stop = || Event::ShutdownRequested(Haste::Drain);
    let policy = Policy { shutdown_delay: ms(5000), ..POLICY };
    let start = [(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce"), (1000, stop(), "")];
    let mut script = start.to_vec();
    script.push((1001, scale(4), ""));
    script.push((2000, exited(1), "crash 1, spawn 3 in 0"));
    script.push((5999, Event::DeadlinePassed, ""));
    script.push((6000, Event::DeadlinePassed, "close, drain 2, kill 3"));
    check_with(policy, &script);
    let mut script = start.to_vec();
    script.push((1001, stop(), "kill 1, kill 2"));
    check_with(policy, &script);
}

#[test]
fn a_worker_whose_executor_stands_still_is_aborted_then_killed() {
    let mut script = vec![(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")];
    // Both turn once; then the first stands still.
    script.extend((1..=10).map(|second| (second * 1000, beats(1, second), "")));
    script.push((11_000, beats(1, 11), "abort 1"));
    script.push((12_000, beats(1, 12), ""));
    script.push((12_999, Event::DeadlinePassed, ""));
    script.push((13_000, Event::DeadlinePassed, "kill 1"));
    script.push((13_001, exited(1), "crash 1, spawn 3 in 0"));
    check(&script);
}

#[test]
fn a_primary_that_was_late_itself_blames_nobody() {
    let mut script = vec![(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce"), (1000, beats(1, 1), "")];
    // Stopped for an hour, as were the workers, or not.
    script.push((3_600_000, beats(1, 1), ""));
    script.extend((3601..3610).map(|second| (second * 1000, beats(1, 1), "")));
    script.push((3_610_000, beats(1, 1), "abort 1, abort 2"));
    check(&script);
}

#[test]
fn many_crashes_in_a_minute_are_a_storm_until_it_is_over() {
    let mut supervisor = Supervisor::new(2, Generation(1), POLICY, 0);
    supervisor.start();
    supervisor.step(ms(0), ready(1));
    supervisor.step(ms(0), ready(2));
    let mut worker = 2;
    for crash in 1..=7_u64 {
        let now = ms(crash * 1000);
        let actions = supervisor.step(now, exited(worker));
        let expected = format!(
            "crash {worker}, spawn {} in 1{}",
            crash + 2,
            if crash == 6 { ", degraded: CrashStorm" } else { "" }
        );
        assert_eq!(text(&actions), expected);
        worker = crash + 2;
        supervisor.step(now, ready(worker));
    }
    // Six are still a storm, five are none.
    assert_eq!(supervisor.degradation(), Some(Degradation::CrashStorm));
    assert_eq!(supervisor.next_deadline(), Some(ms(61_000)));
    assert_eq!(text(&supervisor.step(ms(61_000), Event::DeadlinePassed)), "");
    assert_eq!(supervisor.next_deadline(), Some(ms(62_000)));
    assert_eq!(text(&supervisor.step(ms(62_000), Event::DeadlinePassed)), "not degraded");
    assert_eq!(supervisor.degradation(), None);
}

#[test]
fn what_workers_say_is_not_held_back_for_ever() {
    check(&[(9_999, Event::DeadlinePassed, ""), (10_000, Event::DeadlinePassed, "release")]);
    check(&[
        (1, ready(1), "accept 1"),
        // What serves is announced without those that fail.
        (2, exited(2), "crash 2, spawn 3 in 1, announce"),
        (3, exited(3), "crash 3, wait, degraded: MissingWorkers"),
        (10_000, Event::DeadlinePassed, "spawn 4 in 1"),
        (10_001, ready(4), "accept 4, not degraded"),
    ]);
    check(&[
        (1, ready(1), "accept 1"),
        (9_999, Event::DeadlinePassed, ""),
        (10_000, Event::DeadlinePassed, "announce"),
        (10_001, ready(2), "accept 2"),
    ]);
}

#[test]
fn a_component_that_cannot_be_loaded_fails_the_boot_with_its_own_error() {
    check(&[(1, load_failed(2), "kill 1, kill 2"), (2, exited(2), ""), (3, exited(1), "failed: no")]);
}

#[test]
fn three_deaths_before_any_worker_was_ready_fail_the_boot() {
    check(&[
        (1, exited(1), "crash 1, spawn 3 in 0"),
        (2, exited(2), "crash 2, spawn 4 in 1"),
        (3, exited(4), "kill 3"),
        (4, exited(3), "failed: no worker became ready, and the last one signal 9"),
    ]);
}

#[test]
fn once_a_worker_was_ready_the_cluster_never_gives_up() {
    check(&[
        (1, ready(1), "accept 1"),
        (2, load_failed(2), ""),
        (3, exited(2), "crash 2, spawn 3 in 1, announce"),
        (4, exited(3), "crash 3, wait, degraded: MissingWorkers"),
        (300, exited(1), "crash 1, spawn 4 in 0"),
        (500, Event::DeadlinePassed, "spawn 5 in 1"),
        (501, exited(5), "crash 5, wait"),
    ]);
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed_and_replaced() {
    let misbehaved = Event::Misbehaved { worker: WorkerId(1), reason: "frame".into() };
    check(&[
        (1, ready(1), "accept 1"),
        (2, ready(2), "accept 2, announce"),
        (3, misbehaved.clone(), "kill 1"),
        (400, exited(1), "crash 1, spawn 3 in 0"),
        (500, misbehaved, ""),
    ]);
}

#[test]
fn stopping_drains_then_kills() {
    let stop = || Event::ShutdownRequested(Haste::Drain);
    check(&[
        (1, ready(1), "accept 1"),
        (10, stop(), "close, drain 1, kill 2"),
        (11, exited(2), ""),
        (15_009, Event::DeadlinePassed, ""),
        (15_010, Event::DeadlinePassed, "kill 1"),
        (15_011, exited(1), "stopped"),
        (15_012, stop(), ""),
    ]);
    check(&[
        (10, stop(), "close, kill 1, kill 2"),
        (11, stop(), "kill 1, kill 2"),
        (12, exited(1), ""),
        (13, exited(2), "stopped"),
    ]);
    check(&[(10, Event::ShutdownRequested(Haste::Now), "kill 1, kill 2")]);
}

#[test]
fn the_back_off_doubles_up_to_its_cap_and_is_forgotten_when_healthy() {
    let mut supervisor = Supervisor::new(1, Generation(1), POLICY, 7);
    supervisor.start();
    supervisor.step(ms(0), ready(1));
    let mut now = ms(200);
    supervisor.step(now, exited(1));
    let mut worker = 2;
    let mut waits = Vec::new();
    for _ in 0..14 {
        supervisor.step(now, exited(worker));
        worker += 1;
        let due = supervisor.waiting().next().map_or(now, |waiting| waiting.due);
        waits.push(due - now);
        now = due;
        supervisor.step(now, Event::DeadlinePassed);
    }
    let within = |wait: Duration, expected: u64| wait >= ms(expected).mul_f64(0.8) && wait <= ms(expected).mul_f64(1.2);
    for (index, wait) in waits.iter().enumerate() {
        let expected = if index == 0 { 0 } else { (100 << (index - 1)).min(30_000) };
        assert!(within(*wait, expected), "wait {index}: {wait:?}, expected about {expected} ms");
    }
    // Ready for 30 s: the next death before ready is the first again.
    supervisor.step(now, ready(worker));
    now += HEALTHY;
    supervisor.step(now, exited(worker));
    let actions = supervisor.step(now, exited(worker + 1));
    assert_eq!(text(&actions), format!("crash {}, spawn {} in 0", worker + 1, worker + 2));
}

/// What a random world does next.
#[derive(Clone, Debug)]
enum Turn {
    Ready(prop::sample::Index),
    Accepts(prop::sample::Index),
    LoadFails(prop::sample::Index),
    Misbehaves(prop::sample::Index),
    HangsUp(prop::sample::Index),
    Drains(prop::sample::Index),
    Dies(prop::sample::Index),
    /// Something about a worker that is gone, or never was.
    Ghost(u64),
    Waits(u16),
    /// Workers are observed: some stand still, some have served enough.
    Beats(u8),
    Scales(u8),
    Stops(Haste),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let any_index = any::<prop::sample::Index>;
    let turn = prop_oneof![
        8 => any_index().prop_map(Turn::Ready),
        8 => any_index().prop_map(Turn::Accepts),
        1 => any_index().prop_map(Turn::LoadFails),
        1 => any_index().prop_map(Turn::Misbehaves),
        1 => any_index().prop_map(Turn::HangsUp),
        1 => any_index().prop_map(Turn::Drains),
        6 => any_index().prop_map(Turn::Dies),
        1 => (0..50_u64).prop_map(Turn::Ghost),
        6 => any::<u16>().prop_map(Turn::Waits),
        4 => any::<u8>().prop_map(Turn::Beats),
        2 => (1..6_u8).prop_map(Turn::Scales),
        1 => prop_oneof![Just(Haste::Drain), Just(Haste::Now)].prop_map(Turn::Stops),
    ];
    prop::collection::vec(turn, 0..120)
}

/// The world as the driver sees it: which processes live, and what the supervisor may do with them.
#[derive(Default)]
struct World {
    now: Time,
    /// How many were asked for.
    slots: u32,
    alive: BTreeMap<WorkerId, Member>,
    ever: BTreeSet<WorkerId>,
    killed: BTreeSet<WorkerId>,
    given_up: BTreeSet<WorkerId>,
    ever_ready: bool,
    asked_to_stop: bool,
    exit: Option<Ending>,
}

struct Member {
    slot: Slot,
    ready: bool,
    /// Told to drain by the supervisor or by somebody else.
    draining: bool,
}

impl World {
    /// Workers that are a slot's incumbent or successor.
    fn members(&self, slot: Slot) -> impl Iterator<Item = &Member> {
        self.alive.values().filter(move |member| member.slot == slot && !member.draining)
    }

    /// Whether the slot is to have no worker any more.
    fn leaving(&self, slot: Slot) -> bool {
        self.asked_to_stop || slot.0 >= self.slots
    }

    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(self.exit.is_none(), "an action after the end: {action:?}");
            match action {
                Action::Spawn { worker, slot, .. } => {
                    assert!(!self.asked_to_stop, "spawned while stopping");
                    assert!(self.ever.insert(worker), "worker {worker} was used before");
                    assert!(self.members(slot).count() <= 1, "a third worker in slot {slot}");
                    assert!(self.members(slot).all(|other| other.ready), "a successor of one that is not ready");
                    self.alive.insert(worker, Member { slot, ready: false, draining: false });
                }
                Action::StartAccepting { worker } => assert!(self.alive[&worker].ready, "accepting before ready"),
                Action::SendDrain { worker } => {
                    assert!(self.alive.contains_key(&worker), "an order for dead worker {worker}");
                }
                // What somebody else asked for is known already.
                Action::Report(Report::Draining { why: Why::Asked, .. }) => {}
                Action::Report(Report::Draining { worker, .. }) => {
                    let member = self.alive.get_mut(&worker).expect("it lives");
                    assert!(!member.draining, "worker {worker} drains already");
                    member.draining = true;
                    let (slot, served) = (member.slot, member.ready);
                    let ready = self.members(slot).any(|other| other.ready);
                    assert!(ready || !served || self.leaving(slot), "nobody serves in slot {slot}");
                }
                Action::Kill { worker } => {
                    assert!(self.alive.contains_key(&worker), "a signal for dead worker {worker}");
                    self.killed.insert(worker);
                }
                Action::Abort { worker } => {
                    assert!(self.alive.contains_key(&worker), "a signal for dead worker {worker}")
                }
                Action::Report(Report::Crashed { worker, retry_in, .. }) => {
                    assert!(!self.alive.contains_key(&worker));
                    let is_stuck = self.given_up.contains(&worker);
                    assert!(is_stuck || retry_in <= MAX_BACKOFF.mul_f64(1.0 + JITTER));
                }
                Action::Report(Report::Unkillable { worker }) => {
                    assert!(self.killed.contains(&worker), "given up before it was killed");
                    self.given_up.insert(worker);
                    // The driver goes on without it, as with one that is gone.
                    self.alive.remove(&worker);
                }
                Action::ReleaseOutput | Action::Report(_) => {}
                Action::CloseListeners => assert!(self.asked_to_stop),
                Action::AnnounceServing => assert!(self.ever_ready),
                Action::Exit(outcome) => {
                    assert!(self.alive.is_empty(), "left workers behind");
                    self.exit = Some(outcome);
                }
            }
        }
    }
}

fn run(slots: u32, turns: &[Turn]) -> (World, Supervisor) {
    let policy = recycling(Recycle { max_requests: Some(5000), ..Recycle::default() });
    let mut supervisor = Supervisor::new(slots, Generation(1), policy, 1);
    let mut world = World { slots, ..World::default() };
    world.apply(supervisor.start());
    for turn in turns {
        let ids: Vec<WorkerId> = world.alive.keys().copied().collect();
        let pick = |index: &prop::sample::Index| (!ids.is_empty()).then(|| *index.get(&ids));
        let event = match turn {
            Turn::Ready(index) => pick(index).map(|worker| {
                let member = world.alive.get_mut(&worker).unwrap();
                member.ready = true;
                // One that drains, or is to be killed because the boot failed already, comes too late.
                world.ever_ready |= !member.draining && !supervisor.is_stopping();
                Event::BecameReady { worker }
            }),
            Turn::Accepts(index) => pick(index).map(|worker| Event::BeganAccepting { worker }),
            Turn::LoadFails(index) => pick(index)
                .filter(|worker| !world.alive[worker].ready)
                .map(|worker| Event::LoadFailed { worker, reason: "load".into() }),
            Turn::Misbehaves(index) => pick(index).map(|worker| Event::Misbehaved { worker, reason: "frame".into() }),
            Turn::HangsUp(index) => pick(index).map(|worker| Event::HungUp { worker }),
            Turn::Drains(index) => pick(index).map(|worker| {
                world.alive.get_mut(&worker).unwrap().draining = true;
                Event::BeganDraining { worker }
            }),
            Turn::Dies(index) => pick(index).map(|worker| {
                world.alive.remove(&worker);
                Event::Exited { worker, how: "died".into() }
            }),
            Turn::Ghost(id) => Some(WorkerId(*id))
                .filter(|worker| !world.alive.contains_key(worker))
                .map(|worker| Event::Exited { worker, how: "ghost".into() }),
            Turn::Waits(milliseconds) => {
                world.now += ms(u64::from(*milliseconds));
                Some(Event::DeadlinePassed)
            }
            Turn::Beats(turning) => {
                let now = world.now.as_millis() as u64;
                let count = |worker: &WorkerId| if worker.0 % 8 < u64::from(turning % 8) { now } else { 0 };
                let vitals =
                    |worker| Vitals { heartbeats: count(worker), requests: count(worker), ..Vitals::default() };
                Some(Event::Observed(ids.iter().map(|worker| (*worker, vitals(worker))).collect()))
            }
            Turn::Scales(slots) => {
                let slots = u32::from(*slots);
                if !supervisor.is_booting() && !supervisor.is_stopping() {
                    world.slots = slots;
                }
                Some(Event::ScaleRequested { slots })
            }
            Turn::Stops(haste) => {
                world.asked_to_stop = true;
                Some(Event::ShutdownRequested(*haste))
            }
        };
        if let Some(event) = event {
            world.apply(supervisor.step(world.now, event));
        }
    }
    (world, supervisor)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// At no time two workers in a slot, no action for a dead worker, no worker left behind, no end without a reason.
    #[test]
    fn histories_keep_the_rules(slots in 1..5_u32, turns in turns()) {
        let (world, supervisor) = run(slots, &turns);
        match &world.exit {
            Some(Ending::BootFailed(_)) => prop_assert!(!world.ever_ready, "gave up after a worker was ready"),
            Some(Ending::Stopped) => prop_assert!(world.asked_to_stop),
            None if supervisor.is_stopping() => prop_assert!(!world.alive.is_empty(), "waits for nobody"),
            None => {
                // Every slot has a worker or will get one, within the longest back-off.
                let waiting: Vec<_> = supervisor.waiting().collect();
                prop_assert_eq!(world.slots, supervisor.slots());
                for slot in (0..world.slots).map(Slot) {
                    let waits = waiting.iter().any(|waiting| waiting.slot == slot);
                    let members = world.members(slot).count();
                    prop_assert!(if waits { members == 0 } else { members > 0 }, "{} in slot {}", members, slot);
                }
                for Waiting { due, .. } in waiting {
                    prop_assert!(world.given_up.len() > 1 || due <= world.now + MAX_BACKOFF.mul_f64(1.0 + JITTER));
                }
            }
        }
    }

    /// Whatever came before, a stop ends: drained, or killed at the timeout.
    #[test]
    fn a_stop_always_ends(slots in 1..5_u32, turns in turns()) {
        let (mut world, mut supervisor) = run(slots, &turns);
        if world.exit.is_none() && !supervisor.is_stopping() {
            world.asked_to_stop = true;
            let actions = supervisor.step(world.now, Event::ShutdownRequested(Haste::Drain));
            world.apply(actions);
        }
        world.now += SHUTDOWN;
        let actions = supervisor.step(world.now, Event::DeadlinePassed);
        world.apply(actions);
        prop_assert!(world.alive.keys().all(|worker| world.killed.contains(worker)), "not killed at the timeout");
        for worker in world.alive.keys().copied().collect::<Vec<_>>() {
            world.alive.remove(&worker);
            let actions = supervisor.step(world.now, Event::Exited { worker, how: "killed".into() });
            world.apply(actions);
        }
        prop_assert!(world.exit.is_some());
    }
}
