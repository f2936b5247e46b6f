//! The commands that talk to a running cluster, and the control socket that they talk over.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::Method;
use http_body_util::{BodyExt, Full};
use tokio::net::UnixStream;

use crate::client::{Connection, get};
use crate::harness::{Cluster, Setup, guest, until};

/// Clients that send one request after the other until they are told to end; none may fail.
struct Load {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(cluster: &Cluster, clients: usize) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address = cluster.address();
        let clients = (0..clients).map(|number| {
            let (end, answered) = (end.clone(), answered.clone());
            tokio::spawn(async move {
                let mut connection = None;
                while !end.load(Ordering::Relaxed) {
                    // Every other client opens a connection for each request.
                    let mut open = match connection.take() {
                        Some(open) if number % 2 == 0 => open,
                        _ => Connection::open(address).await,
                    };
                    let answer = open.get("/").await.unwrap();
                    assert_eq!((answer.status, answer.text()), (200, "Hello from wasmcluster!\n"));
                    answered.fetch_add(1, Ordering::Relaxed);
                    if !answer.headers.contains_key("connection") {
                        connection = Some(open);
                    }
                }
            })
        });
        Self { end: end.clone(), answered: answered.clone(), clients: clients.collect() }
    }

    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("more answers come", || (self.answered.load(Ordering::Relaxed) > before + 100).then_some(()));
    }

    async fn end(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no request fails");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_under_load_fails_no_request() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let load = Load::start(&cluster, 8);
    load.goes_on();
    for workers in [8, 2, 3] {
        let scaled = cluster.command(&["scale", &workers.to_string()]);
        assert_eq!((scaled.code, scaled.stderr.as_str()), (Some(0), ""));
        assert_eq!(cluster.ready().len(), workers);
        assert_eq!(cluster.children().len(), workers, "the others are gone when the command returns");
        load.goes_on();
    }
    let answered = load.end().await;
    let status = cluster.status();
    assert_eq!(status["totals"]["requests"], answered, "what workers counted that are gone is not lost");
    assert_eq!(status["totals"]["crashes"], 0);
    let slots: Vec<i64> = status["workers"].as_array().unwrap().iter().map(|w| w["slot"].as_i64().unwrap()).collect();
    assert_eq!(slots, [0, 1, 2]);
}

#[test]
fn numbers_that_cannot_be_scaled_to() {
    let cluster = Setup::new(&guest("hello")).start();
    for (number, code, message) in [
        ("0", 2, "invalid value"),
        ("-1", 2, "unexpected argument"),
        ("two", 2, "invalid value"),
        ("5000", 1, "over the limit"),
    ] {
        let ended = cluster.command(&["scale", number]);
        assert_eq!(ended.code, Some(code), "{number}: {ended:?}");
        assert!(ended.stderr.contains(message), "{number}: {}", ended.stderr);
    }
    assert_eq!(cluster.ready().len(), 2);
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
        (Method::GET, "/", "", 404, "POST /scale"),
        (Method::POST, "/scale", "", 400, "the body"),
        (Method::POST, "/scale", "{\"workers\":0}", 400, "the body"),
        (Method::POST, "/scale", "{\"wrokers\":3}", 400, "unknown field"),
        (Method::POST, "/scale", "{\"workers\":100000}", 409, "over the limit"),
        (Method::POST, "/scale", "{\"workers\":2}", 200, "{}"),
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
