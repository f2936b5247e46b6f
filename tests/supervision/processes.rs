//! Processes: whatever ends one is noticed, whatever starts one starts it clean, and the primary waits for nobody.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{FlowArg, tcflow};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use harness::client::get;
use harness::{Cluster, Setup, fixture, guest, until};

/// Signals that a worker does not mind: what terminals send, and what does nothing unless it is asked for.
const HARMLESS: [libc::c_int; 13] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    // What it wakes its own threads by.
    libc::SIGUSR1,
    // What libc keeps for itself, and ignores from elsewhere.
    33,
    // It ignores this, as Rust programs do.
    libc::SIGPIPE,
];

const FAULTS: [libc::c_int; 4] = [libc::SIGILL, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV];

/// Of any number, real-time ones included.
fn send(pid: Pid, signal: libc::c_int) {
    // SAFETY: a signal for a process that this test started. It may be gone by now.
    unsafe { libc::kill(pid.as_raw(), signal) };
}

fn worker_pids(cluster: &Cluster) -> BTreeSet<i64> {
    cluster.ready().into_iter().collect()
}

#[test]
fn whatever_signal_ends_a_worker_it_is_replaced() {
    let cluster = Setup::new(&guest("hello")).workers(4).args(&["--hang-timeout", "2s"]).start();
    let pid = |worker: i64| Pid::from_raw(worker as i32);
    let before = worker_pids(&cluster);
    for signal in HARMLESS {
        before.iter().for_each(|&worker| send(pid(worker), signal));
    }
    let deadly: Vec<libc::c_int> = (1..=64).filter(|signal| !HARMLESS.contains(signal)).collect();
    for signals in deadly.chunks(4) {
        let now = until("four are ready", || Some(worker_pids(&cluster)).filter(|ready| ready.len() == 4));
        assert!(signals[0] != deadly[0] || now == before, "a harmless signal ended a worker");
        now.iter().zip(signals).for_each(|(&worker, &signal)| send(pid(worker), signal));
        let sent: Vec<i64> = now.into_iter().take(signals.len()).collect();
        until(&format!("workers are replaced after {signals:?}"), || {
            let ready = worker_pids(&cluster);
            // The engine looks at the first fault, finds that it is no guest's, and leaves the next to the default.
            let again =
                sent.iter().zip(signals).filter(|(worker, signal)| FAULTS.contains(signal) && ready.contains(worker));
            again.for_each(|(&worker, &signal)| send(pid(worker), signal));
            (ready.len() == 4 && sent.iter().all(|worker| !ready.contains(worker))).then_some(())
        });
    }
    let logged = cluster.stderr.lines();
    for (signal, name) in [(35, "signal 35"), (libc::SIGUSR2, "SIGUSR2"), (64, "signal 64")] {
        let told = logged.iter().any(|line| line.contains(&format!("was killed by {name}")));
        assert!(told, "signal {signal} is not told: {logged:#?}");
    }
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}

#[test]
fn signals_that_mean_nothing_do_not_end_the_primary() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let worker = cluster.ready();
    let ends = [libc::SIGINT, libc::SIGQUIT, libc::SIGKILL, libc::SIGTERM];
    let faults = [libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV, libc::SIGSYS];
    // These stop it, reload, or change the number of workers.
    let others = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGHUP, libc::SIGUSR2, libc::SIGTTIN, libc::SIGTTOU];
    for signal in 1..=64 {
        if !ends.contains(&signal) && !faults.contains(&signal) && !others.contains(&signal) {
            send(cluster.pid(), signal);
        }
    }
    assert_eq!(cluster.ready(), worker);
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}

/// A process that the test puts into another's process group, as a child of that one would be.
struct Stray(Child);

impl Stray {
    fn beside(leader: Pid) -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").process_group(leader.as_raw()).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn is_gone(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        // It is gone already, or must not stay.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_worker_started_dies_with_it() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let worker = cluster.worker(0).unwrap();
    let mut stray = Stray::beside(worker);
    kill(worker, Signal::SIGKILL).unwrap();
    cluster.replaced(0, worker);
    until("its child is gone", || stray.is_gone().then_some(()));
}

