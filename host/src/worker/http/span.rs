//! What the span of a request says, in the words of OpenTelemetry's semantic conventions for HTTP.

use super::access::{AccessFacts, ended};
use super::outcome::Outcome;
use crate::os::listener::Security;
use crate::wire::messages::Identity;
use crate::wire::trace::{AttributeValue, Attributes, Nanos, SpanKind};
use crate::worker::requests::Asked;
use crate::worker::traces::BegunSpan;

/// Tells of a request that is over.
pub(super) fn tell_span(
    begun: BegunSpan,
    asked: &Asked,
    facts: &AccessFacts,
    outcome: &Outcome,
    bytes: u64,
    identity: &Identity,
) {
    let from = Nanos::from(facts.at);
    let how = ended(outcome);
    let status = outcome.status.map(|status| status.as_u16());
    let is_error = status.is_none_or(|status| status >= 500) || outcome.is_cut;
    let error = is_error.then_some(how);
    let attributes = attributes(asked, facts, status, error, bytes, identity, how);
    let to = from + outcome.took.unwrap_or_default();
    // There is no route that it could be called by.
    let name = asked.short_method().to_owned();
    begun.tell(SpanKind::Server, name, from..to, attributes, error.map(ToOwned::to_owned));
}

/// The first ones are kept where there are too many.
fn attributes(
    asked: &Asked,
    facts: &AccessFacts,
    status: Option<u16>,
    error: Option<&'static str>,
    bytes: u64,
    identity: &Identity,
    how: &'static str,
) -> Attributes {
    let mut all = Attributes::new();
    let mut add = |key: &str, value: AttributeValue| all.push((key.to_owned(), value));
    add("http.request.method", asked.short_method().into());
    add("url.path", asked.path().into());
    add("url.scheme", if facts.security == Security::Tls { "https" } else { "http" }.into());
    if let Some(status) = status {
        add("http.response.status_code", u64::from(status).into());
    }
    if let Some(error) = error {
        // What is complete and an error is known by its status.
        let kind = status.filter(|_| error == "complete").map_or(error.to_owned(), |status| status.to_string());
        add("error.type", kind.into());
    }
    add("network.protocol.version", facts.protocol_version().into());
    add("http.response.body.size", bytes.into());
    add("wasmcluster.request", asked.request().into());
    add("wasmcluster.generation", identity.generation.0.into());
    add("wasmcluster.slot", u64::from(identity.slot.0).into());
    add("wasmcluster.ended", how.into());
    let cost = asked.cost();
    if let Some(instance) = cost.instance() {
        add("wasmcluster.instance", instance.name().into());
        add("wasmcluster.guest.cpu_ms", (cost.cpu().as_secs_f64() * 1000.0).into());
        add("wasmcluster.guest.memory_bytes", cost.memory().into());
    }
    if let Some(peer) = facts.peer {
        add("client.address", peer.to_string().into());
    }
    if let Some(agent) = facts.user_agent() {
        add("user_agent.original", agent.into());
    }
    all
}
