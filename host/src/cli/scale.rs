//! `wasmcluster scale`: changes the number of workers, and waits until that is done. Ctrl-C ends the command, not the
//! change.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::args::ScaleArgs;
use super::exit::Failure;
use super::output::print;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::control::protocol::{Scale, Scaled};
use crate::settings::MAX_WORKERS;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long `scale` waits: workers to be removed drain first.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn scale(args: ScaleArgs) -> Result<(), Failure> {
    Ok(block_on(change(&client(args.cluster), args.scale))?)
}

/// Changes the number of workers, waits until that many are ready and the others are gone, and prints the change.
async fn change(client: &Client, scale: Scale) -> Result<(), CommandError> {
    let Scaled { from, to } = client.scale(scale).await?;
    let wanted = to as usize;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.status().await?;
        let ready = status.workers.iter().filter(|worker| worker.state == "ready").count();
        // The cluster has replaced unkillable workers and does not wait for them.
        let all = status.workers.iter().filter(|worker| worker.state != "unkillable").count();
        if ready == wanted && all == wanted {
            let workers = if to == 1 { "worker" } else { "workers" };
            let said =
                if from == to { format!("{to} {workers} already\n") } else { format!("{from} → {to} {workers}\n") };
            // The change is done even if stdout is closed.
            let _ = print(said.as_bytes());
            return Ok(());
        }
        if Instant::now() >= deadline {
            let error = anyhow!("{ready} of {wanted} workers are ready after {PATIENCE:?}; see `wasmcluster status`");
            return Err(error.into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Parses the argument of `scale`: `4`, `+1` or `-1`.
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
        let number: i32 = text.parse().map_err(|_| format!("that is over the limit of {MAX_WORKERS} workers"))?;
        match NonZeroU32::new(number.unsigned_abs()) {
            Some(_) if has_sign => Ok(Self::By(number)),
            Some(workers) => Ok(Self::Workers(workers)),
            None if has_sign => Err("that would change nothing".into()),
            None => Err("a cluster has at least one worker; `wasmcluster stop` stops it".into()),
        }
    }
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
