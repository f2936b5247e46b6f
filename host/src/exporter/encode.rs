//! Spans as OTLP has them: a protobuf message. Pure.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind as OtlpKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status};
use prost::Message;

use crate::wire::trace::{AttributeValue, Attributes, OWN_SCOPE, SpanKind, SpanStatus, TraceSpan};

/// The message that takes `spans` to a collector, for the service with these attributes.
pub(super) fn encode(service: &Attributes, spans: &[TraceSpan]) -> Vec<u8> {
    let mut by_scope: BTreeMap<(&str, &str), Vec<OtlpSpan>> = BTreeMap::new();
    for span in spans {
        let scope = match &*span.scope {
            "" => (OWN_SCOPE, env!("CARGO_PKG_VERSION")),
            scope => (scope, &*span.scope_version),
        };
        by_scope.entry(scope).or_default().push(encoded(span));
    }
    let scope_spans = by_scope.into_iter().map(|((name, version), spans)| ScopeSpans {
        scope: Some(InstrumentationScope { name: name.into(), version: version.into(), ..Default::default() }),
        spans,
        ..Default::default()
    });
    let resource = Resource { attributes: attributes(service), ..Default::default() };
    let resource_spans =
        ResourceSpans { resource: Some(resource), scope_spans: scope_spans.collect(), ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }.encode_to_vec()
}

fn encoded(span: &TraceSpan) -> OtlpSpan {
    let kind = match span.kind {
        SpanKind::Internal => OtlpKind::Internal,
        SpanKind::Server => OtlpKind::Server,
        SpanKind::Client => OtlpKind::Client,
        SpanKind::Producer => OtlpKind::Producer,
        SpanKind::Consumer => OtlpKind::Consumer,
    };
    let (code, message) = match &span.status {
        SpanStatus::Unset => (StatusCode::Unset, ""),
        SpanStatus::Ok => (StatusCode::Ok, ""),
        SpanStatus::Error(message) => (StatusCode::Error, &**message),
    };
    let [dropped_attributes_count, dropped_events_count, dropped_links_count] = span.dropped;
    let events = span.events.iter().map(|event| Event {
        time_unix_nano: event.at.0,
        name: event.name.clone(),
        attributes: attributes(&event.attributes),
        dropped_attributes_count: 0,
    });
    let links = span.links.iter().map(|link| Link {
        trace_id: link.trace.to_bytes(),
        span_id: link.span.to_bytes(),
        attributes: attributes(&link.attributes),
        ..Default::default()
    });
    OtlpSpan {
        trace_id: span.trace.to_bytes(),
        span_id: span.span.to_bytes(),
        trace_state: span.state.clone(),
        parent_span_id: span.parent.map(|parent| parent.to_bytes()).unwrap_or_default(),
        // Sampled, as all that are exported.
        flags: 1,
        name: span.name.clone(),
        kind: kind as i32,
        start_time_unix_nano: span.from.0,
        end_time_unix_nano: span.to.0,
        attributes: attributes(&span.attributes),
        dropped_attributes_count,
        events: events.collect(),
        dropped_events_count,
        links: links.collect(),
        dropped_links_count,
        status: Some(Status { message: message.into(), code: code as i32 }),
    }
}

fn attributes(attributes: &Attributes) -> Vec<KeyValue> {
    let value = |value: &AttributeValue| match value {
        AttributeValue::Bool(value) => any_value::Value::BoolValue(*value),
        AttributeValue::Int(value) => any_value::Value::IntValue(*value),
        AttributeValue::Double(value) => any_value::Value::DoubleValue(*value),
        AttributeValue::Text(value) => any_value::Value::StringValue(value.clone()),
    };
    let pairs = attributes.iter().map(|(key, it)| KeyValue {
        key: key.clone(),
        value: Some(AnyValue { value: Some(value(it)) }),
        ..Default::default()
    });
    pairs.collect()
}
