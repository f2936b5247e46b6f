//! gRPC's own client for Python calls the service of `examples/grpc`, over HTTP/2 in clear text.

use std::process::Command;

use harness::{Setup, guest, root, until};

/// For all checks together. Each of their calls has a bound of its own.
const SECONDS: &str = "300";

fn grpc_is_served(name: &str) {
    let cluster = Setup::new(&guest(name)).start();
    let mut client = Command::new("timeout");
    client.arg(SECONDS).arg(root().join("scripts/grpc-client")).arg(cluster.address().to_string());
    let client = client.output().expect("it starts");
    let said = String::from_utf8_lossy(&client.stdout);
    print!("{said}");
    let errors = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{}\n{said}\n{errors}", client.status);
    if said.starts_with("skipped: ") {
        return;
    }
    // Also of the calls that the client has cancelled, or whose deadline has passed.
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
    grpc_is_served("grpc");
}

#[test]
fn grpc_is_served_by_a_guest_of_wasi_0_3() {
    grpc_is_served("grpc-p3");
}
