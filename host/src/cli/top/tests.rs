//! What `top` knows, asks and shows, without a terminal and without a cluster.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ratatui::backend::{CrosstermBackend, TestBackend};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::{Terminal, TerminalOptions, Viewport};
use serde_json::{Value, json};

use super::monitor::{Moment, Monitor, Pressed, TopOrder};
use super::occurrence::Occurrence;
use super::view::{Palette, draw};
use crate::logging::LogLevel;

const PLAIN: Palette = Palette { has_colours: false };

fn worker(id: u64, requests: u64) -> Value {
    json!({
        "id": id, "slot": id - 1, "role": "incumbent", "pid": 4000 + id, "generation": 7, "state": "ready",
        "uptime_ms": 61_000, "retry_in_ms": null, "requests": requests, "in_flight": 2, "connections": 3, "restarts": id,
        "rss_bytes": 22_858_957, "guest_cpu_ms": requests / 4
    })
}

fn cluster(workers: &[Value], requests: u64, counts: &[(f64, u64)]) -> Value {
    json!({
        "schema": 1, "name": "shop", "pid": 4000, "state": "running", "degraded": false, "uptime_ms": 3_600_000 + requests,
        "listen": ["http://127.0.0.1:8080"], "reload": null, "last_reload": null,
        "generation": {"current": 7, "candidate": null, "previous": 6, "digest": "sha256:45da6523e5260000", "source": "/srv/app.wasm"},
        "workers": workers,
        "totals": {
            "requests": requests, "errors": 0, "traps": 0, "timeouts": 0, "rejected": 0, "refused": 0, "aborted": 0,
            "crashes": 4, "reloads": 0, "lines_dropped": 0, "latency_ms": {"p50": 1.0, "p99": 1.0, "counts": counts}
        },
    })
}

/// The cluster at that second, in which worker 1 has had the processor for so many milliseconds.
fn moment(second: u64, status: Value, used: u64) -> Moment {
    let processor_times = BTreeMap::from([(1, Duration::from_millis(used))]);
    Moment { at: Duration::from_secs(second), status: serde_json::from_value(status).unwrap(), processor_times }
}

/// Two workers, of which the first has answered 500 requests in the last second.
fn monitor() -> Monitor {
    let mut monitor = Monitor::default();
    let workers = |requests| [worker(1, requests), worker(2, 0)];
    monitor.saw(moment(0, cluster(&workers(1000), 1000, &[(1.0, 900), (8.0, 100)]), 5000));
    monitor.saw(moment(1, cluster(&workers(1500), 1500, &[(1.0, 900), (4.0, 490), (8.0, 110)]), 5250));
    monitor
}

