//! A component is compiled once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use harness::client::get;
use harness::{Cluster, Setup, guest};

/// Whether a start compiled the component, by its own log.
#[track_caller]
fn compiled(cluster: &Cluster) -> bool {
    let line = cluster.stderr.find("the component is compiled");
    assert!(line.contains("cached=true") || line.contains("cached=false"), "{line}");
    line.contains("cached=false")
}

fn entries(store: &Path) -> Vec<PathBuf> {
    fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn setup(store: &Path) -> Setup {
    Setup::new(&guest("hello")).args(&["--log-level", "debug", "--store", store.to_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_compiles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let first = setup(&store).start();
    assert!(compiled(&first));
    assert_eq!(fs::metadata(&store).unwrap().mode() & 0o777, 0o700);
    let [entry] = &entries(&store)[..] else { panic!("one entry") };
    let artifact = fs::metadata(entry.join("component.cwasm")).unwrap();

    let second = setup(&store).start();
    assert!(!compiled(&second));
    let again = fs::metadata(entry.join("component.cwasm")).unwrap();
    assert_eq!((artifact.ino(), artifact.mtime_nsec()), (again.ino(), again.mtime_nsec()), "it was not written again");
    assert_eq!(get(second.address(), "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_does_not_need_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let cluster = setup(&store).workers(1).start();
    fs::remove_dir_all(&store).unwrap();
    let killed = cluster.worker(0).unwrap();
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.replaced(0, killed);
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_that_start_at_once_do_not_trip_over_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let clusters: Vec<Cluster> = (0..4).map(|_| setup(&store).workers(1).launch()).collect();
    for cluster in &clusters {
        cluster.stderr.find("Serving HTTP on");
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
    assert_eq!(entries(&store).len(), 1, "no draft is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_artifact_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    drop(setup(&store).start());
    let [entry] = &entries(&store)[..] else { panic!("one entry") };
    let artifact = entry.join("component.cwasm");
    let mut bytes = fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&artifact, bytes).unwrap();
    let cluster = setup(&store).start();
    assert!(compiled(&cluster));
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
}

/// Also when a cluster reloads. Its workers map the file that was there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_that_was_cut_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let serve = || setup(&store).args(&["--min-ready", "0s", "--soak", "0s"]).start();
    let cut = |percent: usize| {
        let [entry] = &entries(&store)[..] else { panic!("one entry") };
        let artifact = entry.join("component.cwasm");
        let whole = fs::read(&artifact).unwrap();
        fs::remove_file(&artifact).unwrap();
        fs::write(&artifact, &whole[..whole.len() * percent / 100]).unwrap();
    };
    drop(serve());
    cut(99);
    let cluster = serve();
    for percent in [99, 50, 0] {
        cut(percent);
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
        let reloaded = cluster.command(&["reload"]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    }
}
