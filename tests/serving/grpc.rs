//! gRPC's own client for Python calls the service of `examples/grpc`, over HTTP/2 in clear text and over TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use harness::tls::Authority;
use harness::{Cluster, Follower, Setup, guest, root, until};

/// For all checks together. Each call has a timeout of its own.
const SECONDS: &str = "300";

/// The client, which is killed if it takes too long.
fn client(address: SocketAddr) -> Command {
    let mut client = Command::new("timeout");
    // In the foreground, `timeout` passes SIGTERM on.
    client.args(["--foreground", SECONDS]).arg(root().join("scripts/grpc-client")).arg(address.to_string());
    client
}

/// Runs all checks, over TLS if `ca` is given.
#[track_caller]
fn check(cluster: &Cluster, address: SocketAddr, ca: Option<&Path>) {
    let mut client = client(address);
    if let Some(ca) = ca {
        client.arg("--ca").arg(ca);
    }
    let client = client.output().expect("it starts");
    let said = String::from_utf8_lossy(&client.stdout);
    print!("{said}");
    let errors = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{}\n{said}\n{errors}", client.status);
    if said.starts_with("skipped: ") {
        return;
    }
    // Not even on the calls that were cancelled, or whose deadline has passed.
    until("no guest is at work any more", || {
        let status = cluster.status();
        let mut workers = status["workers"].as_array().expect("a list").iter();
        workers.all(|worker| worker["in_flight"] == 0).then_some(())
    });
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["traps"], &totals["timeouts"]), (&0.into(), &0.into()), "{totals}");
}

#[test]
fn grpc_is_served_by_a_guest_of_wasi_0_2() {
    let cluster = Setup::new(&guest("grpc")).start();
    check(&cluster, cluster.address(), None);
}

#[test]
fn grpc_is_served_by_a_guest_of_wasi_0_3() {
    let cluster = Setup::new(&guest("grpc-p3")).start();
    check(&cluster, cluster.address(), None);
}

#[test]
fn grpc_is_served_over_tls() {
    let authority = Authority::new("tests");
    let setup = Setup::new(&guest("grpc")).args(&["--listen", "https://127.0.0.1:0"]);
    let ca = setup.folder.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let [cert, key] = authority.issue(&["127.0.0.1"]).write(setup.folder.path(), "pair");
    let pair = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let cluster = setup.args(&pair).start();
    check(&cluster, cluster.address_of(1), Some(&ca));
}

/// Streams that were begun before a reload end as if there were none, and new calls go to the new workers.
#[test]
fn grpc_calls_survive_reloads() {
    let cluster = Setup::new(&guest("grpc")).args(&["--min-ready", "0s", "--soak", "0s"]).start();
    let client = Follower::start(client(cluster.address()).arg("--load")).expect("it starts");
    let first = until("it calls", || client.stdout.lines().into_iter().next());
    if first.starts_with("skipped: ") {
        println!("{first}");
        return;
    }
    assert_eq!(first, "calling");
    for name in ["grpc-p3", "grpc"].into_iter().cycle().take(10) {
        let reloaded = cluster.reload(&[guest(name).to_str().unwrap()]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    }
    client.signal(Signal::SIGTERM);
    let status = client.wait();
    let said = until("its output ends", || client.stdout.ended().then(|| client.stdout.lines()));
    println!("{}", said.last().unwrap());
    assert!(status.success(), "{said:#?}");
}
