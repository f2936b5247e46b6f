//! How much memory instances may have: each of them, and all of a worker together. What is over is refused to the guest
//! that asks, long before the kernel would have to end a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::ResourceLimiter;

use crate::config::{Limits, MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES, size};

/// Bytes of an element.
const TABLE_ELEMENT: usize = size_of::<usize>();

/// Bytes of a page, in which WebAssembly counts memory.
const PAGE: u64 = 64 * 1024;

/// What the engine says in pages and elements of a component that asks for too much from the first, in the words of flags.
pub(super) fn explain(error: &str, limits: &Limits) -> Option<String> {
    let amount = |before: &str| -> Option<u64> {
        error.split(before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let memory = amount("memory minimum size of ").map(|pages| pages.saturating_mul(PAGE));
    if let Some(bytes) = memory.or_else(|| amount("memory has a minimum byte size of ")) {
        let (needed, max) = (size(bytes), size(limits.max_memory));
        return Some(format!("it needs {needed} of memory to begin with, and --max-memory is {max}"));
    }
    let entries = amount("table minimum size of ").or_else(|| amount("minimum element size of "))?;
    Some(match entries > MAX_TABLE_ELEMENTS as u64 {
        true => format!("it needs a table of {entries} functions to begin with, and the limit is {MAX_TABLE_ELEMENTS}"),
        false => format!("its table of {entries} functions does not fit into --max-memory {}", size(limits.max_memory)),
    })
}

/// Bytes that a worker's instances may still take.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
    total: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes), total: bytes })
    }

    /// Whether more than half of it is in use.
    pub(super) fn is_low(&self) -> bool {
        self.left.load(Ordering::Relaxed) < self.total / 2
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one instance has of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Quota {
    budget: Arc<Budget>,
    /// Bytes that the instance may have.
    max: usize,
    /// Never less than it really has: growth that was granted and failed all the same is not given back, since wasmtime
    /// reports failures also where nothing was granted before.
    held: usize,
    /// Something was refused because its siblings have the rest.
    is_starved: bool,
}

impl Quota {
    pub(super) fn new(budget: Arc<Budget>, max: usize) -> Self {
        Self { budget, max, held: 0, is_starved: false }
    }

    fn take(&mut self, more: usize) -> bool {
        if more > self.max - self.held {
            return false;
        }
        if !self.budget.take(more) {
            self.is_starved = true;
            return false;
        }
        self.held += more;
        true
    }

    /// Whether it was refused what it might have had with fewer siblings.
    pub(super) fn is_starved(&self) -> bool {
        self.is_starved
    }
}

impl ResourceLimiter for Quota {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.take(desired.saturating_sub(current)))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let is_allowed = desired <= maximum.unwrap_or(MAX_TABLE_ELEMENTS).min(MAX_TABLE_ELEMENTS);
        Ok(is_allowed && self.take(desired.saturating_sub(current) * TABLE_ELEMENT))
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.budget.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_and_given_back() {
        let budget = Budget::new(100);
        let mut one = Quota::new(budget.clone(), 60);
        let mut other = Quota::new(budget.clone(), 60);
        let grow = |quota: &mut Quota, from, to| quota.memory_growing(from, to, None).unwrap();
        assert!(grow(&mut one, 0, 50));
        assert!(!grow(&mut one, 50, 61), "more than one may have");
        assert!(!one.memory_growing(50, 55, Some(52)).unwrap(), "more than it said itself");
        assert!(!one.is_starved());
        assert!(grow(&mut other, 0, 50));
        assert!(!grow(&mut other, 50, 60), "the rest is taken");
        assert!(other.is_starved());
        drop(one);
        assert!(grow(&mut other, 50, 60));
        // A second memory counts too.
        assert!(!grow(&mut other, 0, 10));
        drop(other);
        assert_eq!(budget.left.load(Ordering::Relaxed), 100);
    }
}
