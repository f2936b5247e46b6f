//! Reloads by script. What is common to all scripts is in `tests.rs`.

use super::swap::Gates;
use super::tests::{POLICY, accepting, check_with, exited, load_failed, ms, ready, text};
use super::*;

const RELOAD: Policy = Policy { min_ready: Duration::from_secs(1), soak: Duration::from_secs(10), ..POLICY };

type Script<'a> = Vec<(u64, Event, &'a str)>;

fn reload_with(gates: Gates, deadline: Option<Time>) -> Event {
    Event::ReloadRequested { candidate: Generation(2), policy: POLICY, gates, deadline }
}

fn reload() -> Event {
    reload_with(Gates::default(), None)
}

fn passed() -> Event {
    Event::DeadlinePassed
}

/// Two workers serve generation 1.
fn serving() -> Script<'static> {
    vec![(1, ready(1), "accept 1"), (1, ready(2), "accept 2, announce")]
}

/// A canary has passed, and the first slot is rolled.
fn rolling(gates: Gates) -> Script<'static> {
    let mut script = serving();
    script.extend([
        (1000, reload_with(gates, None), "Canary(1s), spawn 3 in 0 of 2"),
        (1500, ready(3), ""),
        (2499, passed(), ""),
        (2500, passed(), "accept 3, Rolling(0)"),
        (2501, accepting(3), "drain 1, Rolling(1), spawn 4 in 1 of 2"),
    ]);
    script
}

/// All slots are rolled.
fn soaking(gates: Gates) -> Script<'static> {
    let mut script = rolling(gates);
    script.extend([
        (2600, ready(4), "accept 4"),
        (2601, accepting(4), "drain 2, Rolling(2), Soaking(10s)"),
        (2700, exited(1), ""),
        (2701, exited(2), ""),
    ]);
    script
}

fn check(mut script: Script<'_>, rest: &[(u64, Event, &'static str)]) {
    script.extend(rest.iter().cloned());
    check_with(RELOAD, &script);
}

#[test]
fn a_reload_goes_slot_by_slot_surge_first() {
    check(
        soaking(Gates::default()),
        &[
            (12_600, passed(), ""),
            (12_601, passed(), "Committed"),
            // From now on this is what there is.
            (13_000, exited(3), "crash 3, spawn 5 in 0 of 2"),
            (13_001, Event::ScaleRequested { slots: 3 }, "spawn 6 in 2 of 2"),
        ],
    );
}

#[test]
fn without_waiting_it_goes_as_fast_as_workers_start() {
    let policy = Policy { min_ready: Duration::ZERO, soak: Duration::ZERO, ..POLICY };
    let mut script = serving();
    script.extend([
        (1000, reload(), "Canary(0ns), spawn 3 in 0 of 2"),
        (1010, ready(3), "accept 3, Rolling(0)"),
        (1011, accepting(3), "drain 1, Rolling(1), spawn 4 in 1 of 2"),
        (1020, ready(4), "accept 4"),
        (1021, accepting(4), "drain 2, Rolling(2), Soaking(0ns), Committed"),
    ]);
    check_with(policy, &script);
}

/// Its workers go by its settings from the beginning, those of the old one by theirs to the end.
#[test]
fn a_candidate_brings_its_own_policy() {
    let [old, new] = [10, 50].map(|seconds| Policy { drain_timeout: Duration::from_secs(seconds), ..RELOAD });
    let new = Policy {
        min_ready: ms(200),
        soak: ms(300),
        recycle: Recycle { max_requests: Some(1), ..POLICY.recycle },
        ..new
    };
    let mut supervisor = Supervisor::new(1, Generation(1), old, 0);
    supervisor.start();
    let mut check = |at, event, expected| assert_eq!(text(&supervisor.step(ms(at), event)), expected, "at {at} ms");
    check(0, ready(1), "accept 1, announce");
    check(1, accepting(1), "");
    let candidate =
        Event::ReloadRequested { candidate: Generation(2), policy: new, gates: Gates::default(), deadline: None };
    check(1000, candidate, "Canary(200ms), spawn 2 in 0 of 2");
    check(1010, ready(2), "");
    check(1210, passed(), "accept 2, Rolling(0)");
    check(1220, accepting(2), "drain 1, Rolling(1), Soaking(300ms)");
    check(1520, passed(), "Committed");
    // The old worker is killed a second after its own time, not after the new one's.
    check(12_219, passed(), "");
    check(12_220, passed(), "kill 1");
    check(12_230, exited(1), "");
    let busy = Vitals { heartbeats: 1, requests: 1, ..Vitals::default() };
    check(20_000, Event::Observed(vec![(WorkerId(2), busy)]), "spawn 3 in 0 of 2");
    check(20_010, ready(3), "accept 3");
    check(20_020, accepting(3), "drain 2, MaxRequests");
    check(71_019, passed(), "");
    check(71_020, passed(), "kill 2");
}

