//! What is written down of a cluster, on a disk that is full and on one that hangs: nobody waits for it, whoever deploys is
//! told, and what was written before is left as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

use harness::client::get;
use harness::{Cluster, Ended, Setup, guest, until};

const AT_ONCE: [&str; 4] = ["--min-ready", "0s", "--soak", "0s"];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn hello() -> Setup {
    Setup::new(&guest("hello")).workers(1).args(&AT_ONCE)
}

/// Deploys a guest, which is served although it cannot be written down.
#[track_caller]
fn deployed_unsaved(cluster: &Cluster, name: &str, generation: u64, why: &str) -> Ended {
    let ended = cluster.command(&["reload", text(&guest(name))]);
    assert_eq!(ended.code, Some(8), "{ended:?}");
    for part in [&format!("generation {generation} is served, but"), "--resume", "state folder", why] {
        assert!(ended.stderr.contains(part), "expected {part:?} in: {}", ended.stderr);
    }
    let status = cluster.status();
    assert_eq!((&status["generation"]["current"], &status["state"]), (&generation.into(), &"running".into()));
    assert_eq!(status["last_reload"]["result"], "committed_unsaved");
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_a_full_disk_does_not_take_says_so_and_the_old_state_is_intact() {
    let mount = "set -e; mkdir state; mount -t tmpfs -o size=64k,mode=700 none state";
    let before = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
    let folder = tempfile::tempdir().unwrap();
    let mut tried = Command::new(before[0]);
    tried.args(&before[1..]).arg(mount).current_dir(folder.path());
    if !tried.output().is_ok_and(|tried| tried.status.success()) {
        println!("skipped: there can be no small disk for one process");
        return;
    }
    let setup = hello().args(&["--state-dir", "state", "--resume"]);
    let cluster = setup.behind(&before, &format!("{mount}; exec \"$@\"")).start();
    // What only the cluster sees.
    let state = PathBuf::from(format!("/proc/{}/cwd/state", cluster.pid()));
    let committed = || -> Option<Value> { serde_json::from_slice(&fs::read(state.join("default.json")).ok()?).ok() };
    let first = until("the first version is written down", committed);
    assert_eq!(first["generation"], 1);

    let filled = fs::write(state.join("filler"), vec![0; 1024 * 1024]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    deployed_unsaved(&cluster, "whoami", 2, "No space left");
    let json = cluster.command(&["rollback", "--json"]);
    assert_eq!(json.code, Some(8), "{json:?}");
    assert!(json.stdout.contains("\"result\":\"committed_unsaved\""), "{json:?}");
    assert_eq!(committed(), Some(first), "the old state is as it was");
    let left = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, ["default.json", "default.lock", "filler"], "no half of a file is left");

    // It is tried again by itself.
    fs::remove_file(state.join("filler")).unwrap();
    let result = || (cluster.status()["last_reload"]["result"] == "committed").then_some(());
    until("it is written down", result);
    cluster.stderr.find("generation 3 is saved now");
    assert_eq!(committed().unwrap()["generation"], 3);
    let told = cluster.stderr.lines().iter().filter(|line| line.contains("so --resume would not start it")).count();
    assert_eq!(told, 1, "it is said once, however often it is tried");
}

/// What was compiled is served, though it has no place in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_keeps_nobody_from_serving() {
    let mount = "set -e; mkdir store; mount -t tmpfs -o size=64k,mode=700 none store";
    let before = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
    let folder = tempfile::tempdir().unwrap();
    let tried = Command::new(before[0]).args(&before[1..]).arg(mount).current_dir(folder.path()).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return println!("skipped: there can be no small disk for one process");
    }
    let socket = folder.path().join("http");
    let listen = format!("unix:{}", socket.display());
    let setup = hello().args(&["--store", "store", "--listen", &listen]);
    let cluster = setup.behind(&before, &format!("{mount}; exec \"$@\"")).start();
    cluster.stderr.find("every start compiles it again");
    assert_eq!(cluster.command(&["reload", text(&guest("whoami"))]).code, Some(0));
    assert_eq!(cluster.status()["generation"]["current"], 2);
}

