//! Values for guests, which change while the cluster runs.

use std::path::Path;

use nix::sys::signal::{Signal, kill};

use harness::client::{Connection, get};
use harness::{Cluster, Setup, guest, until};

const AT_ONCE: [&str; 4] = ["--min-ready", "0s", "--soak", "0s"];

fn serve(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).args(&AT_ONCE).args(&["--max-instance-reuse-count", "1000"]).args(args).start()
}

#[track_caller]
fn command(cluster: &Cluster, args: &[&str]) -> String {
    let ended = cluster.command(&[&["config"], args].concat());
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    ended.stdout
}

async fn values(cluster: &Cluster) -> String {
    get(cluster.address(), "/config?").await.unwrap().text().trim_start_matches("None of ").to_owned()
}

/// When the command has returned, no request sees what was before it, whichever worker or instance it meets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_change_in_every_worker_at_once() {
    for (name, args) in [("sdk", &[][..]), ("sdk_p3", &[]), ("sdk_p3", &["--max-instance-concurrent-reuse-count", "8"])]
    {
        let cluster = serve(name, &[&["--set", "greeting=hello", "--set", "other=1"], args].concat());
        let mut connections = Vec::new();
        for _ in 0..8 {
            connections.push(Connection::open(cluster.address()).await);
        }
        for round in 0..20 {
            let expected = format!("Some(\"{round}\")");
            assert_eq!(command(&cluster, &["set", &format!("greeting={round}")]), format!("greeting={round}\n"));
            for connection in &mut connections {
                let answer = connection.get("/config?greeting").await.unwrap();
                assert!(answer.text().starts_with(&expected), "{name}: {}", answer.text());
            }
        }
        command(&cluster, &["unset", "greeting"]);
        for connection in &mut connections {
            assert_eq!(connection.get("/config?greeting").await.unwrap().text(), "None of {\"other\": \"1\"}");
        }
        let status = cluster.status();
        assert_eq!((&status["config"]["revision"], &status["config"]["values"]), (&21.into(), &1.into()));
    }
}

/// Nor does a request see two versions of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_keeps_the_values_that_it_started_with() {
    for (name, args) in [("sdk", &[][..]), ("sdk_p3", &["--max-instance-concurrent-reuse-count", "8"])] {
        let cluster = serve(name, &[&["--set", "key=old"], args].concat());
        let address = cluster.address();
        let running = tokio::spawn(async move { get(address, "/keeps-config?ms=1500").await.unwrap() });
        until("it runs", || {
            let status = cluster.status();
            let mut workers = status["workers"].as_array().unwrap().iter();
            workers.any(|worker| worker["in_flight"] == 1).then_some(())
        });
        command(&cluster, &["set", "key=new"]);
        assert_eq!(values(&cluster).await, "{\"key\": \"new\"}");
        assert_eq!(running.await.unwrap().text(), "{\"key\": \"old\"} {\"key\": \"old\"}", "{name}");
    }
}

/// Whatever a cluster goes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_values_outlive_workers_versions_and_the_primary() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, "[config]\ngreeting = \"hello\"\ngone = \"1\"\nkept = \"2\"\n").unwrap();
    let state = folder.path().join("state").display().to_string();
    let args = ["--config", file.to_str().unwrap(), "--state-dir", &state, "--set", "greeting=hi", "--resume"];
    let cluster = serve("sdk", &args);
    assert_eq!(values(&cluster).await, r#"{"gone": "1", "greeting": "hi", "kept": "2"}"#, "flags win");
    command(&cluster, &["set", "greeting=welcome", "new=3"]);
    command(&cluster, &["unset", "gone"]);
    let changed = r#"{"greeting": "welcome", "kept": "2", "new": "3"}"#;
    assert_eq!(values(&cluster).await, changed);

    let old = cluster.worker(0).unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    cluster.replaced(0, old);
    assert_eq!(cluster.command(&["scale", "1"]).code, Some(0));
    assert_eq!(values(&cluster).await, changed);
    assert_eq!(cluster.reload(&[Path::new(&guest("sdk_p3")).to_str().unwrap()]).code, Some(0));
    assert_eq!(values(&cluster).await, changed);
    assert_eq!(cluster.command(&["rollback"]).code, Some(0));
    assert_eq!(values(&cluster).await, changed);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    drop(cluster);

    // The file and the flags have changed meanwhile, for what was not changed otherwise.
    let args = ["--config", file.to_str().unwrap(), "--state-dir", &state, "--set", "kept=4", "--resume"];
    let cluster = serve("sdk", &args);
    assert_eq!(values(&cluster).await, r#"{"greeting": "welcome", "kept": "4", "new": "3"}"#);
    drop(cluster);
    let cluster = serve("sdk", &args[..args.len() - 1]);
    assert_eq!(values(&cluster).await, r#"{"gone": "1", "greeting": "hello", "kept": "4"}"#, "without --resume");
}

#[test]
fn wrong_changes_change_nothing() {
    let cluster = serve("sdk", &["--set", "key=value"]);
    let all = command(&cluster, &["get"]);
    assert_eq!(all, "key=value\nwasmcluster.log-level=info\n");
    for (args, said) in [
        (&["set", "key=other", "wasmcluster.loglevel=debug"][..], "there is only wasmcluster.log-level"),
        (&["set", "key=other", "=x"], "the key is empty"),
        (&["unset", "key", "none"], "\"none\" is not set"),
        (&["unset", "wasmcluster.log-level"], "always has a value"),
        (&["get", "none"], "\"none\" is not set"),
        (&["set", "key"], "expected KEY=VALUE"),
    ] {
        let ended = cluster.command(&[&["config"], args].concat());
        assert!(ended.code != Some(0) && ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(command(&cluster, &["get"]), all);
    for (flag, said) in
        [("key", "expected KEY=VALUE"), ("wasmcluster.x=1", "the server's own"), ("=1", "the key is empty")]
    {
        let refused = Setup::bare(&["serve", "app.wasm", "--set", flag]).run();
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{flag}: {}", refused.stderr);
    }
}
