//! The commands that talk to a running cluster, and the control socket that they talk over.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use http::Method;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::net::UnixStream;

use harness::client::{Connection, get};
use harness::load::{Load, Reuse};
use harness::{Lines, Setup, fixture, guest, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_under_load_fails_no_request() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let load = Load::mixed(cluster.address(), [(4, Reuse::KeepAlive), (4, Reuse::No)]);
    load.goes_on();
    for workers in [8, 2, 3] {
        let scaled = cluster.command(&["scale", &workers.to_string()]);
        assert_eq!((scaled.code, scaled.stderr.as_str()), (Some(0), ""));
        assert_eq!(cluster.ready().len(), workers);
        assert_eq!(cluster.children().len(), workers, "the others are gone when the command returns");
        load.goes_on();
    }
    let answered = load.end_well().await;
    let status = cluster.status();
    assert_eq!(status["totals"]["requests"], answered, "what workers counted that are gone is not lost");
    assert_eq!(status["totals"]["crashes"], 0);
    assert_eq!(status["totals"]["exits"], serde_json::json!({"scaled": 6}));
    let of_the_version = &status["totals"]["by_generation"][0];
    assert_eq!((&of_the_version["generation"], &of_the_version["requests"]), (&1.into(), &answered.into()));
    let slots: Vec<i64> = status["workers"].as_array().unwrap().iter().map(|w| w["slot"].as_i64().unwrap()).collect();
    assert_eq!(slots, [0, 1, 2]);
}

/// There are sixteen places for commands.
#[test]
fn who_says_nothing_makes_room_for_who_asks() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let socket = cluster.folder.path().join("wasmcluster/default.sock");
    let connect = || std::os::unix::net::UnixStream::connect(&socket).unwrap();
    // It has begun to ask, and may take longer.
    let mut slow = connect();
    slow.write_all(b"POST /scale HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n").unwrap();
    let silent: Vec<_> = (0..15).map(|_| connect()).collect();
    assert_eq!(cluster.command(&["status"]).code, Some(0));
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it is closed");
    }
    slow.set_nonblocking(true).unwrap();
    assert_eq!(slow.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it came first, and is served");
}

#[test]
fn numbers_that_cannot_be_scaled_to() {
    let cluster = Setup::new(&guest("hello")).start();
    for (number, code, message) in [
        ("0", 2, "a cluster has at least one worker"),
        ("-2", 1, "2 workers are running, and a cluster has at least one"),
        ("+0", 2, "change nothing"),
        ("two", 2, "expected a number of workers"),
        ("-x", 2, "unexpected argument"),
        ("5000", 1, "over the limit"),
        ("+5000", 1, "over the limit"),
    ] {
        let ended = cluster.command(&["scale", number]);
        assert_eq!(ended.code, Some(code), "{number}: {ended:?}");
        assert!(ended.stderr.contains(message), "{number}: {}", ended.stderr);
    }
    assert_eq!(cluster.ready().len(), 2);
}

#[test]
fn one_worker_is_not_1_workers() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let ended = cluster.command(&["scale", "-3"]);
    let said = "error: 1 worker is running, and a cluster has at least one worker\n";
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), said));
}

