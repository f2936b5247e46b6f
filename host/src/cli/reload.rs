//! `wasmcluster reload`: asks for a new version, shows its progress, and waits for the result. Ctrl-C ends the command, not
//! the reload.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper::body::Incoming;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Deserialize;

use super::args::{ReloadArgs, TermsArgs};
use super::build::build_folder;
use super::exit::Failure;
use super::output::print;
use super::running::{AnswerLines, block_on, client};
use super::status::certificates;
use crate::control::client::Client;
use crate::control::protocol::{GenerationStatus, Happening, LastReload, ReloadRequest, ReloadResult, line};
use crate::settings::{App, Span, short_digest};

/// Width of a bar, in characters.
const BAR: usize = 30;

pub(super) fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let ReloadArgs { app, dry_run, tls, terms, cluster } = args;
    let client = client(cluster);
    if tls {
        return read_certificates(&client);
    }
    // Asks for the status first, so that nothing is built for a cluster that does not run.
    let folder = match &app {
        Some(app) => match app.folder() {
            Some(folder) => block_on(client.status()).map(|_| Some(folder.to_owned()))?,
            None => None,
        },
        None => block_on(client.status())?.generation.folder,
    };
    // A build may produce the same component again, which needs no new workers. Someone who names a file wants new workers.
    let if_new = folder.is_some() && !terms.force;
    let show = terms.show();
    let app = match folder {
        Some(folder) => Some(build_folder(&folder).map_err(|failure| refuse(failure, show))?.into()),
        None => app,
    };
    let app = app.map(|app| app.absolute()).transpose().map_err(|error| Failure::Usage(error.into()))?;
    let request = ReloadRequest { if_new, dry_run, ..terms.request(app) };
    tell(block_on(async { Ok(follow(client.reload(&request).await?, show).await?) })?, show)
}

/// Says what is served then.
fn read_certificates(client: &Client) -> Result<(), Failure> {
    let status = block_on(async {
        client.read_certificates().await?;
        client.status().await
    })?;
    // It is done even if stdout is closed.
    let _ = print(certificates(&status.certificates).as_bytes());
    Ok(())
}

/// Refuses a folder that cannot be built, as the primary refuses a file that it cannot read. The primary is not asked then, so
/// this prints the JSON line that it would send.
fn refuse(failure: Failure, show: Show) -> Failure {
    let Failure::Error(error) = failure else { return failure };
    let reason = Some(format!("{error:#}"));
    let result = ReloadResult::Refused;
    if show == Show::Json {
        // The exit code tells the result even if stdout is closed.
        let _ = print(&line(&Happening::ReloadEnded { generation: None, result, reason: reason.clone() }));
    }
    Failure::Reload(LastReload { generation: None, result, reason })
}

impl TermsArgs {
    pub(super) fn request(&self, app: Option<App>) -> ReloadRequest {
        ReloadRequest {
            app,
            timeout_ms: self.timeout.map(Span::as_millis),
            force: self.force,
            max_error_increase: self.max_error_increase,
            ..ReloadRequest::default()
        }
    }

    pub(super) fn show(&self) -> Show {
        if self.json { Show::Json } else { Show::People }
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// A progress bar for each phase on a terminal, a line for each elsewhere.
    People,
    /// The primary's lines of JSON, unchanged.
    Json,
}

/// Prints the result. Everything but `committed` and `unchanged` is a failure.
pub(super) fn tell(ended: LastReload, show: Show) -> Result<(), Failure> {
    let said = what_came_of_it(ended)? + "\n";
    if show == Show::People {
        // The change is done even if stdout is closed.
        let _ = print(said.as_bytes());
    }
    Ok(())
}

/// The result in words. Everything but `committed` and `unchanged` is a failure.
pub(super) fn what_came_of_it(ended: LastReload) -> Result<String, Failure> {
    let generation = ended.generation.map_or(0, |generation| generation.0);
    match (ended.result, &ended.reason) {
        (ReloadResult::Committed, None) => Ok(format!("generation {generation} is served")),
        (ReloadResult::Committed, Some(remark)) => Ok(format!("generation {generation} is served: {remark}")),
        (ReloadResult::Unchanged, _) => {
            Ok(format!("unchanged: generation {generation} serves this component with these settings already"))
        }
        (ReloadResult::DryRun, _) => Ok("nothing was changed: this was a dry run".into()),
        _ => Err(Failure::Reload(ended)),
    }
}

/// What is served, for people.
pub(super) fn served(generation: &GenerationStatus) -> String {
    let GenerationStatus { current, digest, first_served_ms, .. } = generation;
    let age = match first_served_ms {
        // Whole seconds.
        Some(ms) => format!("first served {} ago", humantime::format_duration(Duration::from_secs(ms / 1000))),
        None => "first served before this server was started".into(),
    };
    let digest = short_digest(digest);
    format!("generation {current} is served: {} ({digest}), {age}\n", generation.described())
}

/// Shows each line as it comes, and returns the last.
pub(super) async fn follow(lines: Incoming, show: Show) -> anyhow::Result<LastReload> {
    let mut display = Display::new(show);
    let mut lines = AnswerLines::new(lines);
    while let Some(line) = lines.next().await {
        if show == Show::Json {
            // The reload goes on even if stdout is closed; the exit code tells the result.
            let _ = print(&line);
        }
        match Told::read(&line)? {
            Told::Reload(phase) => display.show(&phase),
            Told::ReloadEnded(ended) => return Ok(ended),
            Told::Note { text } => display.note(&text),
            Told::Change(change) => display.change(&change),
        }
    }
    Err(gone())
}

/// The failure of a reload whose cluster has ended.
pub(super) fn gone() -> anyhow::Error {
    anyhow!("the cluster ended before the change was done; its log says why")
}

/// A line that the primary sends about a reload; fields that are not used here are ignored.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Told {
    Reload(Phase),
    ReloadEnded(LastReload),
    Note { text: String },
    Change(ToldChange),
}

