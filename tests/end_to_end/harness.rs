//! `Cluster`: the real binary, started for one test and gone with it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long a condition may take to become true. Far more than it ever needs: no test passes or fails by speed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A compiler leaves the processor to others: one of a large component, without optimisation, beside other tests.
const COMPILE_PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const ANNOUNCEMENT: &str = "Serving HTTP on ";

/// Whether it is the line that announces a listener, for people or as JSON.
fn announced(line: &str) -> bool {
    line.starts_with(ANNOUNCEMENT) || (line.starts_with('{') && line.contains(ANNOUNCEMENT))
}

/// The component of a guest crate in examples/ or tests/guests/.
pub(crate) fn guest(package: &str) -> PathBuf {
    guest_if_built(package).unwrap_or_else(|| panic!("the component of {package} is missing: run `make guests`"))
}

/// That of one whose tools not everybody has, if it is there.
pub(crate) fn guest_if_built(package: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target folder");
    let path = target.join("wasm32-wasip2/guest").join(format!("{}.wasm", package.replace('-', "_")));
    path.exists().then_some(path)
}

/// A file in tests/fixtures/.
pub(crate) fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ has a parent").into()
}

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

#[track_caller]
fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The command line of a cluster that is yet to be started.
pub(crate) struct Setup {
    pub(crate) command: Command,
    workers: Option<u32>,
    pub(crate) folder: TempDir,
}

impl Setup {
    /// `wasmcluster serve APP` on a free port, with two workers, a control socket of its own, and a store that all
    /// tests share.
    pub(crate) fn new(app: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasmcluster"));
        command
            .current_dir(folder.path())
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("XDG_STATE_HOME", folder.path())
            .env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
            .env_remove("WASMCLUSTER_CONTROL")
            // Those of a unit, should this run in one.
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("STATE_DIRECTORY")
            .env_remove("CACHE_DIRECTORY")
            .arg("serve")
            .arg(app)
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self { command, workers: Some(2), folder }
    }

