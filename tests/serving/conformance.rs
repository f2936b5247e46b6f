//! The cases of `tests/conformance`, which hold a server to RFC 9113 frame by frame.

use std::process::Command;

use harness::{Setup, guest, root};

fn conforms(name: &str) {
    let cluster = Setup::new(&guest(name)).args(&["--header-timeout", "2s"]).start();
    let ended = Command::new(root().join("scripts/conformance"))
        .args(["http2", &cluster.address().to_string(), "--routes", "hostile", "--header-timeout", "2", "--verbose"])
        .args(["--known", "tests/conformance/known-h2.txt"])
        .output()
        .unwrap();
    let (said, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    // Without what it needs it says `skipped:` and why.
    println!("{name}: {}", said.lines().last().unwrap_or_default());
    assert!(ended.status.success() && !said.contains("no route for"), "{said}{errors}");
    let totals = &cluster.status()["totals"];
    assert_eq!((&totals["crashes"], &totals["traps"]), (&0.into(), &0.into()));
}

#[test]
fn http_2_is_spoken_as_the_rfc_has_it() {
    conforms("hostile_p2");
}

#[test]
fn http_2_is_spoken_as_the_rfc_has_it_by_wasi_0_3() {
    conforms("hostile_p3");
}
