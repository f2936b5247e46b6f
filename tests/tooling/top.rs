//! `wasmcluster top` in a terminal of tmux: what it shows, what its keys do, and how it gives the terminal back.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::load::{Load, Reuse};
use harness::terminal::Pane;
use harness::{Cluster, Setup, binary, guest, until};

fn cluster(workers: u32) -> Cluster {
    let setup = Setup::new(&guest("hello")).workers(workers);
    setup.args(&["--min-ready", "0s", "--soak", "0s", "--drain-idle-grace", "0s"]).start()
}

fn pane(cluster: &Cluster) -> Option<Pane> {
    Pane::open(cluster.folder.path(), 80, 24)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_shows_workers_and_their_requests_as_they_come() {
    let cluster = cluster(2);
    let Some(pane) = pane(&cluster) else { return };
    pane.top("");
    for pid in cluster.ready() {
        pane.shows(&format!(" {pid} ready"));
    }
    pane.shows("generation 1 (sha256:");
    pane.shows("requests/s      0.0");
    let load = Load::mixed(cluster.address(), [(2, Reuse::WithPauses)]);
    let rate = |label: &str| pane.line(label)?.split_whitespace().nth(1)?.parse::<f64>().ok();
    until("there are requests", || rate("requests/s").filter(|rate| *rate > 1.0));
    pane.shows_what("latencies are shown", |screen| screen.contains(" ms  p99 "));
    load.end_well().await;
    until("there are none", || rate("requests/s").filter(|rate| *rate == 0.0));
    // What was is still seen.
    let bars = pane.line("requests/s").unwrap();
    assert!(bars.chars().any(|c| ('▁'..='█').contains(&c)), "{bars}");
    pane.press(&["q"]);
    pane.is_given_back();
}

#[test]
fn the_keys_of_top_change_the_cluster_once_it_is_said_yes() {
    let cluster = cluster(1);
    let Some(pane) = pane(&cluster) else { return };
    pane.top("");
    pane.press(&["r"]);
    pane.shows("hello.wasm? y/n");
    pane.press(&["n"]);
    pane.shows("nothing was changed");
    pane.press(&["r", "y"]);
    pane.shows("generation 2 is served");
    pane.shows("generation 2 (sha256:");
    pane.press(&["+"]);
    pane.shows("Start one worker more than the 1 now? y/n");
    pane.press(&["y"]);
    pane.shows("scaling: 1 → 2 workers");
    pane.shows_what("two are ready", |screen| screen.matches(" ready ").count() == 2);
    pane.press(&["-", "y"]);
    pane.shows("scaling: 2 → 1 workers");
    pane.press(&["-", "y"]);
    pane.shows("a cluster has at least one worker");
    pane.press(&["b", "y"]);
    pane.shows("generation 3 is served");
    pane.press(&["l"]);
    pane.shows("Log level, now info: off,");
    pane.press(&["d"]);
    pane.shows("every worker has the log level debug");
    assert_eq!(cluster.command(&["config", "get", "wasmcluster.log-level"]).stdout, "debug\n");
    assert_eq!(cluster.status()["generation"]["current"], 3, "what was answered with n was not done");
    pane.press(&["?"]);
    pane.shows("drain and stop the cluster");
    pane.press(&["x", "s"]);
    pane.shows("Stop the cluster default? y/n");
    pane.press(&["y"]);
    pane.shows("not reachable for");
    cluster.wait();
    pane.press(&["q"]);
    pane.is_given_back();
}

#[test]
fn top_shows_that_a_worker_died_and_another_took_its_place() {
    let cluster = cluster(1);
    let Some(pane) = pane(&cluster) else { return };
    pane.top("");
    pane.shows(" ready ");
    let killed = cluster.worker(0).unwrap();
    // It happened before.
    pane.shows("worker 1 is ready");
    kill(killed, Signal::SIGKILL).unwrap();
    pane.shows("worker 1 in slot 0 crashed: ");
    pane.shows("worker 2 is ready");
    pane.shows("crashes 1");
    let another = cluster.replaced(0, killed);
    pane.shows(&format!(" {another} ready"));
    pane.press(&["C-c"]);
    pane.is_given_back();
}

#[test]
fn every_end_of_top_gives_the_terminal_back() {
    let cluster = cluster(1);
    let Some(pane) = pane(&cluster) else { return };
    let pid_of_top = || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", pane.shell)).unwrap();
        Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap())
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        pane.top("");
        kill(pid_of_top(), signal).unwrap();
        pane.is_given_back();
    }
    pane.top("");
    pane.press(&["C-z"]);
    pane.is_given_back();
    pane.run("fg");
    pane.shows("q quit");
    pane.press(&["Escape"]);
    pane.is_given_back();
}

