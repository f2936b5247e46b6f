//! What commands and a primary say to each other over the control socket, and what `--json` prints of it. The shapes are a
//! contract, which docs/reference.md tells: fields are added, none is taken away or given another meaning.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::settings::{App, InForce, Percent};
use crate::wire::ids::{Generation, Slot, WorkerId};
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
    /// Whether workers keep crashing, or a slot's workers die before they are ready. The others serve on.
    pub(crate) degraded: bool,
    pub(crate) uptime_ms: u64,
    pub(crate) listen: Vec<String>,
    pub(crate) generation: GenerationStatus,
    /// The reload that is under way.
    pub(crate) reload: Option<ReloadStatus>,
    pub(crate) last_reload: Option<LastReload>,
    pub(crate) workers: Vec<WorkerStatus>,
    pub(crate) totals: Totals,
    /// What https listeners show to clients, in the order of the flags.
    #[serde(default)]
    pub(crate) certificates: Vec<CertificateStatus>,
    /// The live configuration.
    #[serde(default)]
    pub(crate) config: ConfigStatus,
    /// The process that writes key-value stores in files; None as long as no component may have any.
    #[serde(default)]
    pub(crate) keeper: Option<KeeperStatus>,
    /// The process that takes traces to a collector; None if nobody asked for traces.
    #[serde(default)]
    pub(crate) exporter: Option<ExporterStatus>,
    /// What the log warned of lately, the latest first; what was said again is there once.
    #[serde(default)]
    pub(crate) problems: Vec<Problem>,
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

/// Something that the log warned of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// When it was said last: RFC 3339, UTC.
    pub(crate) time: String,
    /// `warn` or `error`.
    pub(crate) level: String,
    pub(crate) message: String,
    /// How often it was said.
    pub(crate) count: u64,
    /// Who said it last, and of which request.
    pub(crate) worker: Option<u64>,
    pub(crate) generation: Option<u64>,
    pub(crate) request: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
}

/// The live configuration that all workers go by.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ConfigStatus {
    /// Grows with each change; certificates that are read again are one, too.
    pub(crate) revision: u64,
    /// How many values guests have.
    pub(crate) values: usize,
}

/// The keeper of key-value stores.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeeperStatus {
    /// None while it is being replaced: the stores can be read, and not be written.
    pub(crate) pid: Option<i32>,
    /// How often it was replaced.
    pub(crate) restarts: u64,
}

/// The exporter of traces.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExporterStatus {
    /// None while it is being replaced.
    pub(crate) pid: Option<i32>,
    /// How often it was replaced.
    pub(crate) restarts: u64,
    /// Spans that the collector has, and that were lost on the way there; those that workers could not pass on are not in it.
    pub(crate) exported: u64,
    pub(crate) lost: u64,
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
    pub(crate) source: App,
    /// Of a component from a registry, the digest of its manifest.
    #[serde(default)]
    pub(crate) manifest: Option<String>,
    /// How long ago this version, under whatever number, was first served; None if that was by a primary before this one.
    #[serde(default)]
    pub(crate) first_served_ms: Option<u64>,
    /// The folder that `source` is built from.
    #[serde(default)]
    pub(crate) folder: Option<PathBuf>,
}

impl GenerationStatus {
    /// Where it came from, for people.
    pub(crate) fn described(&self) -> String {
        self.source.with_manifest(self.manifest.as_deref())
    }
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
    #[serde(default)]
    pub(crate) websockets: u64,
    /// How long its guests computed, while their requests were waited for.
    #[serde(default)]
    pub(crate) guest_cpu_ms: u64,
    /// Instances that it has, also those that wait for a request, and bytes that they have.
    #[serde(default)]
    pub(crate) instances: u64,
    #[serde(default)]
    pub(crate) guest_memory_bytes: u64,
    pub(crate) restarts: u64,
    /// Resident memory; pages shared with other workers count in each.
    pub(crate) rss_bytes: u64,
}

