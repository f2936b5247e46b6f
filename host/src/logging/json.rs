//! `--log-format json`: the one shape of every line, whoever says it. docs/reference.md documents it; fields are added,
//! none is taken away.
//!
//! A line always has `timestamp`, `level` and `message`; the fields of what happened stand beside these. A line that a
//! guest printed has `stream`, `worker` and `generation`, `request`, `method` and `path` of what the guest worked on, and, if it
//! was a JSON object, that object as `guest`: nothing is encoded twice.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::LogLevel;
use crate::os::pipe::{MARK, MAX_LINE};

/// How a line of ours begins, by which it is told from other text.
const BEGINNING: &str = "{\"timestamp\":";

#[derive(Serialize)]
struct LogLine<'a> {
    timestamp: &'a str,
    level: &'a str,
    message: &'a str,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

/// A line, newline included. What would not fit into one that pipes carry whole is cut, the message first.
pub(crate) fn line(level: &str, message: &str, fields: &Map<String, Value>) -> String {
    line_at(SystemTime::now(), level, message, fields)
}

fn line_at(at: SystemTime, level: &str, message: &str, fields: &Map<String, Value>) -> String {
    let timestamp = humantime::format_rfc3339_micros(at).to_string();
    let mut kept = message.len();
    loop {
        let line = LogLine { timestamp: &timestamp, level, message: &message[..kept], fields };
        // Strings, numbers and what was parsed from JSON.
        let text = serde_json::to_string(&line).unwrap_or_default();
        match (text.len() <= MAX_LINE, kept) {
            (true, _) => return text + "\n",
            (false, 0) => return line_at(at, level, message, &Map::from_iter([("cut".into(), Value::Bool(true))])),
            (false, _) => kept = message.floor_char_boundary(kept / 2),
        }
    }
}

/// What a process printed that speaks no JSON: a line of ours as it is, any other in our shape.
pub(crate) fn wrap(text: &[u8], level: LogLevel, fields: &Map<String, Value>) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches(['\n', '\r']);
    if text.starts_with(BEGINNING) && text.ends_with('}') {
        return format!("{text}\n");
    }
    line(level.name(), text, fields)
}

/// A line that a guest printed: its level and message are the guest's own, if it says any in a usual way.
pub(crate) fn guest_line(at: SystemTime, text: &[u8], mut fields: Map<String, Value>) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches(['\n', '\r']);
    let object = if text.starts_with('{') { serde_json::from_str::<Map<String, Value>>(text).ok() } else { None };
    let Some(object) = object else {
        let level = text.split([' ', ':']).next().and_then(level_named).unwrap_or(LogLevel::Info);
        return line_at(at, level.name(), text, &fields);
    };
    let said = |names: [&str; 2]| names.iter().find_map(|&name| object.get(name)?.as_str()).map(str::to_owned);
    let level = said(["level", "severity"]).and_then(|level| level_named(&level)).unwrap_or(LogLevel::Info);
    let message = said(["message", "msg"]).unwrap_or_default();
    fields.insert("guest".into(), object.into());
    line_at(at, level.name(), &message, &fields)
}

/// The names that logging libraries give to levels.
fn level_named(name: &str) -> Option<LogLevel> {
    let is = |names: &[&str]| names.iter().any(|other| other.eq_ignore_ascii_case(name));
    match () {
        () if is(&["error", "critical", "fatal"]) => Some(LogLevel::Error),
        () if is(&["warn", "warning"]) => Some(LogLevel::Warn),
        () if is(&["info", "notice"]) => Some(LogLevel::Info),
        () if is(&["debug"]) => Some(LogLevel::Debug),
        () if is(&["trace"]) => Some(LogLevel::Trace),
        () => None,
    }
}

/// Writes what this process logs in that shape. The fields of spans stand beside those of the event; a span's `id` has
/// the span's name, so that a worker's own lines have `worker` as the primary's have.
#[derive(Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let Some(SpanFields(fields)) = extensions.get() else { continue };
            for (name, value) in fields {
                said.fields.insert(if name == "id" { span.name().into() } else { name.clone() }, value.clone());
            }
        }
        event.record(&mut said);
        let level = event.metadata().level().as_str();
        writer.write_str(&line(level, &said.message, &said.fields))
    }
}

