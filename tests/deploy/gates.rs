//! Versions that are no better than the one before do not stay, and the way back is short.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tokio::task::JoinHandle;

use harness::client::Connection;
use harness::{Cluster, Setup, guest, until};

/// Soon decided, and old workers soon gone.
const QUICK: [&str; 4] = ["--min-ready", "0s", "--drain-idle-grace", "100ms"];

/// Clients that ask for one path after the other, whatever is answered.
struct Traffic {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(address: SocketAddr, clients: usize, paths: &[&'static str]) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| tokio::spawn(ask(address, paths.to_vec(), end.clone(), answered.clone()));
        let clients = (0..clients).map(client).collect();
        Self { end, answered, clients }
    }

    /// Waits until more answers have come than make the last hundred.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("more answers come", || (self.answered.load(Ordering::Relaxed) > before + 200).then_some(()));
    }

    async fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

async fn ask(address: SocketAddr, paths: Vec<&'static str>, end: Arc<AtomicBool>, answered: Arc<AtomicU64>) {
    let mut connection = Connection::open(address).await;
    for path in paths.iter().cycle() {
        if end.load(Ordering::Relaxed) {
            return;
        }
        let answer = connection.get(path).await;
        answered.fetch_add(1, Ordering::Relaxed);
        if answer.is_err() || answer.is_ok_and(|answer| answer.headers.contains_key("connection")) {
            connection = Connection::open(address).await;
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits until all workers are of `generation`, and no other is there.
#[track_caller]
fn is_served(cluster: &Cluster, generation: u64) -> Value {
    until("it is what is served", || {
        let status = cluster.status();
        let workers = status["workers"].as_array().unwrap();
        let all = workers.iter().all(|worker| worker["generation"] == generation && worker["state"] == "ready");
        (all && workers.len() == 2).then_some(status)
    })
}

/// Nine of ten do well with any version.
const A_TENTH: [&str; 10] = ["/", "/", "/", "/", "/error", "/", "/", "/", "/", "/"];

/// Of two versions, `hello` answers everything, `scenarios` some paths with 500.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_with_more_errors_are_rolled_back_by_themselves() {
    let cluster = Setup::new(&guest("hello")).args(&QUICK).args(&["--soak", "60s"]).start();
    let bad = guest("scenarios");
    let cases: [&[&str]; 3] = [&["/error"], &["/trap", "/", "/headers", "/", "/"], &A_TENTH];
    for (case, paths) in cases.into_iter().enumerate() {
        let traffic = Traffic::start(cluster.address(), 4, paths);
        traffic.goes_on();
        let reloaded = cluster.command(&["reload", text(&bad)]);
        assert_eq!(reloaded.code, Some(4), "{paths:?}: {reloaded:?}");
        assert!(
            reloaded.stderr.contains("answers were errors, against 0.0 % of the old version's"),
            "{paths:?}: {reloaded:?}"
        );
        let status = is_served(&cluster, 1);
        assert_eq!(status["last_reload"]["generation"], case as u64 + 2, "{status}");
        traffic.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_as_bad_as_the_old_one_is_committed() {
    let cluster = Setup::new(&guest("scenarios")).args(&QUICK).args(&["--soak", "2s"]).start();
    let traffic = Traffic::start(cluster.address(), 4, &A_TENTH);
    traffic.goes_on();
    let reloaded = cluster.command(&["reload"]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    is_served(&cluster, 2);
    traffic.end().await;
    // Nor is one blamed for less than twenty answers.
    let cluster = Setup::new(&guest("hello")).args(&QUICK).args(&["--soak", "2s"]).start();
    let reload = cluster.follow(&["reload", text(&guest("scenarios"))]);
    until("it soaks", || (cluster.status()["reload"]["phase"] == "soaking").then_some(()));
    let mut connection = Connection::open(cluster.address()).await;
    for _ in 0..5 {
        assert_eq!(connection.get("/error").await.unwrap().status, 500);
    }
    assert_eq!(reload.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_errors_are_too_many_can_be_said() {
    let setup = Setup::new(&guest("hello")).args(&QUICK).args(&["--soak", "2s"]);
    std::fs::write(setup.folder.path().join("wasmcluster.toml"), "max-error-increase = 100\n").unwrap();
    let cluster = setup.start();
    let traffic = Traffic::start(cluster.address(), 4, &["/error", "/"]);
    traffic.goes_on();
    let bad = guest("scenarios");
    assert_eq!(cluster.command(&["reload", text(&bad), "--max-error-increase", "60"]).code, Some(0));
    assert_eq!(cluster.command(&["reload", text(&guest("hello"))]).code, Some(0));
    traffic.goes_on();
    let reloaded = cluster.command(&["reload", text(&bad), "--max-error-increase", "5%"]);
    assert_eq!(reloaded.code, Some(4), "{reloaded:?}");
    assert_eq!(cluster.command(&["reload", text(&bad), "--max-error-increase", "5", "--force"]).code, Some(0));
    assert_eq!(cluster.command(&["reload", text(&guest("hello"))]).code, Some(0));
    traffic.goes_on();
    assert_eq!(cluster.command(&["reload", text(&bad)]).code, Some(0), "the file's number is the usual one");
    traffic.end().await;
}

/// Its requests are stuck when the soak is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_answer_is_rolled_back() {
    let args = ["--soak", "500ms", "--request-timeout", "3s"];
    let cluster = Setup::new(&guest("hello")).args(&QUICK).args(&args).start();
    let traffic = Traffic::start(cluster.address(), 40, &["/sleep?ms=60000"]);
    traffic.goes_on();
    let reloaded = cluster.command(&["reload", text(&guest("scenarios"))]);
    assert_eq!(reloaded.code, Some(4), "{reloaded:?}");
    assert!(reloaded.stderr.contains("answers were errors"), "{reloaded:?}");
    traffic.end().await;
}

/// All or none: a worker that does not confirm is replaced, and its replacement begins with the new value.
#[test]
fn a_worker_that_does_not_take_a_change_is_replaced() {
    let cluster = Setup::new(&guest("hello")).args(&["--hang-timeout", "60s"]).start();
    let stopped = cluster.worker(0).unwrap();
    kill(stopped, Signal::SIGSTOP).unwrap();
    let set = cluster.command(&["config", "set", "wasmcluster.log-level=debug"]);
    assert_eq!((set.code, set.stderr.as_str()), (Some(0), ""));
    cluster.replaced(0, stopped);
    cluster.stderr.find("did not confirm a configuration change within 3s");
    assert_eq!(cluster.command(&["config", "get", "wasmcluster.log-level"]).stdout, "debug\n");
    let status = cluster.status();
    assert_eq!(status["totals"]["crashes"], 1, "{status}");
}

#[test]
fn workers_are_scaled_up_and_down_by_a_number() {
    let cluster = Setup::new(&guest("hello")).start();
    for (args, said, workers) in [
        (&["+1"][..], "2 → 3 workers\n", 3),
        (&["-1"], "3 → 2 workers\n", 2),
        (&["--", "-1"], "2 → 1 worker\n", 1),
        (&["2"], "1 → 2 workers\n", 2),
        (&["2"], "2 workers already\n", 2),
    ] {
        let scaled = cluster.command(&[&["scale"], args].concat());
        assert_eq!((scaled.code, scaled.stdout.as_str(), scaled.stderr.as_str()), (Some(0), said, ""), "{args:?}");
        assert_eq!(cluster.ready().len(), workers, "{args:?}");
    }
}

/// Each rollback goes further back; nothing is built, soaked or waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollbacks_go_back_through_history() {
    let args = ["--min-ready", "300ms", "--soak", "300ms"];
    let (first, second, third) = (guest("hello"), guest("whoami"), guest("scenarios"));
    let cluster = Setup::new(&first).args(&args).start();
    for version in [&second, &third] {
        assert_eq!(cluster.command(&["reload", text(version)]).code, Some(0));
    }
    // Brings back what a generation was, and checks what is said of it.
    let rolls_back = |args: &[&str], generation: u64, version: &Path| {
        let rolled_back = cluster.command(&[&["rollback"], args].concat());
        assert_eq!(rolled_back.code, Some(0), "{args:?}: {rolled_back:?}");
        let status = cluster.status();
        assert_eq!(status["generation"]["source"], text(version), "{args:?}");
        let digest = &status["generation"]["digest"].as_str().unwrap()[..19];
        let said = format!("generation {generation} is served: {} ({digest}), first served ", text(version));
        assert!(rolled_back.stdout.starts_with(&said), "{args:?}: {rolled_back:?}");
        assert!(rolled_back.stdout.ends_with("s ago\n"), "{args:?}: {rolled_back:?}");
    };
    rolls_back(&[], 4, &second);
    rolls_back(&[], 5, &first);
    let refused = |args: &[&str], part: &str| {
        let ended = cluster.command(&[&["rollback"], args].concat());
        assert_eq!(ended.code, Some(1), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{args:?}: {ended:?}");
    };
    refused(&[], "no version was served before this one");
    refused(&["--to", "5"], "generation 5 is already being served");
    refused(&["--to", "9"], "generation 9 is not known; the known ones are 1 (/");
    rolls_back(&["--to", "3"], 6, &third);
    rolls_back(&[], 7, &second);

    let json = cluster.command(&["rollback", "--json"]);
    let lines: Vec<Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lasts = |phase: &str| lines.iter().find(|line| line["phase"] == phase).unwrap()["lasts_ms"].as_u64().unwrap();
    assert_eq!((lasts("canary"), lasts("soaking")), (100, 0));
}
