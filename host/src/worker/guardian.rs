//! The guardian: a plain thread that listens to the primary, so that a wedged executor cannot keep the worker from
//! hearing that its primary is gone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::ipc::{Received, ToWorker, Wait, WorkerEnd};
use crate::worker::{Phase, advance};

/// What a worker without a primary still has for the requests it began.
const LAST_SECOND: Duration = Duration::from_secs(1);

/// Passes the primary's orders to the executor, and ends the process when the primary is gone.
pub(super) fn start(primary: Arc<WorkerEnd>, phase: Arc<watch::Sender<Phase>>) -> io::Result<()> {
    let span = tracing::Span::current();
    std::thread::Builder::new().name("guardian".into()).spawn(move || {
        let _span = span.enter();
        loop {
            match primary.receive(Wait::Yes) {
                Ok(Received::Message(ToWorker::StartAccepting, _)) => advance(&phase, Phase::Accepting),
                Ok(Received::Message(ToWorker::Drain, _)) => advance(&phase, Phase::Draining),
                Ok(Received::Message(ToWorker::Start(_), _) | Received::Nothing) => {}
                Ok(Received::Closed) => break,
                Err(error) => {
                    tracing::error!("the primary's words make no sense: {error}");
                    break;
                }
            }
        }
        advance(&phase, Phase::Draining);
        std::thread::sleep(LAST_SECOND);
        // Nobody is left to see a status, and destructors could wait for the executor.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    })?;
    Ok(())
}