#[test]
fn a_version_that_was_served_before_comes_back_soon() {
    let gates = Gates { served_before: true, ..Gates::default() };
    let mut script = serving();
    script.extend([
        (1000, reload_with(gates, None), "Canary(100ms), spawn 3 in 0 of 2"),
        (1010, ready(3), ""),
        (1110, passed(), "accept 3, Rolling(0)"),
        (1111, accepting(3), "drain 1, Rolling(1), spawn 4 in 1 of 2"),
        (1120, ready(4), "accept 4"),
        (1121, accepting(4), "drain 2, Rolling(2), Soaking(0ns), Committed"),
    ]);
    check_with(RELOAD, &script);
}

#[test]
fn a_canary_that_fails_changes_nothing() {
    let gate = |reason: &str| format!("RollingBack(Gate(\"the canary failed: {reason}\"), 0)");
    let back = |reason: &str| format!("RolledBack(Gate(\"the canary failed: {reason}\"))");
    let begun = || {
        let mut script = serving();
        script.push((1000, reload(), "Canary(1s), spawn 3 in 0 of 2"));
        script
    };
    // It cannot be loaded.
    let mut script = begun();
    let text = format!("crash 3, {}, {}", gate("no"), back("no"));
    script.push((1001, load_failed(3), ""));
    script.push((1002, exited(3), &text));
    script.push((1003, reload(), "Canary(1s), spawn 4 in 0 of 2"));
    check_with(RELOAD, &script);
    // It dies after it was ready.
    let mut script = begun();
    let text = format!("crash 3, {}, {}", gate("signal 9"), back("signal 9"));
    script.push((1001, ready(3), ""));
    script.push((1002, exited(3), &text));
    check_with(RELOAD, &script);
    // It does not answer its health check any more.
    let mut script = begun();
    let text = format!("{}, drain 3, {}", gate("500"), back("500"));
    script.push((1001, ready(3), ""));
    script.push((1002, Event::BecameUnhealthy { worker: WorkerId(3), reason: "500".into() }, &text));
    script.push((1003, exited(3), ""));
    check_with(RELOAD, &script);
    // It takes too long.
    let mut script = serving();
    script.push((1000, reload_with(Gates::default(), Some(ms(5000))), "Canary(1s), spawn 3 in 0 of 2"));
    script.push((4999, passed(), ""));
    script.push((5000, passed(), "RollingBack(TimedOut, 0), kill 3, RolledBack(TimedOut)"));
    script.push((5001, ready(3), ""));
    script.push((5002, exited(3), ""));
    check_with(RELOAD, &script);
}

const DIED: &str = "a worker of the new version died before it was ready: signal 9";

#[test]
fn a_death_before_ready_rolls_back_surge_first() {
    let back = format!("RollingBack(Gate({DIED:?}), 1)");
    let text = format!("crash 4, {back}, spawn 5 in 0");
    let done = format!("drain 3, RollingBack(Gate({DIED:?}), 0), RolledBack(Gate({DIED:?}))");
    let mut script = rolling(Gates::default());
    script.extend([
        (3000, exited(4), text.as_str()),
        (3001, Event::ScaleRequested { slots: 4 }, ""),
        (3010, ready(5), "accept 5"),
        (3011, accepting(5), &done),
        // The other slot was never touched.
        (4000, exited(2), "crash 2, spawn 6 in 1"),
        (4001, exited(3), ""),
    ]);
    check_with(RELOAD, &script);
    // With force another is tried.
    let mut script = rolling(Gates { force: true, ..Gates::default() });
    script.extend([
        (3000, exited(4), "crash 4, spawn 5 in 1 of 2"),
        (3010, exited(5), "crash 5, wait"),
        (3200, passed(), "spawn 6 in 1 of 2"),
        (3210, ready(6), "accept 6"),
        (3211, accepting(6), "drain 2, Rolling(2), Soaking(10s)"),
    ]);
    check_with(RELOAD, &script);
}