fn press(monitor: &mut Monitor, code: KeyCode) -> Pressed {
    monitor.pressed(&KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_in(monitor: &mut Monitor, letter: char) -> Pressed {
    press(monitor, KeyCode::Char(letter))
}

/// What a terminal of that size shows, line by line.
fn screen(monitor: &mut Monitor, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, monitor, PLAIN)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

#[track_caller]
fn assert_shows(lines: &[String], parts: &[&str]) {
    for part in parts {
        assert!(lines.iter().any(|line| line.contains(part)), "{part:?} is not in\n{}", lines.join("\n"));
    }
}

#[test]
fn a_usual_terminal_shows_all_that_matters() {
    let mut monitor = monitor();
    monitor.happened(event("worker_ready", 1));
    let lines = screen(&mut monitor, 80, 24);
    assert_eq!(lines[0], "shop: running for 1h00m, pid 4000             generation 7 (sha256:45da6523e526)");
    assert_eq!(lines[1], format!("http://127.0.0.1:8080{:>59}", "/srv/app.wasm"));
    assert_eq!(lines[2], "requests/s    500.0  █");
    assert_eq!(lines[3], "errors/s        0.0  _");
    assert_eq!(lines[4], "latency   p50 4.00 ms  p99 8.00 ms  (requests of the last 10 s)");
    assert_eq!(lines[5], "in flight 4  connections 6  CPU 25%  memory 43.6M  crashes 4  traps 0");
    assert_eq!(lines[7], "SLOT GEN WORKER    PID STATE    UPTIME   REQ/S ACTIVE CONNS  CPU MEMORY RESTARTS");
    assert_eq!(lines[8], "   0   7      1   4001 ready     1m01s   500.0      2     3  25%  21.8M        1");
    assert_eq!(lines[9], "   1   7      2   4002 ready     1m01s     0.0      2     3    -  21.8M        2");
    assert_eq!(lines[11], "EVENTS (UTC)");
    assert_eq!(lines[12], "12:13:14 worker 1 is ready");
    assert_eq!(lines[23], "q quit  ? help  r reload  b rollback  + more  - fewer  l log  s stop  p pause");
}

#[test]
fn workers_are_put_in_the_order_of_what_they_cost() {
    let mut monitor = Monitor::default();
    let workers = |seconds: u64| {
        let mut all = [worker(1, 100 * seconds), worker(2, 300 * seconds), worker(3, 0)];
        all[0]["guest_cpu_ms"] = (900 * seconds).into();
        all[2]["rss_bytes"] = 99_999_999.into();
        all
    };
    (1..=2).for_each(|second| monitor.saw(moment(second, cluster(&workers(second), 400 * second, &[]), 500 * second)));
    let mut check = |marked: &str, slots: [&str; 3]| {
        let lines = screen(&mut monitor, 80, 24);
        let title = lines.iter().position(|line| line.starts_with("SLOT")).unwrap();
        let first = |line: &String| line.split_whitespace().next().unwrap().to_owned();
        assert_eq!(lines[title + 1..title + 4].iter().map(first).collect::<Vec<_>>(), slots, "{lines:#?}");
        assert!(marked.is_empty() != lines[title].contains(&format!("{marked}▼")), "{}", lines[title]);
        assert!(lines[title].chars().count() <= 80);
        type_in(&mut monitor, 'o');
        lines
    };
    check("", ["0", "1", "2"]);
    check("REQ/S", ["1", "0", "2"]);
    let lines = check("MS/REQ", ["0", "1", "2"]);
    assert_shows(&lines, &[" 9.00 ", " 0.25 "]);
    check("CPU", ["0", "1", "2"]);
    check("MEMORY", ["2", "0", "1"]);
    check("", ["0", "1", "2"]);
}

#[test]
fn a_larger_terminal_has_room_for_more() {
    let mut monitor = Monitor::default();
    let workers: Vec<Value> = (1..=40).map(|id| worker(id, 0)).collect();
    (0..80).for_each(|second| monitor.saw(moment(second, cluster(&workers, second * second, &[]), 0)));
    let lines = screen(&mut monitor, 120, 40);
    let bars: String = lines[2].chars().skip(20).take(60).collect();
    assert!(bars.starts_with("▂") && bars.ends_with("███"), "{bars}");
    assert_shows(&lines, &["  peak 157.0", "workers 1 to 24 of 40 ↑↓", "p50 -  p99 -"]);
    for _ in 0..100 {
        press(&mut monitor, KeyCode::Down);
    }
    assert_shows(&screen(&mut monitor, 120, 40), &["workers 17 to 40 of 40", "  39   7     40   4040 ready"]);
    // Those that are gone leave no gap.
    monitor.saw(moment(81, cluster(&workers[..2], 9000, &[]), 0));
    assert_shows(&screen(&mut monitor, 120, 40), &["   0   7      1   4001 ready"]);
}

#[test]
fn a_small_terminal_shows_less_and_a_tiny_one_says_so() {
    let mut monitor = monitor();
    monitor.happened(event("worker_ready", 2));
    let lines = screen(&mut monitor, 60, 12);
    assert_eq!(lines[6], "SLOT GEN WORKER STATE      REQ/S ACTIVE  CPU MEMORY RESTARTS");
    assert_shows(&lines, &["   0   7      1 ready      500.0      2  25%  21.8M", "worker 2 is ready", "q quit"]);
    assert_eq!(screen(&mut monitor, 59, 24)[..2], ["terminal too small: 60×12 is needed,", "this is 59×24"]);
    assert_eq!(screen(&mut monitor, 80, 11)[1], "this is 80×11");
    for (width, height) in [(1, 1), (60, 12), (61, 13), (79, 19), (300, 100)] {
        screen(&mut monitor, width, height);
        press(&mut monitor, KeyCode::Char('?'));
        screen(&mut monitor, width, height);
        press(&mut monitor, KeyCode::Char('?'));
    }
}

#[test]
fn the_help_has_every_key_even_on_a_small_terminal() {
    let mut monitor = monitor();
    type_in(&mut monitor, '?');
    let parts = ["reload: component and settings", "roll back", "drain and stop", "quit, as Esc", "Ctrl-Z"];
    assert_shows(&screen(&mut monitor, 60, 12), &parts);
    assert_shows(&screen(&mut monitor, 80, 24), &["MEMORY    resident"]);
    assert_eq!(type_in(&mut monitor, 's'), Pressed::Nothing, "it only goes back");
    assert_shows(&screen(&mut monitor, 80, 24), &["SLOT GEN"]);
}

#[test]
fn nothing_is_done_before_a_yes() {
    for (key, asked, order) in [
        ('r', "Reload /srv/app.wasm? y/n", TopOrder::Reload),
        ('b', "Roll back to what generation 6 was? y/n", TopOrder::Rollback),
        ('+', "Start one worker more than the 2 now? y/n", TopOrder::Scale(1)),
        ('-', "Drain one worker of 2? y/n", TopOrder::Scale(-1)),
        ('s', "Stop the cluster shop? y/n", TopOrder::Stop),
    ] {
        let mut monitor = monitor();
        assert_eq!(type_in(&mut monitor, key), Pressed::Nothing);
        assert_eq!(screen(&mut monitor, 80, 24)[22], asked);
        // No answer.
        assert_eq!(type_in(&mut monitor, 'q'), Pressed::Nothing);
        assert_eq!(press(&mut monitor, KeyCode::Enter), Pressed::Nothing);
        assert_eq!(screen(&mut monitor, 80, 24)[22], asked);
        assert_eq!(type_in(&mut monitor, 'n'), Pressed::Nothing);
        assert_eq!(screen(&mut monitor, 80, 24)[22], "nothing was changed");
        assert_eq!(type_in(&mut monitor, 'y'), Pressed::Nothing, "nothing is asked any more");
        type_in(&mut monitor, key);
        assert_eq!(type_in(&mut monitor, 'y'), Pressed::Order(order));
        assert_eq!(type_in(&mut monitor, 'y'), Pressed::Nothing, "it is done once");
    }
}

#[test]
fn a_log_level_is_chosen_by_its_letter() {
    let mut monitor = monitor();
    assert_eq!(type_in(&mut monitor, 'l'), Pressed::Order(TopOrder::AskLevel));
    monitor.ask_level("info");
    let asked = "Log level, now info: off, error, warn, info, debug, trace? First letter, or n";
    assert_eq!(screen(&mut monitor, 80, 24)[22], asked);
    assert_eq!(type_in(&mut monitor, 'y'), Pressed::Nothing);
    assert_eq!(type_in(&mut monitor, 'd'), Pressed::Order(TopOrder::Level(LogLevel::Debug)));
}

#[test]
fn what_cannot_be_done_is_not_asked() {
    let mut monitor = Monitor::default();
    assert_eq!(
        (type_in(&mut monitor, 'r'), monitor.message.as_str()),
        (Pressed::Nothing, "the cluster does not answer")
    );
    let mut status = cluster(&[worker(1, 0)], 0, &[]);
    status["generation"]["previous"] = Value::Null;
    status["generation"]["folder"] = json!("/src/shop");
    monitor.saw(moment(0, status, 0));
    for (key, said) in
        [('b', "there is no version before this one"), ('r', "/src/shop is built first: use `wasmcluster reload`")]
    {
        type_in(&mut monitor, key);
        assert_eq!((monitor.message.as_str(), &monitor.question), (said, &None));
    }
}

#[test]
fn ctrl_c_quits_whatever_is_shown() {
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    for before in ['s', '?', 'p'] {
        let mut monitor = monitor();
        type_in(&mut monitor, before);
        assert_eq!(monitor.pressed(&interrupt), Pressed::Quit, "{before}");
    }
    assert_eq!(press(&mut monitor(), KeyCode::Esc), Pressed::Quit);
}

#[test]
fn a_pause_keeps_what_is_shown_and_forgets_nothing() {
    let mut monitor = monitor();
    type_in(&mut monitor, 'p');
    monitor.saw(moment(2, cluster(&[worker(1, 1500), worker(2, 0), worker(3, 0)], 1500, &[]), 5250));
    monitor.happened(event("worker_ready", 3));
    let lines = screen(&mut monitor, 80, 24);
    assert_shows(&lines, &["PAUSED", "requests/s    500.0  █"]);
    assert!(!lines.iter().any(|line| line.contains("worker 3")), "{lines:#?}");
    type_in(&mut monitor, 'p');
    assert_shows(&screen(&mut monitor, 80, 24), &["requests/s      0.0  █_", "worker 3 is ready"]);
}

#[test]
fn a_cluster_that_goes_away_is_waited_for() {
    let mut monitor = monitor();
    for second in 2..5 {
        monitor.lost(Duration::from_secs(second), "no cluster is running".into());
    }
    let lines = screen(&mut monitor, 80, 24);
    assert_shows(&lines, &["not reachable for 2s", "no cluster is running", "requests/s        -  █", "p50 -  p99 -"]);
    assert!(!lines.iter().any(|line| line.contains("4001")), "no worker is shown that may be gone: {lines:#?}");
    // Another primary counts anew: what it has is no rate.
    let mut other = cluster(&[worker(1, 90_000)], 90_000, &[(1.0, 90_000)]);
    other["pid"] = json!(5000);
    monitor.saw(moment(5, other.clone(), 9000));
    assert_shows(&screen(&mut monitor, 80, 24), &["pid 5000", "requests/s        -  █", "p50 -  p99 -"]);
    other["totals"]["requests"] = json!(90_010);
    monitor.saw(moment(6, other, 9000));
    assert_shows(&screen(&mut monitor, 80, 24), &["requests/s     10.0  █    ▁"]);
}

/// A primary that answers late, or a machine that slept, is no burst.
#[test]
fn rates_are_by_the_time_between_two_looks() {
    let mut monitor = monitor();
    monitor.saw(moment(11, cluster(&[worker(1, 2500)], 2500, &[]), 5250));
    assert_shows(&screen(&mut monitor, 80, 24), &["requests/s    100.0"]);
    // Within the same moment there is none.
    monitor.saw(moment(11, cluster(&[worker(1, 2600)], 2600, &[]), 5250));
    assert_shows(&screen(&mut monitor, 80, 24), &["requests/s        -"]);
}

#[test]
fn a_reload_and_a_start_show_how_far_they_are() {
    let mut monitor = monitor();
    let mut status = cluster(&[worker(1, 0)], 2000, &[]);
    status["state"] = json!("reloading");
    status["reload"] = json!({"generation": 8, "phase": "rolling_back", "rolled": 1, "of": 2, "elapsed_ms": 4000});
    monitor.saw(moment(2, status, 0));
    assert_eq!(screen(&mut monitor, 80, 24)[1], "deploying generation 8 for 4s: rolling back, 1 of 2 slots");
    let mut status = cluster(&[], 3000, &[]);
    status["state"] = json!("starting");
    status["starting"] = json!({"doing": "compiling app.wasm (11.7 MiB)", "for_ms": 3000});
    monitor.saw(moment(3, status, 0));
    assert_eq!(screen(&mut monitor, 80, 24)[1], "compiling app.wasm (11.7 MiB) for 3s");
}

#[test]
fn without_colours_there_are_none_and_with_them_there_are() {
    let mut monitor = monitor();
    let mut colours = |palette| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &mut monitor, palette)).unwrap();
        let cells = terminal.backend().buffer().content.clone();
        cells.iter().any(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset))
    };
    assert!(!colours(PLAIN));
    assert!(colours(Palette { has_colours: true }));
}

