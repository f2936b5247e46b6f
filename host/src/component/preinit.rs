//! Snapshot start: what a component does before its first request is done once, when it is compiled, and each of its
//! instances starts from the memory that this left.
//!
//! Done are the start functions of its modules, which is where static constructors and the runtimes of some languages are
//! begun, and the function `wizer-initialize` if the component exports it, as it would for Wizer
//! (<https://github.com/bytecodealliance/wasmtime/tree/main/crates/wizer>), whose library this uses.
//!
//! There is no host meanwhile: what time it is, what the environment says and what was drawn at random must not be the same
//! for all instances for ever. A component that asks is served as it is. The one thing that it is given is a seed for its
//! hash tables, drawn anew for each compilation: it is a secret of the artifact's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::anyhow;
use ring::rand::{SecureRandom, SystemRandom};
use wasmtime::component::{Component, ComponentNamedList, Instance, Lift, Linker, TypedFunc, WasmList};
use wasmtime::error::Context;
use wasmtime::{Engine, ResourceLimiter, Store, StoreLimits, StoreLimitsBuilder, Trap};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use super::engine;
use super::surface::{INITIALIZER, Surface};
use crate::settings::{MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use crate::wire::version::WasiHttp;

/// How long it may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The memory that it may use, in bytes, where an instance may have as much: what one has by default.
const MAX_MEMORY: u64 = 128 << 20;
/// What Wizer's functions add to it.
const READING: u64 = 1 << 20;
/// How it is said that Wizer does not even try.
const REFUSED: &str = "Wizer refuses it";
/// What wasmtime says of an import that nobody defined.
const UNKNOWN: (&str, &str) = ("unknown import: `", "` has not been defined");
/// The interface that is given, whichever its version is, and its function in WASI 0.2 and 0.3.
const SEED: (&str, [&str; 2]) = ("wasi:random/insecure-seed@", ["insecure-seed", "get-insecure-seed"]);

/// The component as it is once it has been initialized, or why it has to be served as it is. `None` if it does nothing before
/// its first request.
///
/// `max_memory` is what an instance may have, in bytes.
pub(super) fn initialized(
    bytes: &[u8],
    surface: &Surface,
    http: WasiHttp,
    max_memory: u64,
) -> Option<Result<InitializedComponent, NoSnapshot>> {
    if !surface.has_initializer() {
        return None;
    }
    // Wizer panics at some of what it does not expect, and nothing of it is used after that.
    let made = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(initialize(bytes, surface, http, max_memory, WITHIN))
    }));
    made.unwrap_or_else(|_| Err(anyhow!("Wizer cannot take it"))).map_err(|error| refusal(&error)).transpose()
}

/// A component as its instances start.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InitializedComponent {
    pub(super) bytes: Vec<u8>,
    /// What its memories have from the start, in bytes.
    pub(super) memory: u64,
}

/// Why there is no snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSnapshot {
    pub(super) reason: String,
    /// Another time, or on another machine, there may be one.
    pub(super) may_pass: bool,
}

