//! How a cluster supervises its workers, as far as a user may choose.

use std::time::Duration;

/// What the supervisor goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Workers that have not finished so long after their drain began cut what is left.
    pub(crate) drain_timeout: Duration,
    /// Workers serve on for so long after the cluster was told to stop.
    pub(crate) shutdown_delay: Duration,
    /// Workers that live longer than this after the cluster stopped to accept are killed.
    pub(crate) shutdown_timeout: Duration,
    /// An executor that did not turn for so long hangs.
    pub(crate) hang_timeout: Duration,
    /// How long the first worker of a new version must have been well before it may serve.
    pub(crate) min_ready: Duration,
    /// How long all workers of a new version must do well before it is committed.
    pub(crate) soak: Duration,
    /// How long a request may take: for so long at most the soak waits for answers that it would decide by.
    pub(crate) request_timeout: Duration,
    /// Workers that wait to serve prove again and again that they are well.
    pub(crate) checks_health: bool,
    pub(crate) recycle: Recycle,
}

/// When a worker is replaced by a fresh one: each worker draws its own limits, a little below these.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recycle {
    pub(crate) max_requests: Option<u64>,
    pub(crate) max_lifetime: Option<Duration>,
    /// Resident memory, in bytes.
    pub(crate) max_rss: Option<u64>,
}
