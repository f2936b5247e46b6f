//! The examples, as their READMEs say to try them.

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use nix::sys::signal::{Signal, kill};

use harness::client::{Answer, Connection, Upload, get, soon, whole};
use harness::upstream;
use harness::{Cluster, Setup, guest, guest_if_built};

fn cluster(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

#[track_caller]
fn check(answer: &Answer, status: u16, body: &str) {
    assert_eq!((answer.status, answer.text()), (status, body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_says_hello() {
    let cluster = cluster("hello", &[]);
    check(&get(cluster.address(), "/").await.unwrap(), 200, "Hello from wasmcluster!\n");
}

/// Names are for backtraces, and what `strip` takes out.
#[test]
fn hello_without_its_names_is_small() {
    let component = std::fs::read(guest("hello")).unwrap();
    let names: usize = wasmparser::Parser::new(0)
        .parse_all(&component)
        .filter_map(|payload| match payload.unwrap() {
            wasmparser::Payload::CustomSection(section) if section.name() == "name" => Some(section.range().len()),
            _ => None,
        })
        .sum();
    let bytes = component.len() - names;
    assert!(bytes < 140 << 10, "{bytes} bytes: docs/size.md says what they should be");
}

/// What each import costs is paid by every fresh instance.
#[test]
fn hello_imports_nothing_that_reads_bodies() {
    let imports = |name| {
        let component = std::fs::read(guest(name)).unwrap();
        ["incoming-request.consume", "input-stream.read", "future-trailers.get", "incoming-response.consume"]
            .map(|import| component.windows(import.len()).any(|bytes| bytes == import.as_bytes()))
    };
    assert_eq!(imports("hello"), [false, false, false, false]);
    assert_eq!(imports("echo"), [true, true, true, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_sends_back_what_comes() {
    let cluster = cluster("echo", &[]);
    let Upload { mut body, answer } = Upload::start(cluster.address(), "/").await;
    body.send_data("first".into()).await.unwrap();
    let mut answer = answer.await.unwrap().unwrap().into_body();
    assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    body.send_data("last".into()).await.unwrap();
    drop(body);
    assert_eq!(soon(answer.collect()).await.unwrap().to_bytes(), "last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoami_tells_the_worker() {
    let cluster = cluster("whoami", &[]);
    let who: serde_json::Value = serde_json::from_str(get(cluster.address(), "/").await.unwrap().text()).unwrap();
    assert_eq!(who["pid"], cluster.ready()[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_last_longer_than_workers() {
    let milk = Request::post("/notes").header("content-type", "application/json");
    let milk = milk.body(Full::from(r#"{"text":"milk"}"#)).unwrap();
    let cluster = cluster("api", &[]);
    let mut connection = Connection::open(cluster.address()).await;
    let added = whole(connection.send_request(milk).await.unwrap()).await.unwrap();
    check(&added, 201, r#"{"id":1,"text":"milk"}"#);
    let old = cluster.worker(0).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    cluster.replaced(0, old);
    check(&get(cluster.address(), "/notes").await.unwrap(), 200, r#"[{"id":1,"text":"milk"}]"#);
    let mut connection = Connection::open(cluster.address()).await;
    assert_eq!(connection.request(Method::DELETE, "/notes/1", "").await.unwrap().status, 204);
    check(&connection.get("/notes").await.unwrap(), 200, "[]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_stays_signed_in_whatever_becomes_of_the_worker() {
    let cluster = cluster("sessions", &[]);
    let mut connection = Connection::open(cluster.address()).await;
    let signed_in = connection.request(Method::POST, "/sign-in", "name=Ada").await.unwrap();
    assert_eq!(signed_in.status, 303);
    let cookie = signed_in.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    for visit in 1..=2 {
        let mut connection = Connection::open(cluster.address()).await;
        let request = Request::get("/").header("cookie", &cookie).body(Full::default()).unwrap();
        let page = whole(connection.send_request(request).await.unwrap()).await.unwrap();
        assert!(page.text().contains(&format!("Hello, Ada. This is your visit number {visit}.")), "{}", page.text());
        let old = cluster.worker(0).unwrap();
        kill(old, Signal::SIGKILL).unwrap();
        cluster.replaced(0, old);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_count_down() {
    let cluster = cluster("events", &[]);
    let mut body = Connection::open(cluster.address()).await.begin("/events?from=1").await;
    // The first is here before the last is due.
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    assert_eq!(soon(body.collect()).await.unwrap().to_bytes(), "event: end\ndata: Lift-off!\n\n");
    assert!(get(cluster.address(), "/").await.unwrap().text().contains("EventSource"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_passes_on() {
    let (upstream, nowhere) = (upstream::start().await, upstream::nowhere().await);
    let proxy = |address| {
        let (url, variable) = (format!("http://{address}"), format!("UPSTREAM=http://{address}"));
        cluster("proxy", &["--env", &variable, "--allow-host", &url])
    };
    let works = proxy(upstream);
    let answer = get(works.address(), "/head?a=b").await.unwrap();
    assert_eq!((answer.status, &answer.headers["x-upstream"]), (200, &"yes".parse().unwrap()));
    assert!(answer.text().starts_with("GET /head?a=b\n"), "{}", answer.text());
    check(&get(works.address(), "/missing").await.unwrap(), 404, "nothing here");
    check(&get(proxy(nowhere).address(), "/").await.unwrap(), 502, "Bad Gateway\n");
    let unset = cluster("proxy", &[]);
    check(&get(unset.address(), "/").await.unwrap(), 500, "Internal Server Error\n");
    unset.stderr.find("UPSTREAM is not set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_counter_counts_what_ends_with_its_instance_and_what_does_not() {
    for (args, expected) in [(&[][..], [1, 1, 1, 1]), (&["--max-instance-reuse-count", "3"], [1, 2, 3, 1])] {
        let cluster = cluster("counter", args);
        for (all, number) in (1..).zip(expected) {
            let answer = get(cluster.address(), "/").await.unwrap();
            check(&answer, 200, &format!("request {number} of this instance, {all} of all\n"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_languages_say_hello() {
    for name in ["python", "javascript"] {
        let Some(component) = guest_if_built(name) else {
            println!(
                "skipped: {name}.wasm is not there: scripts/build-foreign-guests {name} builds it, or says what it lacks"
            );
            continue;
        };
        let cluster = Setup::new(&component).workers(1).start();
        for _ in 0..2 {
            check(&get(cluster.address(), "/").await.unwrap(), 200, "Hello from wasmcluster!\n");
        }
        check(&get(cluster.address(), "/client").await.unwrap(), 200, "127.0.0.1 by http\n");
    }
}