/// Writes each event twice: as JSON, behind a mark by which its reader knows it, and then for people. The primary keeps the
/// one for those who ask for it later, and passes on the other.
#[derive(Debug)]
pub(super) struct Twice(pub(super) Format);

impl<S, N> FormatEvent<S, N> for Twice
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writer.write_char(MARK.into())?;
        JsonLines.format_event(context, writer.by_ref(), event)?;
        self.0.format_event(context, writer, event)
    }
}

/// The fields of a span, which [`JsonLines`] finds with it.
struct SpanFields(Map<String, Value>);

/// Keeps the fields of spans.
#[derive(Debug)]
pub(super) struct KeepFields;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for KeepFields {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut said = Said::default();
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(said.fields));
        }
    }
}

/// The fields of an event.
#[derive(Default)]
struct Said {
    message: String,
    fields: Map<String, Value>,
}

impl Said {
    fn take(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().into(), value.into());
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.take(field, format!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.into(),
            _ => self.take(field, value),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(line: &str) -> Value {
        assert!(line.ends_with("}\n") && line.len() <= MAX_LINE + 1, "{line}");
        let value: Value = serde_json::from_str(line).unwrap();
        assert!(["timestamp", "level", "message"].iter().all(|name| value[name].is_string()), "{line}");
        value
    }

    fn guest(text: &str) -> Value {
        parse(&guest_line(SystemTime::now(), text.as_bytes(), Map::from_iter([("worker".into(), json!(3))])))
    }

    #[test]
    fn a_guest_s_line_has_a_level_and_is_encoded_once() {
        for (text, level, message) in [
            ("hello\n", "INFO", "hello"),
            ("say \"hi\"\r\n", "INFO", "say \"hi\""),
            ("WARN  shop: out of books", "WARN", "WARN  shop: out of books"),
            ("error: no books", "ERROR", "error: no books"),
            ("{not json", "INFO", "{not json"),
            ("[1,2]", "INFO", "[1,2]"),
        ] {
            let line = guest(text);
            assert_eq!((&line["level"], &line["message"]), (&json!(level), &json!(message)), "{text}");
            assert_eq!((&line["worker"], &line["guest"]), (&json!(3), &Value::Null), "{text}");
        }
        let line = guest("{\"level\":\"warning\",\"msg\":\"low\",\"stock\":{\"books\":1},\"worker\":\"forged\"}\n");
        assert_eq!((&line["level"], &line["message"], &line["worker"]), (&json!("WARN"), &json!("low"), &json!(3)));
        assert_eq!(line["guest"]["stock"], json!({"books": 1}));
        assert_eq!(guest("{\"a\":1}")["guest"], json!({"a": 1}));
    }

    #[test]
    fn what_is_too_long_is_cut_and_stays_json() {
        let long = "\u{1}ä".repeat(MAX_LINE);
        let line = parse(&line("INFO", &long, &Map::new()));
        let message = line["message"].as_str().unwrap();
        assert!(!message.is_empty() && long.starts_with(message));
        let fields = Map::from_iter([("long".into(), json!(long))]);
        let line = parse(&self::line("INFO", "short", &fields));
        assert_eq!((&line["message"], &line["cut"], &line["long"]), (&json!("short"), &json!(true), &Value::Null));
    }

    #[test]
    fn other_text_is_wrapped_and_ours_is_not() {
        let build = Map::from_iter([("stream".into(), json!("build"))]);
        let wrapped = parse(&wrap(b"   Compiling shop\n", LogLevel::Info, &build));
        assert_eq!((&wrapped["message"], &wrapped["stream"]), (&json!("   Compiling shop"), &json!("build")));
        let ours = line("WARN", "x", &Map::new());
        assert_eq!(wrap(ours.as_bytes(), LogLevel::Info, &build), ours);
        parse(&wrap(&ours.as_bytes()[..30], LogLevel::Error, &build));
    }
}
