//! How fast a client has to be. While it is waited for, its patience runs out; every byte that it sends or takes buys some
//! back. So a client that is slow now and then is served, and one that drips a byte a minute is not: each byte alone
//! would show that it is there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::worker::clock;

/// One direction of one exchange. A guest's body may be read by other threads than the exchange's.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Where its times begin.
    epoch: Instant,
    /// Bytes a second; 0 is any.
    rate: u64,
    /// In microseconds, as the next.
    most: u64,
    left: AtomicU64,
    /// Since when the client is waited for, and one more: 0 while it is not.
    since: AtomicU64,
}

impl Pace {
    /// A client may be waited for as long as `patience`, beside what it buys with `rate` bytes a second. `epoch` is a time
    /// before all that.
    pub(crate) fn new(epoch: Instant, rate: u64, patience: Duration) -> Self {
        let most = patience.as_micros() as u64;
        Self { epoch, rate, most, left: AtomicU64::new(most), since: AtomicU64::new(0) }
    }

    /// The same for the other direction.
    pub(crate) fn of_other_direction(&self) -> Self {
        let (left, since) = (AtomicU64::new(self.most), AtomicU64::new(0));
        Self { left, since, ..*self }
    }

    fn now(&self) -> u64 {
        clock::now().saturating_duration_since(self.epoch).as_micros() as u64 + 1
    }

    /// The client is waited for.
    pub(crate) fn waits(&self) {
        if self.rate > 0 && self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// From now on it counts, whatever was waited for before.
    pub(crate) fn begin(&self) {
        self.left.store(self.most, Ordering::Relaxed);
        if self.since.load(Ordering::Relaxed) > 0 {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// It has moved so many bytes.
    pub(crate) fn came(&self, bytes: usize) {
        if self.since.load(Ordering::Relaxed) > 0 {
            self.settle(self.now(), bytes as u64);
        }
    }

    fn settle(&self, now: u64, bytes: u64) {
        let waited = now.saturating_sub(self.since.swap(0, Ordering::Relaxed));
        let bought = bytes.saturating_mul(1_000_000) / self.rate.max(1);
        let left = self.left.load(Ordering::Relaxed).saturating_sub(waited).saturating_add(bought);
        self.left.store(left.min(self.most), Ordering::Relaxed);
    }

    /// When its patience is over, if nothing moves until then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch + Duration::from_micros(since + self.left.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// The time left after the client was waited for and moved bytes, in turns.
    fn left(rate: u64, turns: &[(u64, u64)]) -> u64 {
        let pace = Pace::new(Instant::now(), rate, Duration::from_secs(60));
        for &(waited, bytes) in turns {
            pace.since.store(1, Ordering::Relaxed);
            pace.settle(1 + waited * SECOND, bytes);
        }
        pace.left.load(Ordering::Relaxed) / SECOND
    }

    #[test]
    fn bytes_buy_patience() {
        assert_eq!(left(100, &[]), 60);
        assert_eq!(left(100, &[(30, 0)]), 30);
        assert_eq!(left(100, &[(30, 1000)]), 40);
        assert_eq!(left(100, &[(30, 1_000_000)]), 60, "not more than there was");
        assert_eq!(left(100, &[(59, 1), (59, 1)]), 0, "a byte a minute");
        let steady = [(1, 100); 1000];
        assert_eq!(left(100, &steady), 60);
        let half_as_fast = [(1, 50); 100];
        assert_eq!(left(100, &half_as_fast), 10);
    }

    #[test]
    fn only_waiting_counts() {
        let pace = Pace::new(Instant::now(), 100, Duration::from_secs(60));
        assert_eq!(pace.deadline(), None);
        pace.came(1);
        pace.waits();
        let deadline = pace.deadline().unwrap();
        pace.waits();
        assert_eq!(pace.deadline(), Some(deadline), "it began with the first");
        pace.begin();
        assert!(pace.deadline().unwrap() >= deadline, "what was before does not count");
        pace.came(0);
        assert_eq!(pace.deadline(), None);
        let any = Pace::new(Instant::now(), 0, Duration::from_secs(60));
        any.waits();
        assert_eq!(any.deadline(), None);
    }
}
