//! What is answered, noticed and logged at the edges of HTTP.

use std::process::{Command, Stdio};

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use harness::client::{Answer, Connection, get, soon, whole};
use harness::{Cluster, Setup, guest, guest_if_built, until};

fn serve(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

async fn request(cluster: &Cluster, method: Method, path: &str, body: &'static str) -> Answer {
    Connection::open(cluster.address()).await.request(method, path, body).await.unwrap()
}

/// Only what is safe and has no body is tried with an instance that may not answer its second request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_effects_is_never_run_twice() {
    let cluster = serve("hostile_p2", &["--max-instance-reuse-count", "100"]);
    let cases = [(Method::POST, ""), (Method::DELETE, ""), (Method::PUT, "body"), (Method::GET, "body")];
    for _ in 0..3 {
        for (method, body) in &cases {
            assert_eq!(request(&cluster, method.clone(), "/once", body).await.status, 200, "{method}");
        }
    }
    // Tried with an instance that waits, and then with a fresh one.
    assert_eq!(get(cluster.address(), "/once").await.unwrap().status, 200);
    let effects = || cluster.stdout.lines().iter().filter(|line| line.contains("effect of")).count();
    until("all effects are told", || (effects() >= 14).then_some(()));
    assert_eq!(effects(), 14);
}

/// One request that is not answered says little about the component.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reuse_survives_a_silent_answer() {
    let cluster = serve("hostile_p2", &["--max-instance-reuse-count", "100"]);
    for _ in 0..3 {
        // No instance answers this one.
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        assert_eq!(get(cluster.address(), "/silent").await.unwrap().status, 500);
    }
    for _ in 0..2 {
        // The second is answered by a fresh one.
        assert_eq!(get(cluster.address(), "/once").await.unwrap().status, 200);
    }
    assert_eq!(get(cluster.address(), "/secret?set=abc").await.unwrap().status, 200);
    until("its instance is free", || (cluster.in_flight() == Some(0)).then_some(()));
    assert_eq!(get(cluster.address(), "/secret").await.unwrap().text(), "SECRET-abc");
}

/// A guest in JavaScript lives for one request: whatever comes second is not lost by trying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_by_trying_to_reuse() {
    let Some(component) = guest_if_built("javascript") else {
        println!("skipped: javascript.wasm is not there: scripts/build-foreign-guests javascript builds it");
        return;
    };
    let cluster = Setup::new(&component).workers(1).args(&["--max-instance-reuse-count", "100"]).start();
    for _ in 0..3 {
        for (method, body) in [(Method::POST, "body"), (Method::GET, ""), (Method::POST, ""), (Method::GET, "")] {
            assert_eq!(request(&cluster, method.clone(), "/", body).await.status, 200, "{method} {body:?}");
        }
    }
}

/// Sends `bytes`, closes our side if that is wanted, and takes what comes to the end of the connection.
async fn exchange(cluster: &Cluster, bytes: &[u8], then: Then) -> String {
    let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    if then == Then::HalfClose {
        stream.shutdown().await.unwrap();
    }
    let mut answer = Vec::new();
    // It may be reset behind its last byte.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Wait,
    HalfClose,
}

fn totals(cluster: &Cluster, name: &str) -> u64 {
    cluster.status()["totals"][name].as_u64().unwrap()
}

/// Whether its client reads on shows only when something is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_half_closes_is_answered() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = serve(name, &[]);
        for path in ["/", "/sleep?ms=50", "/large"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
            for _ in 0..10 {
                let answer = exchange(&cluster, request.as_bytes(), Then::HalfClose).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{name} {path}: {answer:?}");
            }
            // All that came whole.
            let answer = exchange(&cluster, request.repeat(3).as_bytes(), Then::HalfClose).await;
            assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 3, "{name} {path}");
        }
        let upload = b"POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n12345";
        assert!(exchange(&cluster, upload, Then::HalfClose).await.ends_with("\r\n\r\n5"), "{name}");
        assert_eq!((totals(&cluster, "aborted"), cluster.in_flight()), (0, Some(0)));
        // It is not waited for without end.
        let request = b"GET /wait HTTP/1.1\r\nhost: test\r\n\r\n";
        assert_eq!(exchange(&cluster, request, Then::HalfClose).await, "");
        until("it is counted", || (totals(&cluster, "aborted") == 1 && cluster.in_flight() == Some(0)).then_some(()));
    }
}