#[test]
fn top_without_colours_has_none() {
    let cluster = cluster(1);
    let Some(pane) = pane(&cluster) else { return };
    // 30 to 49 and 90 to 107 are colours (ECMA-48), but for those that reset one.
    let colours = || {
        let screen = pane.ask(&["capture-pane", "-p", "-e"]);
        let sequences = screen.split('\x1b').skip(1).filter_map(|rest| rest.strip_prefix('[')?.split_once('m'));
        let codes = sequences.flat_map(|(codes, _)| codes.split(';').map(str::to_owned).collect::<Vec<_>>());
        let codes = codes.filter_map(|code| code.parse::<u32>().ok());
        codes.filter(|code| (30..50).contains(code) && ![39, 49].contains(code) || (90..108).contains(code)).count()
    };
    for (variables, has_any) in [("NO_COLOR=1", false), ("", true)] {
        pane.top(variables);
        pane.shows(" ready ");
        assert_eq!(colours() > 0, has_any, "{variables:?}");
        pane.press(&["q"]);
        pane.is_given_back();
    }
}

#[test]
fn top_follows_the_size_of_its_terminal() {
    let cluster = cluster(1);
    let Some(pane) = pane(&cluster) else { return };
    pane.top("");
    pane.shows("RESTARTS");
    pane.ask(&["resize-window", "-x", "50", "-y", "10"]);
    pane.shows("terminal too small: 60×12 is needed");
    pane.ask(&["resize-window", "-x", "120", "-y", "40"]);
    pane.shows("RESTARTS");
    pane.shows("peak");
    pane.press(&["q"]);
    pane.is_given_back();
}

#[test]
fn top_waits_for_a_cluster_that_went_away() {
    let runtime = tempfile::tempdir().unwrap();
    let start = || {
        let setup = Setup::new(&guest("hello")).workers(1).env("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap());
        setup.start()
    };
    let first = start();
    let Some(pane) = Pane::open(runtime.path(), 80, 24) else { return };
    pane.top("");
    pane.shows(&format!("pid {}", first.pid()));
    drop(first);
    pane.shows("not reachable for");
    pane.shows("no cluster is running");
    let second = start();
    pane.shows(&format!("pid {}", second.pid()));
    pane.shows(" ready ");
    // Events of the new one come too, and none is missed.
    let mut set = Command::new(binary());
    set.args(["config", "set", "a=b"]).env("XDG_RUNTIME_DIR", runtime.path());
    assert!(set.output().unwrap().status.success());
    pane.shows("a = b");
    pane.press(&["q"]);
    pane.is_given_back();
}

#[test]
fn top_wants_a_terminal_that_can_be_drawn_on_and_a_cluster() {
    let cluster = cluster(1);
    let ended = cluster.command(&["top"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("needs a terminal; `wasmcluster status`"), "{ended:?}");
    let Some(pane) = pane(&cluster) else { return };
    pane.run(&format!("TERM=dumb {} top", binary().display()));
    pane.shows("this terminal cannot be drawn on");
    pane.run("clear");
    pane.run(&format!("{} top --name other || echo code $?", binary().display()));
    pane.shows("code 7");
    pane.shows("no cluster is running");
}
