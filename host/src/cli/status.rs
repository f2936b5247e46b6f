//! `wasmcluster status`: a table for people, or the primary's own JSON.

use crate::primary::{GuestMetric, MetricValue, Status, WorkerStatus};

/// Metrics that the table shows; with `--json` there are all.
const MAX_METRICS: usize = 50;

pub(super) fn print(status: &Status, json: bool) -> anyhow::Result<()> {
    let text = match &status.starting {
        _ if json => format!("{}\n", serde_json::to_string(status)?),
        Some(starting) if status.workers.is_empty() => format!(
            "{}: starting for {}, pid {}\n{} for {}\n",
            status.name,
            duration(status.uptime_ms),
            status.pid,
            starting.doing,
            duration(starting.for_ms)
        ),
        _ => table(status),
    };
    Ok(super::print(text.as_bytes())?)
}

fn table(status: &Status) -> String {
    let Status { name, pid, state, generation, totals, .. } = status;
    let mut text = format!(
        "{name}: {state}{} for {}, pid {pid}, on {}\n{} (generation {}, {})\n\n",
        if status.degraded { " (degraded: workers crash again and again, or do not start)" } else { "" },
        duration(status.uptime_ms),
        status.listen.join(", "),
        generation.source.display(),
        generation.current,
        generation.digest.get(..19).unwrap_or(&generation.digest),
    );
    let number = |value: Option<u64>| value.map_or("-".into(), |value| value.to_string());
    let mut rows = vec![
        ["SLOT", "WORKER", "PID", "STATE", "UPTIME", "REQUESTS", "IN FLIGHT", "CONNECTIONS", "RESTARTS", "MEMORY"]
            .map(String::from),
    ];
    rows.extend(status.workers.iter().map(|worker| {
        [
            worker.slot.to_string(),
            number(worker.id),
            number(worker.pid.map(|pid| pid.unsigned_abs().into())),
            describe(worker),
            duration(worker.uptime_ms),
            worker.requests.to_string(),
            worker.in_flight.to_string(),
            worker.connections.to_string(),
            worker.restarts.to_string(),
            bytesize::ByteSize(worker.rss_bytes).display().iec().to_string(),
        ]
    }));
    align(&mut text, &rows);
    text.push_str(&format!(
        "\n{} requests, {} errors, {} traps, {} timeouts, {} rejected, {} refused, {} aborted, {} crashes\n",
        totals.requests,
        totals.errors,
        totals.traps,
        totals.timeouts,
        totals.rejected,
        totals.refused,
        totals.aborted,
        totals.crashes
    ));
    if let (Some(p50), Some(p99)) = (totals.latency_ms.p50, totals.latency_ms.p99) {
        text.push_str(&format!("latency: half of all below {p50:.2} ms, 99 % below {p99:.2} ms\n"));
    }
    list(&mut text, &status.guest_metrics);
    if totals.metrics_dropped > 0 {
        text.push_str(&format!("{} updates of metrics broke a rule; the log has the reason\n", totals.metrics_dropped));
    }
    let limits: Vec<String> = status.limits.by_flag.iter().map(|(name, value)| format!("{name} {value}")).collect();
    text.push_str(&format!("limits: {}\n", limits.join(", ")));
    text
}

/// Columns, each as wide as it has to be.
pub(super) fn align<const COLUMNS: usize>(text: &mut String, rows: &[[String; COLUMNS]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
}

/// What guests count, if they do.
fn list(text: &mut String, metrics: &[GuestMetric]) {
    if metrics.is_empty() {
        return;
    }
    let mut rows = vec![["METRIC", "KIND", "VALUE"].map(String::from)];
    rows.extend(metrics.iter().take(MAX_METRICS).map(|metric| {
        let (kind, value) = match &metric.value {
            MetricValue::Counter { value } => ("counter", value.to_string()),
            MetricValue::Gauge { value } => ("gauge", value.to_string()),
            MetricValue::Histogram { count: 0, .. } => ("histogram", "0 values".into()),
            MetricValue::Histogram { count, sum, .. } => {
                ("histogram", format!("{count} values, {:.6} on average", sum / *count as f64))
            }
        };
        [named(metric), kind.into(), value]
    }));
    text.push('\n');
    align(text, &rows);
    if let Some(more @ 1..) = metrics.len().checked_sub(MAX_METRICS) {
        text.push_str(&format!("and {more} more, which `status --json` shows\n"));
    }
    text.push('\n');
}

/// As Prometheus writes it; a guest's text does nothing to the terminal.
fn named(GuestMetric { name, labels, .. }: &GuestMetric) -> String {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    if labels.is_empty() { name.clone() } else { format!("{name}{{{}}}", labels.join(",")) }
}

fn describe(worker: &WorkerStatus) -> String {
    match (worker.retry_in_ms, worker.role.as_str()) {
        (Some(wait), _) => format!("{}, {} left", worker.state, duration(wait)),
        (None, "successor") => format!("{} to succeed", worker.state),
        (None, _) => worker.state.clone(),
    }
}

/// The two largest units of a time.
pub(super) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes:02}m"),
        (days, hours, ..) => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "1d01h")] {
            assert_eq!(duration(seconds * 1000), text);
        }
    }
}
