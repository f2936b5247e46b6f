//! `wasi:otel`: what guests tell of their own work. Spans become parts of their request's trace, log records lines of the log.
//! Metrics are refused: a worker keeps those of `wasmcluster:worker/metrics`.
//!
//! A guest learns the span of its request if it works on one alone. Otherwise, and where nobody asked for traces, it is told
//! that there is none, in OpenTelemetry's way: ids that are all zeros.

use std::time::Duration;

use crate::wire::trace::{
    AttributeValue, Attributes, Nanos, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, TraceId, TraceSpan,
};
use bindings::wasi::clocks::wall_clock::Datetime;
use bindings::wasi::otel::tracing::{self, SpanContext, SpanData};
use bindings::wasi::otel::types::KeyValue;

mod interface;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/otel",
        world: "wasi:otel/imports",
        with: { "wasi:clocks/wall-clock": wasmtime_wasi::p2::bindings::clocks::wall_clock },
    });
}
pub(super) use bindings::wasi::otel::{logs, metrics, tracing as spans};

/// Spans that an instance may have begun and not ended; of those beyond, it is not told.
const MAX_OPEN: usize = 64;
/// Attributes, events and links of a span each.
const MAX_PARTS: usize = 128;
/// Bytes of a text in a span.
const MAX_TEXT: usize = 1024;

/// The spans that an instance has begun and not ended, the last one last.
#[derive(Debug, Default)]
pub(super) struct OpenSpans(Vec<SpanContext>);

impl OpenSpans {
    /// Nothing is left of those of the request before.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a guest tells, if it makes sense.
fn told(span: SpanData) -> Option<TraceSpan> {
    let context = span.span_context;
    let mut dropped = [span.dropped_attributes, span.dropped_events, span.dropped_links];
    let state: Vec<String> = context.trace_state.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let scope = span.instrumentation_scope;
    let (from, to) = (nanos(span.start_time), nanos(span.end_time));
    Some(TraceSpan {
        trace: TraceId::parse(&context.trace_id)?,
        span: SpanId::parse(&context.span_id)?,
        parent: SpanId::parse(&span.parent_span_id),
        state: short(state.join(",")),
        kind: match span.span_kind {
            tracing::SpanKind::Client => SpanKind::Client,
            tracing::SpanKind::Server => SpanKind::Server,
            tracing::SpanKind::Producer => SpanKind::Producer,
            tracing::SpanKind::Consumer => SpanKind::Consumer,
            tracing::SpanKind::Internal => SpanKind::Internal,
        },
        name: short(span.name),
        from,
        to: to.max(from),
        attributes: attributes(span.attributes, &mut dropped[0]),
        events: first(span.events, &mut dropped[1])
            .map(|event| SpanEvent {
                name: short(event.name),
                at: nanos(event.time),
                attributes: attributes(event.attributes, &mut 0),
            })
            .collect(),
        links: first(span.links, &mut dropped[2])
            .filter_map(|link| {
                Some(SpanLink {
                    trace: TraceId::parse(&link.span_context.trace_id)?,
                    span: SpanId::parse(&link.span_context.span_id)?,
                    attributes: attributes(link.attributes, &mut 0),
                })
            })
            .collect(),
        status: match span.status {
            tracing::Status::Unset => SpanStatus::Unset,
            tracing::Status::Ok => SpanStatus::Ok,
            tracing::Status::Error(why) => SpanStatus::Error(short(why)),
        },
        scope: short(if scope.name.is_empty() { "guest".into() } else { scope.name }),
        scope_version: short(scope.version.unwrap_or_default()),
        dropped,
    })
}

/// As many as are told; the others are counted.
fn first<T>(parts: Vec<T>, dropped: &mut u32) -> impl Iterator<Item = T> + use<T> {
    *dropped = dropped.saturating_add(parts.len().saturating_sub(MAX_PARTS) as u32);
    parts.into_iter().take(MAX_PARTS)
}

fn attributes(pairs: Vec<KeyValue>, dropped: &mut u32) -> Attributes {
    first(pairs, dropped).map(|KeyValue { key, value }| (short(key), plain(value))).collect()
}

/// Values are JSON; what is a plain one of its kinds is told as such.
fn plain(value: String) -> AttributeValue {
    match serde_json::from_str(&value) {
        Ok(serde_json::Value::Bool(is_so)) => AttributeValue::Bool(is_so),
        Ok(serde_json::Value::Number(number)) if number.is_i64() => {
            AttributeValue::Int(number.as_i64().unwrap_or_default())
        }
        Ok(serde_json::Value::Number(number)) => AttributeValue::Double(number.as_f64().unwrap_or_default()),
        Ok(serde_json::Value::String(text)) => AttributeValue::Text(short(text)),
        _ => AttributeValue::Text(short(value)),
    }
}

fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

fn nanos(time: Datetime) -> Nanos {
    let since = Duration::from_secs(time.seconds).saturating_add(Duration::from_nanos(time.nanoseconds.into()));
    Nanos(since.as_nanos().min(u128::from(u64::MAX)) as u64)
}

#[cfg(test)]
mod tests {
    use super::bindings::wasi::otel::tracing::TraceFlags;
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
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let kinds =
            [("text", "\"a\""), ("number", "7"), ("half", "0.5"), ("is", "true"), ("raw", "no json"), ("list", "[1]")];
        let span = told(data(TRACE, kinds.map(|(key, value)| pair(key, value)).into())).unwrap();
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
        let many = told(data(TRACE, (0..MAX_PARTS + 3).map(|_| pair("k", &"ä".repeat(MAX_TEXT))).collect())).unwrap();
        assert_eq!((many.attributes.len(), many.dropped), (MAX_PARTS, [4, 0, 0]));
        assert!(matches!(&many.attributes[0].1, AttributeValue::Text(text) if text.len() <= MAX_TEXT));
        for nonsense in ["", "0", "00000000000000000000000000000000", "4BF92F3577B34DA6A3CE929D0E0E4736"] {
            assert!(told(data(nonsense, Vec::new())).is_none(), "{nonsense}");
        }
    }
}
