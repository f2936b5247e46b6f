//! `wasi:otel`, of which spans are used.

use std::time::SystemTime;

use super::otel_bindings::wasi::otel::tracing::{
    self, Datetime, Event, KeyValue, SpanContext, SpanData, SpanKind, Status as SpanStatus, TraceFlags,
};
use super::otel_bindings::wasi::otel::types::InstrumentationScope;
use crate::trace::{Context, Ended, Kind, Moment, Pairs, Status};

/// That of the request that the instance works on. It is not sampled if there is none.
pub(crate) fn outer_span() -> Context {
    let SpanContext { trace_id, span_id, trace_flags, trace_state, .. } = tracing::outer_span_context();
    Context {
        trace: trace_id,
        span: span_id,
        is_sampled: trace_flags.contains(TraceFlags::SAMPLED),
        state: trace_state,
    }
}

pub(crate) fn span_begins(context: &Context) {
    tracing::on_start(&span_context(context.clone()));
}

pub(crate) fn span_ends(span: Ended) {
    let event = |Moment { name, at, attributes }| Event { name, time: datetime(at), attributes: pairs(attributes) };
    tracing::on_end(&SpanData {
        span_context: span_context(span.context),
        parent_span_id: span.parent,
        span_kind: match span.kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        },
        name: span.name,
        start_time: datetime(span.from),
        end_time: datetime(span.to),
        attributes: pairs(span.attributes),
        events: span.events.into_iter().map(event).collect(),
        links: Vec::new(),
        status: match span.status {
            Status::Unset => SpanStatus::Unset,
            Status::Ok => SpanStatus::Ok,
            Status::Error(why) => SpanStatus::Error(why),
        },
        instrumentation_scope: InstrumentationScope {
            name: span.scope.into(),
            version: None,
            schema_url: None,
            attributes: Vec::new(),
        },
        dropped_attributes: span.dropped[0],
        dropped_events: span.dropped[1],
        dropped_links: 0,
    });
}

fn span_context(context: Context) -> SpanContext {
    let trace_flags = if context.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::empty() };
    SpanContext {
        trace_id: context.trace,
        span_id: context.span,
        trace_flags,
        is_remote: false,
        trace_state: context.state,
    }
}

fn datetime(time: SystemTime) -> Datetime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Datetime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
}

fn pairs(pairs: Pairs) -> Vec<KeyValue> {
    pairs.into_iter().map(|(key, value)| KeyValue { key, value }).collect()
}
