//! Ten faults that operators meet. Of each, what log, metrics, `status`, `top` and the page say names what is wrong, and, where there
//! are any, the version and a request that met it.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use harness::browser::Browser;
use harness::client::get;
use harness::terminal::Pane;
use harness::tls::Authority;
use harness::tools::Tool;
use harness::{Cluster, Setup, guest, until};

use super::admin::{admin, says, value};

/// What is said of a fault, in words that people look for.
struct Said {
    fault: &'static str,
    generation: Option<u64>,
    has_request: bool,
    /// The series that counts it.
    metric: String,
}

impl Said {
    /// Of a request, in the first version.
    fn of_request(fault: &'static str, metric: &str) -> Self {
        Self { fault, generation: Some(1), has_request: true, metric: metric.into() }
    }
}

/// An answer, if there is one within its time.
#[tokio::main(flavor = "current_thread")]
async fn ask(address: SocketAddr, path: &str) -> Option<u16> {
    get(address, path).await.ok().map(|answer| answer.status)
}

/// A port that nobody listens to.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Checks it in the log, the metrics and `status`, as text and as JSON.
#[track_caller]
fn is_told(cluster: &Cluster, said: &Said) {
    let problem: Value = until(&format!("status tells {:?}", said.fault), || {
        let status = cluster.status();
        let problems = status["problems"].as_array().unwrap();
        problems.iter().find(|it| it["message"].as_str().unwrap().contains(said.fault)).cloned()
    });
    assert_eq!(problem["generation"].as_u64(), said.generation, "{problem}");
    let status = cluster.command(&["status"]).stdout;
    // Broken into lines of eighty.
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat(&status).contains("warnings and errors, the latest first:"), "{status}");
    if said.has_request {
        let request = problem["request"].as_str().unwrap_or_else(|| panic!("{problem}"));
        let log = cluster.command(&["logs", "--request", request]).stdout;
        assert!(log.contains(said.fault) && log.contains(request), "{}: {log}", said.fault);
        if let Some(generation) = said.generation {
            assert!(flat(&status).contains(&format!("generation {generation}, request {request}")), "{status}");
        }
    } else {
        let log = cluster.command(&["logs"]).stdout;
        assert!(log.contains(said.fault), "{}: {log}", said.fault);
    }
    let address = admin(cluster);
    until(&format!("{} counts it", said.metric), || {
        value(&says(address, "/metrics").1, &said.metric).filter(|&it| it > 0.0)
    });
}

/// Checks all of them on the page and in `top`.
fn are_shown(cluster: &Cluster, all: &[Said]) {
    let is_there = |text: &str| {
        let is_told = |said: &&Said| {
            let generation = said.generation.map_or(String::new(), |generation| format!("generation {generation}"));
            text.lines().any(|line| {
                line.contains(said.fault)
                    && line.contains(&generation)
                    && (!said.has_request || line.contains("request "))
            })
        };
        all.iter().find(|said| !is_told(said)).is_none()
    };
    match Tool::find("chromium") {
        None => println!("skipped: there is no chromium"),
        Some(chromium) => {
            let mut page = Browser::open(&chromium, &format!("http://{}/", admin(cluster)));
            let mut text = || page.value("problems.innerText").as_str().unwrap_or_default().to_owned();
            until("the page shows them", || is_there(&text()).then_some(()));
        }
    }
    let Some(pane) = Pane::open(cluster.folder.path(), 240, 60) else { return };
    pane.top("");
    pane.shows_what("top shows them", is_there);
    pane.press(&["q"]);
    pane.is_given_back();
}

