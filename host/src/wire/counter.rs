//! One number that a process counts and others read, in memory that they share.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number, which one process writes.
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
