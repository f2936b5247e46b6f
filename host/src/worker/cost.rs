//! What a request costs: how long its guest computes, how much memory its instance has, and what it asks of others.
//!
//! It is written where guests run and read where answers are sent, in the same thread. It is in [`Asked`], which also those
//! have who might be elsewhere: hence the atomics, none of which is waited for.
//!
//! [`Asked`]: super::requests::Asked

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::wire::stats::Stats;

/// Which kind of instance a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceUse {
    /// One that was made for it.
    Fresh,
    /// One that had served others, or serves others as well.
    Reused,
}

impl InstanceUse {
    /// What logs, spans and clients call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Reused => "reused",
        }
    }
}

/// What keeps an instance from more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryLimit {
    /// `--max-memory`.
    Instance = 1,
    /// `--max-worker-memory`: its siblings have the rest.
    Worker = 2,
}

/// The account of one request.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    cpu_nanos: AtomicU64,
    memory: AtomicU64,
    outbound: AtomicU32,
    store: AtomicU32,
    /// 0 as long as there is no instance.
    instance: AtomicU8,
    /// 0 as long as it got what it asked for.
    refused: AtomicU8,
}

impl Cost {
    /// Its guest was polled for so long. What others in the same instance computed meanwhile is in it.
    pub(crate) fn computed(&self, time: Duration) {
        self.cpu_nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Its instance has so many bytes now.
    pub(crate) fn has(&self, bytes: usize) {
        self.memory.fetch_max(bytes as u64, Ordering::Relaxed);
    }

    /// Its instance was refused memory.
    pub(crate) fn was_refused(&self, by: MemoryLimit) {
        self.refused.store(by as u8, Ordering::Relaxed);
    }

    /// By which limit it was refused memory last, if it was.
    pub(crate) fn refused(&self) -> Option<MemoryLimit> {
        [MemoryLimit::Instance, MemoryLimit::Worker]
            .into_iter()
            .find(|limit| *limit as u8 == self.refused.load(Ordering::Relaxed))
    }

    /// It has sent one more request.
    pub(crate) fn sends(&self) {
        self.outbound.fetch_add(1, Ordering::Relaxed);
    }

    /// It has called a key-value store once more.
    pub(crate) fn calls_store(&self) {
        self.store.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn got(&self, instance: InstanceUse) {
        let instance = match instance {
            InstanceUse::Fresh => 1,
            InstanceUse::Reused => 2,
        };
        self.instance.store(instance, Ordering::Relaxed);
    }

    /// Adds it to those of others, when the request is over.
    pub(crate) fn count(&self, stats: &Stats) {
        match self.instance() {
            Some(InstanceUse::Fresh) => stats.instances_fresh.increment(),
            Some(InstanceUse::Reused) => stats.instances_reused.increment(),
            None => return,
        }
        stats.cpu.record(self.cpu().as_micros() as u64);
        stats.memory.record(self.memory() / 1024);
    }

    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed))
    }

    /// The most bytes that its instance had; 0 if nobody counted them.
    pub(crate) fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    pub(crate) fn outbound(&self) -> u32 {
        self.outbound.load(Ordering::Relaxed)
    }

    pub(crate) fn store_calls(&self) -> u32 {
        self.store.load(Ordering::Relaxed)
    }

    /// None if it got none.
    pub(crate) fn instance(&self) -> Option<InstanceUse> {
        match self.instance.load(Ordering::Relaxed) {
            1 => Some(InstanceUse::Fresh),
            2 => Some(InstanceUse::Reused),
            _ => None,
        }
    }
}
