//! How guests call it.

use std::fmt::Write;

use super::bindings::wasi::otel::tracing::{SpanContext, SpanData, TraceFlags};
use super::bindings::wasi::otel::types::KeyValue;
use super::bindings::wasi::otel::{logs, metrics, tracing as spans};
use super::{MAX_OPEN, MAX_PARTS, MAX_TEXT, context_of, short, told};
use crate::wire::trace::TraceContext;
use crate::worker::guest::world::Guest;
use crate::worker::traces::RequestTrace;

/// As the interface has it. Of what is none, all ids are zeros.
fn span_context(context: Option<TraceContext>, trace_state: Vec<(String, String)>, is_remote: bool) -> SpanContext {
    let (trace_id, span_id) = context
        .map_or(("0".repeat(32), "0".repeat(16)), |context| (context.trace.to_string(), context.span.to_string()));
    let is_sampled = context.is_some_and(|context| context.is_sampled);
    let trace_flags = if is_sampled { TraceFlags::SAMPLED } else { TraceFlags::empty() };
    SpanContext { trace_id, span_id, trace_flags, is_remote, trace_state }
}

impl Guest {
    fn trace(&self) -> Option<&RequestTrace> {
        self.asked().and_then(|asked| asked.trace())
    }

    /// A span of the request's trace. Of others nobody is told by this guest.
    fn own(&self, context: &SpanContext) -> Option<TraceContext> {
        let context = context_of(context)?;
        (context.trace == self.trace()?.context.trace).then_some(context)
    }
}

impl spans::Host for Guest {
    fn on_start(&mut self, context: SpanContext) {
        if let Some(context) = self.own(&context) {
            let open = &mut self.open_spans().0;
            if open.len() < MAX_OPEN {
                open.push(context);
            }
        }
    }

    fn on_end(&mut self, span: SpanData) {
        let Some(context) = self.own(&span.span_context) else { return };
        self.open_spans().0.retain(|open| open.span != context.span);
        if let Some(trace) = self.trace().filter(|_| context.is_sampled) {
            trace.guest_tells(|state| told(span, context, state));
        }
    }

    fn outer_span_context(&mut self) -> SpanContext {
        let (context, state) = self.trace().map(|trace| (trace.context, trace.state())).unzip();
        span_context(context, state.unwrap_or_default(), context.is_some())
    }

    fn current_span_context(&mut self) -> SpanContext {
        match (self.open_spans().0.last().copied(), self.trace()) {
            (Some(open), Some(trace)) => span_context(Some(open), trace.state(), false),
            _ => self.outer_span_context(),
        }
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
            line.insert(short(key, MAX_TEXT), plain(short(value, MAX_TEXT)));
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
