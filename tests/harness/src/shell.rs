//! A shell in surroundings of its own, in which commands are run as a page has them: with its ports, its folders and its user.
//!
//! Network, mounts and processes are namespaces. So port 8080 is free, `/srv`, `/run` and what is added below `/etc` are the
//! test's alone, and every process ends with the shell.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::tools::Tool;
use crate::wait::COMPILE_PATIENCE;
use crate::{binary, guest, root, target_folder};

/// The namespaces. `--kill-child` and the pid namespace take all processes along.
const UNSHARE: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"];
/// Makes the machine that pages speak of out of this one. `$1` is the test's folder.
const SURROUNDINGS: &str = "
    ip link set lo up
    mount -t tmpfs tmpfs \"$1/etc\" && mkdir \"$1/etc/upper\" \"$1/etc/work\"
    mount -t overlay overlay -o \"lowerdir=/etc,upperdir=$1/etc/upper,workdir=$1/etc/work\" /etc
    mount --bind \"$1/run\" /run
    mount --bind \"$1/srv\" /srv
    cd /srv
";
/// What a shell says when a command has ended, before the command's status.
const ENDED: &str = "ended ";

/// A shell in `/srv`, where `app.wasm` is `examples/hello`, and `target` and `examples` are the repository's; dropped, it is gone with all that it started.
pub struct Shell {
    child: Child,
    commands: ChildStdin,
    said: Receiver<String>,
    commands_so_far: usize,
    folder: TempDir,
}

/// A command that goes on beside others.
#[derive(Clone, Debug)]
pub struct Background {
    output: PathBuf,
    pid: String,
}