#[test]
fn one_crash_is_chance_two_are_a_reason() {
    let reason = "2 workers of the new version crashed, the last one signal 9";
    let mut script = soaking(Gates::default());
    script.extend([(4000, exited(3), "crash 3, spawn 5 in 0 of 2"), (4010, ready(5), "accept 5")]);
    // The slot's own worker is replaced at once, as any; then the slots go back.
    let text = format!("crash 4, RollingBack(Gate({reason:?}), 2), spawn 6 in 1 of 2, spawn 7 in 0");
    script.push((5000, exited(4), &text));
    check_with(RELOAD, &script);
    check(
        soaking(Gates { force: true, ..Gates::default() }),
        &[
            (4000, exited(3), "crash 3, spawn 5 in 0 of 2"),
            (4010, ready(5), "accept 5"),
            (5000, exited(4), "crash 4, spawn 6 in 1 of 2"),
            (12_601, passed(), "Committed"),
        ],
    );
}

#[test]
fn crashes_that_were_there_before_are_no_reason() {
    let mut script = serving();
    // Ten crashes in a second of the old generation.
    for crash in 0..10_u64 {
        let (old, new) = (if crash == 0 { 1 } else { crash + 2 }, crash + 3);
        let degraded = if crash == 5 { ", degraded: CrashStorm" } else { "" };
        let text: &'static str = Box::leak(format!("crash {old}, spawn {new} in 0{degraded}").into_boxed_str());
        let accept: &'static str = Box::leak(format!("accept {new}").into_boxed_str());
        script.push((1000 + crash * 100, exited(old), text));
        script.push((1000 + crash * 100, ready(new), accept));
    }
    script.extend([
        (2000, reload(), "Canary(1s), spawn 13 in 0 of 2"),
        (2001, ready(13), ""),
        (3001, passed(), "accept 13, Rolling(0)"),
        (3002, accepting(13), "drain 12, Rolling(1), spawn 14 in 1 of 2"),
        (3010, ready(14), "accept 14"),
        (3011, accepting(14), "drain 2, Rolling(2), Soaking(10s)"),
        (8000, exited(13), "crash 13, spawn 15 in 0 of 2"),
        (8001, ready(15), "accept 15"),
        (9000, exited(14), "crash 14, spawn 16 in 1 of 2"),
    ]);
    check_with(RELOAD, &script);
}

#[test]
fn a_respawn_is_what_its_slot_is() {
    check(
        rolling(Gates::default()),
        &[
            // A rolled slot, and one that is not, though its successor is there.
            (2600, exited(3), "crash 3, spawn 5 in 0 of 2"),
            (2700, exited(2), "crash 2, spawn 6 in 1"),
            (2800, ready(4), "accept 4"),
            (2801, accepting(4), "kill 6, Rolling(2)"),
            (2900, ready(5), "accept 5, Soaking(10s)"),
        ],
    );
}

#[test]
fn a_slot_in_back_off_takes_the_candidate_at_once() {
    let mut script = serving();
    script.extend([
        (11, reload(), "Canary(1s), spawn 3 in 0 of 2"),
        (20, ready(3), ""),
        (1000, exited(2), "crash 2, spawn 4 in 1"),
        (1001, exited(4), "crash 4, spawn 5 in 1"),
        (1002, exited(5), "crash 5, wait, degraded: MissingWorkers"),
        (1020, passed(), "accept 3, Rolling(0)"),
        (1030, accepting(3), "drain 1, Rolling(1), spawn 6 in 1 of 2, Rolling(2), not degraded"),
        (1040, ready(6), "accept 6, Soaking(10s)"),
    ]);
    check_with(RELOAD, &script);
}

#[test]
fn old_generations_do_not_pile_up() {
    let policy = Policy { min_ready: Duration::ZERO, soak: Duration::ZERO, ..POLICY };
    let next = |generation| Event::ReloadRequested {
        candidate: Generation(generation),
        policy,
        gates: Gates::default(),
        deadline: None,
    };
    let mut supervisor = Supervisor::new(1, Generation(1), policy, 0);
    supervisor.start();
    supervisor.step(ms(0), ready(1));
    let mut worker = 1;
    for generation in 2..=3 {
        worker += 1;
        supervisor.step(ms(1), next(generation));
        supervisor.step(ms(2), ready(worker));
        supervisor.step(ms(3), accepting(worker));
    }
    // Workers of two generations drain: the third reload waits with its canary until one of them is gone.
    supervisor.step(ms(4), next(4));
    let actions = supervisor.step(ms(5), ready(4));
    assert!(!actions.contains(&Action::StartAccepting { worker: WorkerId(4) }), "{actions:?}");
    assert!(supervisor.next_deadline().is_none_or(|at| at > ms(5)), "it does not look again and again");
    let actions = supervisor.step(ms(6), exited(1));
    assert!(actions.contains(&Action::StartAccepting { worker: WorkerId(4) }), "{actions:?}");
}