/// How many bytes were written.
#[derive(Clone, Default)]
struct Written(Rc<Cell<usize>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A slow line is no hindrance: of two frames, what differs is written.
#[test]
fn a_second_that_changes_little_writes_little() {
    let mut monitor = monitor();
    let written = Written::default();
    let viewport = TerminalOptions { viewport: Viewport::Fixed(Rect::new(0, 0, 80, 24)) };
    let mut terminal = Terminal::with_options(CrosstermBackend::new(written.clone()), viewport).unwrap();
    let mut lengths = Vec::new();
    for second in 2..5 {
        terminal.draw(|frame| draw(frame, &mut monitor, PLAIN)).unwrap();
        lengths.push(written.0.get());
        monitor.saw(moment(second, cluster(&[worker(1, 1500), worker(2, 0)], 1500 * second, &[]), 5250));
    }
    assert!(lengths[0] > 700 && lengths[2] - lengths[1] < 200, "{lengths:?}");
}

/// What guests and settings say cannot leave its line.
#[test]
fn nothing_that_is_shown_can_write_to_the_terminal() {
    let mut monitor = monitor();
    let line =
        json!({"time": "2026-11-30T12:13:14.000001Z", "event": "configured", "key": "a", "value": "\u{1b}[2J\nb"});
    monitor.happened(Occurrence::read(line.to_string().as_bytes()).unwrap());
    monitor.said("one\ntwo\u{1b}[31m");
    let lines = screen(&mut monitor, 80, 24);
    assert_shows(&lines, &["12:13:14 a =  [2J b"]);
    assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:#?}");
    assert!(lines[23].starts_with("q quit"), "{lines:#?}");
}

fn event(name: &str, worker: u64) -> Occurrence {
    let line = json!({"time": "2026-11-30T12:13:14.000001Z", "event": name, "worker": worker, "slot": 0});
    Occurrence::read(line.to_string().as_bytes()).unwrap()
}