/// What it does not do yet, it may do later; what it does not do any more, it never will.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_wait_for_the_start_and_end_with_the_stop() {
    let changes = [&["reload"][..], &["rollback"], &["scale", "3"]];
    let starting = Setup::new(&fixture("spins-at-start.wat")).launch();
    until("workers start", || {
        let ended = starting.command(&["status", "--json"]);
        let status: Value = serde_json::from_str(&ended.stdout).ok()?;
        status["workers"].as_array().is_some_and(|workers| !workers.is_empty()).then_some(())
    });
    for change in changes {
        let ended = starting.command(change);
        let said = "error: the cluster is still starting; see `wasmcluster status`\n";
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(6), said), "{change:?}");
    }
    drop(starting);

    let stopping = Setup::new(&guest("scenarios")).args(&["--shutdown-timeout", "60s"]).start();
    let mut connection = Connection::open(stopping.address()).await;
    let body = connection.begin("/drip?chunks=1000000&ms=50").await;
    let stop = stopping.follow(&["stop"]);
    until("it stops", || (stopping.status()["state"] == "stopping").then_some(()));
    for change in changes {
        let ended = stopping.command(change);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), "error: the cluster is stopping\n"), "{change:?}");
    }
    drop((body, connection));
    assert_eq!(stop.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_finishes_what_was_begun() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let mut connection = Connection::open(cluster.address()).await;
    let body = connection.begin("/drip?chunks=10&ms=50").await;
    let stopped = cluster.command(&["stop"]);
    assert_eq!((stopped.code, stopped.stderr.as_str()), (Some(0), ""));
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 10 * "tick\n".len());
    assert_eq!(cluster.wait().code(), Some(0));
    assert_eq!(cluster.command(&["stop"]).code, Some(7));
    assert_eq!(cluster.command(&["scale", "2"]).code, Some(7));
}

/// Unlike a second signal, the command said twice does not mean haste.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stop_waits_with_the_first() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let mut connection = Connection::open(cluster.address()).await;
    let body = connection.begin("/drip?chunks=20&ms=50").await;
    let (first, second) = (cluster.follow(&["stop"]), cluster.follow(&["stop"]));
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20 * "tick\n".len());
    assert_eq!(cluster.wait().code(), Some(0));
    // The one that came when all was over may find nobody.
    assert!([first.wait().code(), second.wait().code()].iter().all(|code| matches!(code, Some(0 | 7))));
}