/// Hyper does not read while it has bytes of the next request, or of a body that the guest does not take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_noticed_whatever_it_sent_ahead() {
    let ahead = [
        "GET /wait HTTP/1.1\r\nhost: test\r\n\r\nG".to_owned(),
        "GET /wait HTTP/1.1\r\nhost: test\r\n\r\nGET / HTTP/1.1\r\nhost: test\r\n\r\n".to_owned(),
        format!("POST /wait HTTP/1.1\r\nhost: test\r\ncontent-length: 500000\r\n\r\n{}", "x".repeat(50_000)),
        "GET /trickle?ms=100 HTTP/1.1\r\nhost: test\r\n\r\nG".to_owned(),
    ];
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = serve(name, &["--request-timeout", "1h"]);
        for bytes in &ahead {
            let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            until("it is at work", || (cluster.in_flight() == Some(1)).then_some(()));
            drop(stream);
            until(&format!("the guest is cancelled: {name} {:.50}", bytes), || {
                (cluster.in_flight() == Some(0)).then_some(())
            });
        }
    }
}

/// 408 is for clients that owe something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_late_is_told_by_what_the_guest_waits_for() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = serve(name, &["--request-timeout", "300ms"]);
        let upload = |path: &str, body: &str| {
            format!("POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 5\r\n\r\n{body}")
        };
        for (path, body, status) in [
            ("/wait", "12345", "504 "),
            // The rest is not what its guest waits for.
            ("/wait", "123", "504 "),
            ("/count", "123", "408 "),
            ("/count", "12345", "200 "),
        ] {
            let answer = exchange(&cluster, upload(path, body).as_bytes(), Then::Wait).await;
            assert_eq!(answer.get(9..13), Some(status), "{name} {path} {body}: {answer}");
        }
        assert_eq!((totals(&cluster, "errors"), totals(&cluster, "timeouts")), (2, 3));
        cluster.stderr.find("waiting for the client to send the rest");
    }
}

