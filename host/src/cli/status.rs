//! `wasmcluster status`: a table, or the primary's JSON.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::args::StatusArgs;
use super::clusters;
use super::exit::Failure;
use super::output::{WIDTH, align, duration, filled, wrap};
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::control::protocol::{
    CertificateStatus, ConfigStatus, ExporterStatus, GuestMetric, KeeperStatus, MetricValue, Problem, ReloadStatus,
    Status, WorkerStatus,
};
use crate::settings::short_digest;

/// Most certificates that the table shows; `--json` prints all.
const MAX_CERTIFICATES: usize = 20;
/// Most warnings that the table shows; `--json` prints all that are kept.
const MAX_PROBLEMS: usize = 5;
/// Most metrics that the table shows; `--json` prints all.
const MAX_METRICS: usize = 50;
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) fn status(args: StatusArgs) -> Result<(), Failure> {
    if args.all {
        return Ok(block_on(async { Ok(clusters::print(args.json).await?) })?);
    }
    let client = client(args.cluster);
    let status = match args.wait_ready {
        Some(patience) => block_on(wait_ready(&client, patience.into()))?,
        None => block_on(client.status())?,
    };
    Ok(print(&status, args.json)?)
}

/// Waits until a worker is ready. If no cluster is running, it may be about to start.
async fn wait_ready(client: &Client, patience: Duration) -> Result<Status, CommandError> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(LOOK_EVERY);
        let Ok(seen) = tokio::time::timeout(left, client.status()).await else {
            return Err(anyhow!("the cluster did not answer within {patience:?}; is its process suspended?").into());
        };
        if let Ok(status) = &seen
            && status.serves()
        {
            return seen;
        }
        if seen.as_ref().is_ok_and(|status| status.state == "stopping") {
            return Err(anyhow!("the cluster is stopping").into());
        }
        if Instant::now() >= deadline {
            let state = seen?.state;
            return Err(anyhow!("the cluster is {state}; no worker is ready after {patience:?}").into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn print(status: &Status, json: bool) -> anyhow::Result<()> {
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
    Ok(super::output::print(text.as_bytes())?)
}

fn table(status: &Status) -> String {
    let Status { generation, totals, .. } = status;
    let mut text = heading(status);
    let listen: Vec<String> = status.listen.clone();
    wrap(&mut text, "listening on ", &listen);
    text.push_str(&certificates(&status.certificates));
    let digest = short_digest(&generation.digest);
    text.push_str(&format!("generation {} ({digest})\n{}\n\n", generation.current, generation.described()));
    if let ConfigStatus { revision, values: values @ 1.. } = status.config {
        let what = if values == 1 { "1 value" } else { &format!("{values} values") };
        text.insert_str(text.len() - 1, &format!("{what} for guests, revision {revision}\n"));
    }
    let number = |value: Option<u64>| value.map_or("-".into(), |value| value.to_string());
    // While two versions run, which worker runs which is more important than restarts.
    let is_mixed = status.workers.iter().any(|worker| worker.generation != generation.current);
    let last = if is_mixed { "GENERATION" } else { "RESTARTS" };
    let headings = ["SLOT", "WORKER", "PID", "STATE", "UPTIME", "REQUESTS", "ACTIVE", "CONNS", last, "MEMORY"];
    let mut rows = vec![headings.map(String::from)];
    rows.extend(status.workers.iter().map(|worker| {
        [
            worker.slot.to_string(),
            number(worker.id),
            number(worker.pid.map(|pid| pid.unsigned_abs().into())),
            describe(worker),
            duration(worker.uptime_ms),
            short(worker.requests),
            short(worker.in_flight),
            short(worker.connections),
            if is_mixed { worker.generation.to_string() } else { short(worker.restarts) },
            bytesize::ByteSize(worker.rss_bytes).display().iec_short().to_string(),
        ]
    }));
    align(&mut text, &rows);
    text.push('\n');
    let mut counted = vec![
        (totals.requests, "request", "requests"),
        (totals.errors, "error", "errors"),
        (totals.traps, "trap", "traps"),
        (totals.timeouts, "timeout", "timeouts"),
        (totals.rejected, "rejected", "rejected"),
        (totals.refused, "refused", "refused"),
        (totals.aborted, "aborted", "aborted"),
        (totals.crashes, "crash", "crashes"),
    ];
    let websockets: u64 = status.workers.iter().map(|worker| worker.websockets).sum();
    if websockets > 0 {
        counted.push((websockets, "open WebSocket", "open WebSockets"));
    }
    if !status.certificates.is_empty() {
        counted.push((totals.handshakes_failed, "failed handshake", "failed handshakes"));
    }
    let shown = |(number, one, many): &(u64, _, _)| format!("{number} {}", if *number == 1 { one } else { many });
    wrap(&mut text, "", &counted.iter().map(shown).collect::<Vec<_>>());
    text.push_str(&other_processes(status));
    if let (Some(p50), Some(p99)) = (totals.latency_ms.p50, totals.latency_ms.p99) {
        text.push_str(&format!("latency: p50 {p50:.2} ms, p99 {p99:.2} ms\n"));
    }
    text.push_str(&problems(&status.problems));
    list(&mut text, &status.guest_metrics);
    match totals.metrics_dropped {
        0 => {}
        1 => text.push_str("1 update of a metric was dropped; the log has the reason\n"),
        dropped => text.push_str(&format!("{dropped} updates of metrics were dropped; the log has the reason\n")),
    }
    let limits: Vec<String> = status.limits.by_flag.iter().map(|(name, value)| format!("{name} {value}")).collect();
    wrap(&mut text, "limits: ", &limits);
    text
}

/// A line for each process that is there for all workers.
fn other_processes(status: &Status) -> String {
    let process = |pid: Option<i32>, restarts: u64| {
        let process = pid.map_or("being replaced".into(), |pid| format!("pid {pid}"));
        [process, format!("{restarts} {}", if restarts == 1 { "restart" } else { "restarts" })]
    };
    let mut text = String::new();
    if let Some(KeeperStatus { pid, restarts }) = status.keeper {
        wrap(&mut text, "keeper of key-value stores: ", &process(pid, restarts));
    }
    if let Some(ExporterStatus { pid, restarts, exported, lost }) = status.exporter {
        let spans = if exported == 1 { "span" } else { "spans" };
        let spans = [format!("{exported} {spans} exported"), format!("{lost} lost")];
        wrap(&mut text, "exporter of traces: ", &[process(pid, restarts), spans].concat());
    }
    text
}

/// The state of the cluster and since when, and the progress of a reload.
fn heading(Status { name, pid, state, uptime_ms, degraded, reload, .. }: &Status) -> String {
    let state = if reload.is_some() { "running" } else { state };
    let mut text = format!("{name}: {state} for {}, pid {pid}\n", duration(*uptime_ms));
    if let Some(ReloadStatus { generation, phase, rolled, of, elapsed_ms }) = reload {
        let generation = generation.map_or_else(String::new, |generation| format!(" to generation {generation}"));
        let slots = if *of == 1 { "slot" } else { "slots" };
        let lasts = duration(*elapsed_ms);
        text.push_str(&format!("reloading{generation}, {lasts} so far: {phase}, {rolled} of {of} {slots}\n"));
    }
    if *degraded {
        text.push_str("degraded: workers keep crashing, or do not start\n");
    }
    text
}

/// A line or more for each: its names, and when it ends.
pub(super) fn certificates(all: &[CertificateStatus]) -> String {
    let mut text = String::new();
    for CertificateStatus { names, not_after, expires_soon, expired, .. } in all.iter().take(MAX_CERTIFICATES) {
        let day = not_after.split('T').next().unwrap_or_default();
        let end = match (expired, expires_soon) {
            (true, _) => format!("EXPIRED on {day}"),
            (_, true) => format!("expires SOON, on {day}"),
            _ => format!("expires on {day}"),
        };
        wrap(&mut text, "certificate ", &names.iter().cloned().chain([end]).collect::<Vec<_>>());
    }
    if let Some(more @ 1..) = all.len().checked_sub(MAX_CERTIFICATES) {
        text.push_str(&format!("and {more} certificates more, which `status --json` shows\n"));
    }
    text
}

/// What the log warned of lately.
fn problems(all: &[Problem]) -> String {
    let mut text = String::new();
    for problem in all.iter().take(MAX_PROBLEMS) {
        let Problem { time, message, count, worker, generation, request, method, path, .. } = problem;
        let mut about = vec![time.get(..19).unwrap_or(time).replace('T', " ") + " UTC"];
        about.extend((*count > 1).then(|| format!("{count} times")));
        about.extend(worker.map(|worker| format!("worker {worker}")));
        about.extend(generation.map(|generation| format!("generation {generation}")));
        let names = [method, path].into_iter().flatten().map(|name| format!(" {name}"));
        about.extend(request.as_ref().map(|request| format!("request {request}{}", names.collect::<String>())));
        wrap(&mut text, "", &about);
        for line in filled(message, WIDTH - 2) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    if text.is_empty() { text } else { format!("\nwarnings and errors, the latest first:\n{text}\n") }
}

/// The number in at most eight characters.
pub(super) fn short(number: u64) -> String {
    let mut shown = number;
    for unit in ["", "k", "M", "G", "T"] {
        if shown < 10_000_000 {
            return format!("{shown}{unit}");
        }
        shown /= 1000;
    }
    format!("{shown}P")
}

/// Lists the metrics of guests, if there are any.
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

/// The series as Prometheus writes it. Quoting escapes control characters, so that guests cannot write to the terminal.
fn named(GuestMetric { name, labels, .. }: &GuestMetric) -> String {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    if labels.is_empty() { name.clone() } else { format!("{name}{{{}}}", labels.join(",")) }
}

pub(super) fn describe(worker: &WorkerStatus) -> String {
    match (worker.retry_in_ms, worker.role.as_str()) {
        (Some(wait), _) => format!("{} {}", worker.state, duration(wait)),
        // A successor takes over as soon as it is ready, so its state says little.
        (None, "successor") => "successor".into(),
        (None, _) => worker.state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::cli::output::WIDTH;

    /// A status with `workers`, as the control socket sends it.
    fn status(reload: Value, workers: &[Value]) -> Status {
        let flags = ["header-timeout", "keep-alive-timeout", "max-body", "max-connections", "max-header-bytes"];
        let limits: Map<String, Value> = flags.map(|flag| (flag.to_owned(), json!("1234 MiB"))).into_iter().collect();
        let mut limits = Value::from(limits);
        limits["fixed"] = json!({});
        let totals = json!({
            "requests": 1, "errors": u64::MAX, "traps": u64::MAX, "timeouts": 0, "rejected": 0, "refused": 0, "aborted": 2,
            "crashes": 1, "reloads": 0, "lines_dropped": 0, "latency_ms": {"p50": 0.512, "p99": 12.5}
        });
        serde_json::from_value(json!({
            "schema": 1, "name": "shop", "pid": 4_194_304, "state": "reloading", "degraded": true,
            "uptime_ms": 3_600_000, "listen": vec!["http://127.0.0.1:8080"; 5], "reload": reload, "last_reload": null,
            "generation": {"current": 7, "candidate": null, "previous": 6, "digest": "sha256:45da6523e5260000", "source": "/srv/a.wasm"},
            "workers": workers, "totals": totals, "limits": limits,
        }))
        .unwrap()
    }

    fn worker(state: &str, role: &str, retry_in_ms: Option<u64>, number: u64) -> Value {
        json!({
            "id": number.min(999_999), "slot": number.min(1023), "role": role, "pid": number.min(4_194_304), "generation": 7,
            "state": state, "uptime_ms": number.min(8_640_000_000), "retry_in_ms": retry_in_ms, "requests": number,
            "in_flight": number.min(1000), "connections": number.min(1_000_000), "restarts": number, "rss_bytes": number.min(1 << 40)
        })
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let small = [worker("ready", "incumbent", None, 1), worker("starting", "successor", None, 20_000)];
        let large = [worker("backoff", "incumbent", Some(29_000), u64::MAX)];
        let reload = json!({"generation": 8, "phase": "rolling_back", "rolled": 1, "of": 2, "elapsed_ms": 4000});
        for workers in [&small[..], &large, &[]] {
            let table = table(&status(reload.clone(), workers));
            let widest = table.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(WIDTH), "{widest:?}\n{table}");
        }
    }

    #[test]
    fn a_reload_has_its_own_time_and_numbers_are_words() {
        let reload = json!({"generation": 8, "phase": "rolling", "rolled": 1, "of": 2, "elapsed_ms": 4000});
        let table = table(&status(reload, &[]));
        for part in [
            "shop: running for 1h00m, pid 4194304\n",
            "reloading to generation 8, 4s so far: rolling, 1 of 2 slots\n",
            "degraded: ",
            "\n1 request, ",
            " 1 crash\n",
            "latency: p50 0.51 ms, p99 12.50 ms\n",
        ] {
            assert!(table.contains(part), "{part:?} in {table}");
        }
    }

    #[test]
    fn processes_beside_the_workers_have_a_line() {
        let mut shown = status(Value::Null, &[]);
        assert_eq!(other_processes(&shown), "");
        let process = |pid| json!({"pid": pid, "restarts": u64::MAX, "exported": u64::MAX, "lost": u64::MAX});
        shown.exporter = serde_json::from_value(process(json!(4_194_304))).unwrap();
        shown.keeper = serde_json::from_value(process(Value::Null)).unwrap();
        let text = other_processes(&shown);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("stores: being replaced, "), "{text}");
        shown.keeper = None;
        shown.exporter = serde_json::from_value(json!({"pid": 7, "restarts": 1, "exported": 1, "lost": 20})).unwrap();
        assert_eq!(other_processes(&shown), "exporter of traces: pid 7, 1 restart, 1 span exported, 20 lost\n");
    }

    #[test]
    fn while_there_are_two_versions_the_table_says_who_runs_which() {
        let mut next = worker("ready", "incumbent", None, 2);
        next["generation"] = json!(8);
        let rows = |workers: &[Value]| table(&status(Value::Null, workers));
        let one = rows(&[worker("ready", "incumbent", None, 1)]);
        assert!(one.contains("RESTARTS") && !one.contains("GENERATION"), "{one}");
        let two = rows(&[worker("ready", "incumbent", None, 1), next]);
        assert!(two.contains("GENERATION") && two.contains(" 7 ") && two.contains(" 8 "), "{two}");
    }
}
