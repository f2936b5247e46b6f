//! What one instance may see of the world, and how much of it: the data of its store.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::anyhow;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use wasmtime_wasi_io::IoView;

use super::epoch::Epoch;
use super::handles::{self, MEASURE_EVERY};
use super::keyvalue::{Bucket, Stores, Swap};
use super::metrics::Metrics;
use super::otel::OpenSpans;
use super::outbound::{Hooks, Origin, Outbound};
use super::quota::{Budget, Quota, Warm};
use super::sockets::{OwnSockets, SocketGrants};
use super::stdio::{GuestOutput, Sink};
use super::turns::Turns;
use super::websocket::{Socket, SocketLink};
use crate::component::engine::Resident;
use crate::grants::{Access, DirGrant};
use crate::os::pipe::LineWriter;
use crate::settings::{
    Granted, HANDLES_EACH, MAX_FIELDS, MAX_HANDLES, MAX_HELD, MAX_HOSTCALL, MAX_OUTPUT, MAX_RANDOM, size,
};
use crate::wire::messages::Identity;
use crate::wire::series::Update;
use crate::wire::stats::Stats;
use crate::wire::worker_settings::WorkerSettings;
use crate::worker::keeper::KeeperLink;
use crate::worker::requests::Asked;
use crate::worker::values::{LiveValues, Values};

/// Bytes of messages that a guest may send before it is looked at how many wait.
const ACCOUNT_EVERY: usize = 1 << 20;

mod bindings {
    wasmtime::component::bindgen!({ path: "wit", world: "wasmcluster:worker/imports" });
}
mod bindings_p2 {
    wasmtime::component::bindgen!({
        path: "wit/p2",
        world: "wasmcluster:worker/imports",
        imports: { "wasmcluster:worker/websocket": trappable },
        require_store_data_send: true,
        with: {
            "wasi:io": wasmtime_wasi_io::bindings::wasi::io,
            "wasmcluster:worker/websocket.socket": crate::worker::guest::websocket::Socket,
        },
    });
}
mod bindings_p3 {
    wasmtime::component::bindgen!({
        path: "wit/p3",
        world: "wasmcluster:worker/imports",
        imports: { default: trappable },
        with: { "wasmcluster:worker/websocket.socket": crate::worker::guest::websocket::Socket },
    });
}
pub(super) use bindings::wasmcluster::worker::{identity, metrics};
pub(super) use bindings_p2::wasmcluster::worker::websocket;
pub(super) use bindings_p3::wasmcluster::worker::websocket as websocket_async;

/// One instance's.
pub(crate) struct Guest {
    world: Arc<World>,
    /// Made when it is first needed: many guests never do.
    wasi: Option<Wasi>,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: Hooks,
    quota: Quota,
    /// Calls of its that may have made the host keep more for it.
    calls: u32,
    /// Bytes of messages that it has sent since that was counted.
    unaccounted: usize,
    /// Why it was stopped.
    stopped: Option<String>,
    values: Values,
    /// Made when it is first needed.
    sockets: Option<OwnSockets>,
    open_spans: OpenSpans,
}

struct Wasi {
    ctx: WasiCtx,
    outputs: [GuestOutput; 2],
}

impl Guest {
    /// Whether it was refused memory because other instances have it.
    pub(crate) fn is_starved(&self) -> bool {
        self.quota.is_starved()
    }

    /// Why it was stopped, if it was, as the end of a sentence about it: more than the error that came of that.
    pub(crate) fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    pub(super) fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Which request it works on, if that can be told.
    pub(super) fn asked(&self) -> Option<&Arc<Asked>> {
        self.hooks.asked()
    }

    pub(super) fn own_sockets(&mut self) -> &OwnSockets {
        self.sockets.get_or_insert_with(|| OwnSockets::new(&self.world.sockets))
    }

    pub(super) fn open_spans(&mut self) -> &mut OpenSpans {
        &mut self.open_spans
    }

    /// Writes a line as the instance could have done itself, on its standard error.
    pub(super) fn print(&self, line: &str) {
        self.world.stderr.print(self.asked().map(AsRef::as_ref), line);
    }

    /// What it is configured with.
    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    /// Whether that is still what new instances get.
    pub(super) fn is_current(&self) -> bool {
        self.world.configures(&self.values)
    }

    /// The key-value stores that it may open.
    pub(super) fn stores(&self) -> &Stores {
        &self.world.stores
    }

    /// The host keeps so many bytes more for it. Who has much kept is looked at from time to time.
    pub(super) fn holds(&mut self, bytes: usize) {
        self.unaccounted += bytes;
        if self.unaccounted >= ACCOUNT_EVERY {
            self.settle();
        }
    }