/// What workers have answered in all: with how many errors, and what is still in flight.
fn answers(workers: &[(u64, u64, u64)]) -> Event {
    let one = |&(worker, all, errors): &(u64, u64, u64)| {
        let answers = Answers { all, errors };
        (WorkerId(worker), Vitals { heartbeats: all, answers, ..Vitals::default() })
    };
    Event::Observed(workers.iter().map(one).collect())
}

fn in_flight(workers: &[(u64, u64)]) -> Event {
    let one = |&(worker, in_flight)| (WorkerId(worker), Vitals { in_flight, ..Vitals::default() });
    Event::Observed(workers.iter().map(one).collect())
}

/// All slots are rolled; the old generation has answered this much before the reload.
fn soaking_after(old: Event, gates: Gates) -> Script<'static> {
    let mut script = serving();
    script.push((900, old, ""));
    script.extend(soaking(gates).into_iter().skip(2));
    script
}

/// Checks that a candidate whose two workers have answered this is committed, or rolled back for `reason`.
fn judge(old: Event, candidate: Event, gates: Gates, reason: Option<&str>) {
    let mut script = soaking_after(old, gates);
    let back = reason.map(|reason| format!("RollingBack(Gate({reason:?}), 2), spawn 5 in 0")).unwrap_or_default();
    script.push((5000, candidate, back.as_str()));
    if reason.is_none() {
        script.push((12_601, passed(), "Committed"));
    }
    check_with(RELOAD, &script);
}

#[test]
fn a_version_with_more_errors_is_rolled_back() {
    let well = || answers(&[(1, 500, 0), (2, 500, 0)]);
    let usual = Gates::default();
    let always = "100.0 % of its 20 answers were errors, against 0.0 % of the old version's; --max-error-increase allows 5 points more, and `reload --force` ignores errors";
    judge(well(), answers(&[(3, 10, 10), (4, 10, 10)]), usual, Some(always));
    let a_tenth = "10.0 % of its 100 answers were errors, against 0.0 % of the old version's; --max-error-increase allows 5 points more, and `reload --force` ignores errors";
    judge(well(), answers(&[(3, 90, 9), (4, 10, 1)]), usual, Some(a_tenth));
    judge(well(), answers(&[(3, 90, 5), (4, 10, 0)]), usual, None);
    // Of one that was never asked for anything, nothing is known.
    judge(answers(&[]), answers(&[(3, 10, 10), (4, 10, 10)]), usual, Some(always));
    // By another measure, or none.
    judge(well(), answers(&[(3, 90, 9), (4, 10, 1)]), Gates { max_error_increase: 100, ..usual }, None);
    judge(well(), answers(&[(3, 90, 9), (4, 10, 1)]), Gates { force: true, ..usual }, None);
}

#[test]
fn a_version_that_is_no_worse_stays() {
    let bad = || answers(&[(1, 500, 60), (2, 500, 40)]);
    judge(bad(), answers(&[(3, 100, 10), (4, 100, 10)]), Gates::default(), None);
    judge(bad(), answers(&[(3, 100, 15), (4, 100, 14)]), Gates::default(), None);
    let worse = "30.0 % of its 200 answers were errors, against 10.0 % of the old version's; --max-error-increase allows 5 points more, and `reload --force` ignores errors";
    judge(bad(), answers(&[(3, 100, 30), (4, 100, 30)]), Gates::default(), Some(worse));
    judge(answers(&[(1, 500, 500), (2, 500, 500)]), answers(&[(3, 100, 100)]), Gates::default(), None);
}

#[test]
fn few_answers_decide_nothing() {
    judge(answers(&[(1, 500, 0)]), answers(&[(3, 10, 10), (4, 9, 9)]), Gates::default(), None);
}

/// An attack, or a database that fails, in the middle of the roll: both versions have errors from then on.
#[test]
fn errors_of_both_versions_are_nobody_s_fault() {
    let mut script = serving();
    script.push((900, answers(&[(1, 5000, 0), (2, 5000, 0)]), ""));
    script.extend(rolling(Gates::default()).into_iter().skip(2));
    script.extend([
        (2510, answers(&[(1, 5000, 0), (2, 5100, 0), (3, 100, 0)]), ""),
        (2520, answers(&[(1, 5000, 0), (2, 5200, 60), (3, 200, 70)]), ""),
        (2600, ready(4), "accept 4"),
        (2601, accepting(4), "drain 2, Rolling(2), Soaking(10s)"),
        (2700, exited(1), ""),
        (2701, exited(2), ""),
        (5000, answers(&[(3, 1200, 670), (4, 1000, 600)]), ""),
        (12_601, passed(), "Committed"),
    ]);
    check_with(RELOAD, &script);
}

