//! Commands that change a running cluster, and wait until the change is there; or that follow what happens in it. Ctrl-C
//! ends the waiting, not the change.

use std::io::{self, Write};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::print;
use crate::control::client::{Client, CommandError};
use crate::control::protocol::{Scale, Scaled, Status, Stop};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the last event may take when the process is gone that sent it.
const LAST_EVENT: Duration = Duration::from_secs(1);
/// How long `scale` waits: workers that drain may take their time.
const SCALE_PATIENCE: Duration = Duration::from_secs(60);

/// What `scale` is given: `4`, `+1` or `-1`.
impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a number of workers, as 4, or how many more or fewer, as +1 or -1";
        let (has_sign, digits) = match text.strip_prefix(['+', '-']) {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(expected.into());
        }
        let number: i32 = text.parse().map_err(|_| "so many workers are over the limit")?;
        match NonZeroU32::new(number.unsigned_abs()) {
            Some(_) if has_sign => Ok(Self::By(number)),
            Some(workers) => Ok(Self::Workers(workers)),
            None if has_sign => Err("that would change nothing".into()),
            None => Err("a cluster has at least one worker; `wasmcluster stop` stops it".into()),
        }
    }
}

/// Changes the number of workers, waits until so many are ready and all others gone, and says what has changed.
pub(super) async fn scale(client: &Client, scale: Scale) -> Result<(), CommandError> {
    let Scaled { from, to } = client.scale(scale).await?;
    let wanted = to as usize;
    let deadline = Instant::now() + SCALE_PATIENCE;
    loop {
        let status = client.status().await?;
        let ready = status.workers.iter().filter(|worker| worker.state == "ready").count();
        // One that cannot be killed is nobody's worker any more.
        let all = status.workers.iter().filter(|worker| worker.state != "unkillable").count();
        if ready == wanted && all == wanted {
            let workers = if to == 1 { "worker" } else { "workers" };
            let said =
                if from == to { format!("{to} {workers} already\n") } else { format!("{from} → {to} {workers}\n") };
            // It is done, whoever reads that.
            let _ = print(said.as_bytes());
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

/// Waits until the cluster serves: a worker is ready. One that is not there may be about to start.
pub(super) async fn wait_ready(client: &Client, patience: Duration) -> Result<Status, CommandError> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(LOOK_EVERY);
        let Ok(seen) = tokio::time::timeout(left, client.status()).await else {
            return Err(anyhow!("the cluster does not answer within {patience:?}; is its process stopped?").into());
        };
        if let Ok(status) = &seen
            && status.serves()
        {
            return seen;
        }
        if seen.as_ref().is_ok_and(|status| status.state == "stopping") {
            return Err(anyhow!("the cluster is stopping").into());
        }
        if Instant::now() >= deadline {
            let state = seen?.state;
            return Err(anyhow!("the cluster is {state}, and no worker is ready after {patience:?}").into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Stops the cluster, waits until it is gone, and says what it cut.
pub(super) async fn stop(client: &Client, now: bool) -> Result<(), CommandError> {
    // It tells that as its last event. It has no room for another reader if eight others follow already.
    let cut = match client.events().await {
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
    // It has stopped, whoever reads that.
    let _ = told;
    Ok(())
}

/// Reads the events to their end.
async fn requests_cut(mut events: Incoming) -> u64 {
    let mut last = Vec::new();
    while let Some(Ok(frame)) = events.frame().await {
        last.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        // Only the last line is of interest.
        let without_end = last.strip_suffix(b"\n").unwrap_or(&last);
        if let Some(end) = without_end.iter().rposition(|&byte| byte == b'\n') {
            last.drain(..=end);
        }
    }
    let last: serde_json::Value = serde_json::from_slice(&last).unwrap_or_default();
    last["requests_cut"].as_u64().unwrap_or(0)
}

/// Waits until that very process is gone: another may have its name by then, where something starts it again.
async fn stop_and_wait(client: &Client, now: bool) -> Result<(), CommandError> {
    let Some(primary) = client.stop(Stop { now }).await? else {
        return until_another_answers(client).await;
    };
    while !primary.is_gone() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// For a primary whose process cannot be seen, as that of a container from another: waits until nobody answers, or one that
/// has begun later.
async fn until_another_answers(client: &Client) -> Result<(), CommandError> {
    let mut uptime = 0;
    loop {
        match client.status().await {
            Err(CommandError::NoServer(_)) => return Ok(()),
            Ok(status) if status.uptime_ms < uptime => return Ok(()),
            Ok(status) => uptime = status.uptime_ms,
            // It is about to end.
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
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
                return Err(anyhow!("unknown key {key:?}; the keys are {}", keys.join(", ")).into());
            }
        },
    };
    Ok(print(text.as_bytes()).map_err(anyhow::Error::from)?)
}

/// Changes values, and waits until every worker goes by them.
pub(super) async fn config_set(client: &Client, entries: Vec<(String, String)>) -> Result<(), CommandError> {
    let entries = entries.into_iter().collect();
    client.configure(&entries).await?;
    let said: String = entries.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    let _ = print(said.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_workers_are_absolute_or_relative() {
        let workers = |number| Ok(Scale::Workers(NonZeroU32::new(number).unwrap()));
        for (text, expected) in
            [("4", workers(4)), ("04", workers(4)), ("+1", Ok(Scale::By(1))), ("-12", Ok(Scale::By(-12)))]
        {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for (text, part) in [
            ("0", "at least one"),
            ("+0", "change nothing"),
            ("-0", "change nothing"),
            ("", "expected a number"),
            ("+", "expected a number"),
            ("--1", "expected a number"),
            ("+-1", "expected a number"),
            ("two", "expected a number"),
            ("1.5", "expected a number"),
            ("99999999999", "over the limit"),
        ] {
            let error = text.parse::<Scale>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