    /// Counts what the host keeps for it. If that is too much, it loses all of it, at once: it traps at its next use of any.
    fn settle(&mut self) {
        self.unaccounted = 0;
        let held = handles::measure(&mut self.table);
        let queued: usize = self.table.iter_mut().map(|entry| queued(entry)).sum();
        let limit = self.world.max_memory;
        let why = if held > MAX_HELD {
            format!("and the limit is {}", size(MAX_HELD))
        } else if self.quota.hold(held + queued) {
            return;
        } else if self.quota.is_starved() {
            "and --max-worker-memory leaves no room for that".to_owned()
        } else {
            format!("which together with its own memory is over --max-memory {}", size(limit))
        };
        let what = if queued > held { "messages on WebSockets and values" } else { "header fields and requests" };
        let held = size(held + queued);
        self.stopped = Some(format!("was stopped: its {what} take up {held} of the host's memory, {why}"));
        // A body that is dropped with them would end well.
        self.abort_open_bodies();
        self.table = ResourceTable::new();
        self.table.set_max_capacity(0);
    }

    /// A body that its guest neither finished nor dropped must not look complete to the client: dropping it with the store
    /// would end it well. How many there were.
    pub(super) fn abort_open_bodies(&mut self) -> usize {
        let bodies = self.table.iter_mut().filter_map(|entry| entry.downcast_mut::<HostOutgoingBody>());
        bodies
            .map(|body| {
                let (closed, _) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1);
                std::mem::replace(body, closed).abort();
            })
            .count()
    }

    /// It gets another request, and has no other, or others beside it.
    pub(crate) fn begin(&mut self, hooks: Hooks, is_alone: bool) {
        self.quota.tell(hooks.asked().cloned());
        if is_alone {
            self.open_spans.clear();
            self.hooks = hooks;
        } else {
            self.hooks.join(hooks);
        }
        if let Some(Wasi { outputs, .. }) = &self.wasi {
            outputs.iter().for_each(|output| output.begin(self.hooks.asked().cloned()));
        }
    }

    /// The WebSocket that `ticket` names, if a request that it works on asks for one.
    pub(super) fn offer(&self, ticket: &str) -> Option<&Arc<SocketLink>> {
        let ticket: u64 = ticket.parse().ok()?;
        self.hooks.sockets().iter().find(|link| link.ticket() == ticket)
    }

    /// It has served its request: how many of the host's resources it still holds.
    pub(crate) fn end(&mut self) -> usize {
        if let Some(Wasi { outputs, .. }) = &self.wasi {
            outputs.iter().for_each(GuestOutput::finish);
        }
        self.table.iter_mut().count()
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi.get_or_insert_with(|| self.world.wasi(self.hooks.asked()));
        WasiCtxView { ctx: &mut wasi.ctx, table: &mut self.table }
    }
}

impl IoView for Guest {
    fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.calls += 1;
        if self.calls.is_multiple_of(MEASURE_EVERY) {
            self.settle();
        }
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

impl identity::Host for Guest {
    fn current(&mut self) -> identity::Worker {
        let identity = &self.world.identity;
        identity::Worker {
            id: identity.worker.0,
            slot: identity.slot.0,
            pid: std::process::id(),
            generation: identity.generation.0,
            digest: identity.digest.clone(),
            workers: identity.workers,
        }
    }
}

impl metrics::Host for Guest {
    fn count(&mut self, name: String, labels: Vec<(String, String)>, by: u64) {
        self.world.metrics.update(&name, labels, Update::Count(by));
    }

    fn set_gauge(&mut self, name: String, labels: Vec<(String, String)>, value: f64) {
        self.world.metrics.update(&name, labels, Update::SetGauge(value));
    }

    fn add_gauge(&mut self, name: String, labels: Vec<(String, String)>, by: f64) {
        self.world.metrics.update(&name, labels, Update::AddGauge(by));
    }

