//! How a command fails: what it says, and the exit code that scripts go by.

use crate::build::NoPlan;
use crate::control::client::CommandError;
use crate::control::protocol::{LastReload, ReloadResult};

/// The command was tried and failed.
const ERROR: u8 = 1;
/// The command line or the configuration is wrong.
pub(super) const USAGE: u8 = 2;
/// The component cannot be served: nothing was changed.
const REFUSED: u8 = 3;
/// The new version failed a gate, and was rolled back.
const ROLLED_BACK: u8 = 4;
/// The change took too long, and was rolled back.
const TIMED_OUT: u8 = 5;
/// The cluster is starting, or another change is in progress.
const BUSY: u8 = 6;
/// No cluster is running under that name.
const NO_SERVER: u8 = 7;
/// The new version is served, but a restart with `--resume` would start the previous one.
const UNSAVED: u8 = 8;

/// How a command failed.
pub(super) enum Failure {
    Usage(anyhow::Error),
    Error(anyhow::Error),
    Command(CommandError),
    Reload(LastReload),
    /// The component cannot be served; no cluster was asked to.
    Refused(anyhow::Error),
}

impl Failure {
    /// What to tell the user, and the exit code.
    pub(super) fn report(&self) -> (String, u8) {
        match self {
            Self::Usage(error) => (format!("{error:#}"), USAGE),
            Self::Error(error) => (format!("{error:#}"), ERROR),
            Self::Command(error @ CommandError::NoServer(_)) => (error.to_string(), NO_SERVER),
            Self::Command(error @ CommandError::Busy(_)) => (error.to_string(), BUSY),
            Self::Command(error) => (format!("{error:#}"), ERROR),
            Self::Reload(ended) => report_reload(ended),
            Self::Refused(error) => (format!("{error:#}"), REFUSED),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

impl From<NoPlan> for Failure {
    fn from(error: NoPlan) -> Self {
        match error {
            NoPlan::File(error) => Self::Usage(error),
            error => Self::Error(error.into()),
        }
    }
}

/// The message and the exit code of a reload that was not committed as asked.
fn report_reload(ended: &LastReload) -> (String, u8) {
    let reason = ended.reason.as_deref().unwrap_or("no reason was given");
    match ended.result {
        ReloadResult::Refused => (format!("refused, nothing was changed: {reason}"), REFUSED),
        ReloadResult::RolledBack => (format!("rolled back: {reason}"), ROLLED_BACK),
        ReloadResult::TimedOut => (format!("timed out, the old version is still served: {reason}"), TIMED_OUT),
        ReloadResult::CommittedUnsaved => {
            let generation = ended.generation.map_or(0, |generation| generation.0);
            let but = "could not be saved: `serve --resume` would start the previous version";
            (format!("generation {generation} is served, but {but}: {reason}"), UNSAVED)
        }
        ReloadResult::Committed | ReloadResult::Unchanged | ReloadResult::DryRun | ReloadResult::Failed => {
            (format!("the reload failed: {reason}"), ERROR)
        }
    }
}