/// All workers are in back-off.
#[test]
fn stopping_while_no_worker_lives() {
    let cluster = Setup::new(&fixture("fails-for-a-while.wat")).start();
    for worker in cluster.children() {
        nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    until("nobody lives", || cluster.children().is_empty().then_some(()));
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(cluster.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_now_finishes_nothing() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let mut connection = Connection::open(cluster.address()).await;
    let mut body = connection.begin("/drip?chunks=1000000&ms=50").await;
    body.frame().await.unwrap().unwrap();
    assert_eq!(cluster.command(&["stop", "--now"]).code, Some(0));
    assert!(body.collect().await.is_err());
    assert_eq!(cluster.wait().code(), Some(0));
}

/// Under load, a stop fails no request that a worker had accepted: clients see answers until they are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_no_accepted_request() {
    let cluster = Setup::new(&guest("hello")).start();
    let address = cluster.address();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                let mut answered = 0;
                // A connection for each request, until there is nobody to connect to.
                while let Ok(stream) = tokio::net::TcpStream::connect(address).await {
                    assert_eq!(Connection::over(stream).await.get("/").await.unwrap().status, 200);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    until("requests come in", || (cluster.status()["totals"]["requests"].as_u64() > Some(200)).then_some(()));
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    for client in clients {
        assert!(client.await.expect("no accepted request fails") > 0);
    }
}

/// The mode of a file, and whether it is there.
fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_is_private_and_speaks_http() {
    let cluster = Setup::new(&guest("hello")).start();
    let folder = cluster.folder.path().join("wasmcluster");
    let socket = folder.join("default.sock");
    assert_eq!((mode(&folder), mode(&socket)), (0o700, 0o600));

    for (method, path, body, status, part) in [
        (Method::GET, "/status", "", 200, "\"schema\":1"),
        (Method::POST, "/status", "", 405, "use GET"),
        (Method::GET, "/scale", "", 405, "use POST"),
        (Method::POST, "/events", "", 405, "use GET"),
        (Method::GET, "/events?since=soon", "", 400, "`since=soon`: expected how long ago"),
        (Method::GET, "/events?since=2126-01-01T00:00:00Z", "", 400, "is in the future"),
        (Method::GET, "/events?from=1h", "", 400, "unknown parameter `from`"),
        (Method::GET, "/events?follow=false", "", 200, "\"event\":\"serving\""),
        (Method::GET, "/logs", "", 200, "Serving HTTP on http://127.0.0.1:"),
        (Method::GET, "/logs?format=json", "", 200, "\"url\":\"http://127.0.0.1:"),
        (Method::POST, "/logs", "", 405, "use GET"),
        (Method::GET, "/logs?worker=first", "", 400, "`worker=first`: invalid digit"),
        (Method::GET, "/logs?lines=3", "", 400, "unknown parameter `lines`"),
        (Method::DELETE, "/config", "", 405, "use GET or POST"),
        (Method::POST, "/config", "{\"wasmcluster.log-level\":3}", 400, "invalid body"),
        (Method::POST, "/config", "{\"wasmcluster.log-level\":\"loud\"}", 400, "expected off"),
        (Method::POST, "/config", "{\"a=b\":\"red\"}", 400, "not a valid key"),
        (Method::POST, "/config", "{\"colour\":null}", 400, "is not set"),
        (Method::GET, "/config", "", 200, "{\"wasmcluster.log-level\":\"info\"}"),
        (Method::GET, "/reload", "", 405, "use POST"),
        (Method::POST, "/reload", "{\"app\":\"relative.wasm\"}", 400, "not an absolute path"),
        (Method::POST, "/reload", "{\"to\":1}", 400, "`to` is for a rollback; a reload does not take it"),
        (Method::POST, "/reload", "{\"max_error_increase\":101}", 400, "expected a number from 0 to 100"),
        (Method::POST, "/rollback", "{\"if_new\":true}", 400, "takes none of"),
        (Method::POST, "/rollback", "{}", 409, "no version was served before this one"),
        (Method::GET, "/", "", 404, "POST /reload"),
        (Method::POST, "/scale", "", 400, "invalid body"),
        (Method::POST, "/scale", "{\"workers\":0}", 400, "\"invalid body: workers must be at least 1\""),
        (Method::POST, "/scale", "{\"workers\":-1}", 400, "workers must be at least 1"),
        (Method::POST, "/scale", "{\"wrokers\":3}", 400, "unknown variant"),
        (Method::POST, "/scale", "{\"by\":-5}", 409, "at least one worker"),
        (Method::POST, "/scale", "{\"workers\":100000}", 400, "over the limit"),
        (Method::POST, "/scale", "{\"by\":100000}", 409, "over the limit"),
        (Method::POST, "/scale", "{\"workers\":2}", 200, "{\"from\":2,\"to\":2}"),
    ] {
        let mut connection = Connection::over(UnixStream::connect(&socket).await.unwrap()).await;
        let answer = connection.request(method.clone(), path, body).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.text());
        assert!(answer.text().contains(part), "{method} {path} {body}: {}", answer.text());
    }
    // A body without end is cut off.
    let mut connection = Connection::over(UnixStream::connect(&socket).await.unwrap()).await;
    let response = connection.send(Method::POST, "/stop", Full::from(vec![b' '; 1 << 20])).await;
    assert!(response.is_err() || response.unwrap().status() == 400);
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    drop(cluster);
    assert!(!socket.exists());
}

#[test]
fn the_control_socket_can_be_elsewhere() {
    let cluster = Setup::new(&guest("hello")).args(&["--control", "here.sock"]).start();
    let socket = cluster.folder.path().join("here.sock");
    let socket = socket.to_str().unwrap();
    assert_eq!(cluster.command(&["status", "--control", socket]).code, Some(0));
    assert_eq!(cluster.command(&["status"]).code, Some(7), "there is none in the usual place");

    let by_variable = Setup::new(&guest("hello")).env("WASMCLUSTER_CONTROL", "variable.sock").start();
    assert!(by_variable.folder.path().join("variable.sock").exists());
}

/// A change reaches every worker that lives, and those that come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_changes_everywhere_without_a_restart() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let workers = cluster.ready();
    let config = |args: &[&str]| cluster.command(&[&["config"], args].concat());
    assert_eq!(config(&["get"]).stdout, "wasmcluster.log-level=info\n");
    // Every worker says at level debug when a connection breaks.
    let breaks = || async {
        let mut connection = Connection::open(cluster.address()).await;
        let _ = connection.begin("/drip?chunks=1&ms=0").await;
        std::net::TcpStream::connect(cluster.address()).unwrap().write_all(b"nonsense\r\n\r\n").unwrap();
    };
    let set = config(&["set", "wasmcluster.log-level=debug"]);
    assert_eq!((set.code, set.stdout.as_str(), set.stderr.as_str()), (Some(0), "wasmcluster.log-level=debug\n", ""));
    assert_eq!(config(&["get", "wasmcluster.log-level"]).stdout, "debug\n");
    assert_eq!(cluster.ready(), workers);
    let told = |id: u64| {
        cluster.stderr.lines().iter().any(|line| line.contains(&format!("worker{{id={id} ")) && line.contains("DEBUG"))
    };
    for id in [1, 2] {
        while !told(id) {
            breaks().await;
        }
    }
    let killed = cluster.worker(0).unwrap();
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.replaced(0, killed);
    while !told(3) {
        breaks().await;
    }
}