/// `None` if it traps while it is instantiated: if it does so in workers too, they tell it.
async fn initialize(
    bytes: &[u8],
    surface: &Surface,
    http: WasiHttp,
    max_memory: u64,
    within: Duration,
) -> anyhow::Result<Option<InitializedComponent>> {
    // What they leave is not in memories: a snapshot would have the numbers of handles that no instance has.
    if surface.can_hold_back || surface.makes_resources {
        return Err(Uninitializable("it makes resources of its own, or can hold back calls").into());
    }
    let mut wizer = Wizer::new();
    // The lines of the component's types that speak of it stay.
    wizer.keep_init_func(true);
    let (context, instrumented) = wizer.instrument_component(bytes).context(REFUSED)?;
    let engine = engine::for_initializing(http)?;
    let component = Component::new(&engine, instrumented)?;
    let mut linker = Linker::new(&engine);
    give_seed(&mut linker, surface)?;
    linker.define_unknown_imports_as_traps(&component)?;
    let mut store = Store::new(&engine, InitialLimits { limits: limits(), left: max_memory.min(MAX_MEMORY), used: 0 });
    store.limiter(|limits| limits);
    store.set_epoch_deadline(1);
    let watch = Watchdog::start(&engine, within)?;
    let instance = match linker.instantiate_async(&mut store, &component).await {
        Ok(instance) => instance,
        Err(error) if error.is::<Trap>() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if surface.exports_initializer() {
        let called = instance.get_typed_func::<(), ()>(&mut store, INITIALIZER);
        let called = called
            .ok()
            .filter(|called| !called.func().ty(&store).async_())
            .ok_or(Uninitializable("its export wizer-initialize is no function without arguments and results"))?;
        // Nothing interrupts one that waits.
        let ended = tokio::time::timeout(within, called.call_async(&mut store, ())).await;
        ended.unwrap_or_else(|_| Err(Trap::Interrupt.into()))?;
    }
    // To read it has the same time again, and Wizer's functions grow memories for a moment.
    drop(watch);
    let _watch = Watchdog::start(&engine, within)?;
    store.set_epoch_deadline(1);
    let memory = store.data().used;
    store.data_mut().left += READING;
    let mut made = Initialized { store, instance };
    let read = tokio::time::timeout(within, wizer.snapshot_component(&context, &mut made)).await;
    let bytes = read.map_err(|_| wasmtime::Error::from(Trap::Interrupt))??;
    Ok(Some(InitializedComponent { bytes, memory }))
}

/// What will be so the next time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Uninitializable(&'static str);

/// What an instance may have while it is initialized.
struct InitialLimits {
    limits: StoreLimits,
    /// Bytes of memory, of all its memories together.
    left: u64,
    used: u64,
}

impl ResourceLimiter for InitialLimits {
    fn memory_growing(&mut self, current: usize, wanted: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = wanted.saturating_sub(current) as u64;
        if more > self.left || maximum.is_some_and(|maximum| wanted > maximum) {
            return Ok(false);
        }
        (self.left, self.used) = (self.left - more, self.used + more);
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, wanted: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, wanted, maximum)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

fn limits() -> StoreLimits {
    let limits = StoreLimitsBuilder::new().memories(MAX_MEMORIES).table_elements(MAX_TABLE_ELEMENTS).tables(MAX_TABLES);
    // One more, of Wizer's functions.
    limits.instances(MAX_CORE_INSTANCES + 1).build()
}

/// Seeds of hash tables, which nobody outside is to know.
fn give_seed(linker: &mut Linker<InitialLimits>, surface: &Surface) -> anyhow::Result<()> {
    let (prefix, functions) = SEED;
    for import in surface.imports.iter().filter(|import| import.starts_with(prefix)) {
        for function in functions {
            linker.instance(import)?.func_wrap(function, |_, ()| {
                let mut seed = [0; 16];
                SystemRandom::new().fill(&mut seed).map_err(|_| wasmtime::format_err!("no random bytes"))?;
                let [low, high] = [0, 8].map(|at| seed[at..at + 8].try_into().map(u64::from_le_bytes));
                Ok(((low?, high?),))
            })?;
        }
    }
    Ok(())
}

/// What depends on the time that there was, or on the machine, may pass.
fn refusal(error: &anyhow::Error) -> NoSnapshot {
    let asked = error.chain().any(|cause| cause.to_string().starts_with(UNKNOWN.0));
    let lasts = match error.downcast_ref::<Trap>() {
        Some(trap) => *trap != Trap::Interrupt,
        None => asked || error.is::<Uninitializable>() || error.to_string() == REFUSED,
    };
    NoSnapshot { reason: reason(error), may_pass: !lasts }
}

/// For a person: why there is no snapshot.
fn reason(error: &anyhow::Error) -> String {
    let unknown = error.chain().find_map(|cause| {
        let text = cause.to_string();
        Some(text.strip_prefix(UNKNOWN.0)?.strip_suffix(UNKNOWN.1)?.to_owned())
    });
    match (unknown, error.downcast_ref::<Trap>()) {
        (Some(import), _) if import.starts_with("wasi:cli/std") => {
            format!("while it initializes, it writes ({import}), perhaps because it panics")
        }
        (Some(import), _) => {
            format!("while it initializes, it calls {import}, whose answer would be the same for every instance")
        }
        (None, Some(Trap::Interrupt)) => {
            format!("it was not initialized within {}", humantime::format_duration(WITHIN))
        }
        (None, Some(trap)) => format!("while it initializes, it traps: {trap}"),
        // A backtrace has lines, and names that the component chose.
        (None, None) => {
            format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ").escape_debug().to_string()
        }
    }
}

/// Interrupts guests of an engine after a while, unless it is dropped before.
struct Watchdog {
    _done: mpsc::Sender<()>,
}

impl Watchdog {
    fn start(engine: &Engine, within: Duration) -> std::io::Result<Self> {
        let (done, is_done) = mpsc::channel::<()>();
        let engine = engine.clone();
        std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            if is_done.recv_timeout(within) == Err(mpsc::RecvTimeoutError::Timeout) {
                engine.increment_epoch();
            }
        })?;
        Ok(Self { _done: done })
    }
}

/// An instance that Wizer asks for its state, by functions that it has added.
struct Initialized {
    store: Store<InitialLimits>,
    instance: Instance,
}

