//! The events of a cluster in words, a line each, as `top` shows them.

use serde_json::Value;

use crate::cli::reload::{Told, describe};

/// An event in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occurrence {
    /// Hours, minutes and seconds, in UTC as in the log.
    pub(super) time: String,
    pub(super) text: String,
    /// Whether somebody should look at it.
    pub(super) is_bad: bool,
}

impl Occurrence {
    /// None if the line is not an event.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let name = event["event"].as_str()?;
        let time = event["time"].as_str().and_then(|time| time.get(11..19)).unwrap_or("");
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
        Some(Self { time: time.to_owned(), text, is_bad })
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
            let expected = Occurrence { time: "12:13:14".into(), text: text.into(), is_bad };
            assert_eq!(Occurrence::read(line.as_bytes()), Some(expected));
        }
        assert_eq!(Occurrence::read(b"{}"), None);
    }
}
