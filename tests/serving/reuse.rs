//! Instances that serve more than one request: what they keep, and when they are not kept.

use bytes::Bytes;
use http::Method;
use http_body_util::channel::Sender;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use harness::client::{Connection, Upload, get, soon};
use harness::{Cluster, Setup, guest, until};

fn cluster(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

/// What is answered, once the instance is free again.
async fn text(cluster: &Cluster, path: &str) -> String {
    let before = cluster.in_flight().unwrap();
    let answered = get(cluster.address(), path).await.unwrap().text().to_owned();
    until("its guest is done", || (cluster.in_flight()? <= before).then_some(()));
    answered
}

/// What is in an instance's memory is there for its next request, and for no other instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_serves_as_many_requests_as_it_may() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = cluster(name, &["--max-instance-reuse-count", "3"]);
        for round in 0..3 {
            text(&cluster, "/secret?set=abc").await;
            assert_eq!(text(&cluster, "/secret").await, "SECRET-abc", "{name}, round {round}");
            assert_eq!(text(&cluster, "/secret").await, "SECRET-abc", "{name}, round {round}");
        }
        // The fourth request of a row would have been a fresh one's.
        assert_eq!(text(&cluster, "/secret").await, "nothing", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_only_wasi_0_3_is_reused() {
    for (name, expected) in [("hostile_p2", "nothing"), ("hostile_p3", "SECRET-abc")] {
        let cluster = cluster(name, &[]);
        text(&cluster, "/secret?set=abc").await;
        assert_eq!(text(&cluster, "/secret").await, expected, "{name}");
    }
}

/// Whatever went wrong in an instance, nobody else meets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_did_not_do_well_is_not_used_again() {
    for name in ["hostile_p2", "hostile_p3"] {
        let cluster = cluster(name, &["--max-instance-reuse-count", "100", "--request-timeout", "1500ms"]);
        for path in ["/trap", "/wait", "/spin", "/exit?code=1", "/error-code", "/trap-after-head?bytes=10"] {
            text(&cluster, "/secret?set=abc").await;
            assert_eq!(text(&cluster, "/secret").await, "SECRET-abc", "{name}");
            // Cut answers are errors of the connection.
            let ended = Connection::open(cluster.address()).await.get(path).await;
            assert!(ended.is_err() || ended.unwrap().status >= 500, "{name} {path}");
            until("it is over", || (cluster.in_flight() == Some(0)).then_some(()));
            // An error code is an answer like any other.
            let expected = if path == "/error-code" { "SECRET-abc" } else { "nothing" };
            assert_eq!(text(&cluster, "/secret").await, expected, "{name} {path}");
        }
    }
}

/// As of some languages: only the first request of an instance is answered. It is noticed when that has shown a few times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_cannot_live_twice_is_served_fresh() {
    let cluster = cluster("hostile_p2", &["--max-instance-reuse-count", "100"]);
    for _ in 0..5 {
        assert_eq!(get(cluster.address(), "/once").await.unwrap().status, 200);
    }
    let said =
        || cluster.stderr.lines().iter().filter(|line| line.contains("does not answer a second request")).count();
    until("it is said", || (said() > 0).then_some(()));
    assert_eq!(said(), 1);
}

/// A request that is under way: its answer has begun, and ends when its body does.
struct Echo {
    body: Sender<Bytes>,
    answer: Incoming,
}

impl Echo {
    async fn begin(cluster: &Cluster) -> Self {
        let Upload { mut body, answer } = Upload::start(cluster.address(), "/echo").await;
        body.send_data("first".into()).await.unwrap();
        let mut answer = answer.await.unwrap().unwrap().into_body();
        assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
        Self { body, answer }
    }

    async fn end(self) -> hyper::Result<Bytes> {
        let Self { mut body, answer } = self;
        // Nobody takes it of one that was cut.
        let _ = body.send_data("last".into()).await;
        drop(body);
        Ok(soon(answer.collect()).await?.to_bytes())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_share_an_instance_if_they_may() {
    for (seats, expected) in [("1", "nothing"), ("2", "SECRET-abc")] {
        let cluster = cluster("hostile_p3", &["--max-instance-concurrent-reuse-count", seats]);
        text(&cluster, "/secret?set=abc").await;
        let echo = Echo::begin(&cluster).await;
        assert_eq!(text(&cluster, "/secret").await, expected, "{seats} seats");
        assert_eq!(echo.end().await.unwrap(), "last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_ends_all_requests_in_its_instance_and_no_others() {
    let cluster = cluster("hostile_p3", &["--max-instance-concurrent-reuse-count", "2"]);
    let (one, two, beside) = (Echo::begin(&cluster).await, Echo::begin(&cluster).await, Echo::begin(&cluster).await);
    assert_eq!(get(cluster.address(), "/trap").await.unwrap().status, 500);
    assert!(beside.end().await.is_err(), "it had its instance in common with the one that trapped");
    let address = cluster.address();
    let unanswered = tokio::spawn(async move { get(address, "/wait").await.unwrap().status });
    until("it waits", || (cluster.in_flight() == Some(3)).then_some(()));
    assert_eq!((get(address, "/trap").await.unwrap().status, unanswered.await.unwrap()), (500, 500));
    for echo in [one, two] {
        assert_eq!(echo.end().await.unwrap(), "last");
    }
}

/// Nothing takes a single request out of an instance, so others in it go on, and it gets no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_costs_others_nothing() {
    let cluster = cluster("hostile_p3", &["--max-instance-concurrent-reuse-count", "3"]);
    text(&cluster, "/secret?set=abc").await;
    let stays = Echo::begin(&cluster).await;
    let leaves = Connection::open(cluster.address()).await.begin("/trickle?ms=1").await;
    drop(leaves);
    until("it has left", || (cluster.in_flight() == Some(1)).then_some(()));
    assert_eq!(text(&cluster, "/secret").await, "nothing");
    assert_eq!(stays.end().await.unwrap(), "last");
}

/// More requests than seats, each with a body of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_an_instance_do_not_mix() {
    let cluster = cluster("hostile_p3", &["--max-instance-concurrent-reuse-count", "16"]);
    let asked = (0..64).map(|number| {
        let address = cluster.address();
        tokio::spawn(async move {
            for round in 0..10 {
                let body = format!("{number}-{round} ").repeat(1000 * (round % 3));
                let mut connection = Connection::open(address).await;
                let answer =
                    connection.send(Method::POST, "/echo", Full::new(Bytes::from(body.clone()))).await.unwrap();
                assert_eq!(soon(answer.into_body().collect()).await.unwrap().to_bytes(), body);
            }
        })
    });
    for asked in asked.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
}