/// A certificate that is served.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CertificateStatus {
    /// DNS names and addresses.
    pub(crate) names: Vec<String>,
    pub(crate) file: PathBuf,
    /// As RFC 3339 writes a time.
    pub(crate) not_after: String,
    /// In less than 14 days.
    pub(crate) expires_soon: bool,
    pub(crate) expired: bool,
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
    /// Lines of the access log that were lost.
    #[serde(default)]
    pub(crate) access_dropped: u64,
    /// Spans that workers could not pass on.
    #[serde(default)]
    pub(crate) spans_dropped: u64,
    /// Lines that the file of `--log-file` did not take.
    #[serde(default)]
    pub(crate) log_file_dropped: u64,
    /// TLS handshakes that went well.
    #[serde(default)]
    pub(crate) handshakes: u64,
    /// Of these, those that resumed an earlier session.
    #[serde(default)]
    pub(crate) handshakes_resumed: u64,
    /// TLS handshakes that went wrong, or took too long.
    #[serde(default)]
    pub(crate) handshakes_failed: u64,
    pub(crate) latency_ms: Latencies,
    /// Workers that are gone, by why they left: `crashed`, or why they drained.
    #[serde(default)]
    pub(crate) exits: BTreeMap<String, u64>,
    /// Reloads and rollbacks, by how they ended.
    #[serde(default)]
    pub(crate) reload_results: BTreeMap<ReloadResult, u64>,
    /// The same sums for each of the latest generations.
    #[serde(default)]
    pub(crate) by_generation: Vec<GenerationTotals>,
}

/// What the workers of one generation counted; see [`Totals`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GenerationTotals {
    pub(crate) generation: Generation,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) traps: u64,
    pub(crate) timeouts: u64,
    pub(crate) aborted: u64,
}

impl GenerationTotals {
    pub(crate) fn new(generation: Generation, counted: &Snapshot) -> Self {
        let Snapshot { requests, errors, traps, timeouts, aborted, .. } = *counted;
        Self { generation, requests, errors, traps, timeouts, aborted }
    }
}

/// From a request's head to the end of its answer, in milliseconds; at most a fourth too long. None before the first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// Times, and how many took less than each, but not less than the one before. The difference of two moments tells how
    /// long the requests between them took.
    #[serde(default)]
    pub(crate) counts: Vec<(f64, u64)>,
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
    /// What workers counted; how they and reloads ended is not in it.
    pub(crate) fn new(counted: &Snapshot) -> Self {
        let milliseconds = |micros: u64| micros as f64 / 1000.0;
        let quantile = |part| counted.latency.quantile(part).map(milliseconds);
        let counts = counted.latency.counts().map(|(end, count)| (milliseconds(end), count)).collect();
        Self {
            requests: counted.requests,
            errors: counted.errors,
            traps: counted.traps,
            timeouts: counted.timeouts,
            rejected: counted.rejected,
            refused: counted.refused,
            aborted: counted.aborted,
            lines_dropped: counted.lines_dropped,
            metrics_dropped: counted.metrics_dropped,
            access_dropped: counted.access_dropped,
            spans_dropped: counted.spans_dropped,
            handshakes: counted.handshakes,
            handshakes_resumed: counted.handshakes_resumed,
            handshakes_failed: counted.handshakes_failed,
            latency_ms: Latencies { p50: quantile(0.5), p99: quantile(0.99), counts },
            ..Self::default()
        }
    }
}

/// The body of `POST /reload`, and of `POST /rollback`, which takes no `app`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReloadRequest {
    /// An absolute path, or the name of a component in a registry; the same as before if there is none.
    pub(crate) app: Option<App>,
    pub(crate) timeout_ms: Option<u64>,
    /// Crashes and errors do not count once the canary has passed.
    pub(crate) force: bool,
    /// By how many percentage points the share of errors may be above the old version's; as `serve` was told if there is
    /// none.
    pub(crate) max_error_increase: Option<Percent>,
    /// Of a reload: do nothing if component and settings are what is served already.
    pub(crate) if_new: bool,
    /// Of a reload: only tell what would change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dry_run: bool,
    /// Of a rollback: the generation to bring back; the one before if there is none.
    pub(crate) to: Option<Generation>,
}

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReloadResult {
    Committed,
    /// It is served, but could not be written down: `--resume` would start what was committed before.
    CommittedUnsaved,
    /// It is what is served already: nothing was changed.
    Unchanged,
    /// Something would change. Nothing was.
    DryRun,
    /// The component cannot be served, or the settings are wrong: nothing was changed.
    Refused,
    RolledBack,
    /// It took too long, and was rolled back.
    TimedOut,
    /// The cluster could not go on with it.
    Failed,
}

