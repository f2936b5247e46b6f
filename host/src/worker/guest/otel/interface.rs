//! How guests call it.

use std::fmt::Write;

use super::bindings::wasi::otel::tracing::{SpanContext, SpanData, TraceFlags};
use super::bindings::wasi::otel::types::KeyValue;
use super::bindings::wasi::otel::{logs, metrics, tracing as spans};
use super::{MAX_OPEN, MAX_PARTS, short, told};
use crate::wire::trace::TraceContext;
use crate::worker::guest::world::Guest;

impl Guest {
    fn request_span(&self) -> SpanContext {
        let trace = self.asked().and_then(|asked| asked.trace());
        let (trace_id, span_id) = ("0".repeat(32), "0".repeat(16));
        let none = SpanContext {
            trace_id,
            span_id,
            trace_flags: TraceFlags::empty(),
            is_remote: false,
            trace_state: Vec::new(),
        };
        trace.map_or(none, |trace| {
            let TraceContext { trace: id, span, is_sampled } = trace.context;
            SpanContext {
                trace_id: id.to_string(),
                span_id: span.to_string(),
                trace_flags: if is_sampled { TraceFlags::SAMPLED } else { TraceFlags::empty() },
                is_remote: true,
                trace_state: trace.state(),
            }
        })
    }
}

impl spans::Host for Guest {
    fn on_start(&mut self, context: SpanContext) {
        let open = &mut self.open_spans().0;
        if open.len() < MAX_OPEN {
            open.push(context);
        }
    }

    fn on_end(&mut self, span: SpanData) {
        self.open_spans().0.retain(|open| open.span_id != span.span_context.span_id);
        let is_sampled = span.span_context.trace_flags.contains(TraceFlags::SAMPLED);
        let trace = self.asked().and_then(|asked| asked.trace()).filter(|_| is_sampled);
        if let Some(trace) = trace
            && let Some(span) = told(span)
        {
            trace.guest_tells(span);
        }
    }

    fn outer_span_context(&mut self) -> SpanContext {
        self.request_span()
    }

    fn current_span_context(&mut self) -> SpanContext {
        let last = self.open_spans().0.last().cloned();
        last.unwrap_or_else(|| self.request_span())
    }
}

impl logs::Host for Guest {
    fn on_emit(&mut self, record: logs::LogRecord) {
        let level = match record.severity_number.unwrap_or(9) {
            0..=4 => "trace",
            5..=8 => "debug",
            9..=12 => "info",
            13..=16 => "warn",
            _ => "error",
        };
        let plain = |value: String| serde_json::from_str(&value).unwrap_or(serde_json::Value::String(value));
        let mut line = serde_json::Map::new();
        for KeyValue { key, value } in record.attributes.unwrap_or_default().into_iter().take(MAX_PARTS) {
            line.insert(short(key), plain(short(value)));
        }
        line.insert("level".into(), level.into());
        line.insert("message".into(), record.body.map_or_else(String::new, |body| in_words(plain(body))).into());
        let mut text = String::new();
        if write!(text, "{}", serde_json::Value::Object(line)).is_ok() {
            self.print(&text);
        }
    }
}

fn in_words(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

impl metrics::Host for Guest {
    fn export(&mut self, _: metrics::ResourceMetrics) -> Result<(), String> {
        Err("this server takes no metrics by wasi:otel; use wasmcluster:worker/metrics".into())
    }
}
