//! Log lines of the primary and its workers: pretty for people, JSON for machines. Also what a process says that has no
//! log yet, or never has one.

pub(crate) mod json;
mod relay;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub(crate) use relay::Relay;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// As log lines have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("no level is hidden").get_name())
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::value_variants().iter().map(Self::to_string).collect::<Vec<_>>().join(", ");
        <Self as ValueEnum>::from_str(text, false).map_err(|_| format!("expected {}", names()))
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// How a process logs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Logging {
    pub(crate) format: LogFormat,
    /// Whether the reader is a terminal that shows colours.
    pub(crate) colour: bool,
}

/// Changes how much this process logs.
#[derive(Clone, Debug)]
pub(crate) struct Volume(reload::Handle<Targets, Registry>);

impl Volume {
    pub(crate) fn set(&self, level: LogLevel) {
        // Fails only when the subscriber is gone, which lives as long as the process.
        let _ = self.0.reload(filter(level));
    }
}

/// Libraries speak only when something is wrong.
fn filter(level: LogLevel) -> Targets {
    let own = LevelFilter::from(level);
    // It warns of what clients do, as often as they do it.
    let of_clients = own.min(LevelFilter::ERROR);
    Targets::new()
        .with_default(own.min(LevelFilter::WARN))
        .with_target("wasmcluster", own)
        .with_target("h2", of_clients)
        // It warns of each datagram that somebody forges, in words of theirs.
        .with_target("hickory", LevelFilter::OFF)
}

impl Logging {
    /// Sends this process's events to `writer` from now on, for the primary to carry out: those for people are there as JSON
    /// as well.
    pub(crate) fn install<W>(self, level: LogLevel, writer: W) -> Volume
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (filter, volume) = reload::Layer::new(filter(level));
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(self.colour);
        let registry = tracing_subscriber::registry().with(filter).with(json::KeepFields);
        let pretty = tracing_subscriber::fmt::format().with_target(false);
        let installed = match self.format {
            LogFormat::Pretty => registry.with(layer.event_format(json::Twice(pretty))).try_init(),
            LogFormat::Json => registry.with(layer.event_format(json::JsonLines)).try_init(),
        };
        debug_assert!(installed.is_ok(), "logging is installed once");
        Volume(volume)
    }
}

/// Whether this process speaks JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// What [`say`] and the like go by from now on. Until then they speak to people.
pub(crate) fn speak(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// A line on standard error, of a process that has no log yet, or never has one.
pub(crate) fn say(level: LogLevel, message: fmt::Arguments<'_>) {
    // Whoever closed it does not want to know.
    let _ = io::stderr().write_all(line(level, message).as_bytes());
}

/// What [`say`] says, newline included.
pub(crate) fn line(level: LogLevel, message: fmt::Arguments<'_>) -> String {
    match is_json() {
        true => json::line(level.name(), &message.to_string(), &serde_json::Map::new()),
        false => format!("{message}\n"),
    }
}

/// An error that ends a process or a build, likewise.
pub(crate) fn complain(error: &dyn fmt::Display) {
    match is_json() {
        true => say(LogLevel::Error, format_args!("{error}")),
        false => say(LogLevel::Error, format_args!("{} {error}", error_label())),
    }
}

fn error_label() -> &'static str {
    if colours() { "\x1b[1;31merror:\x1b[0m" } else { "error:" }
}

/// Colours on standard error: for a person at a terminal who did not ask for none.
pub(crate) fn colours() -> bool {
    has_colours(&io::stderr())
}

pub(crate) fn has_colours(out: &impl io::IsTerminal) -> bool {
    let is_plain = || {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        unwanted || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
    };
    out.is_terminal() && !is_plain()
}

/// The line that announces a listener, newline included.
pub(crate) fn announcement(format: LogFormat, url: &str) -> String {
    let slash = if url.starts_with("http") { "/" } else { "" };
    let message = format!("Serving HTTP on {url}{slash}");
    match format {
        LogFormat::Pretty => message + "\n",
        LogFormat::Json => {
            let url = serde_json::Map::from_iter([("url".into(), format!("{url}{slash}").into())]);
            json::line(LogLevel::Info.name(), &message, &url)
        }
    }
}

/// Bytes of a text from elsewhere that are logged.
const MAX_QUOTED: usize = 1024;
const MAX_TRACE: usize = 4 * 1024;

/// A text from elsewhere, as a guest's error: one line, and not longer than one, with nothing in it that a terminal or a
/// reader of lines would take for more than text.
pub(crate) fn one_line(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let cut = text.floor_char_boundary(MAX_QUOTED);
        write_escaped(f, &text[..cut])?;
        if cut < text.len() { f.write_str("…") } else { Ok(()) }
    })
}

/// A text from elsewhere that has several lines, as a backtrace: those behind the first are indented, so that none of them
/// can be taken for a line of the log.
pub(crate) fn several_lines(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let cut = text.floor_char_boundary(MAX_TRACE);
        for (number, line) in text[..cut].trim_end().lines().enumerate() {
            if number > 0 {
                f.write_str("\n    ")?;
            }
            write_escaped(f, line)?;
        }
        if cut < text.len() { f.write_str("…") } else { Ok(()) }
    })
}

fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for char in text.chars() {
        // Separators of lines and paragraphs, and what changes the direction of text.
        let is_special = matches!(char, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if char.is_control() || is_special {
            write!(f, "{}", char.escape_default())?;
        } else {
            f.write_char(char)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_elsewhere_forge_no_lines() {
        let text = "asked to \"fail\"\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[31m\u{2028}\u{202e}é";
        let escaped = "asked to \"fail\"\\n2026-01-01T00:00:00Z ERROR forged\\r\\u{1b}[31m\\u{2028}\\u{202e}é";
        assert_eq!(one_line(text).to_string(), escaped);
        let lines = several_lines(text).to_string();
        assert_eq!(lines, escaped.replace("\\n", "\n    "));
        assert_eq!(one_line(&"é".repeat(MAX_QUOTED)).to_string(), format!("{}…", "é".repeat(MAX_QUOTED / 2)));
        assert!(several_lines(&"a\n".repeat(MAX_TRACE)).to_string().ends_with("a…"));
    }
}
