//! Processes of the benchmark: on chosen CPUs, in process groups of their own, and ended with the benchmark, however it
//! ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::target;

/// What has to go when the benchmark is interrupted: groups of processes, and folders.
static LEFT: Mutex<(Vec<Pid>, Vec<PathBuf>)> = Mutex::new((Vec::new(), Vec::new()));

const THIS_THREAD: Pid = Pid::from_raw(0);

/// The CPUs that the benchmark may use.
#[derive(Clone)]
pub(crate) struct Cpus(Vec<usize>);

impl Cpus {
    pub(crate) fn allowed() -> Result<Self> {
        let set = sched_getaffinity(THIS_THREAD).context("asking for the allowed CPUs")?;
        let all: Vec<usize> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
        ensure!(all.len() >= 2, "two CPUs are needed, one for the server and one for the load");
        Ok(Self(all))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn server(&self) -> &[usize] {
        &self.0[..1]
    }

    pub(crate) fn load(&self) -> &[usize] {
        &self.0[1..2]
    }

    pub(crate) fn both(&self) -> &[usize] {
        &self.0[..2]
    }

    pub(crate) fn all(&self) -> &[usize] {
        &self.0
    }
}

/// For what is not measured.
pub(crate) const ANYWHERE: &[usize] = &[];

/// Does something on these CPUs; processes that it starts stay there.
pub(crate) fn on<T>(cpus: &[usize], what: impl FnOnce() -> Result<T>) -> Result<T> {
    if cpus.is_empty() {
        return what();
    }
    let before = sched_getaffinity(THIS_THREAD)?;
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(THIS_THREAD, &set).with_context(|| format!("moving to CPU {cpus:?}"))?;
    let result = what();
    sched_setaffinity(THIS_THREAD, &before)?;
    result
}

/// A process, killed with its group when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a program without a terminal and without the variables that make backtraces: those cost some servers much.
    pub(crate) fn start(command: &mut Command, cpus: &[usize]) -> Result<Self> {
        command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).process_group(0);
        let mut left = LEFT.lock().unwrap();
        let child = on(cpus, || command.spawn().with_context(|| format!("starting {command:?}")))?;
        left.0.push(Pid::from_raw(child.id().cast_signed()));
        Ok(Self(child))
    }

    pub(crate) fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.0.try_wait()?;
        if status.is_some() {
            // What it started goes with it.
            let _ = killpg(self.group(), Signal::SIGKILL);
            self.forget();
        }
        Ok(status)
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.0.wait()?;
        self.forget();
        Ok(status)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Once it was waited for, its number may be given to another.
    fn forget(&self) {
        LEFT.lock().unwrap().0.retain(|group| *group != self.group());
    }

    /// What it writes to its stdout, which must be a pipe.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.0.stdout.take().expect("stdout is a pipe, and taken once")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if LEFT.lock().unwrap().0.contains(&self.group()) {
            let _ = killpg(self.group(), Signal::SIGKILL);
            let _ = self.wait();
        }
    }
}

/// What a program prints. It must end with success.
pub(crate) fn output(command: &mut Command, cpus: &[usize]) -> Result<String> {
    let mut process = Process::start(command.stdout(Stdio::piped()), cpus)?;
    let mut text = String::new();
    process.stdout().read_to_string(&mut text).with_context(|| format!("reading from {command:?}"))?;
    let status = process.wait()?;
    ensure!(status.success(), "{command:?} ended with {status}: {}", text.trim_end());
    Ok(text)
}

/// A folder for the time of a measurement.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    /// Below the build folder, which is on a disk; temporary folders may be in memory.
    pub(crate) fn on_disk() -> Result<Self> {
        let folder = target().join("bench");
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Self::below(&folder)
    }

    fn below(folder: &Path) -> Result<Self> {
        let mut left = LEFT.lock().unwrap();
        let folder =
            tempfile::Builder::new().prefix("wasmcluster-bench-").tempdir_in(folder).context("making a folder")?;
        left.1.push(folder.path().to_owned());
        Ok(Self(folder))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        LEFT.lock().unwrap().1.retain(|other| other != self.0.path());
    }
}

/// From now on Ctrl-C and the like end the processes first. Call this while there is one thread.
pub(crate) fn end_all_on_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    std::thread::spawn(move || {
        let signal = signals.wait().unwrap_or(Signal::SIGTERM);
        // Kept locked to the end: nothing new is started.
        let left = LEFT.lock().unwrap();
        for group in &left.0 {
            let _ = killpg(*group, Signal::SIGKILL);
        }
        for group in &left.0 {
            // The main thread may be faster.
            let _ = waitpid(*group, None);
        }
        for folder in &left.1 {
            let _ = std::fs::remove_dir_all(folder);
        }
        #[expect(clippy::exit, reason = "the main thread may be waiting for anything")]
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}