    /// Without the flags that [`Setup::new`] gives.
    pub(crate) fn bare(args: &[&str]) -> Self {
        let setup = Self::new(Path::new("-"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasmcluster"));
        command.current_dir(setup.folder.path()).args(args);
        for (name, value) in setup.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, workers: None, folder: setup.folder }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// How many workers, instead of two.
    pub(crate) fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// The same, started by a shell that runs `script` first, itself started by `before`. The command is `"$@"` to it.
    pub(crate) fn behind(mut self, before: &[&str], script: &str) -> Self {
        let mut command = Command::new(before[0]);
        command.args(&before[1..]).arg(script).arg("sh").arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command = command;
        self
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub(crate) fn start(self) -> Cluster {
        let cluster = self.launch();
        until_within(COMPILE_PATIENCE, "the cluster serves", || {
            let lines = cluster.stderr.lines();
            assert!(!cluster.has_exited() || !lines.is_empty(), "it exited without a word");
            // A component that takes long to compile is told before.
            let first = lines.iter().find(|line| !line.starts_with("Compiling "))?;
            assert!(announced(first), "instead of serving: {lines:#?}");
            Some(())
        });
        cluster
    }

    /// The same for a folder, which is built first: tools say what they do before the cluster is announced.
    #[track_caller]
    pub(crate) fn start_from_sources(self) -> Cluster {
        let cluster = self.launch();
        until("the cluster serves", || {
            let lines = cluster.stderr.lines();
            assert!(!cluster.has_exited(), "it exited: {lines:#?}");
            lines.iter().any(|line| announced(line)).then_some(())
        });
        cluster
    }

    /// Starts it, whatever comes of it.
    pub(crate) fn launch(mut self) -> Cluster {
        if let Some(workers) = self.workers {
            self.command.args(["--workers", &workers.to_string()]);
        }
        let mut child = self.command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().map_or_else(Lines::none, Lines::read);
        let stderr = child.stderr.take().map_or_else(Lines::none, Lines::read);
        Cluster { child: Mutex::new(child), seen: Mutex::default(), stdout, stderr, folder: self.folder }
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Ended {
        let cluster = self.launch();
        let status = cluster.wait();
        until("its output ends", || (cluster.stdout.ended() && cluster.stderr.ended()).then_some(()));
        Ended {
            code: status.code(),
            stdout: cluster.stdout.lines().join("\n"),
            stderr: cluster.stderr.lines().join("\n"),
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running cluster; dropped, it is gone with all its processes.
pub(crate) struct Cluster {
    child: Mutex<Child>,
    /// Every child process that was ever seen.
    seen: Mutex<BTreeSet<Pid>>,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
    pub(crate) folder: TempDir,
}

impl Cluster {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.lock().expect("no test panics with the lock").id().cast_signed())
    }

    /// Where the first listener is, from the first line that it printed.
    #[track_caller]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address_of(0)
    }

    /// Where a listener is, in the order of the flags.
    #[track_caller]
    pub(crate) fn address_of(&self, listener: usize) -> SocketAddr {
        let of_listener = || self.stderr.lines().into_iter().filter(|line| announced(line)).nth(listener);
        let line = until("it is announced", of_listener);
        let (_, url) = line.split_once("Serving HTTP on http://").expect("a TCP listener");
        url.split('/').next().unwrap_or_default().parse().expect("an address")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the primary lives");
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.child.lock().expect("no test panics with the lock").try_wait().expect("it can be waited for").is_some()
    }

    /// Waits for its end, and that of every process it started.
    #[track_caller]
    pub(crate) fn wait(&self) -> ExitStatus {
        let status = self.wait_for_primary();
        until("every process is gone", || self.seen().iter().all(|&pid| is_gone(pid)).then_some(()));
        status
    }

    #[track_caller]
    fn wait_for_primary(&self) -> ExitStatus {
        until("the primary exits", || {
            self.children();
            self.child.lock().expect("no test panics with the lock").try_wait().expect("it can be waited for")
        })
    }

    /// Its child processes: workers, and a compiler while there is one.
    pub(crate) fn children(&self) -> Vec<Pid> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children: Vec<Pid> =
            children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a pid"))).collect();
        self.seen.lock().expect("no test panics with the lock").extend(&children);
        children
    }

    fn seen(&self) -> BTreeSet<Pid> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn about(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasmcluster"));
        command.args(args).env("XDG_RUNTIME_DIR", self.folder.path());
        command.env_remove("WASMCLUSTER_CONTROL").env_remove("RUNTIME_DIRECTORY");
        command
    }

    /// Another command about this cluster, that goes on by itself.
    pub(crate) fn follow(&self, args: &[&str]) -> Follower {
        Follower::start(&mut self.about(args)).expect("the binary starts")
    }

    /// What another command prints about this cluster.
    pub(crate) fn command(&self, args: &[&str]) -> Ended {
        let output = self.about(args).output().expect("the binary starts");
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// `wasmcluster status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let ended = self.command(&["status", "--json"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    }

    /// Pid of the ready worker in `slot`, if there is one.
    #[track_caller]
    pub(crate) fn worker(&self, slot: u32) -> Option<Pid> {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list");
        let found = workers.iter().find(|worker| worker["slot"] == slot && worker["state"] == "ready")?;
        Some(Pid::from_raw(found["pid"].as_i64().expect("a pid") as i32))
    }

    /// Waits until `slot` has a ready worker that is not `old`.
    #[track_caller]
    pub(crate) fn replaced(&self, slot: u32, old: Pid) -> Pid {
        until("the worker is replaced", || self.worker(slot).filter(|&new| new != old))
    }

    /// Pids of the ready workers, by slot.
    pub(crate) fn ready(&self) -> Vec<i64> {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list");
        let ready = workers.iter().filter(|worker| worker["state"] == "ready");
        ready.map(|worker| worker["pid"].as_i64().expect("a pid")).collect()
    }
}

/// A command that goes on by itself; dropped, it is gone.
pub(crate) struct Follower {
    child: Mutex<Child>,
    pub(crate) stdout: Lines,
}

impl Follower {
    pub(crate) fn start(command: &mut Command) -> std::io::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = Lines::read(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child: Mutex::new(child), stdout })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.lock().expect("no test panics with the lock").id();
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("the command lives");
    }

    #[track_caller]
    pub(crate) fn wait(&self) -> ExitStatus {
        until("the command ends", || {
            self.child.lock().expect("no test panics with the lock").try_wait().expect("it can be waited for")
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It has ended, or is of no more use.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.children();
        if !self.has_exited() {
            // Kills the workers first, and is quick.
            self.signal(Signal::SIGQUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !self.has_exited() && Instant::now() < deadline {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It has exited, or is stuck.
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        if std::thread::panicking() {
            eprintln!("--- stderr of the cluster\n{}\n---", self.stderr.lines().join("\n"));
        } else {
            until("every process is gone", || self.seen().iter().all(|&pid| is_gone(pid)).then_some(()));
        }
    }
}

/// Whether there is no such process any more. One that has ended but was not waited for is gone too.
pub(crate) fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

/// The lines of a pipe, collected as they come.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Mutex<(Vec<String>, bool)>>);

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let shared = lines.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                shared.lock().expect("no reader panics").0.push(line);
            }
            shared.lock().expect("no reader panics").1 = true;
        });
        lines
    }

    /// Of a pipe that somebody else reads, or nobody.
    fn none() -> Self {
        Self::read(std::io::empty())
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no reader panics").0.clone()
    }

    /// Whether the last writer is gone.
    pub(crate) fn ended(&self) -> bool {
        self.0.lock().expect("no reader panics").1
    }

    /// Waits for a line that contains `text`.
    #[track_caller]
    pub(crate) fn find(&self, text: &str) -> String {
        until(&format!("a line with {text:?}"), || self.lines().into_iter().find(|line| line.contains(text)))
    }
}
