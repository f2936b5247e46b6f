//! What a component does before its first request: done once, when it is compiled, or by each instance, and never wrongly.

use std::path::Path;

use serde_json::Value;

use harness::client::get;
use harness::{Cluster, Ended, Setup, guest};

/// Every request gets an instance of its own.
const FRESH: [&str; 2] = ["--max-instance-reuse-count", "1"];
const QUICK: [&str; 6] = ["--min-ready", "0s", "--soak", "0s", "--drain-idle-grace", "100ms"];
const REFUSED: &str = "instances do not start from a snapshot: while it initializes, it calls wasi:cli/environment@";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bare(args: &[&str]) -> Ended {
    Setup::bare(args).run()
}

/// Whether something was prepared, and the hash of a word, of a few requests.
async fn starts(cluster: &Cluster) -> [String; 3] {
    let one = async || get(cluster.address(), "/start").await.unwrap().text().to_owned();
    [one().await, one().await, one().await]
}

/// The keys of a hash table are drawn once, when the component is compiled: all instances have the same, and those of
/// another compilation have others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_start_from_a_snapshot() {
    for name in ["sdk-axum", "sdk-axum-p3"] {
        let serve = |more: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            let store = folder.path().join("store");
            let setup = Setup::new(&guest(name)).args(&FRESH).args(&QUICK).args(&["--store", text(&store)]);
            (setup.workers(2).args(more).start(), folder)
        };
        let [(first, _one), (second, _two), (without, _three)] = [serve(&[]), serve(&[]), serve(&["--no-snapshot"])];
        let [first, second, without] = [&first, &second, &without].map(starts);
        let (first, second, without) = tokio::join!(first, second, without);
        assert!(first[0].starts_with("true "), "{name}: {first:?}");
        assert!(first[0] == first[1] && first[1] == first[2], "{name}: {first:?}");
        assert!(second[0] == second[1] && second[0] != first[0], "{name}: {second:?}");
        assert!(without[0].starts_with("false ") && without[0] != without[1], "{name}: {without:?}");
    }
}

/// A reload starts where the component does, with the settings of the file then; a rollback brings both back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_the_snapshot_or_leaves_it() {
    let setup = Setup::new(&guest("sdk-axum")).args(&FRESH).args(&QUICK);
    let file = setup.folder.path().join("wasmcluster.toml");
    std::fs::write(&file, "").unwrap();
    let cluster = setup.start();
    let before = starts(&cluster).await;
    std::fs::write(&file, "no-snapshot = true\n").unwrap();
    let dry = cluster.reload(&["--dry-run"]);
    assert!(dry.stdout.contains("no-snapshot"), "{dry:?}");
    assert_eq!(cluster.reload(&[]).code, Some(0));
    assert!(starts(&cluster).await[0].starts_with("false "));
    assert_eq!(cluster.command(&["rollback"]).code, Some(0));
    assert_eq!(starts(&cluster).await, before);
}

/// Without a host there is nobody to ask: it is served as it is, and that is said, each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_asks_too_early_is_served_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let serve = || {
        let setup = Setup::new(&guest("asks-early")).args(&QUICK).args(&["--store", text(folder.path())]);
        setup.args(&["--env", "GREETING=good morning"]).start()
    };
    // The second time, its native code is in the store.
    for _ in 0..2 {
        let cluster = serve();
        cluster.stderr.find(REFUSED);
        assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "good morning");
    }
}

#[test]
fn commands_tell_whether_there_is_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let [routes, early, hello] = ["axum-routes", "asks-early", "hello"].map(guest);
    let compile = |app: &Path, more: &[&str]| {
        let ended = bare(&[&["compile", text(app), "-o", text(folder.path())], more].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout
    };
    for _ in 0..2 {
        let taken = compile(&routes, &[]);
        assert!(taken.trim_end().ends_with("\nInstances start from a snapshot"), "{taken}");
        let refused = compile(&early, &[]);
        assert!(refused.contains(&REFUSED.replace("instances", "\nInstances")), "{refused}");
    }
    for (app, more) in [(&hello, &[][..]), (&routes, &["--no-snapshot"])] {
        let compiled = compile(app, more);
        assert!(!compiled.contains("snapshot"), "{compiled}");
    }

    let inspect = |app: &Path, more: &[&str]| {
        let people = bare(&[&["inspect", text(app)], more].concat()).stdout;
        let machines = bare(&[&["inspect", text(app), "--json"], more].concat()).stdout;
        (people, serde_json::from_str::<Value>(&machines).unwrap())
    };
    let (people, json) = inspect(&routes, &[]);
    assert!(people.contains("\nits instances start from a snapshot\n"), "{people}");
    assert_eq!((&json["snapshot"], &json["snapshot_refusal"]), (&true.into(), &Value::Null));
    let (people, json) = inspect(&early, &[]);
    assert!(people.contains(&format!("\nits {REFUSED}")), "{people}");
    assert_eq!(json["snapshot"], false);
    assert!(json["snapshot_refusal"].as_str().unwrap().contains("wasi:cli/environment@"), "{json}");
    for (app, more) in [(&hello, &[][..]), (&routes, &["--no-snapshot"])] {
        let (people, json) = inspect(app, more);
        assert!(!people.contains("snapshot"), "{people}");
        assert_eq!((&json["snapshot"], &json["snapshot_refusal"]), (&Value::Null, &Value::Null));
    }
}

/// Workers are not told of snapshots: what a new version's instances start from is tried as all of it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_snapshot_does_not_get_past_the_gate() {
    let health = ["--health-path", "/"];
    let cluster = Setup::new(&guest("hello")).args(&QUICK).args(&health).start();
    let bad = guest("breaks-early");
    let reloaded = cluster.reload(&[text(&bad)]);
    assert_eq!(reloaded.code, Some(4), "{reloaded:?}");
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "Hello from wasmcluster!\n");
    // The component itself is good.
    let cluster = Setup::new(&bad).args(&QUICK).args(&health).args(&["--no-snapshot"]).start();
    assert_eq!(get(cluster.address(), "/").await.unwrap().text(), "whole");
}