/// Requests that are stuck are no answers yet: the soak waits for them, as long as a request may take.
#[test]
fn a_version_that_never_answers_is_not_committed() {
    let reason = "100.0 % of its 30 answers were errors, against 0.0 % of the old version's; --max-error-increase allows 5 points more, and `reload --force` ignores errors";
    let back = format!("RollingBack(Gate({reason:?}), 2), spawn 5 in 0");
    let mut script = soaking_after(answers(&[(1, 500, 0), (2, 500, 0)]), Gates::default());
    script.extend([
        (12_500, in_flight(&[(3, 15), (4, 15)]), ""),
        (12_601, passed(), ""),
        (12_851, passed(), ""),
        (13_000, answers(&[(3, 15, 15), (4, 15, 15)]), back.as_str()),
    ]);
    check_with(RELOAD, &script);
    // Not for ever: they may be answers that last.
    let mut script = soaking_after(answers(&[]), Gates::default());
    script.extend([
        (12_500, in_flight(&[(3, 15), (4, 15)]), ""),
        (12_601, passed(), ""),
        (42_600, passed(), ""),
        (42_601, passed(), "Committed"),
    ]);
    check_with(Policy { hang_timeout: Duration::from_secs(100), ..RELOAD }, &script);
    // Nor for a few, nor without a soak.
    let mut script = soaking_after(answers(&[]), Gates::default());
    script.extend([(12_500, in_flight(&[(3, 10), (4, 9)]), ""), (12_601, passed(), "Committed")]);
    check_with(RELOAD, &script);
}

/// Where health is checked, a canary passes by a proof that is late enough, not by silence.
#[test]
fn a_canary_passes_by_its_last_proof() {
    let well = || Event::ProvedHealthy { worker: WorkerId(3) };
    let policy = Policy { checks_health: true, ..RELOAD };
    let mut script = serving();
    script.extend([
        (1000, reload(), "Canary(1s), spawn 3 in 0 of 2"),
        (1500, ready(3), ""),
        (1600, well(), ""),
        (2500, passed(), ""),
        (6000, passed(), ""),
        (6001, well(), "accept 3, Rolling(0)"),
    ]);
    check_with(policy, &script);
}

#[test]
fn a_forced_reload_takes_over_one_that_goes_back() {
    let next = |force| Event::ReloadRequested {
        candidate: Generation(3),
        policy: RELOAD,
        gates: Gates { force, ..Gates::default() },
        deadline: None,
    };
    let back = format!("crash 4, RollingBack(Gate({DIED:?}), 1), spawn 5 in 0");
    let mut script = rolling(Gates::default());
    script.extend([
        (3000, exited(4), back.as_str()),
        (3001, next(false), ""),
        // The worker of the old generation that was on its way has no place any more.
        (3002, next(true), "kill 5, Canary(1s), spawn 6 in 0 of 3"),
        (3003, exited(5), ""),
        (3010, ready(6), ""),
        (4010, passed(), "accept 6, Rolling(0)"),
        (4011, accepting(6), "drain 3, Rolling(1), spawn 7 in 1 of 3"),
        (4020, ready(7), "accept 7"),
        (4021, accepting(7), "drain 2, Rolling(2), Soaking(10s)"),
        (14_021, passed(), "Committed"),
    ]);
    check_with(RELOAD, &script);
}

#[test]
fn a_delayed_stop_ends_a_reload_where_it_is() {
    let policy = Policy { shutdown_delay: Duration::from_secs(60), ..RELOAD };
    let mut script = rolling(Gates::default());
    script.extend([
        (2600, Event::ShutdownRequested(Haste::Drain), "kill 4"),
        (2601, exited(4), ""),
        // Each slot stays what it is.
        (2700, exited(3), "crash 3, spawn 5 in 0 of 2"),
        (2800, exited(2), "crash 2, spawn 6 in 1"),
    ]);
    check_with(policy, &script);
}

#[test]
fn a_shutdown_wins() {
    check(
        rolling(Gates::default()),
        &[
            (2600, Event::ShutdownRequested(Haste::Drain), "close, drain 2, drain 3, kill 4"),
            (2601, ready(4), ""),
            (2602, exited(4), ""),
            (2603, exited(1), ""),
            (2604, exited(3), ""),
            (2605, exited(2), "stopped"),
        ],
    );
}
