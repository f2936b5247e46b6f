//! Commands that change a running cluster, and wait until the change is there; or that follow what happens in it. Ctrl-C
//! ends the waiting, not the change.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use http_body_util::BodyExt;

use super::print;
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

/// Prints events as they come, until the primary ends or nobody reads them any more.
pub(super) async fn events(client: &Client) -> Result<(), CommandError> {
    let mut lines = client.events().await?;
    while let Some(Ok(frame)) = lines.frame().await {
        if let Some(line) = frame.data_ref()
            && print(line).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

/// Prints every key with its value, or the value of `key`.
pub(super) async fn config_get(client: &Client, key: Option<&str>) -> Result<(), CommandError> {
    let entries = client.config().await?;
    let text = match key {
        None => entries.iter().map(|(key, value)| format!("{key}={value}\n")).collect(),
        Some(key) => match entries.get(key) {
            Some(value) => format!("{value}\n"),
            None => {
                let keys: Vec<&str> = entries.keys().map(String::as_str).collect();
                return Err(anyhow!("there is no key {key:?}; there is {}", keys.join(", ")).into());
            }
        },
    };
    Ok(print(text.as_bytes()).map_err(anyhow::Error::from)?)
}

/// Changes values, and waits until every worker goes by them.
pub(super) async fn config_set(client: &Client, entries: Vec<(String, String)>) -> Result<(), CommandError> {
    client.configure(&entries.into_iter().collect()).await
}
