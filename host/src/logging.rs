//! Log lines of the primary and its workers: pretty for people, JSON for machines.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// A line for a person.
    #[default]
    Pretty,
    /// A JSON object a line.
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
    pub(crate) level: LogLevel,
    /// Whether the reader is a terminal that shows colours.
    pub(crate) colour: bool,
}

impl Logging {
    /// Sends this process's events to `writer` from now on. Libraries speak only when something is wrong.
    pub(crate) fn install<W>(self, writer: W)
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let own = LevelFilter::from(self.level);
        let libraries = own.min(LevelFilter::WARN);
        let filter = Targets::new().with_default(libraries).with_target("wasmcluster", own);
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false).with_ansi(self.colour);
        let registry = tracing_subscriber::registry().with(filter);
        let installed = match self.format {
            LogFormat::Pretty => registry.with(layer).try_init(),
            LogFormat::Json => {
                registry.with(layer.json().flatten_event(true).with_current_span(true).with_span_list(false)).try_init()
            }
        };
        debug_assert!(installed.is_ok(), "logging is installed once");
    }
}
