//! Commands that change a running cluster, and wait until the change is there. Ctrl-C ends the waiting, not the change.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::primary::{Client, CommandError, Scale, Stop};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long `scale` waits: workers that drain may take their time.
const SCALE_PATIENCE: Duration = Duration::from_secs(60);

/// Has the cluster run `workers` workers, and waits until so many are ready and all others gone.
pub(super) async fn scale(client: &Client, workers: NonZeroU32) -> Result<(), CommandError> {
    client.scale(Scale { workers }).await?;
    let wanted = workers.get() as usize;
    let deadline = Instant::now() + SCALE_PATIENCE;
    loop {
        let status = client.status().await?;
        let ready = status.workers.iter().filter(|worker| worker.state == "ready").count();
        if ready == wanted && status.workers.len() == wanted {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let error =
                anyhow!("{ready} of {wanted} workers are ready after {SCALE_PATIENCE:?}; see `wasmcluster status`");
            return Err(error.into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Stops the cluster, and waits until nobody answers any more.
pub(super) async fn stop(client: &Client, now: bool) -> Result<(), CommandError> {
    client.stop(Stop { now }).await?;
    loop {
        match client.status().await {
            Err(CommandError::NoServer(_)) => return Ok(()),
            // It still drains, or is about to end.
            Ok(_) | Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
