//! Processes: their start, their deaths, their replacement, and the end of all.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::client::{Connection, get};
use harness::{Setup, guest, is_gone, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_is_replaced_and_the_server_keeps_answering() {
    let cluster = Setup::new(&guest("whoami")).start();
    let other = cluster.worker(1);
    for round in 1..=3 {
        let killed = cluster.worker(0).unwrap();
        kill(killed, Signal::SIGKILL).unwrap();
        wait_until_reaped(killed);
        // The other worker goes on: not one request fails.
        while cluster.worker(0).is_none_or(|pid| pid == killed) {
            assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        }
        let status = cluster.status();
        assert_eq!(status["workers"][0]["restarts"], round);
        assert_eq!(status["totals"]["crashes"], round);
        assert_eq!(cluster.worker(1), other, "the other worker was left alone");
    }
    cluster.stderr.find("SIGKILL");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_outlive_every_worker_in_the_totals() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    for round in 1..=3 {
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        let killed = cluster.worker(0).unwrap();
        kill(killed, Signal::SIGKILL).unwrap();
        cluster.replaced(0, killed);
        assert_eq!(cluster.status()["totals"]["requests"], round);
    }
}

/// Waits until nothing is left of a killed process. Until its last thread has ended, it can still take a connection into
/// the grave: a thread that dies in `accept` may have been given one.
#[track_caller]
fn wait_until_reaped(killed: Pid) {
    until("nothing is left of it", || (!Path::new(&format!("/proc/{killed}")).exists()).then_some(()));
}

/// SIGTERM or Ctrl-C in the middle of an answer.
async fn stops_after_the_answer(signal: Signal) {
    let cluster = Setup::new(&guest("scenarios")).start();
    let address = cluster.address();
    let mut connection = Connection::open(address).await;
    let mut body = connection.begin("/drip?chunks=20&ms=50").await;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "tick\n");
    cluster.signal(signal);
    refuses_connections(address);
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!(rest.len() / "tick\n".len(), 19);
    assert_eq!(cluster.wait().code(), Some(0));
    assert!(cluster.children().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_a_slow_answer_finish() {
    stops_after_the_answer(Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_lets_a_slow_answer_finish() {
    stops_after_the_answer(Signal::SIGINT).await;
}

/// A request that was on its way when the drain began is answered, and told that the connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_served_during_the_grace() {
    let cluster = Setup::new(&guest("hello")).args(&["--drain-idle-grace", "1h", "--shutdown-timeout", "1h"]).start();
    let mut connection = Connection::open(cluster.address()).await;
    let answer = connection.get("/").await.unwrap();
    assert!(!answer.headers.contains_key("connection"));
    cluster.signal(Signal::SIGTERM);
    refuses_connections(cluster.address());
    let answer = connection.get("/").await.unwrap();
    assert_eq!((answer.status, &answer.headers["connection"]), (200, &"close".parse().unwrap()));
    assert_eq!(cluster.wait().code(), Some(0));
}

/// Waits until nobody listens any more.
#[track_caller]
fn refuses_connections(address: SocketAddr) {
    until("new connections are refused", || {
        let refusal = std::net::TcpStream::connect(address).err()?;
        (refusal.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_and_sigquit_stop_at_once() {
    for signals in [&[Signal::SIGTERM, Signal::SIGTERM][..], &[Signal::SIGQUIT]] {
        let cluster = Setup::new(&guest("scenarios")).start();
        let address = cluster.address();
        let asleep = tokio::spawn(async move { get(address, "/sleep?ms=600000").await });
        until("it sleeps", || {
            let status = cluster.status();
            status["workers"].as_array().unwrap().iter().any(|worker| worker["in_flight"] == 1).then_some(())
        });
        for &signal in signals {
            cluster.signal(signal);
            // Two pending signals of a kind are one.
            cluster.stderr.find("stopping");
        }
        assert_eq!(cluster.wait().code(), Some(0));
        assert!(asleep.await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_survives_a_killed_primary() {
    let cluster = Setup::new(&guest("scenarios")).workers(3).start();
    let address = cluster.address();
    let asleep = tokio::spawn(async move { get(address, "/sleep?ms=600000").await });
    until("it sleeps", || {
        let status = cluster.status();
        status["workers"].as_array().unwrap().iter().any(|worker| worker["in_flight"] == 1).then_some(())
    });
    let workers = cluster.children();
    assert_eq!(workers.len(), 3);
    let killed = Instant::now();
    cluster.signal(Signal::SIGKILL);
    refuses_connections(address);
    println!("listeners closed {:?} after SIGKILL of the primary", killed.elapsed());
    until("no worker is left", || workers.iter().all(|&pid| is_gone(pid)).then_some(()));
    println!("last worker gone {:?} after SIGKILL of the primary", killed.elapsed());
    assert!(asleep.await.unwrap().is_err());
    // Its name and its port are free again.
    let again = Setup::new(&guest("hello")).args(&["--listen", &address.to_string()]);
    let again = again.env("XDG_RUNTIME_DIR", cluster.folder.path().to_str().unwrap()).start();
    assert_eq!(get(address, "/").await.unwrap().status, 200);
    drop(again);
}

/// SIGTERM sent to one worker is a planned drain of that worker: its answer is finished, and it is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_to_a_worker_drains_it() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let worker = cluster.worker(0).unwrap();
    let mut connection = Connection::open(cluster.address()).await;
    let mut body = connection.begin("/drip?chunks=10&ms=50").await;
    body.frame().await.unwrap().unwrap();
    for _ in 0..2 {
        kill(worker, Signal::SIGTERM).unwrap();
        until("it is replaced", || cluster.worker(0).filter(|&new| new != worker));
    }
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 9 * "tick\n".len());
    cluster.replaced(0, worker);
    assert_eq!(get(cluster.address(), "/headers").await.unwrap().status, 200);
    assert_eq!(cluster.status()["totals"]["crashes"], 0, "a planned exit is no crash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_wait_while_no_worker_is_ready() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    for _ in 0..5 {
        let killed = cluster.worker(0).unwrap();
        kill(killed, Signal::SIGKILL).unwrap();
        wait_until_reaped(killed);
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        cluster.replaced(0, killed);
    }
}

/// Connections that the kernel has queued when the stop comes are served, requests and all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_at_a_stop_is_served() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    // A stopped worker accepts nothing, but what is queued is its to accept when it goes on.
    let worker = cluster.worker(0).unwrap();
    kill(worker, Signal::SIGSTOP).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut stream = std::net::TcpStream::connect(cluster.address()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        waiting.push(stream);
    }
    cluster.signal(Signal::SIGTERM);
    cluster.stderr.find("stopping");
    kill(worker, Signal::SIGCONT).unwrap();
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // An answer that overtook the order to drain does not say `connection: close`; the idle grace ends its connection.
        let is_whole = answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("Hello from wasmcluster!\n");
        assert!(is_whole, "{answer:?}");
    }
    assert_eq!(cluster.wait().code(), Some(0));
}

/// A stopped process looks to its primary like one that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_hangs_is_replaced() {
    let cluster = Setup::new(&guest("hello")).args(&["--hang-timeout", "5s"]).start();
    let (hung, other) = (cluster.worker(0).unwrap(), cluster.worker(1));
    kill(hung, Signal::SIGSTOP).unwrap();
    cluster.replaced(0, hung);
    assert!(is_gone(hung));
    assert_eq!(cluster.worker(1), other);
    cluster.stderr.find("hung: its event loop made no progress for 5s");
    for _ in 0..10 {
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_stopped_kills_nobody() {
    let cluster = Setup::new(&guest("hello")).args(&["--hang-timeout", "5s"]).start();
    let before = cluster.ready();
    // The workers are stopped along, so that their hearts stand still as on a machine that was paused.
    let everybody: Vec<Pid> = cluster.children().into_iter().chain([cluster.pid()]).collect();
    everybody.iter().for_each(|&pid| kill(pid, Signal::SIGSTOP).unwrap());
    let stopped = Instant::now();
    until("more than the hang timeout has passed", || (stopped.elapsed() > Duration::from_secs(7)).then_some(()));
    kill(cluster.pid(), Signal::SIGCONT).unwrap();
    everybody.iter().for_each(|&pid| kill(pid, Signal::SIGCONT).unwrap());
    let uptime = cluster.status()["uptime_ms"].as_u64().unwrap();
    until("it had time to kill", || (cluster.status()["uptime_ms"].as_u64().unwrap() > uptime + 6000).then_some(()));
    assert_eq!(cluster.ready(), before);
    assert_eq!(cluster.status()["totals"]["crashes"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_crashes_is_shown_and_costs_no_capacity() {
    let cluster = Setup::new(&guest("hello")).start();
    assert_eq!(cluster.status()["degraded"], false);
    for _ in 0..6 {
        let killed = cluster.worker(0).unwrap();
        kill(killed, Signal::SIGKILL).unwrap();
        cluster.replaced(0, killed);
    }
    assert_eq!(cluster.status()["degraded"], true);
    cluster.stderr.find("degraded");
    assert!(cluster.command(&["status"]).stdout.contains("degraded"));
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_no_longer_than_its_timeout() {
    let cluster = Setup::new(&guest("scenarios")).args(&["--shutdown-timeout", "500ms"]).start();
    let mut connection = Connection::open(cluster.address()).await;
    let mut body = connection.begin("/drip?chunks=1000000&ms=50").await;
    body.frame().await.unwrap().unwrap();
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
    assert!(body.collect().await.is_err(), "an answer that was cut is seen as cut");
}

#[test]
fn a_second_cluster_of_the_same_name_is_refused() {
    let cluster = Setup::new(&guest("hello")).start();
    let runtime = cluster.folder.path().to_str().unwrap();
    let second = Setup::new(&guest("hello")).env("XDG_RUNTIME_DIR", runtime).run();
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("a cluster named 'default' is running already"), "{}", second.stderr);
    let _third = Setup::new(&guest("hello")).env("XDG_RUNTIME_DIR", runtime).args(&["--name", "other"]).start();
    assert_eq!(cluster.status()["name"], "default", "the first is undisturbed");
    let status = cluster.command(&["status", "--name", "other", "--json"]);
    assert!(status.stdout.contains("\"name\":\"other\""), "{status:?}");
}

#[test]
fn status_shows_a_table_and_says_when_there_is_nobody() {
    let cluster = Setup::new(&guest("hello")).start();
    let table = cluster.command(&["status"]);
    assert_eq!(table.code, Some(0));
    assert!(table.stdout.starts_with("default: running for "), "{}", table.stdout);
    assert_eq!(table.stdout.lines().filter(|line| line.contains(" ready ")).count(), 2, "{}", table.stdout);
    let nobody = cluster.command(&["status", "--name", "nobody"]);
    assert_eq!((nobody.code, nobody.stdout.as_str()), (Some(7), ""));
    assert!(nobody.stderr.contains("no cluster is running"), "{}", nobody.stderr);
}