/// Whoever can read a store can lock its files.
#[test]
fn a_locked_entry_of_the_store_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let setup = Setup::bare(&["compile", text(&guest("hello")), "-o", text(&store)]);
    assert_eq!(setup.run().code, Some(0));
    let entry = fs::read_dir(&store).unwrap().next().unwrap().unwrap().path();
    let manifest = fs::File::open(entry.join("manifest.json")).unwrap();
    manifest.lock().unwrap();
    let cluster = hello().args(&["--store", text(&store)]).start();
    assert_eq!(cluster.command(&["reload"]).code, Some(0));
}

/// The exit code is that of the change, whoever reads what is said of it.
#[test]
fn a_change_is_made_although_nobody_can_be_told() {
    let cluster = hello().start();
    let told_nobody = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasmcluster"));
        command.args(args).env("XDG_RUNTIME_DIR", cluster.folder.path()).env_remove("WASMCLUSTER_CONTROL");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        command.stdout(full).status().unwrap().code()
    };
    for args in [
        &["reload", text(&guest("whoami"))][..],
        &["reload", "--json"],
        &["rollback"],
        &["scale", "2"],
        &["config", "set", "wasmcluster.log-level=debug"],
    ] {
        assert_eq!(told_nobody(args), Some(0), "{args:?}");
    }
}

/// A thread that is stopped is as one that waits for a disk.
struct Stopped(Pid);

impl Stopped {
    /// The thread `name` of a process, if it is one that may be traced here.
    fn thread(process: Pid, name: &str) -> Option<Self> {
        let thread = until("the thread is there", || {
            let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
            let mut named = threads.filter(|thread| {
                fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
            });
            named.next()?.file_name().to_str()?.parse().ok()
        });
        let thread = Pid::from_raw(thread);
        if let Err(errno) = ptrace::seize(thread, ptrace::Options::empty()) {
            println!("skipped: a thread cannot be stopped here ({errno})");
            return None;
        }
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Some(Self(thread))
    }

    /// To be called once its process ends: until then, and not for longer, it is ours to wait for.
    fn ended(self) {
        waitpid(self.0, Some(WaitPidFlag::__WALL)).unwrap();
    }
}

/// Whoever stops a thread must be the one thread that asks of it.
#[tokio::test]
async fn a_state_folder_that_hangs_holds_up_nobody() {
    let cluster = hello().args(&["--state-dir", "state"]).start();
    let state = cluster.folder.path().join("state/default.json");
    until("the first version is written down", || state.exists().then_some(()));
    let Some(stopped) = Stopped::thread(cluster.pid(), "state") else { return };
    let before = fs::read(&state).unwrap();
    deployed_unsaved(&cluster, "whoami", 2, "writing did not finish within 5s");
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    // Nor does the next have to wait for the last.
    assert_eq!(cluster.command(&["scale", "2"]).code, Some(0));
    deployed_unsaved(&cluster, "hello", 3, "writing did not finish within 5s");
    assert_eq!(fs::read(&state).unwrap(), before);
    cluster.signal(Signal::SIGTERM);
    stopped.ended();
    assert!(cluster.wait().success());
    cluster.stderr.find("stopped");
}

/// A pipe that nobody writes to stands for a file on a disk that hangs.
#[test]
fn a_state_that_cannot_be_read_at_the_start_holds_up_no_command() {
    enum End {
        Command,
        Signal,
        ByItself,
    }
    for end in [End::Command, End::Signal, End::ByItself] {
        let setup = hello();
        let state = setup.folder.path().join("state");
        fs::create_dir(&state).unwrap();
        mkfifo(&state.join("default.json"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let cluster = setup.args(&["--state-dir", "state", "--resume"]).launch();
        let doing = until("it answers", || {
            let ended = cluster.command(&["status", "--json"]);
            let status = serde_json::from_str::<Value>(&ended.stdout).ok()?;
            (status["starting"]["doing"] == "reading its state").then_some(status)
        });
        assert_eq!(doing["state"], "starting", "{doing}");
        match end {
            End::Command => assert_eq!(cluster.command(&["stop"]).code, Some(0)),
            End::Signal => cluster.signal(Signal::SIGTERM),
            End::ByItself => {
                cluster.stderr.find("did not answer within 30s; repair its file system");
                assert_eq!(cluster.wait().code(), Some(1));
                continue;
            }
        }
        assert!(cluster.wait().success());
    }
}