impl Shell {
    /// None where a machine has no namespaces, or lacks one of these programs: says so.
    #[expect(clippy::print_stdout, reason = "tests tell what they skipped")]
    pub fn open(programs: &[&str]) -> Option<Self> {
        for program in ["unshare", "ip", "bash"].iter().chain(programs) {
            if Tool::find(program).is_none() {
                println!("skipped: {program} is not installed");
                return None;
            }
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["bin", "etc", "run", "said", "srv"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        std::os::unix::fs::symlink(program(), folder.path().join("bin/wasmcluster")).expect("a link");
        let script = format!("set -e\n{SURROUNDINGS}\nset +e\nexec bash --norc -s");
        let mut command = Command::new("unshare");
        // Root has these namespaces without being root in a namespace of users.
        command.args((!nix::unistd::geteuid().is_root()).then_some("--map-root-user"));
        command.args(UNSHARE).args(["bash", "-c", &script, "bash"]).arg(folder.path());
        command.env_clear().envs(surroundings(folder.path()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("unshare starts");
        let commands = child.stdin.take().expect("stdin is piped");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (say, said) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        let mut shell = Self { child, commands, said, commands_so_far: 0, folder };
        if shell.send("true").is_none() {
            let mut why = String::new();
            let _ = std::io::Read::read_to_string(&mut shell.child.stderr.take().expect("stderr is piped"), &mut why);
            println!("skipped: this machine has no namespaces for the test: {}", why.trim());
            return None;
        }
        fs::copy(guest("hello"), shell.folder().join("app.wasm")).expect("a copy");
        for (name, of) in [("target", target_folder()), ("examples", &root().join("examples"))] {
            std::os::unix::fs::symlink(of, shell.folder().join(name)).expect("a link");
        }
        // As on a terminal, where its meter does not stand among what is answered.
        fs::write(shell.folder().join(".curlrc"), "silent\nshow-error\n").expect("a file");
        Some(shell)
    }

    /// What is `/srv` inside.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("srv")
    }

    /// Has the shell run this text, and returns its exit status; none if the shell has ended.
    fn send(&mut self, text: &str) -> Option<i32> {
        // The status of the command before is what `$?` is in this one.
        let text = format!("{text}\nstatus=$?; echo \"{ENDED}$status\"; (exit $status)\n");
        self.commands.write_all(text.as_bytes()).ok()?;
        loop {
            let line = self.said.recv_timeout(COMPILE_PATIENCE).ok()?;
            if let Some(status) = line.strip_prefix(ENDED) {
                return Some(status.parse().expect("a status"));
            }
        }
    }

    fn new_output(&mut self) -> PathBuf {
        self.commands_so_far += 1;
        self.folder.path().join("said").join(self.commands_so_far.to_string())
    }

    /// Runs a command to its end: its exit status, and what it printed to stdout and stderr.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> (i32, String) {
        let output = self.new_output();
        let status = self.send(&format!("{{ {command}\n}} </dev/null >'{}' 2>&1", output.display()));
        let said = fs::read(&output).unwrap_or_default();
        (status.expect("the shell goes on"), String::from_utf8_lossy(&said).into_owned())
    }

    /// Starts a command beside those that follow.
    #[track_caller]
    pub fn start(&mut self, command: &str) -> Background {
        let output = self.new_output();
        // In place of the shell that would wait for it, so that a signal reaches it.
        let exec = if command.starts_with("wasmcluster ") { "exec " } else { "" };
        let status = self.send(&format!("{{ {exec}{command}\n}} </dev/null >'{}' 2>&1 &", output.display()));
        assert_eq!(status, Some(0), "{command}");
        let pid = self.run("echo $!").1.trim().to_owned();
        Background { output, pid }
    }

    /// Whether it has not ended yet.
    pub fn goes_on(&mut self, background: &Background) -> bool {
        self.run(&format!("kill -0 {}", background.pid)).0 == 0
    }

    /// Ends it at once, if it goes on, and waits until it has ended.
    pub fn end(&mut self, background: &Background) {
        self.run(&format!("kill -QUIT {0}; wait {0}", background.pid));
    }

    /// What a command has printed so far.
    pub fn said_by(&self, background: &Background) -> String {
        String::from_utf8_lossy(&fs::read(&background.output).unwrap_or_default()).into_owned()
    }
}

/// What is `wasmcluster` inside: the binary under test, or the program that `tests/first-hour` names.
fn program() -> PathBuf {
    std::env::var_os("WASMCLUSTER").map_or_else(|| binary().into(), PathBuf::from)
}

/// The variables. Cargo has what it needs from this machine, and asks no registry: there is none inside.
fn surroundings(folder: &Path) -> Vec<(String, String)> {
    let of_machine = |name: &str| std::env::var(name).unwrap_or_default();
    let home = |folder: &str| format!("{}/{folder}", of_machine("HOME"));
    let or = |name: &str, otherwise: String| std::env::var(name).unwrap_or(otherwise);
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let built = target_folder().join("tmp/projects-target");
    let variables = [
        ("PATH", format!("{}:{}:/usr/sbin:/sbin", path(&folder.join("bin")), of_machine("PATH"))),
        ("HOME", "/srv".into()),
        ("LC_ALL", "C.UTF-8".into()),
        ("CARGO_HOME", or("CARGO_HOME", home(".cargo"))),
        ("RUSTUP_HOME", or("RUSTUP_HOME", home(".rustup"))),
        ("CARGO_NET_OFFLINE", "true".into()),
        // Crates are compiled once for all projects of all tests. What is made of them is in each project's own folder.
        ("CARGO_BUILD_BUILD_DIR", path(&built)),
        ("XDG_CACHE_HOME", path(&target_folder().join("tmp/cache"))),
        // For what a page does not show.
        ("REPOSITORY", path(&root())),
        ("GUESTS", path(guest("hello").parent().expect("a folder"))),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Unshare's child goes with it, and the namespace's processes with that.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
        // Whoever is last to hold the lines has ended when there are none any more.
        while self.said.recv_timeout(Duration::from_secs(10)).is_ok() {}
    }
}
