//! Reverse proxies in front of a cluster whose version changes every second: nginx and HAProxy, which keep their
//! connections to it, over HTTP/1.1 and over HTTP/2 in clear text.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use harness::load::{Load, Reuse};
use harness::tools::{NGINX, Tool, address_of_its_own};
use harness::{Follower, Setup, guest, until};
use tempfile::TempDir;

use super::reload::{AT_ONCE, another_version};

const RELOADS: usize = 10;
const EVERY: Duration = Duration::from_secs(1);

const NGINX_AS_PROXY: &str = "
    BEGIN
    upstream cluster {
        server CLUSTER;
        keepalive 32;
    }
    server {
        listen ADDRESS;
        location / {
            SETTINGS
        }
    }
}
";

const HAPROXY: &str = "
defaults
    mode http
    maxconn 256
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    SETTINGS
frontend front
    bind ADDRESS
    default_backend cluster
backend cluster
    server cluster CLUSTER PROTOCOL
";

/// How a proxy is set up.
struct Kind {
    what: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    configuration: &'static str,
    settings: &'static str,
    protocol: &'static str,
}

/// Those that may try again do not, so that nothing is lost unseen.
const KINDS: [Kind; 4] = [
    Kind {
        what: "nginx with HTTP/1.1",
        program: "nginx",
        args: &["-e", "stderr", "-c"],
        configuration: NGINX_AS_PROXY,
        settings: "proxy_pass http://cluster; proxy_http_version 1.1; proxy_set_header Connection ''; \
                   proxy_next_upstream off;",
        protocol: "",
    },
    // Over HTTP/2 it passes on nothing else, but it does not mind what it passes on.
    Kind {
        what: "nginx with HTTP/2 (grpc_pass)",
        program: "nginx",
        args: &["-e", "stderr", "-c"],
        configuration: NGINX_AS_PROXY,
        settings: "grpc_pass grpc://cluster; grpc_next_upstream off;",
        protocol: "",
    },
    Kind {
        what: "HAProxy with HTTP/1.1",
        program: "haproxy",
        args: &["-q", "-db", "-f"],
        configuration: HAPROXY,
        settings: "retries 0\n    http-reuse always",
        protocol: "",
    },
    // It holds back its streams until the settings of a new connection are there: GOAWAY must not follow them at once.
    Kind {
        what: "HAProxy with HTTP/2",
        program: "haproxy",
        args: &["-q", "-db", "-f"],
        configuration: HAPROXY,
        settings: "retries 0\n    http-reuse always",
        protocol: "proto h2",
    },
];

/// A proxy at work; dropped, it is gone.
struct Proxy {
    what: &'static str,
    address: SocketAddr,
    _process: Follower,
    _folder: TempDir,
}

impl Proxy {
    fn start(kind: &Kind, cluster: SocketAddr) -> Option<Self> {
        let Some(program) = Tool::find(kind.program) else {
            println!("skipped: there is no {}", kind.program);
            return None;
        };
        let (folder, address) = (tempfile::tempdir().unwrap(), address_of_its_own());
        let configuration = kind
            .configuration
            .replace("BEGIN", NGINX)
            .replace("SETTINGS", kind.settings)
            .replace("PROTOCOL", kind.protocol)
            .replace("FOLDER", folder.path().to_str().unwrap())
            .replace("ADDRESS", &address.to_string())
            .replace("CLUSTER", &cluster.to_string());
        let file = folder.path().join("configuration");
        std::fs::write(&file, configuration).unwrap();
        let process = Follower::start(program.command().args(kind.args).arg(file)).unwrap();
        until(kind.what, || TcpStream::connect(address).ok());
        Some(Self { what: kind.what, address, _process: process, _folder: folder })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_behind_reverse_proxies_lose_nothing() {
    let cluster = Setup::new(&guest("whoami")).args(&AT_ONCE).start();
    let versions = [another_version("whoami", cluster.folder.path()), guest("whoami")];
    let proxies: Vec<Proxy> = KINDS.iter().filter_map(|kind| Proxy::start(kind, cluster.address())).collect();
    if proxies.is_empty() {
        return;
    }
    // An answer that is not 200, as 502 and 504, fails the test.
    let clients = [(4, Reuse::KeepAlive), (8, Reuse::WithPauses), (1, Reuse::No)];
    let loads: Vec<Load> = proxies.iter().map(|proxy| Load::mixed(proxy.address, clients)).collect();
    for round in 0..RELOADS {
        let begun = Instant::now();
        loads.iter().for_each(Load::goes_on);
        let reloaded = cluster.reload(&[versions[round % 2].to_str().unwrap()]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        until("a second is over", || (begun.elapsed() >= EVERY).then_some(()));
    }
    for (proxy, load) in proxies.iter().zip(loads) {
        load.goes_on();
        let (answered, failed) = load.end().await;
        let errors: Vec<String> = failed.iter().map(|failed| failed.error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {} of {answered} failed: {errors:?}", proxy.what, errors.len());
        println!("{}: {RELOADS} reloads of two workers: {answered} requests answered, 0 lost", proxy.what);
    }
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["reloads"], &totals["crashes"]), (&RELOADS.into(), &0.into()));
    assert_eq!((&totals["errors"], &totals["aborted"]), (&0.into(), &0.into()));
}
