//! The page of counters that a worker shares with its primary.
//!
//! The primary makes it, the worker adds to it, so what a worker counted is known even after SIGKILL. The primary reads
//! the numbers as untrusted: it shows and adds them up, and decides nothing of its own safety by them.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::pwrite;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::os::memfd;
use crate::wire::series::Table;

/// Declares the counters once: as atomics in the shared page and as plain numbers in a [`Snapshot`].
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a worker counts. Every field is a plain number that the worker alone writes.
        #[repr(C)]
        #[derive(Debug)]
        pub(crate) struct Stats {
            /// Which layout the page has: [`LAYOUT`]. The primary writes it, and nothing else.
            layout: Counter,
            $($(#[$doc])* pub(crate) $name: Counter,)*
            /// How long requests took, from their head to the end of their answer.
            pub(crate) latency: Latency<Counter>,
            /// The numbers of the requests in flight, in no order; 0 is a free place. What finds none is not listed.
            pub(crate) requests_in_flight: [Counter; MAX_LISTED],
            /// What guests keep. It comes last: a page of it that nobody touched takes no memory.
            pub(crate) metrics: Table,
        }

        /// The numbers of a page at one moment, or the sums of several pages.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) struct Snapshot {
            $($(#[$doc])* pub(crate) $name: u64,)*
            /// As in [`Stats`].
            pub(crate) latency: Latency<u64>,
        }

        impl Stats {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* latency: self.latency.snapshot() }
            }
        }

        impl Snapshot {
            /// Adds what another page counted; a page that lies cannot make the sum overflow.
            pub(crate) fn add(&mut self, other: &Snapshot) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
                self.latency.add(&other.latency);
            }
        }
    };
}

counters! {
    /// Turns of the heartbeat; stands still when the executor is wedged.
    heartbeats,
    /// Requests whose head was read.
    requests,
    /// Answers with a status of 500 and above, and answers that were cut.
    errors,
    /// Answers by the class of their status, and requests that got none.
    answers_1xx,
    answers_2xx,
    answers_3xx,
    answers_4xx,
    answers_5xx,
    answers_none,
    /// Of all requests together, from their head to the end of their answer, in microseconds.
    latency_sum,
    /// Requests that a guest answered, or failed to.
    guest_answers,
    /// Of these, those that went wrong by the guest: answered with 5xx, cut, not in time, or with a trap.
    guest_errors,
    /// Guests that trapped.
    traps,
    /// Requests that took longer than they may.
    timeouts,
    /// Requests refused because the worker was full.
    rejected,
    /// Requests refused for what they are: malformed, too large, or of a kind that is not served.
    refused,
    /// Requests whose answer was never handed over to its end.
    aborted,
    /// Requests being answered now, or waiting for a place.
    in_flight,
    /// Connections open now.
    connections,
    /// WebSockets open now.
    websockets,
    /// Lines of guest output lost because nobody read them fast enough.
    lines_dropped,
    /// Frames that the worker has taken from its primary.
    frames,
    /// Updates of guests' metrics that broke a rule.
    metrics_dropped,
    /// Lines of the access log lost because the disk did not keep up.
    access_dropped,
    /// TLS handshakes that went well.
    handshakes,
    /// Of these, those that resumed an earlier session.
    handshakes_resumed,
    /// TLS handshakes that were begun and went wrong, or took too long.
    handshakes_failed,
}

/// The layout of the page. Another layout of the same size has another number.
const LAYOUT: u64 = 5;
/// Requests in flight that are known by their number even after SIGKILL.
pub(crate) const MAX_LISTED: usize = 256;

/// The shortest times that are told apart are shorter than `2 ^ FIRST_OCTAVE` microseconds.
const FIRST_OCTAVE: u32 = 4;
/// Each octave has so many buckets: no time is off by more than a fourth.
const PER_OCTAVE: usize = 4;
/// Up to 268 s; what is longer counts as that.
const BUCKETS: usize = 1 + 24 * PER_OCTAVE;

/// A histogram of times, with buckets that grow with the times.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Latency<N>([N; BUCKETS]);

fn bucket(time: Duration) -> usize {
    let micros = time.as_micros().min(u128::from(u64::MAX)) as u64;
    let Some(octave) = micros.checked_ilog2().and_then(|octave| octave.checked_sub(FIRST_OCTAVE)) else {
        return 0;
    };
    // The two bits after the leading one.
    let quarter = (micros >> (octave + FIRST_OCTAVE - 2)) as usize % PER_OCTAVE;
    (1 + octave as usize * PER_OCTAVE + quarter).min(BUCKETS - 1)
}

/// The time that everything in the bucket is shorter than.
fn bound(bucket: usize) -> Duration {
    let Some(above) = bucket.checked_sub(1) else {
        return Duration::from_micros(1 << FIRST_OCTAVE);
    };
    let (octave, quarter) = (above / PER_OCTAVE, above % PER_OCTAVE);
    Duration::from_micros(((PER_OCTAVE + quarter + 1) as u64) << (octave as u32 + FIRST_OCTAVE - 2))
}

impl Latency<Counter> {
    pub(crate) fn record(&self, time: Duration) {
        self.0[bucket(time)].increment();
    }

    fn snapshot(&self) -> Latency<u64> {
        Latency(std::array::from_fn(|bucket| self.0[bucket].get()))
    }
}

