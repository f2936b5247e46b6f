//! Metrics for Prometheus, as text of its own format or of OpenMetrics: what is in a sample, under names that stay.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::control::protocol::{GuestMetric, MetricValue, ReloadResult};
use crate::control::sample::Sample;
use crate::wire::distribution::Distribution;
use crate::wire::ids::Generation;
use crate::wire::stats::Snapshot;

/// Why workers end, and how reloads do, as `totals` names them. Each has a series from the start: Prometheus sees no increase in
/// one that begins with 1, so an alert would miss the first crash.
const EXITS: [&str; 9] =
    ["crashed", "max_lifetime", "max_requests", "max_rss", "reloaded", "rolled_back", "scaled", "sigterm", "stopping"];
const RELOADS: [ReloadResult; 7] = [
    ReloadResult::Committed,
    ReloadResult::CommittedUnsaved,
    ReloadResult::Unchanged,
    ReloadResult::Refused,
    ReloadResult::RolledBack,
    ReloadResult::TimedOut,
    ReloadResult::Failed,
];

/// In which form they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What a scraper takes: OpenMetrics if it names that, and Prometheus's own otherwise.
    pub(super) fn for_accept<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        if accept.any(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The metrics of a sample, as text.
pub(super) fn render(sample: &Sample, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(CollectedMetrics(ShownMetrics::of(sample))));
    let mut rendered = String::new();
    let written = match format {
        Format::Prometheus => prometheus_text::encode(&mut rendered, &registry),
        Format::OpenMetrics => text::encode(&mut rendered, &registry),
    };
    written.map_or_else(|_| String::new(), |()| rendered)
}

/// With its numbers in the unit of the metric.
fn histogram(counted: &Distribution<u64>, to_unit: fn(u64) -> f64) -> Number {
    let octaves = counted.octaves().into_iter();
    let buckets = octaves.map(|(end, count)| (end.map_or(f64::INFINITY, to_unit), count)).collect();
    Number::Histogram { sum: to_unit(counted.sum()), count: counted.count(), buckets }
}

type SeriesLabels = Vec<(String, String)>;

/// One metric with all its series.
#[derive(Debug)]
struct Metric {
    name: String,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    series: Vec<(SeriesLabels, Number)>,
}

