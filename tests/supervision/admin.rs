//! The admin address: probes, metrics and events, by a process of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use harness::client::{Answer, get};
use harness::tools::address_of_its_own;
use harness::{Cluster, Setup, fixture, guest, until};

pub(super) fn serve(name: &str, args: &[&str]) -> (Cluster, SocketAddr) {
    let cluster = Setup::new(&guest(name)).args(&["--admin", "127.0.0.1:0"]).args(args).start();
    let address = admin(&cluster);
    (cluster, address)
}

/// Where the admin server listens, as the cluster says.
pub(super) fn admin(cluster: &Cluster) -> SocketAddr {
    let line = cluster.stderr.find("Admin at http://");
    line.split_once("Admin at http://").unwrap().1.trim_end_matches('/').parse().unwrap()
}

#[tokio::main(flavor = "current_thread")]
pub(super) async fn ask(address: SocketAddr, path: &str) -> Answer {
    get(address, path).await.unwrap()
}

pub(super) fn says(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = ask(address, path);
    (answer.status, answer.text().to_owned())
}

fn server(cluster: &Cluster) -> Pid {
    let is_admin =
        |pid: &Pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0admin\0"));
    until("there is an admin server", || cluster.children().into_iter().find(is_admin))
}

/// What is asked for as it comes, without a client that is polite.
fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Who refuses a request may not read all of it.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn probes_follow_the_cluster_from_start_to_stop() {
    let (cluster, address) = serve("hello", &["--ready-min", "2", "--shutdown-delay", "4s"]);
    until("it is ready", || (says(address, "/readyz") == (200, "2 workers are ready\n".into())).then_some(()));
    assert_eq!(says(address, "/livez").0, 200);
    assert_eq!(cluster.command(&["scale", "1"]).code, Some(0));
    until("it is not", || (says(address, "/readyz").0 == 503).then_some(()));
    assert_eq!(says(address, "/readyz").1, "1 worker is ready, of at least 2\n");
    assert_eq!(cluster.command(&["scale", "2"]).code, Some(0));
    until("it is again", || (says(address, "/readyz").0 == 200).then_some(()));
    // Balancers hear of the stop while it still serves.
    cluster.signal(Signal::SIGTERM);
    until("it is about to stop", || {
        (says(address, "/readyz") == (503, "the cluster is stopping\n".into())).then_some(())
    });
    assert_eq!((says(address, "/livez").0, says(cluster.address(), "/").0), (200, 200));
    assert!(cluster.wait().success());
}

/// A start may take minutes, in which a probe is to hear that it goes on.
#[test]
fn probes_are_answered_while_the_cluster_starts() {
    let setup = Setup::new(&fixture("spins-at-start.wat")).args(&["--admin", "127.0.0.1:0"]);
    let cluster = setup.launch();
    let address = admin(&cluster);
    until("it starts", || (says(address, "/readyz") == (503, "the cluster is starting\n".into())).then_some(()));
    assert_eq!(says(address, "/livez").0, 200);
    let status: Value = serde_json::from_str(&says(address, "/status").1).unwrap();
    assert_eq!(status["state"], "starting");
    cluster.signal(Signal::SIGQUIT);
    cluster.wait();
}

