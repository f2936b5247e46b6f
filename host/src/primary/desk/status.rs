//! What `GET /status` answers and `wasmcluster status --json` prints. Its shape is a contract: fields are added, none
//! is taken away or given another meaning.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::primary::deploy::change::LastReload;
use crate::settings::InForce;
use crate::wire::series::Labels;
use crate::wire::stats::Snapshot;

/// A cluster at one moment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) schema: u32,
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// `starting` until a worker is ready, then `running`, `degraded`, `reloading` or `stopping`.
    pub(crate) state: String,
    /// What is done before the first worker is ready.
    #[serde(default)]
    pub(crate) starting: Option<Starting>,
    /// Whether workers crash again and again, or a slot's workers die before they are ready. The others serve on.
    pub(crate) degraded: bool,
    pub(crate) uptime_ms: u64,
    pub(crate) listen: Vec<String>,
    pub(crate) generation: GenerationStatus,
    /// The reload that is under way.
    pub(crate) reload: Option<ReloadStatus>,
    pub(crate) last_reload: Option<LastReload>,
    pub(crate) workers: Vec<WorkerStatus>,
    pub(crate) totals: Totals,
    /// What guests count, by name and then by labels. Of counters and histograms, sums over all workers that ever lived; of
    /// gauges, over those that live.
    #[serde(default)]
    pub(crate) guest_metrics: Vec<GuestMetric>,
    /// Of each worker, each instance, each request.
    #[serde(default)]
    pub(crate) limits: InForce,
}

impl Status {
    /// Whether a worker answers requests.
    pub(crate) fn serves(&self) -> bool {
        self.state != "stopping" && self.workers.iter().any(|worker| worker.state == "ready")
    }
}

/// How far a start has come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Starting {
    /// For people, as in "compiling app.wasm (11.7 MiB)".
    pub(crate) doing: String,
    pub(crate) for_ms: u64,
}

/// What is deployed; while nothing is compiled yet, its number is 0 and its digest empty.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GenerationStatus {
    pub(crate) current: u64,
    /// The one on its way.
    pub(crate) candidate: Option<u64>,
    /// The one that a rollback would bring back.
    pub(crate) previous: Option<u64>,
    pub(crate) digest: String,
    pub(crate) source: PathBuf,
    /// How long ago this version, under whatever number, was first served; None if that was by a primary before this one.
    #[serde(default)]
    pub(crate) first_served_ms: Option<u64>,
    /// The folder that `source` is built from.
    #[serde(default)]
    pub(crate) folder: Option<PathBuf>,
}

/// How far a reload has come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReloadStatus {
    /// None while it is compiled.
    pub(crate) generation: Option<u64>,
    /// `compiling`, `canary`, `rolling`, `soaking` or `rolling_back`.
    pub(crate) phase: String,
    /// Slots that have the new version.
    pub(crate) rolled: u32,
    pub(crate) of: u32,
    /// Since it was asked for.
    #[serde(default)]
    pub(crate) elapsed_ms: u64,
}

/// One worker, or a slot that waits for one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    /// None while the slot waits in back-off.
    pub(crate) id: Option<u64>,
    pub(crate) slot: u32,
    /// `incumbent` or `successor`.
    pub(crate) role: String,
    pub(crate) pid: Option<i32>,
    pub(crate) generation: u64,
    /// `starting`, `ready`, `draining`, `backoff`, or `unkillable`: it does not die of SIGKILL and is not waited for.
    pub(crate) state: String,
    pub(crate) uptime_ms: u64,
    /// When the slot gets its next worker, while it waits in back-off.
    pub(crate) retry_in_ms: Option<u64>,
    pub(crate) requests: u64,
    pub(crate) in_flight: u64,
    pub(crate) connections: u64,
    pub(crate) restarts: u64,
    /// Resident memory; pages shared with other workers count in each.
    pub(crate) rss_bytes: u64,
}

/// Sums over all workers that ever lived.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    /// Answers with a status of 500 and above, and requests that were cut.
    pub(crate) errors: u64,
    pub(crate) traps: u64,
    pub(crate) timeouts: u64,
    pub(crate) rejected: u64,
    /// Refused for what they are: 4xx of the server's own.
    #[serde(default)]
    pub(crate) refused: u64,
    /// Requests that were begun and not answered to the end: their client left, their guest trapped behind its head, or
    /// their worker was gone.
    pub(crate) aborted: u64,
    pub(crate) crashes: u64,
    /// Reloads and rollbacks that were committed.
    pub(crate) reloads: u64,
    /// Lines of output that nobody read fast enough.
    pub(crate) lines_dropped: u64,
    /// Updates of guests' metrics that broke a rule.
    #[serde(default)]
    pub(crate) metrics_dropped: u64,
    pub(crate) latency_ms: Latencies,
}

/// From a request's head to the end of its answer, in milliseconds; at most a fourth too long. None before the first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
}

/// One series of the guests'.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GuestMetric {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    #[serde(flatten)]
    pub(crate) value: MetricValue,
}

/// As in Prometheus's text format.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum MetricValue {
    Counter {
        value: u64,
    },
    Gauge {
        value: f64,
    },
    Histogram {
        /// Of all values, and their sum.
        count: u64,
        sum: f64,
        /// How many values are not above each bound.
        buckets: Vec<(f64, u64)>,
    },
}

impl Totals {
    pub(crate) fn new(counted: &Snapshot, crashes: u64, reloads: u64) -> Self {
        let quantile = |part| counted.latency.quantile(part).map(|time: Duration| time.as_secs_f64() * 1000.0);
        Self {
            requests: counted.requests,
            errors: counted.errors,
            traps: counted.traps,
            timeouts: counted.timeouts,
            rejected: counted.rejected,
            refused: counted.refused,
            aborted: counted.aborted,
            crashes,
            reloads,
            lines_dropped: counted.lines_dropped,
            metrics_dropped: counted.metrics_dropped,
            latency_ms: Latencies { p50: quantile(0.5), p99: quantile(0.99) },
        }
    }
}
