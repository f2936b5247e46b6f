//! The builder, a child process that makes a new component whenever the sources have changed (`serve --watch DIR`). All
//! that the primary has to do with it is to start it, and to hold the pipe whose end ends it: the new component is noticed
//! by the watch, as any other.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::build::Handover;

#[derive(Debug)]
pub(super) struct Builder {
    pub(super) pid: Pid,
    folder: PathBuf,
    /// Closed when the primary ends, however it does.
    _life: ChildStdin,
}

impl Builder {
    /// None if there is nothing to build, or it cannot be started: what is served is served.
    pub(super) fn start(handover: Option<&Handover>) -> Option<Self> {
        let handover = handover?;
        let started = spawn(handover);
        started.inspect_err(|error| tracing::error!("changes are not built: cannot start the builder: {error}")).ok()
    }

    /// It has ended, which it never should. What it started must not go on without it.
    pub(super) fn ended(self, how: &str) {
        let _ = killpg(self.pid, Signal::SIGKILL);
        let folder = self.folder.display();
        tracing::warn!("the builder {how}: changes are not built any more; run `wasmcluster build --watch {folder}`");
    }
}

/// Unlike other children it keeps the environment, for what it starts, and writes where the primary does.
fn spawn(handover: &Handover) -> io::Result<Builder> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("wasmcluster")
        .arg("builder")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut life = child.stdin.take().ok_or_else(|| io::Error::other("it has no standard input"))?;
    life.write_all(format!("{}\n", serde_json::to_string(handover)?).as_bytes())?;
    // Reaped with every other child.
    Ok(Builder { pid: Pid::from_raw(child.id().cast_signed()), folder: handover.folder().into(), _life: life })
}
