//! How a worker that is to go takes leave of its clients.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use http_body_util::BodyExt;
use nix::sys::signal::{Signal, kill};

use harness::client::{Connection, get};
use harness::{Cluster, Setup, guest, until};

fn connect(cluster: &Cluster) -> TcpStream {
    TcpStream::connect(cluster.address()).unwrap()
}

fn begin_drain(cluster: &Cluster) {
    kill(cluster.worker(0).unwrap(), Signal::SIGTERM).unwrap();
    until("it drains", || {
        cluster.status()["workers"].as_array().unwrap().iter().any(|worker| worker["state"] == "draining").then_some(())
    });
}

/// Neither an idle connection nor a silent one is closed before its grace is over; a request that comes within it is
/// answered.
#[test]
fn silent_and_idle_connections_are_kept_for_the_grace() {
    let cluster = Setup::new(&guest("hello")).workers(1).args(&["--drain-idle-grace", "60s"]).start();
    let (mut silent, mut idle) = (connect(&cluster), connect(&cluster));
    idle.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"Hello from wasmcluster!\n") {
        let mut piece = [0; 4096];
        let taken = idle.read(&mut piece).unwrap();
        assert!(taken > 0);
        answer.extend_from_slice(&piece[..taken]);
    }
    until("both are accepted", || (cluster.status()["workers"][0]["connections"] == 2).then_some(()));
    begin_drain(&cluster);
    for stream in [&mut silent, &mut idle] {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    }
}

/// When the grace is over our side is shut, and what still comes is read: a client whose request was on its way sees an
/// orderly end, not a reset.
#[test]
fn after_the_grace_a_connection_is_half_closed() {
    let cluster = Setup::new(&guest("hello")).workers(1).args(&["--drain-idle-grace", "100ms"]).start();
    let mut idle = connect(&cluster);
    until("it is accepted", || (cluster.status()["workers"][0]["connections"] == 1).then_some(()));
    begin_drain(&cluster);
    let mut answer = String::new();
    assert_eq!(idle.read_to_string(&mut answer).unwrap(), 0, "an orderly end");
    idle.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    idle.shutdown(Shutdown::Write).unwrap();
    assert_eq!(idle.read_to_string(&mut answer).unwrap(), 0, "still no reset");
    until("the old worker is gone", || (cluster.children().len() == 1).then_some(()));
}

/// The head was sent before the drain began, without `Connection: close`: the client may send one more request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_did_not_say_close_leaves_its_connection_open() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).args(&["--drain-idle-grace", "60s"]).start();
    let mut connection = Connection::open(cluster.address()).await;
    let body = connection.begin("/drip?chunks=20&ms=50").await;
    begin_drain(&cluster);
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20 * "tick\n".len());
    let last = connection.get("/headers").await.unwrap();
    assert_eq!((last.status, &last.headers["connection"]), (200, &"close".parse().unwrap()));
}

/// A head that arrives byte by byte is a request on its way, however long it takes.
#[test]
fn a_head_that_has_begun_is_waited_for() {
    let cluster = Setup::new(&guest("hello")).workers(1).args(&["--drain-idle-grace", "100ms"]).start();
    let (mut slow, mut idle) = (connect(&cluster), connect(&cluster));
    slow.write_all(b"GET / HT").unwrap();
    until("both are accepted", || (cluster.status()["workers"][0]["connections"] == 2).then_some(()));
    begin_drain(&cluster);
    let mut answer = String::new();
    assert_eq!(idle.read_to_string(&mut answer).unwrap(), 0, "the grace is over");
    slow.write_all(b"TP/1.1\r\nhost: test\r\n\r\n").unwrap();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

/// The server reads what a guest left of an upload. That is no request on its way, for which a drain would have to wait.
#[test]
fn the_rest_of_an_upload_holds_up_no_drain() {
    let args = ["--drain-idle-grace", "100ms", "--drain-timeout", "10m"];
    let cluster = Setup::new(&guest("scenarios")).workers(1).args(&args).start();
    let mut stream = connect(&cluster);
    stream.write_all(b"POST /abandon HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n").unwrap();
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
    stream.write_all(b"too late\n").unwrap();
    begin_drain(&cluster);
    until("the old worker is gone", || (cluster.children().len() == 1).then_some(()));
}

/// A client that leaves before it has its answer is counted, and its guest cancelled.
#[test]
fn a_client_that_leaves_is_counted() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    let mut stream = connect(&cluster);
    stream.write_all(b"GET /sleep?ms=600000 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    until("it sleeps", || (cluster.in_flight() == Some(1)).then_some(()));
    drop(stream);
    until("it is cancelled", || (cluster.in_flight() == Some(0)).then_some(()));
    assert_eq!(cluster.status()["totals"]["aborted"], 1);
}

/// At the drain timeout what is left is cut, counted, and named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_finish_in_time_is_cut_and_named() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).args(&["--drain-timeout", "500ms"]).start();
    let address = cluster.address();
    assert_eq!(get(address, "/headers").await.unwrap().status, 200);
    let mut connection = Connection::open(address).await;
    let mut body = connection.begin("/drip?chunks=1000000&ms=50").await;
    body.frame().await.unwrap().unwrap();
    kill(cluster.worker(0).unwrap(), Signal::SIGTERM).unwrap();
    assert!(body.collect().await.is_err(), "an answer that was cut is seen as cut");
    let line = cluster.stderr.find("and its requests were lost");
    assert!(line.contains("1-2") && !line.contains("1-1"), "{line}");
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["aborted"], &totals["crashes"]), (&1.into(), &0.into()));
}

/// The cluster serves on for a while after it was told to stop, so that load balancers can turn away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_can_be_delayed() {
    let cluster = Setup::new(&guest("hello")).args(&["--shutdown-delay", "60s"]).start();
    cluster.signal(Signal::SIGTERM);
    until("it is about to stop", || (cluster.status()["state"] == "stopping").then_some(()));
    let answer = get(cluster.address(), "/").await.unwrap();
    assert!(answer.status == 200 && !answer.headers.contains_key("connection"), "{answer:?}");
    assert_eq!(cluster.command(&["scale", "3"]).code, Some(1));
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}