/// The value of a series in Prometheus's text.
pub(super) fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn metrics_count_what_was_answered_and_outlive_workers() {
    let (cluster, address) = serve("scenarios", &["--min-ready", "0s", "--soak", "0s", "--max-error-increase", "100"]);
    let ask_all = |paths: &[&str]| paths.iter().for_each(|path| drop(says(cluster.address(), path)));
    ask_all(&["/headers", "/headers", "/none", "/error", "/trap"]);
    let metrics = |expected: &[(&str, f64)]| {
        until("they are counted", || {
            let (status, text) = says(address, "/metrics");
            assert_eq!(status, 200, "{text}");
            expected.iter().all(|(series, number)| value(&text, series) == Some(*number)).then_some(text)
        })
    };
    let first = [
        ("wasmcluster_requests_total{generation=\"1\",code=\"2xx\"}", 2.0),
        ("wasmcluster_requests_total{generation=\"1\",code=\"4xx\"}", 1.0),
        ("wasmcluster_requests_total{generation=\"1\",code=\"5xx\"}", 2.0),
        ("wasmcluster_guest_traps_total{generation=\"1\",kind=\"unreachable\"}", 1.0),
        ("wasmcluster_request_duration_seconds_count{generation=\"1\"}", 5.0),
        ("wasmcluster_workers{state=\"ready\"}", 2.0),
        // The first crash is an increase.
        ("wasmcluster_worker_exits_total{reason=\"crashed\"}", 0.0),
        ("wasmcluster_reloads_total{result=\"rolled_back\"}", 0.0),
    ];
    let text = metrics(&first);
    assert!(
        value(&text, "wasmcluster_request_duration_seconds_bucket{le=\"+Inf\",generation=\"1\"}") == Some(5.0)
            || value(&text, "wasmcluster_request_duration_seconds_bucket{generation=\"1\",le=\"+Inf\"}") == Some(5.0),
        "{text}"
    );
    let old = cluster.worker(0).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    cluster.replaced(0, old);
    assert_eq!(cluster.reload(&[]).code, Some(0));
    ask_all(&["/headers"]);
    let more = [
        ("wasmcluster_requests_total{generation=\"2\",code=\"2xx\"}", 1.0),
        ("wasmcluster_worker_exits_total{reason=\"crashed\"}", 1.0),
        ("wasmcluster_worker_exits_total{reason=\"reloaded\"}", 2.0),
        ("wasmcluster_reloads_total{result=\"committed\"}", 1.0),
        ("wasmcluster_generation", 2.0),
    ];
    let text = metrics(&[&first[..5], &more].concat());
    let sum = value(&text, "wasmcluster_request_duration_seconds_sum{generation=\"1\"}").unwrap();
    assert!(sum > 0.0 && sum < 60.0, "{sum}");
    // Some ask for the other form.
    let open = raw(address, b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text;version=1.0.0\r\nconnection: close\r\n\r\n");
    assert!(
        open.contains("content-type: application/openmetrics-text; version=1.0.0")
            && open.trim_end().ends_with("# EOF"),
        "{open}"
    );
}

#[test]
fn events_and_status_are_those_of_the_commands() {
    let (cluster, address) = serve("hello", &[]);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut seen = String::new();
    let mut read_until = |what: &str| {
        let mut piece = [0; 4096];
        while !seen.contains(what) {
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0, "{what} in {seen}");
            seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    };
    read_until("text/event-stream");
    assert_eq!(cluster.command(&["scale", "3"]).code, Some(0));
    read_until("data: {\"time\":\"");
    read_until("\"event\":\"scaling\",\"from\":2,\"to\":3}\n\n");
    until("it is shown", || {
        let shown: Value = serde_json::from_str(&says(address, "/status").1).unwrap();
        let told = cluster.status();
        let same = ["schema", "name", "pid", "state", "listen", "limits", "generation"];
        let is_same = |field: &&str| {
            let without_age = |status: &Value| {
                let mut value = status[*field].clone();
                value.as_object_mut().map(|object| object.remove("first_served_ms"));
                value
            };
            without_age(&shown) == without_age(&told)
        };
        (shown["workers"].as_array()?.len() == 3 && same.iter().all(is_same)).then_some(())
    });
}

#[test]
fn an_admin_server_that_dies_is_replaced_and_nobody_else_notices() {
    let (cluster, address) = serve("hello", &[]);
    let workers = cluster.ready();
    for signal in [Signal::SIGKILL, Signal::SIGKILL] {
        let old = server(&cluster);
        kill(old, signal).unwrap();
        until("there is another", || (server(&cluster) != old).then_some(()));
        until("it answers", || {
            TcpStream::connect(address).ok()?;
            (says(address, "/readyz").0 == 200).then_some(())
        });
    }
    assert_eq!((cluster.ready(), says(cluster.address(), "/").0), (workers, 200));
    // It ends with the cluster, and first of all with its primary.
    let last = server(&cluster);
    cluster.signal(Signal::SIGKILL);
    until("it is gone", || harness::is_gone(last).then_some(()));
}

#[test]
fn strangers_at_the_admin_address_get_little() {
    let (cluster, address) = serve("hello", &[]);
    let idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    until("a probe gets in", || (says(address, "/livez").0 == 200).then_some(()));
    drop(idle);
    let readers: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut reader = TcpStream::connect(address).unwrap();
            reader.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            reader
        })
        .collect();
    until("there are enough readers", || (says(address, "/events?").0 == 503).then_some(()));
    drop(readers);
    let giant = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &vec![b'x'; 200_000], b"\r\n\r\n"].concat();
    for (request, status) in [
        (b"POST /status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".as_slice(), "405"),
        (b"DELETE / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "405"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "404"),
        (b"nonsense\r\n\r\n", "400"),
        (&giant, "431"),
    ] {
        let answer = raw(address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    let page = raw(address, b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(page.contains("content-security-policy: default-src 'none'") && page.ends_with("\r\n\r\n"), "{page}");
    assert_eq!(cluster.status()["totals"]["requests"], 0);
}

#[test]
fn the_admin_address_may_be_a_socket_and_a_wrong_one_is_explained() {
    let setup = Setup::new(&guest("hello"));
    let path = setup.folder.path().join("admin.sock");
    let cluster = setup.args(&["--admin", &format!("unix:{}", path.display())]).start();
    let ask = |path: &Path| {
        let mut stream = UnixStream::connect(path).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    };
    until("it answers", || ask(&path));
    drop(cluster);
    for (flags, said) in [
        (&["--admin", "https://127.0.0.1:0"][..], "speaks plain HTTP"),
        (&["--admin", "127.0.0.1:0?proxy-protocol"], "speaks plain HTTP"),
        (&["--admin", "8080"], "expected HOST:PORT"),
        (&["--workers", "2", "--ready-min", "3"], "--ready-min 3 is more than --workers 2"),
    ] {
        let refused = Setup::bare(&[&["serve", "app.wasm"], flags].concat()).run();
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{flags:?}: {refused:?}");
    }
    let taken = address_of_its_own();
    let _taken = std::net::TcpListener::bind(taken).unwrap();
    let refused = Setup::new(&guest("hello")).args(&["--admin", &taken.to_string()]).run();
    assert!(refused.code == Some(1) && refused.stderr.contains(&taken.to_string()), "{refused:?}");
}