/// Whatever words a guest has for its failure, they stay in their line, and the line is the request's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_forge_no_log_lines() {
    let text = "broken%0A2026-01-01T00:00:00.000000Z%20ERROR%20forged%0Dagain%1B[31m";
    for (name, path) in
        [("hostile_p2", "/error-code"), ("hostile_p3", "/error-code"), ("hostile_p3", "/error-trailers")]
    {
        let cluster = serve(name, &[]);
        // It may be cut.
        let _ = get(cluster.address(), &format!("{path}?text={text}")).await;
        let line = cluster.stderr.find("ERROR forged");
        assert!(line.contains("broken\\n2026") && line.contains("request=\"1-1\""), "{name} {path}: {line}");
        assert!(!line.contains(['\r', '\u{1b}']), "{name} {path}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_fails_before_it_is_sent_is_a_clean_500() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = serve(name, &[]);
        let paths = ["/short-body", "/long-body"];
        for path in paths {
            // A guest that had to give way in between is cut: then its head was sent.
            let answer = loop {
                if let Ok(answer) = get(cluster.address(), path).await {
                    break answer;
                }
            };
            assert_eq!(answer.status, 500, "{name} {path}");
            let id = answer.headers["x-request-id"].to_str().unwrap();
            assert_eq!(answer.text(), format!("internal error (request {id})\n"));
        }
        assert!(totals(&cluster, "errors") >= paths.len() as u64);
        assert_eq!(totals(&cluster, "crashes"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn harmless_framing_of_an_answer_is_repaired() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = serve(name, &[]);
        let answer = get(cluster.address(), "/no-content").await.unwrap();
        assert_eq!((answer.status, answer.headers.get("content-length")), (204, None), "{name}");
    }
}

/// Its guest traps, since the interface does not like how it ends the body that nobody wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_owes_no_body_is_sent_whatever_comes_behind_it() {
    let cluster = serve("hostile_p2", &[]);
    for _ in 0..5 {
        let answer = request(&cluster, Method::HEAD, "/only-head", "").await;
        assert_eq!((answer.status, &answer.headers["content-length"]), (200, &http::HeaderValue::from(5)));
    }
    // Cut, if its guest had to give way to others behind its head, which was sent then.
    assert!(get(cluster.address(), "/only-head").await.map_or(true, |answer| answer.status == 500));
    // Of the last, the answer may have failed before its guest could trap.
    until("the traps are counted", || (totals(&cluster, "traps") >= 5).then_some(()));
}

/// As nginx and Node do. Guests see what a browser would have sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_bytes_in_a_target_are_served() {
    let cluster = serve("hostile_p2", &[]);
    let head = "GET /headers?q=<a>&r=\"b\" HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    let expected = "/headers?q=%3Ca%3E&r=%22b%22";
    let answer = exchange(&cluster, head.as_bytes(), Then::Wait).await;
    assert!(answer.contains(expected), "{answer}");
    // In pieces.
    let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
    for piece in head.as_bytes().chunks(5) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains(expected), "{answer}");
    // More than hyper's buffer has room for, once it is escaped.
    let many = "<".repeat(7000);
    let head = format!("GET /headers?q={many} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    let answer = exchange(&cluster, head.as_bytes(), Then::Wait).await;
    assert!(answer.contains(&"%3C".repeat(7000)), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_counted_and_logged() {
    let cluster = serve("hostile_p2", &["--log-level", "debug", "--max-body", "10"]);
    let head = |target: &str, fields: &str| {
        format!("POST {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{fields}\r\n")
    };
    let refusals = [
        ("GET /a#b HTTP/1.1\r\nhost: test\r\n\r\n".to_owned(), "400 ", "an invalid request target (GET /a#b HTTP/1.1)"),
        (head("/\u{e9}", "").replace('\u{e9}', "\u{1}"), "400 ", "a control character"),
        (head("/a", &format!("x: {}\r\n", "y".repeat(70_000))), "431 ", "too many bytes or fields"),
        (head("/a", "content-length: 11\r\n"), "413 ", "see --max-body"),
        (
            "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n".to_owned(),
            "501 ",
            "this server is not a proxy",
        ),
    ];
    for (number, (bytes, status, why)) in refusals.iter().enumerate() {
        let answer = exchange(&cluster, bytes.as_bytes(), Then::Wait).await;
        assert_eq!(answer.get(9..13), Some(*status), "{why}: {answer}");
        cluster.stderr.find(why);
        until("it is counted", || (totals(&cluster, "refused") == number as u64 + 1).then_some(()));
    }
}

/// RFC 9112, section 3.2.2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_in_absolute_form_overrides_the_host() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = serve(name, &[]);
        let head = "GET http://named.test:81/headers HTTP/1.1\r\nhost: other.test\r\nconnection: close\r\n\r\n";
        let answer = exchange(&cluster, head.as_bytes(), Then::Wait).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("named.test:81"), "{name}: {answer}");
        assert!(!answer.contains("other.test"), "{name}: {answer}");
    }
}

async fn named(cluster: &Cluster, method: Method, path: &str, ids: &[&str]) -> Answer {
    try_named(cluster, method, path, ids).await.unwrap()
}

