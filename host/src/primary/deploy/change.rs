//! What is known of a reload: who asked for what, the compiler at work, who wants to know how it goes, how it ended. What
//! is done about it is in `driver/deploying.rs`, what is decided in `supervisor/swap.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::generations::Provenance;
use crate::control::protocol::{Happening, ReloadRequest, ReloadResult, line};
use crate::primary::fleet::process::{CompilerAnswer, CompilerProcess};
use crate::primary::supervisor::Gates;
use crate::settings::{Percent, Policy};
use crate::wire::ids::Generation;
use crate::wire::messages::ToCompiler;

/// How long a reload may take that was not told, beside its gates.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Lines about a reload that its reader may leave unread; what comes on top, it misses.
const MAX_UNREAD: usize = 1024;

impl ReloadRequest {
    /// What the candidate must stand, by the cluster's settings unless the request says otherwise.
    pub(crate) fn gates(&self, usual: Percent) -> Gates {
        let increase = self.max_error_increase.unwrap_or(usual);
        Gates { force: self.force, max_error_increase: increase.thousandths(), served_before: false }
    }

    /// `least` is what it takes if nothing has to be waited for but the gates.
    pub(crate) fn deadline(&self, least: Duration) -> Instant {
        // A year from now is as good as any later time.
        let longest = Duration::from_secs(365 * 24 * 60 * 60);
        let usual = DEFAULT_TIMEOUT.saturating_add(least);
        Instant::now() + self.timeout_ms.map_or(usual, Duration::from_millis).min(longest)
    }

    /// What is to be said of a time in which no reload can end well.
    pub(crate) fn doubt(&self, policy: &Policy) -> Option<String> {
        let Policy { min_ready, soak, .. } = *policy;
        let timeout = self.timeout_ms.map(Duration::from_millis).filter(|&it| it < min_ready.saturating_add(soak))?;
        let [timeout, min_ready, soak] = [timeout, min_ready, soak].map(humantime::format_duration);
        Some(format!(
            "--timeout {timeout} is shorter than --min-ready {min_ready} and --soak {soak} together, so even a good \
             version will be rolled back"
        ))
    }
}

/// Whoever wants to know how a reload goes; nobody, if a signal or the watch began it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower(Option<mpsc::Sender<Bytes>>);

impl Follower {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(MAX_UNREAD + 1);
        (Self(Some(sender)), receiver)
    }

    pub(crate) fn tell(&self, happening: &Happening) {
        let is_last = matches!(happening, Happening::ReloadEnded { .. });
        // One who left, or does not read, misses it; but there is room for the last line.
        if let Some(lines) = self.0.as_ref().filter(|lines| is_last || lines.capacity() > 1) {
            let _ = lines.try_send(line(happening));
        }
    }
}

/// A reload that is neither committed nor rolled back.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) listener: Follower,
    pub(crate) stage: ChangeStage,
    pub(crate) since: Instant,
}

impl Change {
    /// None while it is compiled.
    pub(crate) fn generation(&self) -> Option<Generation> {
        match self.stage {
            ChangeStage::Swapping(generation) => Some(generation),
            ChangeStage::Compiling(_) => None,
        }
    }

    pub(crate) fn draft(&self) -> Option<&Draft> {
        match &self.stage {
            ChangeStage::Compiling(draft) => Some(draft),
            ChangeStage::Swapping(_) => None,
        }
    }

    pub(crate) fn draft_mut(&mut self) -> Option<&mut Draft> {
        match &mut self.stage {
            ChangeStage::Compiling(draft) => Some(draft),
            ChangeStage::Swapping(_) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) enum ChangeStage {
    Compiling(Draft),
    /// The supervisor has it.
    Swapping(Generation),
}

/// What is to become of a component that is being compiled.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) compiling: Compiling,
    pub(crate) source: PathBuf,
    pub(crate) gates: Gates,
    pub(crate) deadline: Instant,
    pub(crate) wanted: Wanted,
    pub(crate) origin: Provenance,
}

/// Whether what is served already is to be brought anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Always,
    IfNew,
}

/// What came of a compiler, by its process id: one that was given up may still have answered.
pub(crate) type Answered = (Pid, CompilerAnswer);

/// A compiler at work.
#[derive(Debug)]
pub(crate) struct Compiling {
    process: Arc<CompilerProcess>,
    listening: AbortHandle,
}

impl Compiling {
    /// Starts a compiler; its answer goes to `answers`.
    pub(crate) fn start(request: &ToCompiler, answers: mpsc::Sender<Answered>) -> std::io::Result<Self> {
        let process = Arc::new(CompilerProcess::spawn(request)?);
        let heard = process.clone();
        let listening = tokio::spawn(async move {
            // The driver may have given up.
            let _ = answers.send((heard.child.pid, heard.answer().await)).await;
        });
        Ok(Self { process, listening: listening.abort_handle() })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process.child.pid
    }
}

impl Drop for Compiling {
    fn drop(&mut self) {
        self.listening.abort();
        // One that has answered is about to end, or has.
        self.process.child.signal(Signal::SIGKILL);
    }
}

/// A reload that is decided, while workers that it made superfluous still drain.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) generation: Generation,
    pub(crate) result: ReloadResult,
    pub(crate) reason: Option<String>,
    pub(crate) listener: Follower,
    /// Workers that had to drain when it was decided, and those of them that are still there.
    pub(crate) to_drain: u32,
    pub(crate) left: u32,
    /// Until when it waits to be written down; None once it is, or will not be.
    pub(crate) saved_by: Option<Instant>,
}

impl Settled {
    /// Whether a worker of this generation has to be gone before the reload is over.
    pub(crate) fn waits_for(&self, generation: Generation) -> bool {
        match self.result {
            ReloadResult::Committed | ReloadResult::CommittedUnsaved => generation < self.generation,
            _ => generation == self.generation,
        }
    }
}