impl Told {
    pub(super) fn read(line: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(line).context("the primary's answer does not parse")
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ToldChange {
    what: String,
    from: Option<String>,
    to: Option<String>,
}

impl fmt::Display for ToldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{}: {from} → {to}", self.what),
            (None, Some(to)) => write!(f, "{}: {to}, which is new", self.what),
            (Some(from), None) => write!(f, "{}: no longer {from}", self.what),
            (None, None) => write!(f, "{}: changed", self.what),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Phase {
    generation: Option<u64>,
    phase: String,
    done: Option<u64>,
    of: Option<u64>,
    lasts_ms: Option<u64>,
    reason: Option<String>,
}

enum Display {
    Bar(ProgressBar),
    /// Holds the phase that was shown last.
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
                // Nothing can be done if stderr is closed.
                let _ = writeln!(io::stderr(), "{}", describe(phase));
                last.clone_from(&phase.phase);
            }
            Self::Lines(_) | Self::Nothing => {}
        }
    }

    /// On standard output, as it is a result.
    fn change(&self, change: &ToldChange) {
        // The reload goes on even if stdout is closed.
        let say = || drop(print(format!("{change}\n").as_bytes()));
        match self {
            Self::Bar(bar) => bar.suspend(say),
            Self::Lines(_) => say(),
            Self::Nothing => {}
        }
    }

    fn note(&self, text: &str) {
        let say = || {
            // Nothing can be done if stderr is closed.
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

/// A bar that counts slots or workers, or the time of the phase, if either is known.
fn style(phase: &Phase) -> ProgressStyle {
    let template = match (phase.of, phase.lasts_ms) {
        (Some(1..), _) => "{spinner} {msg} [{bar:30}] {pos}/{len}",
        (_, Some(1..)) => "{spinner} {msg} [{time}]",
        _ => "{spinner} {msg} {elapsed}",
    };
    let lasts = Duration::from_millis(phase.lasts_ms.unwrap_or(0).max(1));
    let time = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let filled = (BAR as f64 * state.elapsed().div_duration_f64(lasts).min(1.0)) as usize;
        // Writing to memory cannot fail.
        let _ = write!(out, "{:BAR$}", "=".repeat(filled));
    };
    let style = ProgressStyle::with_template(template).expect("a template of ours");
    style.progress_chars("== ").with_key("time", time)
}

pub(super) fn describe(phase: &Phase) -> String {
    let generation = phase.generation.map_or_else(String::new, |generation| format!("generation {generation}: "));
    let lasts = match phase.lasts_ms {
        None | Some(0) => String::new(),
        Some(ms) => format!(" for {}", humantime::format_duration(Duration::from_millis(ms))),
    };
    let what = match phase.phase.as_str() {
        "pulling" => "pulling the component from its registry".to_owned(),
        "compiling" => "compiling".to_owned(),
        "canary" if lasts.is_empty() => "starting a first worker".to_owned(),
        "canary" => format!("a first worker must stay healthy{lasts}"),
        "rolling" => "rolling, slot by slot".to_owned(),
        "soaking" if lasts.is_empty() => "all slots have it".to_owned(),
        "soaking" => format!("all slots have it; watching{lasts}"),
        "committed" => "committed".to_owned(),
        "rolling_back" => format!("rolling back: {}", phase.reason.as_deref().unwrap_or("no reason")),
        "draining" => "waiting for workers to drain".to_owned(),
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
        let hour = Phase { phase: "soaking".into(), lasts_ms: Some(3_600_000), ..phase };
        assert_eq!(describe(&hour), "generation 2: all slots have it; watching for 1h");
        let line = br#"{"time":"t","event":"reload_ended","generation":null,"result":"refused","reason":"no"}"#;
        let Ok(Told::ReloadEnded(ended)) = serde_json::from_slice(line) else { panic!() };
        assert_eq!(
            (ended.generation, ended.result, ended.reason.as_deref()),
            (None, ReloadResult::Refused, Some("no"))
        );
    }
}
