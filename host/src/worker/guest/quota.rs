//! How much memory instances may have: each of them, and all of a worker together. What is over is refused to the guest
//! that asks, long before the kernel would have to end a process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::{Engine, PoolingAllocatorMetrics, ResourceLimiter};

use crate::component::engine::Resident;
use crate::settings::{Limits, MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES, size};
use crate::worker::cost::MemoryLimit;
use crate::worker::requests::Asked;

/// Bytes of an element.
const TABLE_ELEMENT: usize = size_of::<usize>();

/// Bytes of a page, in which WebAssembly counts memory.
const PAGE: u64 = 64 * 1024;

/// What the engine says in pages and elements of a component that asks for too much from the first, in the words of flags.
pub(crate) fn explain(error: &str, limits: &Limits) -> Option<String> {
    let amount = |before: &str| -> Option<u64> {
        error.split(before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let memory = amount("memory minimum size of ").map(|pages| pages.saturating_mul(PAGE));
    if let Some(bytes) = memory.or_else(|| amount("memory has a minimum byte size of ")) {
        let (needed, max) = (size(bytes), size(limits.max_memory));
        return Some(format!("it needs {needed} of memory to start, but --max-memory is {max}"));
    }
    let entries = amount("table minimum size of ").or_else(|| amount("minimum element size of "))?;
    Some(match entries > MAX_TABLE_ELEMENTS as u64 {
        true => format!("it needs a table of {entries} functions to start, but the limit is {MAX_TABLE_ELEMENTS}"),
        false => format!("its table of {entries} functions does not fit into --max-memory {}", size(limits.max_memory)),
    })
}

/// Bytes that a worker's instances may still take.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicUsize,
    total: usize,
    /// What no instance has, and is not free.
    warm: Warm,
}

/// Memory of instances that are gone, which stays for the next ones.
#[derive(Default)]
pub(crate) struct Warm {
    pool: Option<PoolingAllocatorMetrics>,
    resident: Resident,
}

impl Warm {
    pub(crate) fn of(engine: &Engine, resident: Resident) -> Self {
        Self { pool: engine.pooling_allocator_metrics(), resident }
    }

    /// How much it is at most, in bytes.
    fn bytes(&self) -> usize {
        let Some(pool) = &self.pool else { return 0 };
        pool.unused_warm_memories() as usize * self.resident.memory
            + pool.unused_warm_tables() as usize * self.resident.table
    }
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.resident.fmt(f)
    }
}

impl Budget {
    pub(crate) fn new(bytes: usize, warm: Warm) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes), total: bytes, warm })
    }

    /// What is in use of it.
    pub(crate) fn gauges(self: &Arc<Self>) -> Gauges {
        Gauges(self.clone())
    }

    /// Whether more than half of it is in use.
    pub(crate) fn is_low(&self) -> bool {
        self.left.load(Ordering::Relaxed) < self.total / 2
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| {
            let rest = left.checked_sub(bytes)?;
            // To ask the pool costs a lock or two. As long as half is free, it is not asked.
            (rest >= self.total / 2 || rest >= self.warm.bytes()).then_some(rest)
        };
        self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How many instances there are, and what they have: for a look from time to time.
#[derive(Debug)]
pub(crate) struct Gauges(Arc<Budget>);

impl Gauges {
    /// Instances that there are, also those that wait for a request; 0 if they do not come from a pool.
    pub(crate) fn instances(&self) -> u64 {
        self.0.warm.pool.as_ref().map_or(0, PoolingAllocatorMetrics::component_instances)
    }

    /// Bytes that they have.
    pub(crate) fn memory(&self) -> u64 {
        let Budget { total, left, .. } = &*self.0;
        total.saturating_sub(left.load(Ordering::Relaxed)) as u64
    }
}

/// What one instance has of it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Quota {
    budget: Arc<Budget>,
    /// Bytes that the instance may have.
    max: usize,
    /// Never less than it really has: growth that was granted and failed all the same is not given back, since wasmtime
    /// reports failures also where nothing was granted before.
    held: usize,
    /// Of that, what the host keeps for it.
    by_host: usize,
    /// Something was refused because its siblings have the rest.
    is_starved: bool,
    /// The request that is told how much it is.
    asked: Option<Arc<Asked>>,
}

impl Quota {
    pub(crate) fn new(budget: Arc<Budget>, max: usize) -> Self {
        Self { budget, max, held: 0, by_host: 0, is_starved: false, asked: None }
    }

    /// Tells that request how much the instance has, from now on.
    pub(crate) fn tell(&mut self, asked: Option<Arc<Asked>>) {
        self.asked = asked;
        self.told();
    }

    fn told(&self) {
        if let Some(asked) = &self.asked {
            asked.cost().has(self.held);
        }
    }

    fn take(&mut self, more: usize) -> bool {
        if more > self.max - self.held {
            return self.refused(MemoryLimit::Instance);
        }
        if !self.budget.take(more) {
            self.is_starved = true;
            return self.refused(MemoryLimit::Worker);
        }
        self.held += more;
        self.told();
        true
    }

    /// Always false.
    fn refused(&self, by: MemoryLimit) -> bool {
        if let Some(asked) = &self.asked {
            asked.cost().was_refused(by);
        }
        false
    }

    /// What the host keeps for it is now so much. False if it may not have that.
    pub(crate) fn hold(&mut self, by_host: usize) -> bool {
        if let Some(less) = self.by_host.checked_sub(by_host) {
            self.held -= less;
            self.budget.give_back(less);
        } else if !self.take(by_host - self.by_host) {
            return false;
        }
        self.by_host = by_host;
        true
    }

    /// Whether it was refused what it might have had with fewer siblings.
    pub(crate) fn is_starved(&self) -> bool {
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
    fn what_is_warm_is_not_free() {
        let resident = Resident { memory: 4 << 20, table: 64 << 10 };
        let engine = crate::component::engine::for_worker(crate::wire::version::WasiHttp::V0_2, resident).unwrap();
        let budget = Budget::new(10 << 20, Warm::of(&engine, resident));
        assert!(budget.take(9 << 20));
        budget.give_back(9 << 20);

        let module = wasmtime::Module::new(&engine, wat::parse_str("(module (memory 1))").unwrap()).unwrap();
        let mut store = wasmtime::Store::new(&engine, ());
        wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
        assert_eq!(budget.warm.bytes(), 0);
        drop(store);
        assert_eq!(budget.warm.bytes(), 4 << 20);
        assert!(!budget.take(9 << 20));
        assert!(budget.take(6 << 20));
    }

    #[test]
    fn memory_is_shared_and_given_back() {
        let budget = Budget::new(100, Warm::default());
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
        assert!(other.hold(0));
        drop(other);
        assert_eq!(budget.left.load(Ordering::Relaxed), 100);
    }
}
