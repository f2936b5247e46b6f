//! `wasmcluster reload` and `rollback`: ask for it, show how it goes, and wait until it is over. Ctrl-C ends the showing,
//! not the reload.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Deserialize;

use super::print;
use crate::control::client::{Client, CommandError};
use crate::control::protocol::{GenerationStatus, ReloadRequest, ReloadResult};
use crate::wire::ids::short_digest;

/// Width of a bar, in characters.
const BAR: usize = 30;

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// A bar for each phase on a terminal, a line for each elsewhere.
    People,
    /// The primary's own lines of JSON.
    Json,
}

/// What the primary tells of a reload; further fields are of no concern here.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Told {
    Reload(Phase),
    ReloadEnded(Ended),
    Note { text: String },
}

#[derive(Debug, Deserialize)]
struct Phase {
    generation: Option<u64>,
    phase: String,
    done: Option<u64>,
    of: Option<u64>,
    lasts_ms: Option<u64>,
    reason: Option<String>,
}

/// How it ended.
#[derive(Debug, Deserialize)]
pub(super) struct Ended {
    pub(super) generation: Option<u64>,
    pub(super) result: ReloadResult,
    pub(super) reason: Option<String>,
}

pub(super) async fn reload(client: &Client, request: &ReloadRequest, show: Show) -> Result<Ended, CommandError> {
    Ok(follow(client.reload(request).await?, show).await?)
}

pub(super) async fn rollback(client: &Client, request: &ReloadRequest, show: Show) -> Result<Ended, CommandError> {
    Ok(follow(client.rollback(request).await?, show).await?)
}

/// What is served, for people.
pub(super) fn served(generation: &GenerationStatus) -> String {
    let GenerationStatus { current, digest, source, first_served_ms, .. } = generation;
    let age = match first_served_ms {
        // To the second.
        Some(ms) => format!("first served {} ago", humantime::format_duration(Duration::from_secs(ms / 1000))),
        None => "first served before this server was started".into(),
    };
    let digest = short_digest(digest);
    format!("generation {current} is served: {} ({digest}), {age}\n", source.display())
}

/// Shows line after line, until the last.
async fn follow(mut lines: Incoming, show: Show) -> anyhow::Result<Ended> {
    let mut display = Display::new(show);
    let mut unread = Vec::new();
    while let Some(frame) = lines.frame().await {
        let Ok(frame) = frame else { break };
        unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = unread.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if show == Show::Json {
                // It goes on, whoever reads that, and its end is the exit code.
                let _ = print(&line);
            }
            match serde_json::from_slice(&line).context("the primary's answer does not parse")? {
                Told::Reload(phase) => display.show(&phase),
                Told::ReloadEnded(ended) => return Ok(ended),
                Told::Note { text } => display.note(&text),
            }
        }
    }
    Err(anyhow!("the cluster ended during the reload; its log says why"))
}

enum Display {
    Bar(ProgressBar),
    /// With the phase that was shown last.
    Lines(String),
    Nothing,
}

impl Display {
    fn new(show: Show) -> Self {
        match show {
            Show::Json => Self::Nothing,
            Show::People if io::stderr().is_terminal() => {
                let bar = ProgressBar::new(0);
                bar.enable_steady_tick(Duration::from_millis(100));
                Self::Bar(bar)
            }
            Show::People => Self::Lines(String::new()),
        }
    }

    fn show(&mut self, phase: &Phase) {
        match self {
            Self::Bar(bar) => {
                bar.set_message(describe(phase));
                bar.reset_elapsed();
                bar.set_length(phase.of.unwrap_or(0));
                bar.set_position(phase.done.unwrap_or(0));
                bar.set_style(style(phase));
            }
            Self::Lines(last) if *last != phase.phase => {
                // Whoever closed our standard error does not want to know.
                let _ = writeln!(io::stderr(), "{}", describe(phase));
                last.clone_from(&phase.phase);
            }
            Self::Lines(_) | Self::Nothing => {}
        }
    }

    fn note(&self, text: &str) {
        let say = || {
            // Whoever closed our standard error does not want to know.
            let _ = writeln!(io::stderr(), "note: {text}");
        };
        match self {
            Self::Bar(bar) => bar.suspend(say),
            Self::Lines(_) => say(),
            Self::Nothing => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A bar of slots or workers, or of time, where either is known.
fn style(phase: &Phase) -> ProgressStyle {
    let template = match (phase.of, phase.lasts_ms) {
        (Some(1..), _) => "{spinner} {msg} [{bar:30}] {pos}/{len}",
        (_, Some(1..)) => "{spinner} {msg} [{time}]",
        _ => "{spinner} {msg} {elapsed}",
    };
    let lasts = Duration::from_millis(phase.lasts_ms.unwrap_or(0).max(1));
    let time = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let filled = (BAR as f64 * state.elapsed().div_duration_f64(lasts).min(1.0)) as usize;
        // Writing to a terminal's line in memory cannot fail.
        let _ = write!(out, "{:BAR$}", "=".repeat(filled));
    };
    let style = ProgressStyle::with_template(template).expect("a template of ours");
    style.progress_chars("== ").with_key("time", time)
}

fn describe(phase: &Phase) -> String {
    let generation = phase.generation.map_or_else(String::new, |generation| format!("generation {generation}: "));
    let lasts = match phase.lasts_ms {
        None | Some(0) => String::new(),
        Some(ms) => format!(" for {:?}", Duration::from_millis(ms)),
    };
    let what = match phase.phase.as_str() {
        "compiling" => "compiling".to_owned(),
        "canary" if lasts.is_empty() => "starting a first worker".to_owned(),
        "canary" => format!("a first worker must stay healthy{lasts}"),
        "rolling" => "rolling, slot by slot".to_owned(),
        "soaking" if lasts.is_empty() => "all slots have it".to_owned(),
        "soaking" => format!("all slots have it; watching{lasts}"),
        "committed" => "committed".to_owned(),
        "rolling_back" => format!("rolling back: {}", phase.reason.as_deref().unwrap_or("no reason")),
        "draining" => "waiting for workers that drain".to_owned(),
        other => other.to_owned(),
    };
    format!("{generation}{what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_primary_tells_is_understood() {
        let line = br#"{"time":"t","event":"reload","generation":2,"phase":"canary","lasts_ms":1000,"new_field":1}"#;
        let Ok(Told::Reload(phase)) = serde_json::from_slice(line) else { panic!() };
        assert_eq!(describe(&phase), "generation 2: a first worker must stay healthy for 1s");
        let line = br#"{"time":"t","event":"reload_ended","generation":null,"result":"refused","reason":"no"}"#;
        let Ok(Told::ReloadEnded(ended)) = serde_json::from_slice(line) else { panic!() };
        assert_eq!(
            (ended.generation, ended.result, ended.reason.as_deref()),
            (None, ReloadResult::Refused, Some("no"))
        );
    }
}
