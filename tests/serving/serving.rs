//! Requests and answers: which worker gives them, what bodies survive, what a connection sees.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderValue, Method};
use http_body_util::{BodyExt, Full};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use harness::client::{Answer, Connection, Upload, get, soon};
use harness::{Setup, fixture, guest, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_from_every_worker() {
    let cluster = Setup::new(&guest("whoami")).workers(4).start();
    let mut pids = BTreeSet::new();
    for _ in 0..10_000 {
        if pids.len() == 4 {
            break;
        }
        let answer = get(cluster.address(), "/").await.unwrap();
        let who: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
        assert_eq!((&who["generation"], &who["workers"]), (&1.into(), &4.into()));
        assert!(who["digest"].as_str().unwrap().starts_with("sha256:"));
        pids.insert(who["pid"].as_i64().unwrap());
    }
    assert_eq!(pids, cluster.ready().into_iter().collect());
    let children: BTreeSet<i64> = cluster.children().iter().map(|pid| pid.as_raw().into()).collect();
    assert_eq!(pids, children, "every worker is a process of its own, and there are no others");
}

/// The slot of the worker that answered whoami.
fn slot_of(answer: &Answer) -> usize {
    let who: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
    who["slot"].as_u64().unwrap() as usize
}

/// Connections that stay are shared out evenly: the accept thread that has waited longest takes the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lived_connections_are_spread_evenly() {
    let cluster = Setup::new(&guest("whoami")).workers(4).start();
    // What is announced is that all are ready; the last may still be on its way to its first connection.
    let mut accepted = BTreeSet::new();
    for _ in 0..10_000 {
        if accepted.len() == 4 {
            break;
        }
        accepted.insert(slot_of(&get(cluster.address(), "/").await.unwrap()));
    }
    let (mut kept, mut per_slot, mut order) = (Vec::new(), [0; 4], Vec::new());
    for _ in 0..64 {
        let mut connection = Connection::open(cluster.address()).await;
        let slot = slot_of(&connection.get("/").await.unwrap());
        per_slot[slot] += 1;
        order.push(slot);
        kept.push(connection);
    }
    assert!(per_slot.iter().all(|count| (14..=18).contains(count)), "{per_slot:?}, in this order: {order:?}");
    until("each worker has kept its own", || {
        let status = cluster.status();
        let workers = status["workers"].as_array().unwrap();
        workers.iter().enumerate().all(|(slot, worker)| worker["connections"] == per_slot[slot]).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_serves_many_requests() {
    let cluster = Setup::new(&guest("hello")).start();
    let mut connection = Connection::open(cluster.address()).await;
    for _ in 0..100 {
        let answer = connection.get("/").await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "Hello from wasmcluster!\n"));
        assert_eq!(answer.headers["content-length"], "24");
    }
    let head = connection.request(Method::HEAD, "/", "").await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(cluster.status()["totals"]["requests"], 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_other_makes_are_served() {
    let cluster = Setup::new(&guest("bare-p2")).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n");
    let cluster = Setup::new(&guest("bare-p3")).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from WASI 0.3!\n");
    assert_eq!(get(cluster.address(), "/trap").await.unwrap().status, 500);
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

/// Sends 64 MiB to `path` and compares what comes back, piece by piece.
async fn echo_64_mib(app: &str, path: &'static str) {
    let cluster = Setup::new(&guest(app)).start();
    let Upload { mut body, answer } = Upload::start(cluster.address(), path).await;
    let piece =
        |number: u32| Bytes::from((0..16 * 1024_u32).flat_map(|i| (i ^ number).to_le_bytes()).collect::<Vec<u8>>());
    let sending = tokio::spawn(async move {
        for number in 0..1024 {
            body.send_data(piece(number)).await.unwrap();
        }
    });
    let mut answer = answer.await.unwrap().unwrap().into_body();
    let mut expected = (0..1024).flat_map(|number| piece(number).into_iter());
    let mut length = 0;
    while let Some(frame) = answer.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        length += data.len();
        assert!(data.iter().copied().eq(expected.by_ref().take(data.len())), "differs before byte {length}");
    }
    assert_eq!(length, 64 * 1024 * 1024);
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_64_mib_is_echoed_intact() {
    echo_64_mib("echo", "/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_64_mib_is_echoed_intact_by_wasi_0_3() {
    echo_64_mib("bare-p3", "/echo").await;
}

/// Eight uploads to one worker, in step: each gets every piece back before the next round begins, so all eight are
/// under way at the same time and none waits for another's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_uploads_do_not_block_each_other() {
    let cluster = Setup::new(&guest("echo")).workers(1).start();
    let mut uploads = Vec::new();
    for _ in 0..8 {
        let Upload { mut body, answer } = Upload::start(cluster.address(), "/").await;
        body.send_data(Bytes::from_static(b"first")).await.unwrap();
        let mut echo = answer.await.unwrap().unwrap().into_body();
        assert_eq!(echo.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        uploads.push((body, echo));
    }
    for round in 0..20 {
        for (body, echo) in &mut uploads {
            let piece = Bytes::from(format!("round {round}"));
            body.send_data(piece.clone()).await.unwrap();
            assert_eq!(echo.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        }
    }
    assert_eq!(cluster.in_flight(), Some(8));
    for (body, mut echo) in uploads {
        drop(body);
        assert!(echo.frame().await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_waits_does_not_hold_up_its_worker() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let address = cluster.address();
    let asleep = tokio::spawn(async move { get(address, "/sleep?ms=600000").await });
    until("it sleeps", || (cluster.in_flight() == Some(1)).then_some(()));
    assert_eq!(get(address, "/headers").await.unwrap().status, 200);
    assert!(!asleep.is_finished());
    // A client that goes away takes its guest along.
    asleep.abort();
    let _ = asleep.await;
    until("it is cancelled", || (cluster.in_flight() == Some(0)).then_some(()));
}

/// A guest that computes for minutes gives way to its neighbours in the same worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_computes_does_not_hold_up_its_worker() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let address = cluster.address();
    let spinning = tokio::spawn(async move {
        Connection::open(address).await.send(Method::GET, "/spin?ms=600000", Full::<Bytes>::default()).await
    });
    until("it spins", || (cluster.in_flight() == Some(1)).then_some(()));
    for _ in 0..5 {
        assert_eq!(get(address, "/headers").await.unwrap().status, 200);
    }
    assert!(!spinning.is_finished());
    spinning.abort();
    let _ = spinning.await;
    until("it is cancelled", || (cluster.in_flight() == Some(0)).then_some(()));
}

/// The thread of a worker that has this name, in /proc.
fn thread_of(worker: Pid, name: &str) -> PathBuf {
    let mut threads = std::fs::read_dir(format!("/proc/{worker}/task")).unwrap().map(|thread| thread.unwrap().path());
    let is_it = |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).is_ok_and(|it| it.trim() == name);
    threads.find(is_it).expect("there is such a thread")
}

/// How often a thread has gone to sleep.
fn sleeps(thread: &Path) -> u64 {
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.expect("Linux says so").trim().parse().unwrap()
}

/// What makes guests give way does nothing while there is none, and is there again for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epoch_rests_while_no_guest_is_at_work() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let (address, worker) = (cluster.address(), cluster.worker(0).unwrap());
    let (epoch, executor) = (thread_of(worker, "epoch"), PathBuf::from(format!("/proc/{worker}/task/{worker}")));
    let rests = || {
        let (before, turns) = (sleeps(&epoch), sleeps(&executor));
        // Its heartbeat wakes it.
        until("the executor turns", || (sleeps(&executor) >= turns + 6).then_some(()));
        sleeps(&epoch) == before
    };
    for _ in 0..2 {
        until("the epoch rests", || rests().then_some(()));
        assert!(rests(), "it did not stay so");
        let before = sleeps(&epoch);
        let spinning = tokio::spawn(async move {
            Connection::open(address).await.send(Method::GET, "/spin?ms=600000", Full::<Bytes>::default()).await
        });
        until("it spins", || (cluster.in_flight() == Some(1)).then_some(()));
        for _ in 0..3 {
            assert_eq!(get(address, "/headers").await.unwrap().status, 200);
        }
        until("the epoch ticks on", || (sleeps(&epoch) > before + 100).then_some(()));
        spinning.abort();
        let _ = spinning.await;
        until("it is cancelled", || (cluster.in_flight() == Some(0)).then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_may_be_read_counted_or_ignored() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let mut connection = Connection::open(cluster.address()).await;
    assert_eq!(connection.request(Method::POST, "/count", "four").await.unwrap().text(), "4\n");
    assert_eq!(connection.request(Method::POST, "/abandon", "unread").await.unwrap().text(), "abandoned\n");
    let head = connection.request(Method::HEAD, "/headers", "").await.unwrap();
    assert!(head.headers["content-length"] != "0" && head.body.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_fail_cost_one_answer() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let address = cluster.address();
    let pids = cluster.ready();
    for path in ["/trap", "/exit", "/error"] {
        let answer = get(address, path).await.unwrap();
        assert_eq!(answer.status, 500, "{path}");
        assert!(!answer.text().contains("asked"), "{path} shows the inside: {}", answer.text());
    }
    assert_eq!(get(address, "/headers").await.unwrap().status, 200);
    assert_eq!(cluster.ready(), pids);
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["requests"], &totals["errors"], &totals["traps"]), (&4.into(), &3.into(), &2.into()));

    // Without a body to wait for, this one traps right behind its head: whether that was sent already decides which.
    if let Ok(answer) = get(address, "/trap-after-head").await {
        assert_eq!(answer.status, 500);
    }

    let silent = Setup::new(&fixture("never-answers.wat")).start();
    assert_eq!(get(silent.address(), "/").await.unwrap().status, 500);
}

/// A guest that traps after its head must not look like one that finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_cut_is_seen_as_cut() {
    for app in ["scenarios", "bare-p3"] {
        let cluster = Setup::new(&guest(app)).workers(1).start();
        let Upload { mut body, answer } = Upload::start(cluster.address(), "/trap-after-head").await;
        let mut answer = answer.await.unwrap().unwrap().into_body();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "tick\n");
        body.send_data(Bytes::from_static(b"now")).await.unwrap();
        let end = answer.frame().await;
        assert!(matches!(end, Some(Err(_))), "{app}: {end:?}");
        assert_eq!(cluster.status()["totals"]["aborted"], 1, "{app}");
        assert_eq!(cluster.status()["totals"]["crashes"], 0, "{app}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_one_valid_host_are_refused() {
    let cluster = Setup::new(&guest("hello")).start();
    let mut old = TcpStream::connect(cluster.address()).await.unwrap();
    old.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(old.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.contains(" 200 OK") && answer.ends_with("Hello from wasmcluster!\n"),
        "HTTP/1.0 knows no Host: {answer}"
    );
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        soon(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400", "{head:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_serves() {
    let cluster = Setup::new(&guest("hello")).args(&["--listen", "[::1]:0", "--listen", "unix:app.sock"]).start();
    until("all are announced", || (cluster.stderr.lines().len() >= 3).then_some(()));
    let lines = cluster.stderr.lines();
    assert!(lines[..3].iter().all(|line| line.starts_with("Serving HTTP on ")), "{lines:#?}");
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    assert_eq!(get(cluster.address_of(1), "/").await.unwrap().status, 200);
    let path = cluster.folder.path().join("app.sock");
    let mut over_unix = Connection::over(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(over_unix.get("/").await.unwrap().status, 200);
    drop(cluster);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_see_the_environment_they_are_given_and_no_other() {
    let setup = Setup::new(&guest("scenarios")).env("SECRET", "of the host");
    std::fs::write(setup.folder.path().join("wasmcluster.toml"), "[env]\nFROM_FILE = \"file\"\nFROM_BOTH = \"file\"\n")
        .unwrap();
    let cluster = setup.args(&["--env", "FROM_BOTH=flag", "--env", "EMPTY="]).start();
    for (name, expected) in [
        ("FROM_FILE", Some("file")),
        ("FROM_BOTH", Some("flag")),
        ("EMPTY", Some("")),
        ("SECRET", None),
        ("PATH", None),
    ] {
        let answer = get(cluster.address(), &format!("/env?name={name}")).await.unwrap();
        assert_eq!((answer.status == 200).then(|| answer.text()), expected, "{name}");
    }
}

/// A guest that does not say how long its answer is need not be sent in chunks, unless it is still at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_written_at_once_is_sent_with_its_length() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = Setup::new(&guest(name)).start();
        let mut connection = Connection::open(cluster.address()).await;
        for sent in ["whole", ""] {
            // A guest that has to give way to others is still at it, which happens on a busy machine.
            let mut lengths = Vec::new();
            for _ in 0..20 {
                let answer = connection.request(Method::POST, "/echo", sent).await.unwrap();
                assert_eq!(answer.text(), sent, "{name}");
                lengths.extend(answer.headers.get("content-length").cloned());
            }
            assert!(!lengths.is_empty(), "{name} {sent:?}");
            assert!(lengths.iter().all(|length| *length == HeaderValue::from(sent.len())), "{name}: {lengths:?}");
        }
        let under_way = connection.send(Method::GET, "/trickle?ms=1", Full::default()).await.unwrap();
        assert!(under_way.headers().get("content-length").is_none(), "{name}");
        assert_eq!(under_way.headers()["transfer-encoding"], "chunked", "{name}");
    }
}
