//! The wasmtime engines: what compiler and workers must agree on, and what each adds for itself.
//!
//! Every setting that the compiled code depends on is in [`shared`], so that an artifact which the compiler wrote is
//! one that a worker can load.

use rustix::param::page_size;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use crate::os::pagemap;
use crate::settings::{
    Limits, MAX_CORE_INSTANCES, MAX_INSTANCES, MAX_MEMORIES, MAX_STACK, MAX_TABLE_ELEMENTS, MAX_TABLES,
};
use crate::wire::version::WasiHttp;

/// Core modules a component may consist of, on average over the instances of a pool: a Rust guest has four, adapter
/// and shims included.
const CORE_INSTANCES_EACH: u32 = 8;
/// Tables of a component, on average.
const TABLES_EACH: u32 = 4;
/// The first bytes of a memory and of a table that stay mapped between two instances, at most.
const KEEP_MEMORY: usize = 4 * 1024 * 1024;
const KEEP_TABLE: usize = 64 * 1024;
/// Of what the instances of a worker may have, the part that may stay mapped for the next ones: one in so many bytes.
const KEEP_ONE_IN: usize = 8;

/// How much of a memory and of a table, from its beginning, stays mapped for the next instance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    pub(crate) memory: usize,
    pub(crate) table: usize,
}

impl Resident {
    /// All of it together is a small part of the worker's memory, also when every request that may be in flight has had an
    /// instance of its own.
    pub(crate) fn of(limits: &Limits) -> Self {
        let share = limits.max_worker_memory / KEEP_ONE_IN / limits.max_in_flight.max(1);
        // Wasmtime rounds up.
        let pages = |bytes: usize| bytes - bytes % page_size();
        Self { memory: pages(share.min(KEEP_MEMORY)), table: pages((share / TABLES_EACH as usize).min(KEEP_TABLE)) }
    }
}

/// What the code in an artifact depends on.
fn shared(http: WasiHttp) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // Whether there are line numbers is for the component to say, which has DWARF or has not, and for no variable.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    match http {
        // A 0.2 component cannot use it, and a request costs a quarter less without.
        WasiHttp::V0_2 => config.concurrency_support(false),
        WasiHttp::V0_3 => config.wasm_component_model_async(true),
    };
    config
}

/// An engine to compile with.
pub(crate) fn for_compiler(http: WasiHttp) -> wasmtime::Result<Engine> {
    Engine::new(&shared(http))
}

/// An engine to run with: instances come from a pool, or, on a machine that cannot reserve the address space for one,
/// are mapped on demand, which is slower but gives the same answers.
pub(crate) fn for_worker(http: WasiHttp, resident: Resident) -> wasmtime::Result<Engine> {
    let mut config = shared(http);
    config.max_wasm_stack(MAX_STACK);
    let mut instances = MAX_INSTANCES;
    while instances >= 16 {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances, resident)));
        match Engine::new(&config) {
            Ok(engine) => return Ok(engine),
            Err(error) => tracing::debug!(instances, "cannot reserve a pool: {error:#}"),
        }
        instances /= 2;
    }
    tracing::warn!(
        "cannot reserve address space for a pool of instances; instances are mapped on demand, which is slower"
    );
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
}

fn pool(instances: u32, resident: Resident) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances * CORE_INSTANCES_EACH)
        .total_memories(instances)
        .total_tables(instances * TABLES_EACH)
        .total_stacks(instances)
        .total_gc_heaps(instances)
        .max_core_instances_per_component(MAX_CORE_INSTANCES as u32)
        .max_memories_per_component(MAX_MEMORIES as u32)
        .max_tables_per_component(MAX_TABLES as u32)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_component_instance_size(4 * 1024 * 1024)
        .max_core_instance_size(4 * 1024 * 1024);
    // Resetting a used memory by asking the kernel which pages were written beats dropping and faulting them all in.
    if pagemap::scan_is_safe() {
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(resident.memory)
            .table_keep_resident(resident.table);
    }
    pool
}
