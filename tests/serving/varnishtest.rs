//! The scripts of `tests/conformance/vtc`, which Varnish's test program plays against a cluster of ours.

use std::path::PathBuf;

use harness::tools::Tool;
use harness::{Cluster, Setup, guest, root};

/// How long a script may take, in seconds.
const PATIENCE: &str = "60";
/// Scripts that are played at the same time. Most wait.
const JOBS: &str = "8";

/// What a client of HTTP/2 begins with. It waits for the server's first frames, whose order would be open otherwise.
const GREETING: &str = "txpri
stream 0 {
    rxsettings
    rxwinup
    txsettings
    rxsettings
    expect settings.ack == true
    txsettings -ack
} -run
";

/// An address as varnishtest has them.
fn address(cluster: &Cluster) -> String {
    cluster.address().to_string().replace(':', " ")
}

fn plays(folder: &str, at_least: usize) {
    let Some(varnishtest) = Tool::find("varnishtest") else { return println!("skipped: there is no varnishtest") };
    for name in ["hostile_p2", "hostile_p3"] {
        plays_against(name, &varnishtest, folder, at_least);
    }
}

fn plays_against(name: &str, varnishtest: &Tool, folder: &str, at_least: usize) {
    let limits = ["--header-timeout", "2s", "--max-header-bytes", "8KiB", "--max-headers", "20", "--max-body", "1MiB"];
    let server = Setup::new(&guest(name)).args(&limits).start();
    let sdk = Setup::new(&guest("sdk")).start();
    let scripts = std::fs::read_dir(root().join("tests/conformance/vtc").join(folder)).unwrap();
    let scripts: Vec<PathBuf> = scripts.map(|entry| entry.unwrap().path()).collect();
    assert!(scripts.len() >= at_least, "{}", scripts.len());
    let macros =
        [format!("server={}", address(&server)), format!("sdk={}", address(&sdk)), format!("greeting={GREETING}")];
    let flags = ["-k", "-q", "-j", JOBS, "-t", PATIENCE].into_iter();
    let macros = macros.iter().flat_map(|it| ["-D", it]);
    let ended = varnishtest.run(flags.chain(macros).chain(scripts.iter().map(|path| path.to_str().unwrap())));
    let said = ended.stdout + &ended.stderr;
    let passed = format!("0 tests failed, 0 tests skipped, {} tests passed", scripts.len());
    assert!(ended.code == Some(0) && said.contains(&passed), "{name}: {said}");
    for cluster in [server, sdk] {
        let totals = &cluster.status()["totals"];
        assert_eq!((&totals["crashes"], &totals["traps"], &totals["errors"]), (&0.into(), &0.into(), &0.into()));
    }
}

#[test]
fn varnishtest_is_content_with_http_1() {
    plays("http1", 15);
}

#[test]
fn varnishtest_is_content_with_http_2() {
    plays("http2", 10);
}