impl Serialize for Latency<u64> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.as_slice().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Latency<u64> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let counts: Vec<u64> = Deserialize::deserialize(from)?;
        counts.try_into().map(Self).map_err(|_| D::Error::custom("another number of buckets"))
    }
}

impl Default for Latency<u64> {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Latency<u64> {
    fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            *sum = sum.saturating_add(*count);
        }
    }

    /// How many there are, and for each octave how many took less than its end.
    pub(crate) fn by_octave(&self) -> (u64, Vec<(Duration, u64)>) {
        let mut below = 0_u64;
        let mut octaves = Vec::new();
        for (bucket, count) in self.0.iter().enumerate() {
            below = below.saturating_add(*count);
            // What is in the last one may be longer.
            if bucket % PER_OCTAVE == 0 && bucket + 1 < BUCKETS {
                octaves.push((bound(bucket), below));
            }
        }
        (below, octaves)
    }

    /// The time that this part of all, from 0 to 1, was shorter than; `None` if there was nothing yet.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let total = self.0.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        let rank = ((total as f64 * part).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0_u64;
        let found = self.0.iter().position(|count| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        found.map(bound)
    }
}

/// One number of the page.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// Counts one until the guard is dropped.
    pub(crate) fn hold(&'static self) -> Held {
        self.increment();
        Held(self)
    }
}

/// One unit of a gauge, given back on drop.
#[must_use]
#[derive(Debug)]
pub(crate) struct Held(&'static Counter);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A mapping of a page.
#[derive(Debug)]
pub(crate) struct Page(NonNull<Stats>);

// SAFETY: the page holds nothing but atomics.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Makes a page for a new worker: the primary's read-only view of it, and the descriptor for the worker.
    pub(crate) fn create() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd::shared(c"wasmcluster-stats", size_of::<Stats>())?;
        // The layout comes first.
        pwrite(&fd, &LAYOUT.to_ne_bytes(), 0)?;
        Ok((Self::map(&fd, ProtFlags::PROT_READ)?, fd))
    }

    /// The worker's view, for the rest of its life.
    pub(crate) fn open(fd: &OwnedFd) -> io::Result<&'static Stats> {
        let page = Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let layout = page.layout.get();
        if layout != LAYOUT {
            return Err(io::Error::other(format!("the stats page has layout {layout}, expected {LAYOUT}")));
        }
        Ok(Box::leak(Box::new(page)))
    }

    fn map(fd: &OwnedFd, protection: ProtFlags) -> io::Result<Self> {
        let length = NonZeroUsize::new(size_of::<Stats>()).expect("the page has fields");
        if nix::sys::stat::fstat(fd)?.st_size != length.get() as i64 {
            return Err(io::Error::other("the stats page has the wrong size"));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice; the file is at least as long as `Stats` and
        // sealed against shrinking, so no access through the mapping can fault.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd.as_fd(), 0)? };
        Ok(Self(address.cast()))
    }
}

impl Deref for Page {
    type Target = Stats;

    fn deref(&self) -> &Stats {
        // SAFETY: mapped for as long as `self` lives, page-aligned, and every bit pattern is a valid `Stats`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.0.cast(), size_of::<Stats>()) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_views_share_the_numbers() {
        let (primary, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        worker.requests.increment();
        worker.requests.increment();
        let held = worker.in_flight.hold();
        assert_eq!(primary.snapshot().requests, 2);
        assert_eq!(primary.snapshot().in_flight, 1);
        drop(held);
        assert_eq!(primary.snapshot().in_flight, 0);
    }

    #[test]
    fn sums_saturate() {
        let mut sum = Snapshot { requests: u64::MAX, ..Snapshot::default() };
        sum.add(&Snapshot { requests: 5, traps: 1, ..Snapshot::default() });
        assert_eq!((sum.requests, sum.traps), (u64::MAX, 1));
    }

    #[test]
    fn times_fall_into_buckets_that_hold_them() {
        let times = [0, 1, 15, 16, 17, 19, 20, 31, 32, 100, 1000, 65_535, 65_536, 1_000_000, 200_000_000];
        for time in times.map(Duration::from_micros) {
            let bucket = bucket(time);
            assert!(time < bound(bucket), "{time:?} in bucket {bucket}");
            assert!(bucket == 0 || time >= bound(bucket - 1), "{time:?} in bucket {bucket}");
            assert!(bucket == 0 || bound(bucket).as_secs_f64() <= time.as_secs_f64() * 1.25 + 1e-6, "{time:?}");
        }
        assert_eq!(bucket(Duration::from_secs(100_000)), BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_close() {
        let (page, fd) = Page::create().unwrap();
        let worker = Page::open(&fd).unwrap();
        assert_eq!(page.snapshot().latency.quantile(0.5), None);
        (1..=100).for_each(|ms| worker.latency.record(Duration::from_millis(ms)));
        let latency = page.snapshot().latency;
        for (part, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = latency.quantile(part).unwrap().as_secs_f64() * 1000.0;
            assert!(found >= expected && found <= expected * 1.25 + 0.1, "{part}: {found} ms");
        }
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let fd = memfd::shared(c"test", 8).unwrap();
        assert!(Page::open(&fd).is_err());
    }

    #[test]
    fn a_page_of_another_layout_is_refused() {
        let fd = memfd::shared(c"test", size_of::<Stats>()).unwrap();
        assert!(Page::open(&fd).unwrap_err().to_string().contains("layout 0, expected 5"));
    }
}