/// Those of guests and their clients: slow, a trap, a leak, a hang, full, an upstream that is away, a slow client; and a certificate
/// that ends soon.
#[test]
fn faults_of_guests_clients_and_upstreams_are_told_with_version_and_request() {
    let authority = Authority::new("faults");
    let setup = Setup::new(&guest("hostile_p2")).workers(1);
    let issued = authority.issue_for(&["shop.test"], 2);
    let [certificate, key] = issued.write(setup.folder.path(), "shop").map(|path| path.display().to_string());
    let nobody = nobody();
    let upstream = format!("http://{nobody}");
    let args = ["--admin", "127.0.0.1:0", "--request-timeout", "1s", "--hang-timeout", "2s", "--max-in-flight", "2"];
    let more = [
        "--max-memory",
        "32MiB",
        "--stream-timeout",
        "1s",
        "--max-instance-reuse-count",
        "100",
        "--allow-host",
        &upstream,
    ];
    let tls =
        ["--listen", "127.0.0.1:0", "--listen", "https://127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    let cluster = setup.args(&args).args(&more).args(&tls).start();
    let address = cluster.address();
    let mut all = Vec::new();
    let mut told = |said: Said| {
        is_told(&cluster, &said);
        all.push(said);
    };

    let ends = "wasmcluster_certificate_not_after_timestamp_seconds{names=\"shop.test\"";
    let metric = until("it has a series", || {
        let text = says(admin(&cluster), "/metrics").1;
        text.lines().find(|line| line.starts_with(ends)).map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
    });
    told(Said { fault: "expire", generation: None, has_request: false, metric });

    assert_eq!(ask(address, "/sleep?ms=5000"), Some(504));
    told(Said::of_request(
        "no answer within 1s; see --request-timeout",
        "wasmcluster_timeouts_total{generation=\"1\"}",
    ));

    assert_eq!(ask(address, "/trap"), Some(500));
    let traps = "wasmcluster_guest_traps_total{generation=\"1\",kind=\"unreachable\"}";
    told(Said::of_request("the guest trapped: wasm `unreachable` instruction executed", traps));

    // It keeps what the host gives it, until there is no more.
    assert_eq!(ask(address, "/leak"), Some(500));
    let limits = "wasmcluster_guest_traps_total{generation=\"1\",kind=\"limit\"}";
    told(Said::of_request("the guest trapped: resource table has no free keys", limits));

    assert_eq!(ask(address, &format!("/fetch?url=http://{nobody}/")), Some(200));
    let failures = "wasmcluster_outbound_failures_total{generation=\"1\"}";
    told(Said::of_request("failed: the connection was refused", failures));

    let waits = || std::thread::spawn(move || ask(address, "/sleep?ms=900"));
    until("it is full", || {
        let asking: Vec<_> = (0..12).map(|_| waits()).collect();
        let statuses: Vec<_> = asking.into_iter().map(|it| it.join().unwrap()).collect();
        statuses.contains(&Some(503)).then_some(())
    });
    told(Said::of_request(
        "rejected: the worker is busy; see --max-in-flight",
        "wasmcluster_rejected_total{generation=\"1\"}",
    ));

    // It reads nothing of much.
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /large?bytes=30000000 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    told(Said::of_request(
        "an answer was cut: no data moved for 1s; see --stream-timeout",
        "wasmcluster_aborted_total{generation=\"1\"}",
    ));
    drop(slow);

    let worker = cluster.worker(0).unwrap();
    let asking = std::thread::spawn(move || ask(address, "/sleep?ms=800"));
    until("it is in flight", || (cluster.in_flight() == Some(1)).then_some(()));
    kill(worker, Signal::SIGSTOP).unwrap();
    assert_eq!(asking.join().unwrap(), None);
    told(Said::of_request("a worker died: hung", "wasmcluster_worker_exits_total{reason=\"crashed\"}"));

    are_shown(&cluster, &all);
}

/// A version that takes more memory than the one before, and than it may.
#[test]
fn a_bad_version_is_told_with_its_number_and_a_request() {
    let args = ["--admin", "127.0.0.1:0", "--min-ready", "0s", "--soak", "30s", "--max-memory", "32MiB"];
    let cluster = Setup::new(&guest("hello_p2")).workers(2).args(&args).start();
    let address = cluster.address();
    let asking = std::thread::spawn(move || {
        until("one answers with an error", || (ask(address, "/allocate?mib=64") == Some(500)).then_some(()));
        until("it is rolled back", || (0..50).all(|_| ask(address, "/allocate?mib=64") == Some(200)).then_some(()));
    });
    let ended = cluster.reload(&[guest("scenarios").to_str().unwrap()]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    asking.join().unwrap();
    let reloads = "wasmcluster_reloads_total{result=\"rolled_back\"}";
    let all = [
        Said {
            generation: Some(2),
            metric: "wasmcluster_guest_traps_total{generation=\"2\",kind=\"unreachable\"}".into(),
            ..Said::of_request("the guest trapped, after it was refused more memory (see --max-memory)", "")
        },
        Said { fault: "the reload failed: ", generation: Some(2), has_request: false, metric: reloads.into() },
    ];
    all.iter().for_each(|said| is_told(&cluster, said));
    are_shown(&cluster, &all);
}

#[test]
fn a_store_that_is_away_is_told_with_version_and_request() {
    let store = format!("default=redis://{}", nobody());
    let args = ["--admin", "127.0.0.1:0", "--kv", &store, "--kv-timeout", "500ms"];
    let cluster = Setup::new(&guest("stores")).workers(1).args(&args).start();
    ask(cluster.address(), "/default/key");
    let all =
        [Said::of_request("a call of a key-value store failed", "wasmcluster_store_failures_total{generation=\"1\"}")];
    is_told(&cluster, &all[0]);
    are_shown(&cluster, &all);
}
