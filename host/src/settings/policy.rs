//! How workers are supervised, as far as a user may choose.

use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::ensure;

use super::limits::request_timeout;
use super::options::Options;
use super::values::or_seconds;

/// An executor shows twice a second that it turns.
const MIN_HANG_TIMEOUT: Duration = Duration::from_secs(2);
/// Workers that live shorter would do little but start.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// A worker that serves nothing has many times more.
const MIN_RSS: u64 = 1 << 20;
/// What a drain has beside the time that a request may take.
pub(super) const DRAIN_RESERVE: Duration = Duration::from_secs(5);
/// What `docker stop` waits before it kills, less a second to end in.
const CONTAINER_GRACE: Duration = Duration::from_secs(9);

/// What the supervisor goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recycle {
    pub(crate) max_requests: Option<u64>,
    pub(crate) max_lifetime: Option<Duration>,
    /// Resident memory, in bytes.
    pub(crate) max_rss: Option<u64>,
}

impl Policy {
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        let request_timeout = request_timeout(options);
        let enough = request_timeout + DRAIN_RESERVE;
        let shutdown_delay = or_seconds(options.shutdown_delay, 0);
        let shutdown_timeout = options
            .shutdown_timeout
            .map_or_else(|| default_shutdown_timeout(enough, shutdown_delay, std::process::id() == 1), Duration::from);
        let hang_timeout = or_seconds(options.hang_timeout, 10);
        ensure!(hang_timeout >= MIN_HANG_TIMEOUT, "--hang-timeout must be at least {MIN_HANG_TIMEOUT:?}");
        Ok(Self {
            drain_timeout: options.drain_timeout.map_or(enough, Duration::from),
            shutdown_delay,
            shutdown_timeout,
            hang_timeout,
            min_ready: or_seconds(options.min_ready, 1),
            soak: or_seconds(options.soak, 10),
            request_timeout,
            checks_health: options.health_path.is_some(),
            recycle: Recycle::new(options)?,
        })
    }
}

impl Recycle {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let max_lifetime = options.max_worker_lifetime.map(Duration::from);
        ensure!(
            max_lifetime.is_none_or(|lifetime| lifetime >= MIN_LIFETIME),
            "--max-worker-lifetime must be at least {MIN_LIFETIME:?}"
        );
        let max_rss = options.max_worker_rss.map(|size| size.0);
        let rss = max_rss.unwrap_or(MIN_RSS);
        ensure!(
            rss >= MIN_RSS,
            "--max-worker-rss {rss}B is less than any worker needs, so workers would be replaced again and again; write a \
             size with its unit, such as 500MiB"
        );
        Ok(Self { max_requests: options.max_worker_requests.map(NonZeroU64::get), max_lifetime, max_rss })
    }
}

/// No request is cut within its own time; but process 1 of a container has only what `docker stop` gives it, and would be
/// killed in the middle of its drain without a word.
fn default_shutdown_timeout(enough: Duration, delay: Duration, is_init: bool) -> Duration {
    if is_init { enough.min(CONTAINER_GRACE.saturating_sub(delay).max(Duration::from_secs(1))) } else { enough }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_takes_as_long_as_a_request_may_or_as_a_container_has() {
        let check = |enough, delay, is_init, seconds| {
            let [enough, delay] = [enough, delay].map(Duration::from_secs);
            assert_eq!(default_shutdown_timeout(enough, delay, is_init), Duration::from_secs(seconds));
        };
        check(35, 0, false, 35);
        check(35, 20, false, 35);
        check(35, 0, true, 9);
        check(35, 5, true, 4);
        check(35, 60, true, 1);
        check(6, 0, true, 6);
    }
}
