//! The builder, a child process that makes a new component whenever the sources have changed (`serve --watch DIR`). All
//! that the primary has to do with it is to start it, and to hold the pipe whose end ends it: the new component is noticed
//! by the watch, as any other. The first build of `serve DIR` is a builder's work too: the primary answers meanwhile.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use anyhow::{Context, bail};

use crate::build::{Built, Handover, Order};
use crate::logging::LogFormat;
use crate::os::blocking::off_the_loop;
use crate::os::child::Child;

#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) child: Child,
    folder: PathBuf,
    /// Closed when the primary ends, however it does.
    _life: ChildStdin,
}

impl Builder {
    /// None if there is nothing to build, or it cannot be started: what is served is served.
    pub(crate) fn start(handover: Option<&Handover>, hidden: &[String]) -> Option<Self> {
        let handover = handover?;
        let started = spawn(&Order::Watch(handover.clone()), Stdio::null(), hidden);
        let started = started.and_then(|(child, mut pipes)| {
            let life = pipes.stdin.take().ok_or_else(|| io::Error::other("it has no standard input"))?;
            Ok(Self { child, folder: handover.folder().into(), _life: life })
        });
        started.inspect_err(|error| tracing::error!("cannot start the builder, so changes are not built: {error}")).ok()
    }

    /// It has ended, which it never should, and with it what it started.
    pub(crate) fn ended(self, how: &str) {
        let folder = self.folder.display();
        tracing::warn!("the builder {how}, so changes are no longer built; run `wasmcluster build --watch {folder}`");
    }
}

/// Has a folder built by a builder that then ends. Dropped, it takes the builder with it, and all that this started.
pub(crate) async fn build_first(
    folder: &Path,
    watch: bool,
    format: LogFormat,
    hidden: Vec<String>,
) -> anyhow::Result<Built> {
    let order = Order::Build { folder: folder.into(), watch, format };
    let (child, mut pipes) = spawn(&order, Stdio::piped(), &hidden).context("cannot start the builder")?;
    let _life = pipes.stdin.take();
    let mut stdout = pipes.stdout.take().context("the builder has no standard output")?;
    let answer = off_the_loop(move || {
        let mut answer = Vec::new();
        stdout.by_ref().take(MAX_ANSWER).read_to_end(&mut answer)?;
        Ok(answer)
    })
    .await?;
    if answer.is_empty() {
        bail!("cannot build {}: the builder {}", folder.display(), child.end().await);
    }
    let answer: Result<Built, String> = serde_json::from_slice(&answer).context("the builder's answer")?;
    answer.map_err(anyhow::Error::msg)
}

/// Largest answer of a builder, in bytes: some paths.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Unlike other children it keeps the environment but for what is `hidden`, for what it starts, and writes where the primary does.
fn spawn(order: &Order, stdout: Stdio, hidden: &[String]) -> io::Result<(Child, std::process::Child)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wasmcluster").arg("builder").stdin(Stdio::piped()).stdout(stdout);
    for variable in hidden {
        command.env_remove(variable);
    }
    let (child, mut pipes) = Child::spawn(&mut command)?;
    if let Some(stdin) = &mut pipes.stdin {
        stdin.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes())?;
    }
    Ok((child, pipes))
}
