//! What no standard covers: the package `wasmcluster:worker`, whichever WASI the rest is of.

use crate::metrics::Update;
use crate::worker::Worker;

/// What the bindings call.
#[cfg(not(feature = "p2"))]
pub(super) use wasip3::wit_bindgen::rt as runtime;
#[cfg(feature = "p2")]
pub(super) use wit_bindgen::rt as runtime;

use super::bindings::wasmcluster::worker::{identity, metrics};

pub(crate) fn worker() -> Worker {
    let identity::Worker { id, slot, pid, generation, digest, workers } = identity::current();
    Worker { id, slot, pid, generation, digest, workers }
}

pub(crate) fn metric(name: &str, labels: &[(String, String)], update: Update) {
    match update {
        Update::Count(by) => metrics::count(name, labels, by),
        Update::SetGauge(value) => metrics::set_gauge(name, labels, value),
        Update::AddGauge(by) => metrics::add_gauge(name, labels, by),
        Update::Observe(value) => metrics::observe(name, labels, value),
    }
}
