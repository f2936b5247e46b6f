//! The wasmtime engines: what compiler and workers must agree on, and what each adds for itself.
//!
//! Every setting that the compiled code depends on is in [`shared`], so that an artifact which the compiler wrote is
//! one that a worker can load.

use rustix::param::page_size;
use wasmtime::{
    Config, Enabled, Engine, Instance, InstanceAllocationStrategy, Module, OptLevel, PoolingAllocationConfig, Store,
    WasmBacktraceDetails,
};

use crate::os::pagemap;
use crate::settings::{
    Limits, MAX_CORE_INSTANCES, MAX_INSTANCES, MAX_MEMORIES, MAX_STACK, MAX_TABLE_ELEMENTS, MAX_TABLES,
};
use crate::wire::version::WasiHttp;

/// Wasmtime's version: the very one that is linked, not the one that was asked for.
pub(crate) const WASMTIME_VERSION: &str = wasmtime_environ::VERSION;

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

/// A smaller pool is not worth its trouble.
const MIN_POOL: u32 = 15;
/// What is compiled, mapped and run for a trial.
const TRIAL: &str = "(module (memory 1) (func (export \"answer\") (result i32) i32.const 42))";

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

/// An engine to initialize with what [`for_compiler`] then compiles: it is run once, so it is not optimised.
pub(super) fn for_initializing(http: WasiHttp) -> wasmtime::Result<Engine> {
    Engine::new(shared(http).cranelift_opt_level(OptLevel::None))
}

/// An engine to run with: instances come from a pool, or, on a machine that cannot reserve the address space for one,
/// are mapped on demand, which is slower but gives the same answers.
pub(crate) fn for_worker(http: WasiHttp, resident: Resident) -> wasmtime::Result<Engine> {
    let (engine, instances) = with_pool(shared(http), resident)?;
    if instances == 0 {
        tracing::warn!(
            "cannot reserve address space for a pool of instances; instances are mapped on demand, which is slower"
        );
    }
    Ok(engine)
}

/// The engine, and for how many instances it has a pool; 0 if they are mapped on demand.
fn with_pool(mut config: Config, resident: Resident) -> wasmtime::Result<(Engine, u32)> {
    config.max_wasm_stack(MAX_STACK);
    let mut instances = MAX_INSTANCES;
    while instances >= MIN_POOL {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances, resident)));
        match Engine::new(&config) {
            Ok(engine) => return Ok((engine, instances)),
            Err(error) => tracing::debug!(instances, "cannot reserve a pool: {error:#}"),
        }
        instances /= 2;
    }
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Ok((Engine::new(&config)?, 0))
}

/// Whether this process could be a worker: has the code of a small module compiled, mapped and run. For how many instances
/// there is a pool; 0 if they would be mapped on demand.
pub(crate) fn try_as_worker() -> wasmtime::Result<u32> {
    let mut config = shared(WasiHttp::V0_2);
    // Where no thread can be started, the pool of threads that compile would panic.
    config.parallel_compilation(false);
    let (engine, instances) = with_pool(config, Resident::default())?;
    let module = Module::new(&engine, wat::parse_str(TRIAL).expect("a module of ours"))?;
    let mut store = Store::new(&engine, ());
    // Beyond the epoch that it is: it is not interrupted.
    store.set_epoch_deadline(1);
    Instance::new(&mut store, &module, &[])?.get_typed_func::<(), i32>(&mut store, "answer")?.call(&mut store, ())?;
    Ok(instances)
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
