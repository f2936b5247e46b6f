//! Instances that serve more than one request: what they keep, and when they are not kept.

use crate::client::{Connection, get};
use crate::harness::{Cluster, Setup, guest, until};

fn cluster(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

async fn text(cluster: &Cluster, path: &str) -> String {
    get(cluster.address(), path).await.unwrap().text().to_owned()
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
        let cluster = cluster(name, &["--max-instance-reuse-count", "100", "--request-timeout", "500ms"]);
        for path in ["/trap", "/wait", "/spin", "/exit?code=1", "/error-code", "/trap-after-head?bytes=10"] {
            text(&cluster, "/secret?set=abc").await;
            assert_eq!(text(&cluster, "/secret").await, "SECRET-abc", "{name}");
            // Cut answers are errors of the connection.
            let ended = Connection::open(cluster.address()).await.get(path).await;
            assert!(ended.is_err() || ended.unwrap().status >= 500, "{name} {path}");
            until("it is over", || (cluster.status()["workers"][0]["in_flight"] == 0).then_some(()));
            // An error code is an answer like any other.
            let expected = if path == "/error-code" { "SECRET-abc" } else { "nothing" };
            assert_eq!(text(&cluster, "/secret").await, expected, "{name} {path}");
        }
    }
}

/// As of some languages: only the first request of an instance is answered. It is noticed with the second.
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
