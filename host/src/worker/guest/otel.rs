//! `wasi:otel`: what guests tell of their own work. Spans become parts of their request's trace, log records lines of the log.
//! Metrics are refused: a worker keeps those of `wasmcluster:worker/metrics`.
//!
//! A guest learns the span of its request if it works on one alone. Otherwise, and where nobody asked for traces, it is told
//! that there is none, in OpenTelemetry's way: ids that are all zeros.

use std::time::Duration;

use crate::wire::trace::{
    AttributeValue, Attributes, Nanos, OWN_SCOPE, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, TraceContext,
    TraceId, TraceSpan,
};
use bindings::wasi::clocks::wall_clock::Datetime;
use bindings::wasi::otel::tracing::{self, SpanContext, SpanData, TraceFlags};
use bindings::wasi::otel::types::KeyValue;

mod interface;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/otel",
        world: "wasi:otel/imports",
        with: { "wasi:clocks/wall-clock": wasmtime_wasi::p2::bindings::clocks::wall_clock },
    });
}
pub(super) use bindings::wasi::otel::{logs, metrics, tracing as spans};

/// Spans that an instance may have begun and not ended; of those beyond, it is not told.
const MAX_OPEN: usize = 64;
/// Attributes, events and links of a span each.
const MAX_PARTS: usize = 128;
/// Bytes of a text in a span; of its name, and of the library's; of why it failed.
const MAX_TEXT: usize = 1024;
const MAX_NAME: usize = 256;
const MAX_WHY: usize = 512;
/// Bytes of all parts of a span, as JSON: with the rest, they fit into a line. What does not is not looked at.
const ROOM: usize = 3072;

/// The spans that an instance has begun and not ended, the last one last.
#[derive(Debug, Default)]
pub(super) struct OpenSpans(Vec<TraceContext>);