/// A component that never starts in the workers from the third on: they are given up after five seconds.
fn starts_in_two(folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(fixture("fails-for-a-while.wat")).unwrap();
    let [from, to] = ["(i64.const 3)) (then unreachable)", "(i64.const 1000)) (then (loop (br 0)))"];
    assert!(text.contains(from));
    let path = folder.join("starts-in-two.wat");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_not_whole_serves_and_can_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let broken = starts_in_two(folder.path());
    // With the third worker still starting, it serves already; and is announced when that one has failed.
    let cluster = Setup::new(&broken).workers(3).args(&["--request-timeout", "1s", "--soak", "0s"]).launch();
    let ended = cluster.command(&["status", "--wait-ready", "60s"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    cluster.stderr.find("Serving HTTP on ");
    // It has no answers; that it has none is the worker's answer.
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 500);
    until("it is degraded", || (cluster.status()["state"] == "degraded").then_some(()));
    assert_eq!(cluster.status()["degraded"], true);
    assert_eq!(cluster.ready().len(), 2);
    // A reload of a fix makes it whole.
    let ended = cluster.command(&["reload", guest("hello").to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    until("it is whole", || (cluster.status()["state"] == "running" && cluster.ready().len() == 3).then_some(()));
    assert_eq!(get(cluster.address(), "/").await.unwrap().status, 200);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
}

/// A control group whose processes do not even die of SIGKILL while it is frozen: version 1 of the interface can do that.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Option<Self> {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/freezer/wasmcluster-test-{}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        Some(Self(folder))
    }

    fn set(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // The folder can be removed when its processes are gone; none must stay frozen.
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        until("the group is empty", || std::fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_worker_that_cannot_die_is_replaced_and_not_waited_for() {
    let Some(freezer) = Freezer::new() else {
        return println!("skipped: there is no freezer of control groups, version 1, that this user may use");
    };
    let cluster = Setup::new(&guest("hello")).workers(1).args(&["--hang-timeout", "2s"]).start();
    let stuck = cluster.worker(0).unwrap();
    freezer.set("cgroup.procs", &stuck.to_string());
    freezer.set("freezer.state", "FROZEN");
    cluster.stderr.find("a worker does not die of SIGKILL");
    cluster.replaced(0, stuck);
    let status = cluster.status();
    let states: Vec<&str> =
        status["workers"].as_array().unwrap().iter().filter_map(|it| it["state"].as_str()).collect();
    assert_eq!(states, ["unkillable", "ready"], "{status}");
    // It has no part in what is asked of all workers.
    for args in [&["config", "set", "wasmcluster.log-level=debug"][..], &["scale", "2"]] {
        let ended = cluster.command(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    }
    cluster.signal(Signal::SIGTERM);
    until("the primary does not wait for it", || cluster.has_exited().then_some(()));
    cluster.stderr.find(&format!("which are left behind: process {stuck}."));
    drop(freezer);
    assert_eq!(cluster.wait().code(), Some(0));
}

/// A terminal that takes nothing any more: Ctrl-S was pressed.
#[test]
fn a_terminal_that_takes_nothing_holds_up_nobody() {
    let terminal = openpty(None, None).unwrap();
    tcflow(&terminal.slave, FlowArg::TCOOFF).unwrap();
    let mut setup = Setup::new(&guest("hello")).workers(1);
    setup.command.stderr(terminal.slave);
    let cluster = setup.launch();
    assert_eq!(cluster.command(&["status", "--wait-ready", "60s"]).code, Some(0));
    let ended = cluster.command(&["reload", "--force"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}

/// As under a service manager, which starts it anew only when it has ended.
#[test]
fn a_start_that_fails_ends_although_its_terminal_takes_nothing() {
    let terminal = openpty(None, None).unwrap();
    tcflow(&terminal.slave, FlowArg::TCOOFF).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app.wasm");
    std::fs::write(&app, "no component").unwrap();
    let mut setup = Setup::new(&app).workers(1);
    setup.command.stderr(terminal.slave);
    assert_eq!(setup.launch().wait().code(), Some(1));
}

#[test]
fn a_folder_is_served_although_the_terminal_takes_nothing() {
    let terminal = openpty(None, None).unwrap();
    tcflow(&terminal.slave, FlowArg::TCOOFF).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let recipe = format!("[build]\ncommand = \"cp {} app.wasm\"\ncomponent = \"app.wasm\"\n", guest("hello").display());
    std::fs::write(folder.path().join("wasmcluster.toml"), recipe).unwrap();
    let mut setup = Setup::new(folder.path()).workers(1);
    setup.command.stderr(terminal.slave);
    let cluster = setup.launch();
    assert_eq!(cluster.command(&["status", "--wait-ready", "60s"]).code, Some(0));
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}

/// Nobody answers its questions, in a network of its own.
#[test]
fn a_name_server_that_is_silent_holds_up_no_command() {
    let script = "set -e; ip link set lo up; ip route add 192.0.2.53/32 dev lo; \
                  echo 'nameserver 192.0.2.53' > resolv; echo 'options timeout:30 attempts:2' >> resolv; \
                  mount --bind resolv /etc/resolv.conf";
    let before = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c"];
    let folder = tempfile::tempdir().unwrap();
    let tried = Command::new(before[0]).args(&before[1..]).arg(script).current_dir(folder.path()).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return println!("skipped: there can be no network namespace");
    }
    let setup = Setup::new(&guest("hello")).workers(1).args(&["--listen", "silent.test:0"]);
    let cluster = setup.behind(&before, &format!("{script}; exec \"$@\"")).launch();
    until("it looks up the name", || {
        let status: Value = serde_json::from_str(&cluster.command(&["status", "--json"]).stdout).ok()?;
        (status["starting"]["doing"] == "binding its addresses").then_some(())
    });
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(cluster.wait().code(), Some(0));
}

/// All that it has in the queue of the moment comes before anybody is found to be late.
#[test]
fn workers_are_not_blamed_for_a_primary_that_is_late() {
    let cluster = Setup::new(&guest("hello")).workers(3).start();
    let workers = cluster.ready();
    let all = |signal: libc::c_int| workers.iter().for_each(|&worker| send(Pid::from_raw(worker as i32), signal));
    all(libc::SIGSTOP);
    let set = cluster.follow(&["config", "set", "wasmcluster.log-level=debug"]);
    until("the change is under way", || (cluster.status()["state"] == "running").then_some(()));
    cluster.signal(Signal::SIGSTOP);
    all(libc::SIGCONT);
    // Longer than a worker has to confirm it, as when a machine is paused.
    std::thread::sleep(std::time::Duration::from_secs(4));
    cluster.signal(Signal::SIGCONT);
    assert_eq!(set.wait().code(), Some(0));
    assert_eq!(cluster.ready(), workers);
    // Nor while it is busy with starting others.
    let set = cluster.follow(&["config", "set", "wasmcluster.log-level=info"]);
    assert_eq!(cluster.command(&["scale", "40"]).code, Some(0));
    assert_eq!(set.wait().code(), Some(0));
    assert!(workers.iter().all(|worker| cluster.ready().contains(worker)));
}

#[test]
fn children_are_started_after_the_limit_on_files_was_lowered() {
    let cluster = Setup::new(&guest("hello")).workers(1).start();
    let lower = libc::rlimit { rlim_cur: 512, rlim_max: 512 };
    // SAFETY: the kernel reads the limits of a process that this test started, and writes nothing back.
    let set = unsafe { libc::prlimit(cluster.pid().as_raw(), libc::RLIMIT_NOFILE, &lower, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let worker = cluster.worker(0).unwrap();
    send(worker, libc::SIGKILL);
    cluster.replaced(0, worker);
}

/// What the cluster says that it is doing, before it serves.
fn doing(cluster: &Cluster) -> Option<String> {
    let ended = cluster.command(&["status", "--json"]);
    let status: Value = serde_json::from_str(&ended.stdout).ok()?;
    assert_eq!(status["state"], "starting");
    status["starting"]["doing"].as_str().map(str::to_owned)
}

#[track_caller]
fn until_it_is(cluster: &Cluster, doing_this: &str) {
    until(&format!("it is {doing_this}"), || doing(cluster).filter(|it| it.starts_with(doing_this)));
}

/// A cluster whose compiler is stopped at its work.
fn compiling() -> (Cluster, Pid, TempDir) {
    until("a compiler is stopped before it has answered", || {
        let store = tempfile::tempdir().unwrap();
        let cluster = with_store(store.path()).launch();
        let compiler = until("there is a compiler", || {
            let is_compiler = |pid: &Pid| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                command.ends_with(b"\0compiler\0")
            };
            cluster.children().into_iter().find(is_compiler)
        });
        send(compiler, libc::SIGSTOP);
        let status = cluster.command(&["status"]).stdout;
        status.contains("compiling ").then_some((cluster, compiler, store))
    })
}

#[test]
fn a_first_build_is_told_and_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = "[build]\ncommand = \"echo $$ > pid; sleep 1000\"\ncomponent = \"app.wasm\"\n";
    std::fs::write(folder.path().join("wasmcluster.toml"), recipe).unwrap();
    let started = || {
        let cluster = Setup::new(folder.path()).workers(1).launch();
        until_it_is(&cluster, "building ");
        let pid =
            until("the build runs", || std::fs::read_to_string(folder.path().join("pid")).ok()?.trim().parse().ok());
        std::fs::remove_file(folder.path().join("pid")).unwrap();
        (cluster, Pid::from_raw(pid))
    };
    let (cluster, shell) = started();
    for refused in [&["reload"][..], &["scale", "2"], &["config", "set", "wasmcluster.log-level=debug"]] {
        let ended = cluster.command(refused);
        assert_eq!(ended.code, Some(6), "{ended:?}");
        assert!(ended.stderr.contains("still starting (building "), "{ended:?}");
    }
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
    until("the build is gone", || kill(shell, None).is_err().then_some(()));
    let (cluster, shell) = started();
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(cluster.wait().code(), Some(0));
    until("the build is gone", || kill(shell, None).is_err().then_some(()));
}

/// A store of its own, so that there is something to compile.
fn with_store(folder: &Path) -> Setup {
    Setup::new(&guest("hello")).workers(1).args(&["--store", folder.to_str().unwrap()])
}

#[test]
fn a_first_compilation_is_told_and_can_be_stopped() {
    let (cluster, compiler, _store) = compiling();
    until_it_is(&cluster, "compiling ");
    let told = cluster.stderr.find("Compiling ");
    assert!(told.ends_with("KiB)…"), "{told}");
    cluster.signal(Signal::SIGINT);
    assert_eq!(cluster.wait().code(), Some(0));
    until("the compiler is gone", || kill(compiler, None).is_err().then_some(()));
    // One that dies is told, by whatever signal.
    for (signal, said) in [
        (35, "the compiler was killed by signal 35"),
        (libc::SIGKILL, "the compiler was killed by SIGKILL, probably because memory ran out"),
    ] {
        let (cluster, compiler, _store) = compiling();
        send(compiler, signal);
        send(compiler, libc::SIGCONT);
        assert_eq!(cluster.wait().code(), Some(1));
        cluster.stderr.find(said);
    }
}

#[test]
fn workers_that_take_long_to_start_can_be_stopped() {
    let cluster = Setup::new(&fixture("spins-at-start.wat")).workers(1).launch();
    until_it_is(&cluster, "starting workers");
    assert_eq!(cluster.command(&["status", "--wait-ready", "0s"]).code, Some(1));
    cluster.signal(Signal::SIGTERM);
    assert_eq!(cluster.wait().code(), Some(0));
}

#[test]
fn process_1_is_stopped_in_every_phase() {
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let works = Command::new(unshare[0]).args(&unshare[1..]).arg("true").stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        return println!("skipped: `unshare` cannot make a pid namespace here");
    }
    let folder = tempfile::tempdir().unwrap();
    for serves in [false, true] {
        let mut setup = with_store(&folder.path().join("store"));
        let mut inside = Command::new(unshare[0]);
        inside.args(&unshare[1..]).arg(setup.command.get_program()).args(setup.command.get_args());
        inside.current_dir(setup.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        setup.command.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(inside.env(name, value)),
            None => drop(inside.env_remove(name)),
        });
        setup.command = inside;
        let cluster = setup.launch();
        let first = until("there is a process 1", || cluster.children().first().copied());
        if serves {
            cluster.stderr.find("Serving HTTP on ");
        } else {
            until_it_is(&cluster, "");
        }
        send(first, libc::SIGTERM);
        assert_eq!(cluster.wait().code(), Some(0));
    }
}
