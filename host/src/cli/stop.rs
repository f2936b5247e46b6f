//! `wasmcluster stop`: stops a cluster, and waits until its process is gone. Ctrl-C ends the command, not the stop.

use std::io::{self, Write};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::args::StopArgs;
use super::exit::Failure;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::control::protocol::Stop;
use crate::control::query::EventsRequest;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long to wait for the last event once the primary is gone.
const LAST_EVENT: Duration = Duration::from_secs(1);

pub(super) fn stop(args: StopArgs) -> Result<(), Failure> {
    Ok(block_on(stop_and_tell(&client(args.cluster), args.now))?)
}

/// Stops the cluster, waits until it is gone, and prints how many requests were cut.
async fn stop_and_tell(client: &Client, now: bool) -> Result<(), CommandError> {
    // The last event has the number. Subscribing fails if there are eight readers already; then the number stays unknown.
    let cut = match client.events(&EventsRequest::TO_COME).await {
        Ok(events) => Some(tokio::spawn(requests_cut(events))),
        Err(_) => None,
    };
    stop_and_wait(client, now).await?;
    let cut = match cut {
        Some(cut) => tokio::time::timeout(LAST_EVENT, cut).await.ok().and_then(Result::ok).unwrap_or(0),
        None => 0,
    };
    let why = if now { "by --now" } else { "when --shutdown-timeout was over, or a worker died" };
    let told = match cut {
        0 => Ok(()),
        1 => writeln!(io::stderr(), "1 request was cut {why}"),
        cut => writeln!(io::stderr(), "{cut} requests were cut {why}"),
    };
    // The cluster has stopped even if stderr is closed.
    let _ = told;
    Ok(())
}

/// Reads the events to their end.
async fn requests_cut(mut events: Incoming) -> u64 {
    let mut last = Vec::new();
    while let Some(Ok(frame)) = events.frame().await {
        last.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        // Keeps only the last line.
        let without_end = last.strip_suffix(b"\n").unwrap_or(&last);
        if let Some(end) = without_end.iter().rposition(|&byte| byte == b'\n') {
            last.drain(..=end);
        }
    }
    let last: serde_json::Value = serde_json::from_slice(&last).unwrap_or_default();
    last["requests_cut"].as_u64().unwrap_or(0)
}

/// Waits until the process that was asked is gone. A service manager may have started another under the same name by then.
async fn stop_and_wait(client: &Client, now: bool) -> Result<(), CommandError> {
    let Some(primary) = client.stop(Stop { now }).await? else {
        return until_another_answers(client).await;
    };
    while !primary.is_gone() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// For a primary whose process is not visible, such as one in another container: waits until no cluster answers, or one that
/// started later.
async fn until_another_answers(client: &Client) -> Result<(), CommandError> {
    let mut uptime = 0;
    loop {
        match client.status().await {
            Err(CommandError::NoServer(_)) => return Ok(()),
            Ok(status) if status.uptime_ms < uptime => return Ok(()),
            Ok(status) => uptime = status.uptime_ms,
            // The primary is about to end.
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