impl OpenSpans {
    /// Nothing is left of those of the request before.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a guest calls a span, if it makes sense.
fn context_of(context: &SpanContext) -> Option<TraceContext> {
    Some(TraceContext {
        trace: TraceId::parse(&context.trace_id)?,
        span: SpanId::parse(&context.span_id)?,
        is_sampled: context.trace_flags.contains(TraceFlags::SAMPLED),
    })
}

/// What a guest tells of a span in a trace with that state.
fn told(span: SpanData, context: TraceContext, state: String) -> TraceSpan {
    let mut dropped = [span.dropped_attributes, span.dropped_events, span.dropped_links];
    let scope = short(span.instrumentation_scope.name, MAX_NAME);
    let (name, scope_version) =
        (short(span.name, MAX_NAME), short(span.instrumentation_scope.version.unwrap_or_default(), MAX_NAME));
    let status = match span.status {
        tracing::Status::Unset => SpanStatus::Unset,
        tracing::Status::Ok => SpanStatus::Ok,
        tracing::Status::Error(why) => SpanStatus::Error(short(why, MAX_WHY)),
    };
    let (from, to) = (nanos(span.start_time), nanos(span.end_time));
    let mut room = Room(ROOM);
    TraceSpan {
        trace: context.trace,
        span: context.span,
        parent: SpanId::parse(&span.parent_span_id),
        state,
        kind: match span.span_kind {
            tracing::SpanKind::Client => SpanKind::Client,
            tracing::SpanKind::Server => SpanKind::Server,
            tracing::SpanKind::Producer => SpanKind::Producer,
            tracing::SpanKind::Consumer => SpanKind::Consumer,
            tracing::SpanKind::Internal => SpanKind::Internal,
        },
        name,
        from,
        to: to.max(from),
        attributes: attributes(span.attributes, &mut room, &mut dropped[0]),
        events: parts(span.events, &mut dropped[1], |event| {
            let name = short(event.name, MAX_NAME);
            room.takes(json_size(&name) + 64)?;
            let attributes = attributes(event.attributes, &mut room, &mut 0);
            Some(SpanEvent { name, at: nanos(event.time), attributes })
        }),
        links: parts(span.links, &mut dropped[2], |link| {
            let TraceContext { trace, span, .. } = context_of(&link.span_context)?;
            room.takes(128)?;
            Some(SpanLink { trace, span, attributes: attributes(link.attributes, &mut room, &mut 0) })
        }),
        status,
        // That name is the server's own.
        scope: if ["", OWN_SCOPE].contains(&&*scope) { "guest".into() } else { scope },
        scope_version,
        dropped,
    }
}

/// Bytes that are left.
struct Room(usize);

impl Room {
    fn takes(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.checked_sub(bytes)?;
        Some(())
    }
}

/// Bytes of it as JSON. Control characters are not in it any more.
fn json_size(text: &str) -> usize {
    text.len() + text.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count() + 2
}

/// As many as there is room for, the first ones; the others are counted.
fn parts<T, U>(all: Vec<T>, dropped: &mut u32, mut take: impl FnMut(T) -> Option<U>) -> Vec<U> {
    let count = all.len();
    let taken: Vec<U> = all.into_iter().take(MAX_PARTS).map_while(&mut take).collect();
    *dropped = dropped.saturating_add((count - taken.len()) as u32);
    taken
}

fn attributes(pairs: Vec<KeyValue>, room: &mut Room, dropped: &mut u32) -> Attributes {
    parts(pairs, dropped, |KeyValue { key, value }| {
        let (key, value) = (short(key, MAX_TEXT), plain(value));
        let size = if let AttributeValue::Text(text) = &value { json_size(text) } else { 32 };
        room.takes(json_size(&key) + size + 16)?;
        Some((key, value))
    })
}

/// Values are JSON; what is a plain one of its kinds is told as such.
fn plain(value: String) -> AttributeValue {
    // Twice as long, as it may be full of escapes.
    let parsed = if value.len() <= 2 * MAX_TEXT { serde_json::from_str(&value).ok() } else { None };
    match parsed {
        Some(serde_json::Value::Bool(is_so)) => AttributeValue::Bool(is_so),
        Some(serde_json::Value::Number(number)) if number.is_i64() => {
            AttributeValue::Int(number.as_i64().unwrap_or_default())
        }
        Some(serde_json::Value::Number(number)) => AttributeValue::Double(number.as_f64().unwrap_or_default()),
        Some(serde_json::Value::String(text)) => AttributeValue::Text(short(text, MAX_TEXT)),
        _ => AttributeValue::Text(short(value, MAX_TEXT)),
    }
}

/// At most so many bytes of it, without what moves cursors or breaks lines.
fn short(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    if text.contains(char::is_control) { text.replace(char::is_control, " ") } else { text }
}

fn nanos(time: Datetime) -> Nanos {
    let since = Duration::from_secs(time.seconds).saturating_add(Duration::from_nanos(time.nanoseconds.into()));
    Nanos(since.as_nanos().min(u128::from(u64::MAX)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into() }
    }

    fn data(trace_id: &str, attributes: Vec<KeyValue>) -> SpanData {
        let span_context = SpanContext {
            trace_id: trace_id.into(),
            span_id: "00f067aa0ba902b7".into(),
            trace_flags: TraceFlags::SAMPLED,
            is_remote: false,
            trace_state: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
        };
        SpanData {
            span_context,
            parent_span_id: String::new(),
            span_kind: tracing::SpanKind::Internal,
            name: "work".into(),
            start_time: Datetime { seconds: 7, nanoseconds: 5 },
            end_time: Datetime { seconds: 6, nanoseconds: u32::MAX },
            attributes,
            events: Vec::new(),
            links: Vec::new(),
            status: tracing::Status::Error("so".into()),
            instrumentation_scope: bindings::wasi::otel::types::InstrumentationScope {
                name: String::new(),
                version: None,
                schema_url: None,
                attributes: Vec::new(),
            },
            dropped_attributes: 1,
            dropped_events: 0,
            dropped_links: 0,
        }
    }

    #[test]
    fn what_guests_tell_is_taken_as_far_as_it_makes_sense() {
        let tell = |data: SpanData| Some(told(data.clone(), context_of(&data.span_context)?, "a=1,b=2".into()));
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let kinds =
            [("text", "\"a\""), ("number", "7"), ("half", "0.5"), ("is", "true"), ("raw", "no json"), ("list", "[1]")];
        let span = tell(data(TRACE, kinds.map(|(key, value)| pair(key, value)).into())).unwrap();
        assert_eq!(
            (span.trace.to_string(), span.parent, &*span.state, &*span.scope),
            (TRACE.into(), None, "a=1,b=2", "guest")
        );
        assert_eq!(
            (span.from, span.to >= span.from, span.status),
            (Nanos(7_000_000_005), true, SpanStatus::Error("so".into()))
        );
        let values: Vec<AttributeValue> = span.attributes.into_iter().map(|(_, value)| value).collect();
        let text = |text: &str| AttributeValue::Text(text.into());
        let expected = [
            text("a"),
            AttributeValue::Int(7),
            AttributeValue::Double(0.5),
            AttributeValue::Bool(true),
            text("no json"),
            text("[1]"),
        ];
        assert_eq!(values, expected);
        let many = tell(data(TRACE, (0..MAX_PARTS + 3).map(|_| pair("k", &"ä".repeat(MAX_TEXT))).collect())).unwrap();
        assert_eq!((many.attributes.len(), many.dropped), (2, [1 + MAX_PARTS as u32 + 1, 0, 0]));
        assert!(matches!(&many.attributes[0].1, AttributeValue::Text(text) if text.len() <= MAX_TEXT));
        // However much it is, it is told in one line, and soon.
        let mut giant = data(TRACE, (0..1000).map(|_| pair(&"\"".repeat(5000), &"\u{1}".repeat(5000))).collect());
        let event =
            |_| tracing::Event { name: "\\".repeat(5000), time: giant.end_time, attributes: giant.attributes.clone() };
        giant.events = (0..200).map(event).collect();
        (giant.name, giant.dropped_attributes) = ("\u{1b}".repeat(5000), u32::MAX);
        giant.status = tracing::Status::Error("\"".repeat(5000));
        giant.instrumentation_scope.name = "wasmcluster".into();
        let span = tell(giant).unwrap();
        assert_eq!((&*span.scope, span.name.trim(), span.dropped[0]), ("guest", "", u32::MAX));
        assert!(span.line().is_some());
        for nonsense in ["", "0", "00000000000000000000000000000000", "4BF92F3577B34DA6A3CE929D0E0E4736"] {
            assert!(tell(data(nonsense, Vec::new())).is_none(), "{nonsense}");
        }
    }
}