impl Initialized {
    async fn call<R: Lift + 'static>(&mut self, interface: &str, function: &str) -> R
    where
        (R,): ComponentNamedList,
    {
        let Self { store, instance } = self;
        let (_, interface) = instance.get_export(&mut *store, None, interface).expect("Wizer has added it");
        let (_, function) = instance.get_export(&mut *store, Some(&interface), function).expect("Wizer has added it");
        let function: TypedFunc<(), (R,)> =
            instance.get_typed_func(&mut *store, function).expect("Wizer gave it this type");
        function.call_async(store, ()).await.expect("it only reads").0
    }
}

impl ComponentInstanceState for Initialized {
    async fn call_func_ret_list_u8(&mut self, interface: &str, function: &str, contents: impl FnOnce(&[u8]) + Send) {
        let list: WasmList<u8> = self.call(interface, function).await;
        contents(list.as_le_slice(&self.store));
    }

    async fn call_func_ret_s32(&mut self, interface: &str, function: &str) -> i32 {
        self.call(interface, function).await
    }

    async fn call_func_ret_s64(&mut self, interface: &str, function: &str) -> i64 {
        self.call(interface, function).await
    }

    async fn call_func_ret_f32(&mut self, interface: &str, function: &str) -> u32 {
        self.call::<f32>(interface, function).await.to_bits()
    }