/// The last reload, in `status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LastReload {
    /// None if it was refused before it had a number.
    pub(crate) generation: Option<Generation>,
    pub(crate) result: ReloadResult,
    pub(crate) reason: Option<String>,
}

/// The body of `POST /scale`: `{"workers":N}` for so many, `{"by":N}` for so many more, or fewer if it is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    #[serde(deserialize_with = "at_least_one")]
    Workers(NonZeroU32),
    By(i32),
}

/// Refuses 0 in plain words: serde would say that it expected a nonzero u32.
fn at_least_one<'de, D: Deserializer<'de>>(number: D) -> Result<NonZeroU32, D::Error> {
    // Larger numbers are over the limit anyway.
    let number = i64::deserialize(number)?.clamp(0, u32::MAX.into());
    let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
    number.ok_or_else(|| D::Error::custom("workers must be at least 1"))
}

/// What `POST /scale` answers: how many workers there were to be, and how many there are to be now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scaled {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// The body of `POST /certificates`: `{}`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

/// The body of `POST /stop`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stop {
    /// Without a drain.
    #[serde(default)]
    pub(crate) now: bool,
}

/// One thing that happened, as a line of JSON shows it beside its `time`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Happening {
    WorkerStarted {
        worker: WorkerId,
        slot: Slot,
        generation: Generation,
        pid: i32,
    },
    WorkerReady {
        worker: WorkerId,
    },
    WorkerDraining {
        worker: WorkerId,
        reason: String,
    },
    WorkerExited {
        worker: WorkerId,
        slot: Slot,
        reason: String,
        lost_requests: Vec<String>,
    },
    WorkerCrashed {
        worker: WorkerId,
        slot: Slot,
        reason: String,
        retry_ms: u64,
        lost_requests: Vec<String>,
    },
    WorkerUnkillable {
        worker: WorkerId,
        pid: Option<i32>,
    },
    Degraded {
        degraded: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    Serving {
        listen: Vec<String>,
    },
    Scaling {
        from: u32,
        to: u32,
    },
    Configured {
        key: String,
        /// None if it was taken away.
        value: Option<String>,
    },
    Stopping,
    /// The last event of all.
    Stopped {
        requests_cut: u64,
    },
    /// How a reload goes: `compiling`, `canary`, `rolling`, `soaking`, `committed`, `rolling_back`, `draining`. `done` of `of`
    /// slots, or workers that drained; or for how long the phase lasts.
    Reload {
        generation: Option<Generation>,
        phase: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        done: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        of: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        lasts_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What a reload changes, before it begins: a setting as it stands in the file, or the `component`. A value that may hold
    /// a secret is not told.
    Change {
        what: String,
        from: Option<String>,
        to: Option<String>,
    },
    ReloadEnded {
        generation: Option<Generation>,
        result: ReloadResult,
        reason: Option<String>,
    },
    /// Something that whoever asked for a reload should know; only they are told.
    Note {
        text: String,
    },
    /// The reader was too slow for so many events.
    Missed {
        events: u64,
    },
}

#[derive(Serialize)]
struct EventLine<'a> {
    time: String,
    #[serde(flatten)]
    happening: &'a Happening,
}

/// The line, newline included.
pub(crate) fn line(happening: &Happening) -> Bytes {
    line_at(SystemTime::now(), happening)
}

/// The line of what happened then.
pub(crate) fn line_at(at: SystemTime, happening: &Happening) -> Bytes {
    let time = humantime::format_rfc3339_micros(at).to_string();
    let mut line = serde_json::to_vec(&EventLine { time, happening }).expect("numbers and strings");
    line.push(b'\n');
    line.into()
}
