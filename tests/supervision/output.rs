//! What guests print, and what the cluster logs.

use serde_json::Value;

use harness::client::get;
use harness::{Setup, guest, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_guests_carry_their_worker() {
    let cluster = Setup::new(&guest("scenarios")).workers(1).start();
    get(cluster.address(), "/print?out=to-stdout&err=to-stderr").await.unwrap();
    assert_eq!(cluster.stdout.find("to-stdout"), "[worker 1 g 1 request 1-1 GET /print] to-stdout");
    assert_eq!(cluster.stderr.find("to-stderr"), "[worker 1 g 1 request 1-1 GET /print] to-stderr");
    get(cluster.address(), "/print-partial?out=no-newline").await.unwrap();
    assert_eq!(cluster.stdout.find("no-newline"), "[worker 1 g 1 request 1-2 GET /print-partial] no-newline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_is_json_when_asked() {
    let cluster =
        Setup::new(&guest("scenarios")).workers(1).args(&["--log-format", "json", "--log-level", "debug"]).start();
    get(cluster.address(), "/print?out=to-stdout&err=to-stderr").await.unwrap();
    get(cluster.address(), "/trap").await.unwrap();
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let printed = parse(&cluster.stdout.find("to-stdout"));
    assert_eq!((&printed["worker"], &printed["generation"]), (&1.into(), &1.into()));
    assert_eq!((&printed["stream"], &printed["message"]), (&"stdout".into(), &"to-stdout".into()));
    let about = ["request", "method", "path", "x_request_id"].map(|field| printed[field].as_str());
    assert_eq!(about, [Some("1-1"), Some("GET"), Some("/print"), None]);
    let trapped = parse(&cluster.stderr.find("the guest trapped"));
    assert_eq!((&trapped["level"], &trapped["worker"]), (&"ERROR".into(), &1.into()));
    cluster.signal(nix::sys::signal::Signal::SIGTERM);
    cluster.wait();
    until("its output ends", || cluster.stderr.ended().then_some(()));
    let lines = cluster.stderr.lines();
    assert!(parse(&lines[0])["message"].as_str().unwrap().starts_with("Serving HTTP on "));
    lines.iter().for_each(|line| drop(parse(line)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_is_obeyed() {
    let quiet = Setup::new(&guest("scenarios")).args(&["--log-level", "off"]).start();
    get(quiet.address(), "/trap").await.unwrap();
    get(quiet.address(), "/print?out=x&err=only-this").await.unwrap();
    quiet.stderr.find("only-this");
    assert!(!quiet.stderr.lines().iter().any(|line| line.contains("trapped") || line.contains("INFO")));
}

/// Nobody reads what the primary prints, and its pipes fill: requests are answered all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_nobody_reads_stops_nobody() {
    let mut setup = Setup::new(&guest("scenarios")).workers(1);
    let (reader, writer) = std::io::pipe().unwrap();
    setup.command.stdout(writer);
    let cluster = setup.start();
    let address = cluster.address();
    let text = "x".repeat(4000);
    // Far more than the pipes on the way hold.
    for _ in 0..200 {
        assert_eq!(get(address, &format!("/print?out={text}&err=")).await.unwrap().status, 200);
    }
    assert!(cluster.status()["totals"]["lines_dropped"].as_u64() > Some(0));
    cluster.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0), "it stops although its output is stuck");
    drop(reader);
}

/// A guest that floods its output keeps nobody from being heard, whether lines of it are lost or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_drowns_nobody() {
    let cluster = Setup::new(&guest("scenarios")).start();
    let address = cluster.address();
    let flood = tokio::spawn(async move { get(address, "/flood?lines=200000").await });
    let mut said = 0;
    while !flood.is_finished() {
        said += 1;
        assert_eq!(get(address, &format!("/print?out=&err=sibling-{said}-")).await.unwrap().status, 200);
    }
    assert_eq!(flood.await.unwrap().unwrap().status, 200);
    let dropped = cluster.status()["totals"]["lines_dropped"].as_u64().unwrap();
    until("the pipes are empty", || {
        let flooded = cluster.stdout.lines().iter().filter(|line| line.ends_with("flood")).count() as u64;
        (flooded + dropped >= 200_000).then_some(())
    });
    // Those that shared the worker with the flood, and its pipe, may have been lost with it; the others were not.
    let other = cluster.stderr.lines().iter().filter(|line| line.contains("sibling-")).count();
    println!("{dropped} lines of the flood were dropped; {other} of {said} others came through");
    assert!(other > 0);
    // Whole lines, each with its worker: nothing is mixed within a line.
    assert!(
        cluster.stdout.lines().iter().all(|line| line.starts_with("[worker ") && line.matches("[worker").count() == 1)
    );
}
