//! What no standard covers, or none that is final: the package `wasmcluster:worker`, and `wasi:config`, whichever WASI the rest
//! is of.

use crate::metrics::Update;
use crate::websocket::{CloseCode, Closed, Message};
use crate::worker::Worker;

/// What the bindings call.
#[cfg(not(feature = "p2"))]
pub(super) use wasip3::wit_bindgen::rt as runtime;
#[cfg(feature = "p2")]
pub(super) use wit_bindgen::rt as runtime;

use super::bindings::wasmcluster::worker::{identity, metrics};
use super::config_bindings::wasi::config::store;
#[cfg(feature = "p2")]
use super::p2::bindings::wasmcluster::worker::websocket;
#[cfg(not(feature = "p2"))]
use super::p3::bindings::wasmcluster::worker::websocket;

pub(crate) fn worker() -> Worker {
    let identity::Worker { id, slot, pid, generation, digest, workers } = identity::current();
    Worker { id, slot, pid, generation, digest, workers }
}

/// A value, if the host has it, and can read it: wasmcluster always can.
pub(crate) fn config(key: &str) -> Option<String> {
    store::get(key).ok().flatten()
}

pub(crate) fn all_config() -> Vec<(String, String)> {
    store::get_all().unwrap_or_default()
}

pub(crate) fn metric(name: &str, labels: &[(String, String)], update: Update) {
    match update {
        Update::Count(by) => metrics::count(name, labels, by),
        Update::SetGauge(value) => metrics::set_gauge(name, labels, value),
        Update::AddGauge(by) => metrics::add_gauge(name, labels, by),
        Update::Observe(value) => metrics::observe(name, labels, value),
    }
}

impl From<Message> for websocket::Message {
    fn from(message: Message) -> Self {
        match message {
            Message::Text(text) => Self::Text(text),
            // Without a copy, where nobody else has the bytes.
            Message::Binary(bytes) => Self::Binary(bytes.into()),
        }
    }
}

impl From<websocket::Message> for Message {
    fn from(message: websocket::Message) -> Self {
        match message {
            websocket::Message::Text(text) => Self::Text(text),
            websocket::Message::Binary(bytes) => Self::Binary(bytes.into()),
        }
    }
}

impl From<websocket::Closed> for Closed {
    fn from(websocket::Closed { code, reason }: websocket::Closed) -> Self {
        Self { code: CloseCode(code), reason }
    }
}
