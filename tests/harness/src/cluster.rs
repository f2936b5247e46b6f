//! [`Cluster`]: the real binary, started for one test and gone with it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::{COMPILE_PATIENCE, LOOK_EVERY, until, until_within};
use crate::{binary, target_folder};

const ANNOUNCEMENT: &str = "Serving HTTP on ";

/// Whether it is the line that announces a listener, for people or as JSON.
fn announced(line: &str) -> bool {
    line.starts_with(ANNOUNCEMENT) || (line.starts_with('{') && line.contains(ANNOUNCEMENT))
}

/// The command line of a cluster that is yet to be started.
///
/// A test adds what it is about and calls [`start`](Setup::start), [`launch`](Setup::launch) or [`run`](Setup::run).
pub struct Setup {
    /// The command as it will be started, but for `--workers`, which comes last.
    pub command: Command,
    workers: Option<u32>,
    /// The folder that it is started in, with its control socket and its state. Removed with the cluster.
    pub folder: TempDir,
}

impl Setup {
    /// `wasmcluster serve APP` on a free port, with two workers, a control socket of its own, and a store that all
    /// tests share.
    pub fn new(app: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(binary());
        command
            .current_dir(folder.path())
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("XDG_STATE_HOME", folder.path())
            .env("XDG_CACHE_HOME", target_folder().join("tmp/cache"))
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

    /// `wasmcluster ARGS`, without the flags that [`Setup::new`] gives, in the same surroundings.
    pub fn bare(args: &[&str]) -> Self {
        let setup = Self::new(Path::new("-"));
        let mut command = Command::new(binary());
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

    /// Adds arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// How many workers, instead of two.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets a variable of the primary.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// The same, started by a shell that runs `script` first, itself started by `before`. The command is `"$@"` to it.
    pub fn behind(mut self, before: &[&str], script: &str) -> Self {
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

    /// Starts it and waits until it serves. Panics with its output if it says anything else first.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let cluster = self.launch();
        until_within(COMPILE_PATIENCE, "the cluster serves", || {
            let lines = cluster.stderr.lines();
            assert!(!cluster.has_exited() || !lines.is_empty(), "it exited without a word");
            // A component that takes long to compile is told before, and where probes are answered meanwhile.
            let first =
                lines.iter().find(|line| !["Compiling ", "Admin at "].iter().any(|start| line.starts_with(start)))?;
            assert!(announced(first), "instead of serving: {lines:#?}");
            Some(())
        });
        cluster
    }

    /// The same for a folder, which is built first: tools say what they do before the cluster is announced.
    #[track_caller]
    pub fn start_from_sources(self) -> Cluster {
        let cluster = self.launch();
        until_within(COMPILE_PATIENCE, "the cluster serves", || {
            let lines = cluster.stderr.lines();
            assert!(!cluster.has_exited(), "it exited: {lines:#?}");
            lines.iter().any(|line| announced(line)).then_some(())
        });
        cluster
    }

    /// Starts it, whatever comes of it, and waits for nothing.
    pub fn launch(mut self) -> Cluster {
        if let Some(workers) = self.workers {
            self.command.args(["--workers", &workers.to_string()]);
        }
        let mut child = self.command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().map_or_else(Lines::none, Lines::read);
        let stderr = child.stderr.take().map_or_else(Lines::none, Lines::read);
        Cluster { child: Mutex::new(child), seen: Mutex::default(), stdout, stderr, folder: self.folder }
    }

    /// Runs it to its end, and that of every process it started.
    #[track_caller]
    pub fn run(self) -> Ended {
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
pub struct Ended {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// All lines of its stdout, without the last line's end.
    pub stdout: String,
    /// The same of its stderr.
    pub stderr: String,
}

/// A running cluster; dropped, it is gone with all its processes.
///
/// Dropping it checks that: a process of its that is left fails the test. If the test has failed already, the cluster's
/// stderr is printed instead.
pub struct Cluster {
    child: Mutex<Child>,
    /// Every child process that was ever seen.
    seen: Mutex<BTreeSet<Pid>>,
    /// What guests print.
    pub stdout: Lines,
    /// What the cluster says: addresses, messages, its log.
    pub stderr: Lines,
    /// The folder that it was started in.
    pub folder: TempDir,
}

impl Cluster {
    /// The primary's.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.lock().expect("no test panics with the lock").id().cast_signed())
    }

    /// Where the first listener is, from the first line that it printed.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.address_of(0)
    }

    /// Where a listener is, in the order of the flags.
    #[track_caller]
    pub fn address_of(&self, listener: usize) -> SocketAddr {
        let of_listener = || self.stderr.lines().into_iter().filter(|line| announced(line)).nth(listener);
        let line = until("it is announced", of_listener);
        let (_, url) = line.split_once("Serving HTTP on http").expect("a TCP listener");
        let (_, url) = url.split_once("://").expect("a URL");
        url.split('/').next().unwrap_or_default().parse().expect("an address")
    }

    /// Sends the primary a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the primary lives");
    }

    /// Whether the primary has ended.
    pub fn has_exited(&self) -> bool {
        self.child.lock().expect("no test panics with the lock").try_wait().expect("it can be waited for").is_some()
    }

    /// Waits for its end, and that of every process it started.
    #[track_caller]
    pub fn wait(&self) -> ExitStatus {
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
    pub fn children(&self) -> Vec<Pid> {
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
        let mut command = Command::new(binary());
        command.args(args).env("XDG_RUNTIME_DIR", self.folder.path());
        command.env_remove("WASMCLUSTER_CONTROL").env_remove("RUNTIME_DIRECTORY");
        command
    }

    /// Another command about this cluster, that goes on by itself.
    pub fn follow(&self, args: &[&str]) -> Follower {
        Follower::start(&mut self.about(args)).expect("the binary starts")
    }

    /// Runs another command about this cluster to its end.
    pub fn command(&self, args: &[&str]) -> Ended {
        let output = self.about(args).output().expect("the binary starts");
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// What `wasmcluster status --json` prints.
    #[track_caller]
    pub fn status(&self) -> Value {
        let ended = self.command(&["status", "--json"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    }

    /// Requests that its first worker has not done with: a guest may still be at work when its client has the whole answer.
    /// None if there is no such worker.
    #[track_caller]
    pub fn in_flight(&self) -> Option<u64> {
        self.status()["workers"][0]["in_flight"].as_u64()
    }

    /// Pid of the ready worker in `slot`, if there is one.
    #[track_caller]
    pub fn worker(&self, slot: u32) -> Option<Pid> {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list");
        let found = workers.iter().find(|worker| worker["slot"] == slot && worker["state"] == "ready")?;
        Some(Pid::from_raw(found["pid"].as_i64().expect("a pid") as i32))
    }

    /// Waits until `slot` has a ready worker that is not `old`.
    #[track_caller]
    pub fn replaced(&self, slot: u32, old: Pid) -> Pid {
        until("the worker is replaced", || self.worker(slot).filter(|&new| new != old))
    }

    /// Runs `wasmcluster reload ARGS` to its end.
    pub fn reload(&self, args: &[&str]) -> Ended {
        self.command(&[&["reload"], args].concat())
    }

    /// Waits until the reload is in `phase`.
    pub fn reload_is(&self, phase: &str) -> Value {
        until(&format!("the reload is {phase}"), || {
            let status = self.status();
            (status["reload"]["phase"] == phase).then_some(status)
        })
    }

    /// Pids of the ready workers, by slot.
    pub fn ready(&self) -> Vec<i64> {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list");
        let ready = workers.iter().filter(|worker| worker["state"] == "ready");
        ready.map(|worker| worker["pid"].as_i64().expect("a pid")).collect()
    }
}

/// A command that goes on by itself; dropped, it is gone.
pub struct Follower {
    child: Mutex<Child>,
    /// What it prints.
    pub stdout: Lines,
}

impl Follower {
    /// Starts a command with its stdout piped, and everything else as it is.
    pub fn start(command: &mut Command) -> std::io::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = Lines::read(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child: Mutex::new(child), stdout })
    }

    /// The process that was started.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.lock().expect("no test panics with the lock").id().cast_signed())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the command lives");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&self) -> ExitStatus {
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
pub fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

/// The lines of a pipe, collected as they come.
#[derive(Clone)]
pub struct Lines(Arc<Mutex<(Vec<String>, bool)>>);

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

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no reader panics").0.clone()
    }

    /// Whether the last writer is gone.
    pub fn ended(&self) -> bool {
        self.0.lock().expect("no reader panics").1
    }

    /// Waits for a line that contains `text`.
    #[track_caller]
    pub fn find(&self, text: &str) -> String {
        until(&format!("a line with {text:?}"), || self.lines().into_iter().find(|line| line.contains(text)))
    }
}
