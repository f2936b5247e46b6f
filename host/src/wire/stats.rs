//! The page of counters that a worker shares with its primary.
//!
//! The primary makes it, the worker adds to it, so what a worker counted is known even after SIGKILL. The primary reads
//! the numbers as untrusted: it shows and adds them up, and decides nothing of its own safety by them.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::pwrite;
use serde::{Deserialize, Serialize};

use crate::os::memfd;
use crate::wire::counter::Counter;
use crate::wire::distribution::Distribution;
use crate::wire::series::Table;

/// Declares the counters once: as atomics in the shared page and as plain numbers in a [`Snapshot`].
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?; distributions: $($(#[$of:meta])* $distribution:ident),* $(,)?) => {
        /// What a worker counts. Every field is a plain number that the worker alone writes.
        #[repr(C)]
        #[derive(Debug)]
        pub(crate) struct Stats {
            /// Which layout the page has: [`LAYOUT`]. The primary writes it, and nothing else.
            layout: Counter,
            $($(#[$doc])* pub(crate) $name: Counter,)*
            $($(#[$of])* pub(crate) $distribution: Distribution<Counter>,)*
            /// The numbers of the requests in flight, in no order; 0 is a free place. What finds none is not listed.
            pub(crate) requests_in_flight: [Counter; MAX_LISTED],
            /// What guests keep. It comes last: a page of it that nobody touched takes no memory.
            pub(crate) metrics: Table,
        }

        /// The numbers of a page at one moment, or the sums of several pages.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) struct Snapshot {
            $($(#[$doc])* pub(crate) $name: u64,)*
            $($(#[$of])* pub(crate) $distribution: Distribution<u64>,)*
        }

        impl Stats {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* $($distribution: self.$distribution.snapshot(),)* }
            }
        }

        impl Snapshot {
            /// Adds what another page counted; a page that lies cannot make the sum overflow.
            pub(crate) fn add(&mut self, other: &Snapshot) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
                $(self.$distribution.add(&other.$distribution);)*
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
    /// Requests that a guest answered, or failed to.
    guest_answers,
    /// Of these, those that went wrong by the guest: answered with 5xx, cut, not in time, or with a trap.
    guest_errors,
    /// Guests that trapped, and of these, by kind.
    traps,
    traps_unreachable,
    traps_out_of_bounds,
    traps_stack,
    traps_exit,
    traps_limit,
    traps_other,
    /// Requests that got an instance: one made for it, or one that had served others.
    instances_fresh,
    instances_reused,
    /// Outbound requests that got no answer, or were denied, and calls of key-value stores that went wrong.
    outbound_failed,
    store_failed,
    /// Instances that there are now, also those that wait for a request, and bytes that they have.
    instances,
    guest_memory,
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
    /// Spans that went into no pipe.
    spans_dropped,
    /// TLS handshakes that went well.
    handshakes,
    /// Of these, those that resumed an earlier session.
    handshakes_resumed,
    /// TLS handshakes that were begun and went wrong, or took too long.
    handshakes_failed;
    distributions:
    /// How long requests took, from their head to the end of their answer. In microseconds, as all times here.
    latency,
    /// How long their guests computed.
    cpu,
    /// The most memory that their instances had, in KiB.
    memory,
    /// How long outbound requests took to the heads of their answers, and calls of key-value stores to theirs; also of those
    /// that failed.
    outbound,
    store,
}

/// The layout of the page. Another layout of the same size has another number.
const LAYOUT: u64 = 7;
/// Requests in flight that are known by their number even after SIGKILL.
pub(crate) const MAX_LISTED: usize = 256;

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
    fn a_file_of_another_size_is_refused() {
        let fd = memfd::shared(c"test", 8).unwrap();
        assert!(Page::open(&fd).is_err());
    }

    #[test]
    fn a_page_of_another_layout_is_refused() {
        let fd = memfd::shared(c"test", size_of::<Stats>()).unwrap();
        assert!(Page::open(&fd).unwrap_err().to_string().contains("layout 0, expected 7"));
    }
}
