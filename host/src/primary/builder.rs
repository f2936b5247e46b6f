//! The builder, a child process that makes a new component whenever the sources have changed (`serve --watch DIR`). All
//! that the primary has to do with it is to start it, and to hold the pipe whose end ends it: the new component is noticed
//! by the watch, as any other.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};

use crate::build::Handover;
use crate::child::Child;

#[derive(Debug)]
pub(super) struct Builder {
    pub(super) child: Child,
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

    /// It has ended, which it never should, and with it what it started.
    pub(super) fn ended(self, how: &str) {
        let folder = self.folder.display();
        tracing::warn!("the builder {how}: changes are not built any more; run `wasmcluster build --watch {folder}`");
    }
}

/// Unlike other children it keeps the environment, for what it starts, and writes where the primary does.
fn spawn(handover: &Handover) -> io::Result<Builder> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wasmcluster").arg("builder").stdin(Stdio::piped()).stdout(Stdio::null());
    let (child, mut pipes) = Child::spawn(&mut command)?;
    let mut life = pipes.stdin.take().ok_or_else(|| io::Error::other("it has no standard input"))?;
    life.write_all(format!("{}\n", serde_json::to_string(handover)?).as_bytes())?;
    Ok(Builder { child, folder: handover.folder().into(), _life: life })
}