    fn observe(&mut self, name: String, labels: Vec<(String, String)>, value: f64) {
        self.world.metrics.update(&name, labels, Update::Observe(value));
    }
}

/// What all instances of a worker have in common.
pub(crate) struct World {
    env: Vec<(String, String)>,
    folders: WasiFilesystemCtx,
    pub(crate) outbound: Outbound,
    pub(super) sockets: SocketGrants,
    max_memory: usize,
    /// Of an instance: enough for as many requests as it may serve at the same time.
    max_handles: usize,
    pub(crate) budget: Arc<Budget>,
    identity: Identity,
    pub(super) stats: &'static Stats,
    stdout: Arc<Sink>,
    stderr: Arc<Sink>,
    metrics: Metrics,
    pub(crate) turns: Arc<Turns>,
    pub(super) epoch: Arc<Epoch>,
    pub(super) speaks_websocket: bool,
    pub(super) needs_keeper: bool,
    pub(super) stores: Stores,
    values: Arc<LiveValues>,
}

impl World {
    /// Must be called on the runtime.
    pub(crate) fn new(
        settings: &WorkerSettings,
        engine: &Engine,
        identity: Identity,
        epoch: Arc<Epoch>,
        values: Arc<LiveValues>,
        keeper: Arc<KeeperLink>,
        stats: &'static Stats,
    ) -> anyhow::Result<Self> {
        let stores = Stores::new(&settings.granted, &settings.limits, keeper);
        let sink =
            |fd: io::Result<OwnedFd>| fd.map(|fd| Arc::new(Sink::new(LineWriter::limited(fd, MAX_OUTPUT), stats)));
        let Granted { env, dirs, hosts, connections, .. } = settings.granted.clone();
        let seats = settings.reuse.seats as usize;
        Ok(Self {
            env,
            folders: open(&dirs)?,
            outbound: Outbound::new(hosts, &settings.limits),
            sockets: SocketGrants::new(connections, settings.limits.max_sockets, seats),
            max_memory: settings.limits.max_memory,
            max_handles: MAX_HANDLES.max(HANDLES_EACH * seats),
            budget: Budget::new(settings.limits.max_worker_memory, Warm::of(engine, Resident::of(&settings.limits))),
            identity,
            stats,
            stdout: sink(io::stdout().as_fd().try_clone_to_owned())?,
            stderr: sink(io::stderr().as_fd().try_clone_to_owned())?,
            metrics: Metrics::new(stats),
            turns: Arc::new(Turns::start()),
            epoch,
            speaks_websocket: false,
            needs_keeper: false,
            stores,
            values,
        })
    }

    /// Whether new instances get these values.
    pub(super) fn configures(&self, values: &Values) -> bool {
        self.values.are(values)
    }

    /// The store of a fresh instance.
    pub(crate) fn store(self: &Arc<Self>, engine: &Engine, origin: Origin) -> Store<Guest> {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(MAX_FIELDS);
        let mut table = ResourceTable::new();
        table.set_max_capacity(self.max_handles);
        let mut quota = Quota::new(self.budget.clone(), self.max_memory);
        quota.tell(origin.request.clone());
        let hooks = Hooks::new(self.clone(), origin);
        let (world, values) = (self.clone(), self.values.current());
        let guest = Guest {
            world,
            wasi: None,
            http,
            table,
            hooks,
            quota,
            calls: 0,
            unaccounted: 0,
            stopped: None,
            values,
            sockets: None,
            open_spans: OpenSpans::default(),
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.quota);
        store.set_hostcall_fuel(MAX_HOSTCALL);
        store.set_max_component_handles(self.max_handles);
        if let Some(table) = store.concurrent_resource_table() {
            table.set_max_capacity(self.max_handles);
        }
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| {
            let turns = &store.data().world.turns;
            Ok(if turns.is_over() {
                UpdateDeadline::YieldCustom(1, Box::pin(turns.wait()))
            } else {
                UpdateDeadline::Continue(1)
            })
        });
        store
    }

    fn wasi(&self, asked: Option<&Arc<Asked>>) -> Wasi {
        let outputs = [&self.stdout, &self.stderr].map(|sink| GuestOutput::new(sink.clone()));
        outputs.iter().for_each(|output| output.begin(asked.cloned()));
        let mut ctx = WasiCtxBuilder::new()
            .envs(&self.env)
            .max_random_size(MAX_RANDOM)
            .stdout(outputs[0].clone())
            .stderr(outputs[1].clone())
            .build();
        // Of sockets, what is not this crate's own is denied as it comes, before one is made. The folders were opened once, for all.
        *ctx.filesystem() = self.folders.clone();
        Wasi { ctx, outputs }
    }
}

/// Bytes that the host keeps for a guest's WebSocket, or for a compare-and-set that it has begun.
fn queued(entry: &dyn Any) -> usize {
    let socket = entry.downcast_ref::<Socket>().map(Socket::held);
    let swap = || entry.downcast_ref::<Swap>().map(Swap::held);
    socket.or_else(swap).or_else(|| entry.downcast_ref::<Bucket>().map(Bucket::held)).unwrap_or(0)
}

fn open(dirs: &[DirGrant]) -> anyhow::Result<WasiFilesystemCtx> {
    let mut wasi = WasiCtxBuilder::new();
    for dir in dirs {
        let access = match dir.access {
            Access::ReadOnly => FsPerms::ReadOnly,
            Access::ReadWrite => FsPerms::ReadWrite,
        };
        wasi.preopened_dir(&dir.host, &dir.guest, access)
            .map_err(|error| anyhow!("cannot open --dir {dir}: {error}"))?;
    }
    Ok(wasi.build().filesystem().clone())
}
