//! The events of a cluster in words, a line each, as `top` shows them.

use serde_json::Value;

use crate::cli::reload::{Told, describe};
use crate::control::protocol::Problem;

/// An event in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occurrence {
    /// RFC 3339, UTC.
    at: String,
    pub(super) text: String,
    /// Whether somebody should look at it.
    pub(super) is_bad: bool,
}

impl Occurrence {
    /// None if the line is not an event.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let name = event["event"].as_str()?;
        let at = event["time"].as_str().unwrap_or_default().to_owned();
        let reloading = || match Told::read(line) {
            Ok(Told::Reload(phase)) => describe(&phase),
            _ => in_general(name, &event),
        };
        let text = if name == "reload" { reloading() } else { in_words(name, &event) };
        let is_bad = match name {
            "worker_crashed" | "worker_unkillable" | "missed" => true,
            "degraded" => event["degraded"] == true,
            "reload_ended" => !["committed", "unchanged", "dry_run"].contains(&word(&event, "result").as_str()),
            "reload" => event["phase"] == "rolling_back",
            _ => false,
        };
        // Reasons may have several lines, and values whatever guests are configured with.
        let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(Self { at, text, is_bad })
    }

    /// What the log warns of.
    pub(super) fn warning(problem: &Problem) -> Self {
        let Problem { time, level, message, count, worker, generation, request, .. } = problem;
        let who = request.as_ref().map(|request| format!("request {request}"));
        let who = who.or_else(|| worker.map(|worker| format!("worker {worker}")));
        let generation = generation.map(|generation| format!("generation {generation}"));
        let often = (*count > 1).then(|| format!("{count} times"));
        let said: Vec<String> = who.into_iter().chain(generation).chain(often).collect();
        let colon = if said.is_empty() { "" } else { ": " };
        Self { at: time.clone(), text: format!("{}{colon}{message}", said.join(", ")), is_bad: level == "error" }
    }

    /// Hours, minutes and seconds, in UTC as in the log.
    pub(super) fn time(&self) -> &str {
        self.at.get(11..19).unwrap_or_default()
    }

    /// By which they are put in order.
    pub(super) fn at(&self) -> &str {
        &self.at
    }
}

fn in_words(name: &str, event: &Value) -> String {
    let of = |key: &str| word(event, key);
    let worker = || format!("worker {} in slot {}", of("worker"), of("slot"));
    match name {
        "worker_started" => format!("{} started, generation {}, pid {}", worker(), of("generation"), of("pid")),
        "worker_ready" => format!("worker {} is ready", of("worker")),
        "worker_draining" => format!("worker {} drains: {}", of("worker"), of("reason")),
        "worker_exited" => format!("{} ended: {}{}", worker(), of("reason"), lost(event)),
        "worker_crashed" => format!("{} crashed: {}{}", worker(), of("reason"), lost(event)),
        "worker_unkillable" => format!("worker {} does not die of SIGKILL", of("worker")),
        "degraded" if event["degraded"] == true => format!("degraded: {}", of("reason")),
        "degraded" => "no longer degraded".into(),
        "serving" => format!("serving on {}", of("listen")),
        "scaling" => format!("scaling from {} to {}", of("from"), of("to")),
        "configured" if event["value"].is_null() => format!("{} is not set any more", of("key")),
        "configured" => format!("{} = {}", of("key"), of("value")),
        "stopping" => "stopping".into(),
        "stopped" => format!("stopped, requests cut: {}", of("requests_cut")),
        "change" => format!("changes: {}", of("what")),
        "reload_ended" if event["reason"].is_null() => format!("reload ended: {}", of("result").replace('_', " ")),
        "reload_ended" => format!("reload ended: {}: {}", of("result").replace('_', " "), of("reason")),
        "missed" => format!("{} events came too fast to be shown", of("events")),
        _ => in_general(name, event),
    }
}

/// One that is not known here.
fn in_general(name: &str, event: &Value) -> String {
    let fields = event.as_object().into_iter().flatten();
    let fields = fields.filter(|(key, value)| !["event", "time"].contains(&key.as_str()) && !value.is_null());
    let said: Vec<String> = fields.map(|(key, _)| format!("{} {}", key.replace('_', " "), word(event, key))).collect();
    let name = name.replace('_', " ");
    if said.is_empty() { name } else { format!("{name}: {}", said.join(", ")) }
}

fn lost(event: &Value) -> String {
    match event["lost_requests"].as_array().map_or(0, Vec::len) {
        0 => String::new(),
        1 => ", 1 request lost".into(),
        lost => format!(", {lost} requests lost"),
    }
}

fn word(event: &Value, key: &str) -> String {
    match &event[key] {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_in_words() {
        for (line, text, is_bad) in [
            (
                r#"{"event":"worker_started","worker":3,"slot":0,"generation":2,"pid":77}"#,
                "worker 3 in slot 0 started, generation 2, pid 77",
                false,
            ),
            (
                r#"{"event":"worker_crashed","worker":1,"slot":1,"reason":"signal\u001b[9","retry_ms":0,"lost_requests":["1-2"]}"#,
                "worker 1 in slot 1 crashed: signal [9, 1 request lost",
                true,
            ),
            (r#"{"event":"degraded","degraded":false}"#, "no longer degraded", false),
            (
                r#"{"event":"reload","generation":2,"phase":"rolling","done":0,"of":2}"#,
                "generation 2: rolling, slot by slot",
                false,
            ),
            (
                r#"{"event":"reload_ended","generation":2,"result":"rolled_back","reason":"it crashed"}"#,
                "reload ended: rolled back: it crashed",
                true,
            ),
            (r#"{"event":"new_kind","of_this":[ "a", "b" ],"none":null}"#, "new kind: of this a, b", false),
        ] {
            let line = line.replace("{\"event\"", "{\"time\":\"2026-11-30T12:13:14.000001Z\",\"event\"");
            let expected = Occurrence { at: "2026-11-30T12:13:14.000001Z".into(), text: text.into(), is_bad };
            assert_eq!(Occurrence::read(line.as_bytes()), Some(expected));
        }
        assert_eq!(Occurrence::read(b"{}"), None);
    }

    #[test]
    fn warnings_of_the_log_are_told_in_words() {
        let check = |changes: serde_json::Value, text: &str, is_bad: bool| {
            let mut problem = serde_json::json!({
                "time": "2026-11-30T12:13:14.000001Z", "level": "warn", "message": "no answer", "count": 1, "worker": null,
                "generation": null, "request": null, "method": null, "path": null
            });
            problem.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let occurrence = Occurrence::warning(&serde_json::from_value(problem).unwrap());
            assert_eq!((occurrence.time(), &*occurrence.text, occurrence.is_bad), ("12:13:14", text, is_bad));
        };
        check(serde_json::json!({}), "no answer", false);
        check(serde_json::json!({"worker": 3, "level": "error"}), "worker 3: no answer", true);
        check(
            serde_json::json!({"worker": 3, "request": "3-7", "generation": 2, "count": 9}),
            "request 3-7, generation 2, 9 times: no answer",
            false,
        );
    }
}