#[test]
fn configuration_that_does_not_exist_is_refused() {
    let cluster = Setup::new(&guest("hello")).start();
    for (args, code, message) in [
        (&["set", "wasmcluster.log-level=loud"][..], 1, "expected off, error, warn, info, debug, trace"),
        (&["set", "wasmcluster.log=debug"], 1, "there is only wasmcluster.log-level"),
        (&["set", "wasmcluster.log-level=debug", "=red"], 1, "the key is empty"),
        (&["set", "wasmcluster.log-level"], 2, "expected KEY=VALUE"),
        (&["set"], 2, "required"),
        (&["get", "colour"], 1, "\"colour\" is not set"),
    ] {
        let ended = cluster.command(&[&["config"], args].concat());
        assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(message), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(cluster.command(&["config", "get"]).stdout, "wasmcluster.log-level=info\n", "nothing was changed");
}

/// What a reader of the events has seen so far.
fn events(lines: &Lines) -> Vec<Value> {
    lines.lines().iter().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn events_tell_what_happens() {
    let cluster = Setup::new(&guest("hello")).start();
    let reader = cluster.follow(&["events"]);
    // It may not be connected yet; the first event that it shows is one of these.
    until("it shows something", || {
        assert_eq!(cluster.command(&["config", "set", "wasmcluster.log-level=info"]).code, Some(0));
        (!events(&reader.stdout).is_empty()).then_some(())
    });
    assert_eq!(cluster.command(&["scale", "3"]).code, Some(0));
    let killed = cluster.worker(2).unwrap();
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.replaced(2, killed);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(reader.wait().code(), Some(0), "it ends with the cluster");
    until("its output ends", || reader.stdout.ended().then_some(()));
    let all = events(&reader.stdout);
    let named = |name: &str| all.iter().filter(|event| event["event"] == name).cloned().collect::<Vec<_>>();
    assert_eq!(named("configured")[0]["key"], "wasmcluster.log-level");
    assert_eq!((&named("scaling")[0]["from"], &named("scaling")[0]["to"]), (&2.into(), &3.into()));
    let started: Vec<_> = named("worker_started").iter().map(|event| event["worker"].as_u64().unwrap()).collect();
    assert_eq!(started, [3, 4]);
    let crashed = &named("worker_crashed")[0];
    assert_eq!(
        (&crashed["worker"], &crashed["slot"], &crashed["lost_requests"]),
        (&3.into(), &2.into(), &serde_json::json!([]))
    );
    assert!(crashed["reason"].as_str().unwrap().contains("SIGKILL"), "{crashed}");
    assert_eq!((named("stopping").len(), named("worker_draining").len()), (1, 3));
    assert!(all.iter().all(|event| event["time"].as_str().is_some_and(|time| time.ends_with('Z'))), "{all:#?}");
}

/// What has happened is told first, and then what happens: whoever asks at whatever moment sees the same.
#[test]
fn events_that_have_happened_are_told_and_none_twice() {
    let cluster = Setup::new(&guest("hello")).start();
    let scale = |workers: &str| assert_eq!(cluster.command(&["scale", workers]).code, Some(0));
    // Some begin while events come in.
    let readers: Vec<_> = (1..=4)
        .map(|number| {
            scale(if number % 2 == 0 { "2" } else { "3" });
            cluster.follow(&["events", "--since", "all"])
        })
        .collect();
    let kept = cluster.command(&["events", "--no-follow"]);
    assert_eq!(kept.code, Some(0), "{kept:?}");
    let kept: Vec<Value> = kept.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept[0]["event"], "worker_started");
    assert_eq!(kept.iter().filter(|event| event["event"] == "scaling").count(), 4);
    // From a moment on, as an event shows it: that event is the first.
    let third = kept.iter().filter(|event| event["event"] == "scaling").nth(2).unwrap();
    let since = cluster.command(&["events", "--no-follow", "--since", third["time"].as_str().unwrap()]);
    let since: Vec<Value> = since.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let begins = kept.iter().position(|event| event == third).unwrap();
    assert_eq!(since, kept[begins..]);
    assert_eq!(cluster.command(&["events", "--since", "1ms", "--no-follow"]).stdout, "");

    until("all are connected", || readers.iter().all(|reader| !reader.stdout.lines().is_empty()).then_some(()));
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    let all: Vec<Vec<Value>> = readers
        .iter()
        .map(|reader| {
            assert_eq!(reader.wait().code(), Some(0));
            until("its output ends", || reader.stdout.ended().then_some(()));
            events(&reader.stdout)
        })
        .collect();
    assert!(all[0].starts_with(&kept) && all[0].last().unwrap()["event"] == "stopped", "{:#?}", all[0]);
    assert!(all.iter().all(|seen| *seen == all[0]));
}

#[test]
fn moments_that_make_no_sense_are_refused() {
    let cluster = Setup::new(&guest("hello")).start();
    for (since, code, said) in [
        ("0", 2, "write 10m, 2026-11-30T12:00:00Z, or all"),
        ("yesterday", 2, "expected how long ago, or when"),
        ("2126-01-01T00:00:00Z", 1, "is in the future"),
    ] {
        let refused = cluster.command(&["events", "--since", since]);
        assert!(refused.code == Some(code) && refused.stderr.contains(said), "{since}: {refused:?}");
    }
    // A primary of before ignores the query, and would be followed for ever.
    let socket = cluster.folder.path().join("old.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let old = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 4096];
        let length = std::io::Read::read(&mut stream, &mut asked).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        String::from_utf8_lossy(&asked[..length]).into_owned()
    });
    let refused = cluster.command(&["events", "--since", "1h", "--control", socket.to_str().unwrap()]);
    assert!(refused.code == Some(1) && refused.stderr.contains("keeps no events; leave out --since"), "{refused:?}");
    assert!(old.join().unwrap().starts_with("GET /events?since=1h HTTP/1.1\r\n"));
}

#[test]
fn events_need_a_cluster() {
    let cluster = Setup::new(&guest("hello")).start();
    let nobody = cluster.command(&["events", "--name", "nobody"]);
    assert_eq!(nobody.code, Some(7), "{nobody:?}");
}

/// SIGTTIN and SIGTTOU, sent by a process: one worker more, one fewer.
#[test]
fn signals_scale() {
    use nix::sys::signal::Signal;
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let becomes =
        |workers: usize| until("the workers are as many", || (cluster.ready().len() == workers).then_some(()));
    cluster.signal(Signal::SIGTTIN);
    becomes(2);
    cluster.signal(Signal::SIGTTIN);
    becomes(3);
    cluster.signal(Signal::SIGTTOU);
    becomes(2);
    cluster.signal(Signal::SIGTTOU);
    becomes(1);
    cluster.signal(Signal::SIGTTOU);
    cluster.stderr.find("at least one worker");
    assert_eq!(cluster.ready().len(), 1);
}