/// Fails if the answer is cut.
async fn try_named(cluster: &Cluster, method: Method, path: &str, ids: &[&str]) -> hyper::Result<Answer> {
    let mut request = http::Request::builder().method(method).uri(path);
    for id in ids {
        request = request.header("x-request-id", *id);
    }
    let mut connection = Connection::open(cluster.address()).await;
    let answer = connection.send_request(request.body(Full::<Bytes>::default()).unwrap()).await?;
    whole(answer).await
}

/// What went wrong can be found by what its client knows of it: method, path and name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_about_a_request_names_it() {
    let patient = serve("hostile_p2", &["--log-level", "debug"]);
    // Apart from the others, which may take longer on a machine that is busy.
    let impatient = serve("hostile_p2", &["--log-level", "debug", "--request-timeout", "300ms"]);
    // What the worker of each numbers next.
    let (mut of_patient, mut of_impatient) = (0, 0);
    for (cluster, path, says) in [
        (&impatient, "/wait", "no answer within"),
        (&patient, "/trap", "the guest trapped"),
        (&patient, "/error-code", "the guest answered with an error: asked to fail"),
        (&patient, "/silent", "without setting a response"),
        (&patient, "/short-body", "an answer failed before it was sent"),
    ] {
        let target = format!("{path}?secret");
        let number = if path == "/wait" { &mut of_impatient } else { &mut of_patient };
        // A guest that had to give way in between is cut: then its head was sent.
        let (id, answer) = loop {
            *number += 1;
            let id = format!("trace-{number}");
            if let Ok(answer) = try_named(cluster, Method::GET, &target, &[&id]).await {
                break (id, answer);
            }
        };
        assert!(answer.status >= 500 && answer.text().ends_with(&format!(" (request {id})\n")), "{answer:?}");
        assert_eq!(answer.headers["x-request-id"], id);
        let names = format!("request=\"1-{number}\" x_request_id=\"{id}\" method=\"GET\" path=\"{path}\"");
        // A trap takes several lines, and its fields come behind the last.
        cluster.stderr.find(&names);
        cluster.stderr.find(says);
        assert!(cluster.stderr.lines().iter().all(|line| !line.contains("secret")), "what is in a query stays there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_name_for_its_request_is_passed_on() {
    let cluster = serve("hostile_p2", &[]);
    let answer = named(&cluster, Method::GET, "/headers", &["abc-123"]).await;
    assert_eq!(answer.headers["x-request-id"], "abc-123");
    assert!(answer.text().contains("x-request-id: abc-123\n"), "{answer:?}");
    let huge = "x".repeat(1000);
    for ids in [&["with space"][..], &[&huge], &["one", "two"], &["a\"b"]] {
        let answer = named(&cluster, Method::GET, "/headers", ids).await;
        let seen: Vec<&str> = answer.text().lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
        assert!(matches!(seen[..], [id] if id.starts_with("1-")), "{answer:?}");
    }
    // Who gave no name is not told one, unless something went wrong.
    let answer = named(&cluster, Method::GET, "/headers", &[]).await;
    assert_eq!(answer.headers.get("x-request-id"), None);
}

/// The cap follows the limit of open files, and at the cap idle connections make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_limit_of_open_files_leaves_nobody_unanswered() {
    let mut setup = Setup::bare(&[]);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=200:200", env!("CARGO_BIN_EXE_wasmcluster"), "serve"]).arg(guest("hostile_p2"));
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).current_dir(setup.folder.path());
    for (name, value) in setup.command.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    setup.command = command;
    let cluster = setup.start();
    cluster.stderr.find("a worker takes at most 150 connections, not 4096 as --max-connections says");
    assert_eq!(cluster.status()["limits"]["max-connections"], "150");
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut stream = soon(TcpStream::connect(cluster.address())).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        soon(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        idle.push(stream);
    }
    assert_eq!(totals(&cluster, "crashes"), 0);
    let complaints = cluster.stderr.lines().iter().filter(|line| line.contains("cannot accept")).count();
    assert!(complaints <= 1, "{complaints} lines");
}