#[derive(Clone, Debug)]
enum Number {
    Counter(u64),
    Gauge(f64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

#[derive(Debug, Default)]
struct ShownMetrics(Vec<Metric>);

/// The crate wants to own what it collects.
#[derive(Debug)]
struct CollectedMetrics(ShownMetrics);

impl Collector for CollectedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, unit, kind, series } in &self.0.0 {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?;
            for (labels, number) in series {
                if labels.is_empty() {
                    write(number, &mut family)?;
                } else {
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
                    write(number, &mut family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

fn write(number: &Number, to: &mut MetricEncoder<'_>) -> fmt::Result {
    match number {
        Number::Counter(value) => to.encode_counter::<NoLabelSet, _, u64>(value, None),
        Number::Gauge(value) => to.encode_gauge(value),
        Number::Histogram { sum, count, buckets } => to.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None),
    }
}

fn label(key: &str, value: impl ToString) -> SeriesLabels {
    vec![(key.into(), value.to_string())]
}

/// Counters that differ in one label.
fn by(key: &str, counts: impl IntoIterator<Item = (String, u64)>) -> Vec<(SeriesLabels, Number)> {
    counts.into_iter().map(|(value, count)| (label(key, value), Number::Counter(count))).collect()
}

impl ShownMetrics {
    fn of(sample: &Sample) -> Self {
        let mut metrics = Self::default();
        metrics.cluster(sample);
        metrics.requests(sample);
        metrics.workers(sample);
        metrics.guests(&sample.status.guest_metrics);
        metrics
    }

    fn add(&mut self, name: &str, help: &'static str, unit: Option<Unit>, series: Vec<(SeriesLabels, Number)>) {
        let kind = match series.first() {
            Some((_, Number::Counter(_))) => MetricType::Counter,
            Some((_, Number::Gauge(_))) => MetricType::Gauge,
            Some((_, Number::Histogram { .. })) => MetricType::Histogram,
            None => return,
        };
        self.0.push(Metric { name: name.into(), help, unit, kind, series });
    }

    fn gauge(&mut self, name: &str, help: &'static str, value: f64) {
        self.add(name, help, None, vec![(SeriesLabels::new(), Number::Gauge(value))]);
    }

    fn counter(&mut self, name: &str, help: &'static str, value: u64) {
        self.add(name, help, None, vec![(SeriesLabels::new(), Number::Counter(value))]);
    }

    fn cluster(&mut self, sample: &Sample) {
        let Sample { status, .. } = sample;
        let version = vec![("version".into(), env!("CARGO_PKG_VERSION").into()), ("name".into(), status.name.clone())];
        let one = Number::Gauge(1.0);
        self.add(
            "wasmcluster_build_info",
            "Version of wasmcluster, and name of the cluster; always 1",
            None,
            vec![(version, one)],
        );
        let uptime = Number::Gauge(status.uptime_ms as f64 / 1000.0);
        self.add(
            "wasmcluster_uptime",
            "Time since the primary began",
            Some(Unit::Seconds),
            vec![(SeriesLabels::new(), uptime)],
        );
        self.gauge("wasmcluster_generation", "Generation that is served", status.generation.current as f64);
        self.gauge(
            "wasmcluster_degraded",
            "1 while workers keep crashing or do not start",
            f64::from(u8::from(status.degraded)),
        );
        self.gauge(
            "wasmcluster_reloading",
            "1 while another version is deployed",
            f64::from(u8::from(status.reload.is_some())),
        );
        // Of two with the same name, the later one stays: what was counted.
        let mut exits: BTreeMap<String, u64> = EXITS.map(|reason| (reason.to_owned(), 0)).into();
        exits.extend(status.totals.exits.clone());
        self.add("wasmcluster_worker_exits", "Workers that have ended, by reason", None, by("reason", exits));
        let counted = |result| status.totals.reload_results.get(result).copied().unwrap_or_default();
        let results = RELOADS.iter().filter_map(|result| Some((named(result)?, counted(result))));
        let results = by("result", results);
        self.add("wasmcluster_reloads", "Reloads and rollbacks that have ended, by result", None, results);
        let certificates = status.certificates.iter().filter_map(|certificate| {
            let ends = humantime::parse_rfc3339(&certificate.not_after).ok()?;
            let ends = ends.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64();
            let mut labels = label("names", certificate.names.join(","));
            labels.push(("file".into(), certificate.file.display().to_string()));
            Some((labels, Number::Gauge(ends)))
        });
        let certificates = certificates.collect();
        self.add(
            "wasmcluster_certificate_not_after_timestamp",
            "When a certificate ends, as Unix time",
            Some(Unit::Seconds),
            certificates,
        );
        self.counter(
            "wasmcluster_log_file_lines_dropped",
            "Lines that the log file did not take",
            status.totals.log_file_dropped,
        );
        if let Some(keeper) = &status.keeper {
            self.counter(
                "wasmcluster_keeper_restarts",
                "How often the keeper of key-value stores was replaced",
                keeper.restarts,
            );
        }
        if let Some(exporter) = &status.exporter {
            let restarts = "How often the exporter of traces was replaced";
            self.counter("wasmcluster_exporter_restarts", restarts, exporter.restarts);
            self.counter("wasmcluster_trace_spans_exported", "Spans that the collector has", exporter.exported);
            self.counter("wasmcluster_trace_spans_lost", "Spans that the collector did not take", exporter.lost);
        }
    }

    /// By generation, the older ones together.
    fn requests(&mut self, sample: &Sample) {
        let mut all: Vec<(String, Snapshot)> =
            sample.generations.iter().map(|(Generation(number), counted)| (number.to_string(), *counted)).collect();
        if sample.older != Snapshot::default() {
            all.insert(0, ("older".into(), sample.older));
        }
        let mut by_generation = |name: &str, help: &'static str, read: fn(&Snapshot) -> u64| {
            let series =
                all.iter().map(|(number, counted)| (label("generation", number), Number::Counter(read(counted))));
            let series = series.collect();
            self.add(name, help, None, series);
        };
        by_generation("wasmcluster_errors", "Answers with 5xx, and answers that were cut", |it| it.errors);
        by_generation("wasmcluster_timeouts", "Requests that took longer than they may", |it| it.timeouts);
        by_generation("wasmcluster_aborted", "Requests whose answer was not handed over to its end", |it| it.aborted);
        by_generation("wasmcluster_rejected", "Requests refused because a worker was full", |it| it.rejected);
        by_generation("wasmcluster_refused", "Requests refused for what they are", |it| it.refused);
        by_generation("wasmcluster_outbound_failures", "Outbound requests without an answer, or denied", |it| {
            it.outbound_failed
        });
        by_generation("wasmcluster_store_failures", "Calls of key-value stores that went wrong", |it| it.store_failed);
        by_generation("wasmcluster_output_lines_dropped", "Lines of guests that were lost", |it| it.lines_dropped);
        by_generation("wasmcluster_guest_metrics_dropped", "Updates of guests' metrics that broke a rule", |it| {
            it.metrics_dropped
        });
        by_generation("wasmcluster_access_log_lines_dropped", "Lines of the access log that were lost", |it| {
            it.access_dropped
        });
        by_generation("wasmcluster_trace_spans_dropped", "Spans that workers could not hand over", |it| {
            it.spans_dropped
        });
        let mut answers = Vec::new();
        let mut handshakes = Vec::new();
        let (mut all_traps, mut instances) = (Vec::new(), Vec::new());
        for (generation, counted) in &all {
            let classes = [
                ("1xx", counted.answers_1xx),
                ("2xx", counted.answers_2xx),
                ("3xx", counted.answers_3xx),
                ("4xx", counted.answers_4xx),
                ("5xx", counted.answers_5xx),
                ("none", counted.answers_none),
            ];
            let with = |key: &str, value: &str| {
                let mut labels = label("generation", generation);
                labels.push((key.into(), value.into()));
                labels
            };
            answers.extend(classes.map(|(class, count)| (with("code", class), Number::Counter(count))));
            let results = [
                ("full", counted.handshakes.saturating_sub(counted.handshakes_resumed)),
                ("resumed", counted.handshakes_resumed),
                ("failed", counted.handshakes_failed),
            ];
            handshakes.extend(results.map(|(result, count)| (with("result", result), Number::Counter(count))));
            let traps = [
                ("unreachable", counted.traps_unreachable),
                ("out_of_bounds", counted.traps_out_of_bounds),
                ("stack_overflow", counted.traps_stack),
                ("exit", counted.traps_exit),
                ("limit", counted.traps_limit),
                ("other", counted.traps_other),
            ];
            all_traps.extend(traps.map(|(kind, count)| (with("kind", kind), Number::Counter(count))));
            let uses = [("fresh", counted.instances_fresh), ("reused", counted.instances_reused)];
            instances.extend(uses.map(|(kind, count)| (with("kind", kind), Number::Counter(count))));
        }
        self.add(
            "wasmcluster_requests",
            "Requests that were answered, by the class of the answer's status",
            None,
            answers,
        );
        self.add("wasmcluster_guest_traps", "Guests that trapped, by kind", None, all_traps);
        self.add(
            "wasmcluster_instance_uses",
            "Requests by the instance that they got: a fresh one, or one that had served others",
            None,
            instances,
        );
        if handshakes.iter().any(|(_, count)| matches!(count, Number::Counter(1..))) {
            self.add("wasmcluster_tls_handshakes", "TLS handshakes, by how they ended", None, handshakes);
        }
        self.histograms(&all);
    }

    fn histograms(&mut self, all: &[(String, Snapshot)]) {
        let micros = |it: &Distribution<u64>| histogram(it, |micros| micros as f64 / 1e6);
        let kibs = |it: &Distribution<u64>| histogram(it, |kibs| kibs as f64 * 1024.0);
        let mut by_generation = |name: &str, help, unit, number: &dyn Fn(&Snapshot) -> Number| {
            let series = all.iter().map(|(generation, counted)| (label("generation", generation), number(counted)));
            self.add(name, help, Some(unit), series.collect());
        };
        let head_to_end = "From a request's head to the end of its answer";
        by_generation("wasmcluster_request_duration", head_to_end, Unit::Seconds, &|it| micros(&it.latency));
        let cpu = "How long the guest of a request computed";
        by_generation("wasmcluster_guest_cpu", cpu, Unit::Seconds, &|it| micros(&it.cpu));
        let memory = "The most memory that the instance of a request had";
        by_generation("wasmcluster_guest_memory", memory, Unit::Bytes, &|it| kibs(&it.memory));
        if all.iter().any(|(_, it)| it.outbound.count() + it.outbound_failed > 0) {
            let outbound = "Outbound requests of guests, to the heads of their answers";
            by_generation("wasmcluster_outbound_request_duration", outbound, Unit::Seconds, &|it| micros(&it.outbound));
        }
        if all.iter().any(|(_, it)| it.store.count() > 0) {
            let store = "Calls of key-value stores";
            by_generation("wasmcluster_store_call_duration", store, Unit::Seconds, &|it| micros(&it.store));
        }
    }

    fn workers(&mut self, sample: &Sample) {
        let workers = &sample.status.workers;
        let sum = |read: fn(&crate::control::protocol::WorkerStatus) -> u64| {
            workers.iter().map(read).fold(0, u64::saturating_add) as f64
        };
        self.gauge(
            "wasmcluster_requests_in_flight",
            "Requests being answered, or waiting for a place",
            sum(|it| it.in_flight),
        );
        self.gauge("wasmcluster_connections", "Connections that are open", sum(|it| it.connections));
        self.gauge(
            "wasmcluster_instances",
            "Instances that there are, also those that wait for a request",
            sum(|it| it.instances),
        );
        let instance_memory = Number::Gauge(sum(|it| it.guest_memory_bytes));
        self.add(
            "wasmcluster_instance_memory",
            "Memory that instances have, of what --max-worker-memory lets each worker's have",
            Some(Unit::Bytes),
            vec![(SeriesLabels::new(), instance_memory)],
        );
        self.gauge("wasmcluster_websockets", "WebSockets that are open", sum(|it| it.websockets));
        let states = ["starting", "ready", "draining", "backoff", "unkillable"];
        let states = states.map(|state| {
            let count = workers.iter().filter(|worker| worker.state == state).count();
            (label("state", state), Number::Gauge(count as f64))
        });
        self.add(
            "wasmcluster_workers",
            "Workers by state; of slots without one, those in backoff",
            None,
            states.into(),
        );
        let memory = workers.iter().filter_map(|worker| {
            let mut labels = label("worker", worker.id?);
            labels.push(("slot".into(), worker.slot.to_string()));
            labels.push(("generation".into(), worker.generation.to_string()));
            Some((labels, Number::Gauge(worker.rss_bytes as f64)))
        });
        let memory = memory.collect();
        self.add("wasmcluster_worker_rss", "Resident memory of a worker", Some(Unit::Bytes), memory);
    }

    /// Under their own names. Of one name with two kinds, the first is shown. A guest's mistake spoils no line of others.
    fn guests(&mut self, guests: &[GuestMetric]) {
        for GuestMetric { name, labels, value } in guests {
            let labels: SeriesLabels = labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            let (number, kind) = match value {
                MetricValue::Counter { value } => (Number::Counter(*value), MetricType::Counter),
                MetricValue::Gauge { value } => (Number::Gauge(*value), MetricType::Gauge),
                MetricValue::Histogram { count, sum, buckets } => {
                    let mut before = 0;
                    let each = buckets.iter().map(|&(bound, below)| {
                        let count = u64::saturating_sub(below, before);
                        before = below;
                        (bound, count)
                    });
                    let mut each: Vec<(f64, u64)> = each.collect();
                    if each.last().is_none_or(|(bound, _)| bound.is_finite()) {
                        each.push((f64::INFINITY, count.saturating_sub(before)));
                    }
                    (Number::Histogram { sum: *sum, count: *count, buckets: each }, MetricType::Histogram)
                }
            };
            // Both formats add it to counters.
            let base = name.strip_suffix("_total").filter(|base| !base.is_empty() && kind == MetricType::Counter);
            let name = base.unwrap_or(name);
            let shown = |metric: &Metric| match metric.kind {
                MetricType::Counter => format!("{}_total", metric.name),
                _ => metric.name.clone(),
            };
            let exposed = if kind == MetricType::Counter { format!("{name}_total") } else { name.to_owned() };
            match self.0.iter_mut().find(|metric| shown(metric) == exposed || metric.name == *name) {
                // Two names may be one here: the first is shown.
                Some(metric) if metric.kind == kind && metric.series.iter().all(|(other, _)| *other != labels) => {
                    metric.series.push((labels, number));
                }
                Some(_) => {}
                None => self.add(name, "A guest's", None, vec![(labels, number)]),
            }
        }
    }
}

/// As JSON names it.
fn named(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str, value: u64) -> GuestMetric {
        GuestMetric { name: name.into(), labels: Default::default(), value: MetricValue::Counter { value } }
    }

    /// Each line has a name, and each series is there once, whatever guests call theirs.
    #[test]
    fn names_of_guests_break_nothing() {
        let gauge = |name: &str| GuestMetric {
            name: name.into(),
            labels: Default::default(),
            value: MetricValue::Gauge { value: 1.0 },
        };
        let mut metrics = ShownMetrics::default();
        metrics.guests(&[
            counter("_total", 1),
            counter("foo", 2),
            counter("foo_total", 3),
            gauge("foo"),
            gauge("bar_total"),
            counter("bar", 4),
        ]);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(CollectedMetrics(metrics)));
        for is_open in [true, false] {
            let mut text = String::new();
            match is_open {
                true => text::encode(&mut text, &registry).unwrap(),
                false => prometheus_text::encode(&mut text, &registry).unwrap(),
            }
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(lines, ["_total_total 1", "foo_total 2", "bar_total 1.0"], "{text}");
            assert!(text.lines().filter(|line| line.starts_with("# TYPE")).all(|line| line.split(' ').count() == 4));
            assert!(!text.contains("#  ") && !text.contains("TYPE  "), "{text}");
        }
    }
}