    async fn call_func_ret_f64(&mut self, interface: &str, function: &str) -> u64 {
        self.call::<f64>(interface, function).await.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::surface::to_binary;

    /// A component whose module has this in it, besides a memory and a global that its function `answer` adds up.
    fn component(imports: &str, module: &str, with: &str, more: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                {imports}
                (core module $m
                    {module}
                    (memory (export "memory") 1)
                    (global $kept (mut i32) (i32.const 0))
                    (func (export "answer") (result i32) (i32.add (i32.load (i32.const 64)) (global.get $kept))))
                (core instance $i (instantiate $m {with}))
                (func (export "answer") (result u32) (canon lift (core func $i "answer")))
                {more})"#
        );
        to_binary(text.as_bytes()).expect("it is text of WebAssembly").into_owned()
    }

    const LIFTED: &str = r#"(func (export "wizer-initialize") (canon lift (core func $i "init")))"#;

    fn initializing(body: &str) -> Vec<u8> {
        component("", &format!(r#"(func (export "init") {body})"#), "", LIFTED)
    }

    /// One that calls this function of a host.
    fn asking(interface: &str, function: &str, result: &str) -> Vec<u8> {
        let imports = format!(
            r#"(import "{interface}" (instance $host (export "{function}" (func {result}))))
            (core func $ask (canon lower (func $host "{function}")))"#
        );
        let module = r#"(import "host" "ask" (func $ask (result i64))) (func (export "init") (drop (call $ask)))"#;
        component(&imports, module, r#"(with "host" (instance (export "ask" (func $ask))))"#, LIFTED)
    }

    fn attempt(bytes: &[u8]) -> Option<Result<Vec<u8>, NoSnapshot>> {
        let made = initialized(bytes, &Surface::read(bytes).unwrap(), WasiHttp::V0_2, u64::MAX);
        made.map(|made| made.map(|made| made.bytes))
    }

    #[track_caller]
    fn refused(bytes: &[u8], expected: &str) {
        let reason = attempt(bytes).expect("it has something to do").expect_err("must be refused");
        assert!(reason.reason.contains(expected), "{reason:?}");
    }

    /// What a new instance answers at once.
    fn answer(bytes: &[u8]) -> u32 {
        let engine = engine::for_compiler(WasiHttp::V0_2).unwrap();
        let component = Component::new(&engine, bytes).unwrap();
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component).unwrap();
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        let instance = linker.instantiate(&mut store, &component).unwrap();
        instance.get_typed_func::<(), (u32,)>(&mut store, "answer").unwrap().call(&mut store, ()).unwrap().0
    }

    #[test]
    fn instances_start_where_the_initializer_ended() {
        let bytes = initializing("(i32.store (i32.const 64) (i32.const 40)) (global.set $kept (i32.const 2))");
        let initialized = attempt(&bytes).unwrap().unwrap();
        assert_eq!((answer(&bytes), answer(&initialized)), (0, 42));
        // It is still a component that says of itself what it did.
        assert_eq!(Surface::read(&initialized).unwrap(), Surface::read(&bytes).unwrap());
    }

    #[test]
    fn what_modules_start_with_is_not_done_again() {
        let start = "(func $start (global.set $kept (i32.add (global.get $kept) (i32.const 1)))) (start $start)";
        let bytes = component("", start, "", "");
        assert_eq!((answer(&bytes), answer(&attempt(&bytes).unwrap().unwrap())), (1, 1));
    }

    #[test]
    fn a_component_that_does_nothing_first_stays_as_it_is() {
        assert_eq!(attempt(&component("", "", "", "")), None);
        let unused = r#"(func (export "init"))"#;
        assert_eq!(attempt(&component("", unused, "", "")), None);
        // Workers tell that it cannot be instantiated.
        assert_eq!(attempt(&component("", "(func $start unreachable) (start $start)", "", "")), None);
    }

    #[test]
    fn there_is_no_host() {
        for interface in ["wasi:clocks/monotonic-clock@0.2.6", "wasi:random/random@0.2.6", "acme:shop/cart@1.0.0"] {
            let bytes = asking(interface, "now", "(result u64)");
            refused(&bytes, &format!("it calls {interface}#now, whose answer would be the same for every instance"));
        }
        refused(&asking("wasi:cli/stderr@0.2.6", "get", "(result u64)"), "it writes (wasi:cli/stderr@0.2.6#get)");
    }

    #[test]
    fn seeds_are_drawn_for_each_compilation() {
        for (version, function) in [("0.2.6", "insecure-seed"), ("0.3.0", "get-insecure-seed")] {
            let imports = format!(
                r#"(import "wasi:random/insecure-seed@{version}"
                    (instance $host (export "{function}" (func (result (tuple u64 u64))))))
                (core module $memory (memory (export "memory") 1))
                (core instance $memory (instantiate $memory))
                (core func $ask (canon lower (func $host "{function}") (memory (core memory $memory "memory"))))"#
            );
            let module = r#"(import "host" "ask" (func $ask (param i32))) (import "host" "memory" (memory $theirs 1))
                (func (export "init") (call $ask (i32.const 8)) (global.set $kept (i32.load $theirs (i32.const 8))))"#;
            let with =
                r#"(with "host" (instance (export "ask" (func $ask)) (export "memory" (memory $memory "memory"))))"#;
            let bytes = component(&imports, module, with, LIFTED);
            let answers: Vec<u32> = (0..3).map(|_| answer(&attempt(&bytes).unwrap().unwrap())).collect();
            assert!(answers[0] != answers[1] && answers[1] != answers[2] && !answers.contains(&0), "{answers:?}");
        }
    }

    #[test]
    fn what_cannot_be_initialized_is_told() {
        refused(&initializing("unreachable"), "while it initializes, it traps: wasm trap: wasm `unreachable`");
        let grows = "(if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))";
        refused(&initializing(grows), "it traps");
        let table = r#"(table $t 1 funcref) (func (export "init") (table.set $t (i32.const 0) (ref.null func)))"#;
        refused(&component("", table, "", LIFTED), "table.set");
        let asks = r#"(func (export "wizer-initialize") (param "n" u32) (canon lift (core func $i "init")))"#;
        refused(&component("", r#"(func (export "init") (param i32))"#, "", asks), "is no function without arguments");
        let throws = r#"(tag $t) (func (export "init") (throw $t))"#;
        refused(&component("", throws, "", LIFTED), "thrown Wasm exception");
        let nested = "(component (core module (func $f) (start $f)))";
        refused(&component("", "", "", nested), "nested components with modules");
    }

    /// All memories together, and no more than an instance may have.
    #[test]
    fn a_snapshot_fits_into_the_memory_of_an_instance() {
        let grows = "(if (i32.eq (memory.grow (i32.const 99)) (i32.const -1)) (then unreachable))";
        let more = format!(r#"(memory 100) (func (export "init") {grows})"#);
        let bytes = component("", &more, "", LIFTED);
        let within = |pages: u64| initialized(&bytes, &Surface::read(&bytes).unwrap(), WasiHttp::V0_2, pages << 16);
        let made = within(200).unwrap().unwrap();
        assert_eq!(made.memory, 200 << 16);
        assert!(within(199).unwrap().is_err());
        let resource = r#"(type $r (resource (rep i32))) (core func $new (canon resource.new $r))"#;
        let bytes = component(resource, r#"(func (export "init"))"#, "", LIFTED);
        refused(&bytes, "resources of its own");
    }

    #[test]
    fn what_never_ends_is_interrupted() {
        let bytes = initializing("(loop (br 0))");
        let surface = Surface::read(&bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let within = Duration::from_millis(50);
        let error = runtime.block_on(initialize(&bytes, &surface, WasiHttp::V0_2, u64::MAX, within)).unwrap_err();
        assert_eq!(refusal(&error), NoSnapshot { reason: "it was not initialized within 10s".into(), may_pass: true });
    }

    #[test]
    fn components_for_either_version_of_wasi_are_initialized() {
        let bytes = initializing("(global.set $kept (i32.const 7))");
        let initialized = initialized(&bytes, &Surface::read(&bytes).unwrap(), WasiHttp::V0_3, u64::MAX);
        assert_eq!(answer(&initialized.unwrap().unwrap().bytes), 7);
    }
}
