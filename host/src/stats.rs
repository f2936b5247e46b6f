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

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::memfd;

/// Declares the counters once: as atomics in the shared page and as plain numbers in a [`Snapshot`].
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a worker counts. Every field is a plain number that the worker alone writes.
        #[repr(C)]
        #[derive(Debug, Default)]
        pub(crate) struct Stats {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        /// The numbers of a page at one moment, or the sums of several pages.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Snapshot {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Stats {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* }
            }
        }

        impl Snapshot {
            /// Adds what another page counted; a page that lies cannot make the sum overflow.
            pub(crate) fn add(&mut self, other: &Snapshot) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
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
    /// Guests that trapped.
    traps,
    /// Requests refused because the worker was full.
    rejected,
    /// Answers cut after their head was sent.
    aborted,
    /// Requests being answered now.
    in_flight,
    /// Connections open now.
    connections,
    /// Lines of guest output lost because nobody read them fast enough.
    lines_dropped,
}

/// One number of the page.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one until the guard is dropped.
    pub(crate) fn hold(&'static self) -> Held {
        self.increment();
        Held(self)
    }
}

/// One unit of a gauge, given back on drop.
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
        Ok((Self::map(&fd, ProtFlags::PROT_READ)?, fd))
    }

    /// The worker's view, for the rest of its life.
    pub(crate) fn open(fd: &OwnedFd) -> io::Result<&'static Stats> {
        let page = Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
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
}
