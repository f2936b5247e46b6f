//! Metrics, good ones and bad ones: the interface of the host's, without the SDK.

use crate::Query;

/// The generated bindings of `wit/worker.wit`.
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit/worker.wit", world: "imports" });
}
use bindings::wasmcluster::worker::metrics;

/// Does one of `count=`, `set=`, `add=` and `observe=` to the series `name=`, with the label `label=` of value `value=` if
/// that is there. The number of `times=` says how often.
pub(crate) fn update(query: &Query) -> String {
    let name = query.text("name").unwrap_or_default();
    let labels: Vec<_> =
        query.text("label").map(|label| (label, query.text("value").unwrap_or_default())).into_iter().collect();
    let float = |parameter| query.text(parameter).map(|text| text.parse().expect("a number"));
    for _ in 0..query.number("times", 1) {
        if let Some(by) = query.optional("count") {
            metrics::count(&name, &labels, by);
        }
        if let Some(value) = float("set") {
            metrics::set_gauge(&name, &labels, value);
        }
        if let Some(by) = float("add") {
            metrics::add_gauge(&name, &labels, by);
        }
        if let Some(value) = float("observe") {
            metrics::observe(&name, &labels, value);
        }
    }
    "kept".into()
}

/// So many series of one name.
pub(crate) fn many(count: u64) -> String {
    for number in 0..count {
        metrics::count("many", &[("number".into(), number.to_string())], 1);
    }
    "kept".into()
}

/// Everything about it is too large.
pub(crate) fn giant(mib: u64) -> String {
    let giant = "x".repeat((mib as usize) << 20);
    metrics::count(&giant, &[], 1);
    metrics::count("giant", &[(giant.clone(), "value".into())], 1);
    metrics::count("giant", &[("label".into(), giant)], 1);
    let labels: Vec<_> = (0..100_000).map(|number| (format!("l{number}"), "value".into())).collect();
    metrics::count("giant", &labels, 1);
    "kept".into()
}
