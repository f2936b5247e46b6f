//! Instances of one component: fresh ones, and those that wait for their next request.
//!
//! An instance is kept only if its request went well in every way: it did not trap, was not cancelled, and gave back all
//! that it had from the host. What a guest keeps in memory is then there for its next request. Those of WASI 0.2 are here;
//! they serve one request at a time.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body::Body;
use wasmtime::{Engine, PoolConcurrencyLimitError, Store};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use super::call::Failure;
use super::outbound::{Hooks, Origin};
use super::world::{Guest, World};
use crate::worker::cost::InstanceUse;

/// How long an instance may wait for its next request.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(10);
/// How often an instance may fail its second request, in a row, where a fresh one does not, until none is used again. One
/// failure may have another reason.
const MAX_FAILED_TRIALS: u32 = 3;

/// A component that can be instantiated.
pub(crate) trait Instantiate {
    /// What an instance exports.
    type Exports;
    fn instantiate(&self, store: &mut Store<Guest>) -> impl Future<Output = wasmtime::Result<Self::Exports>>;
}

impl Instantiate for ProxyPre<Guest> {
    type Exports = Proxy;

    async fn instantiate(&self, store: &mut Store<Guest>) -> wasmtime::Result<Proxy> {
        self.instantiate_async(store).await
    }
}

impl Instantiate for ServicePre<Guest> {
    type Exports = Service;

    async fn instantiate(&self, store: &mut Store<Guest>) -> wasmtime::Result<Service> {
        self.instantiate_async(store).await
    }
}

/// An instance of WASI 0.2.
pub(crate) struct Live {
    pub(crate) store: Store<Guest>,
    pub(crate) exports: Proxy,
    /// Requests that it has served.
    uses: u32,
    /// What it had from the host after the first of them: what its libraries keep for later.
    handles: usize,
    idle_since: Instant,
}

impl Live {
    pub(crate) fn is_fresh(&self) -> bool {
        self.uses == 0
    }
}

/// Makes instances of a component.
pub(crate) struct Factory<P> {
    engine: Engine,
    pre: P,
    world: Arc<World>,
}

impl<P: Instantiate> Factory<P> {
    pub(crate) fn new(engine: Engine, pre: P, world: Arc<World>) -> Self {
        Self { engine, pre, world }
    }

    /// A fresh instance.
    pub(crate) async fn fresh(&self, origin: Origin) -> Result<(Store<Guest>, P::Exports), Failure> {
        let mut store = World::store(&self.world, &self.engine, origin);
        match self.pre.instantiate(&mut store).await {
            Ok(exports) => Ok((store, exports)),
            Err(error) if error.is::<PoolConcurrencyLimitError>() || store.data().is_starved() => Err(Failure::Full),
            Err(error) => Err(Failure::Trap(error)),
        }
    }

    /// What the guest asks for while it works on a request.
    pub(crate) fn hooks(&self, origin: Origin) -> Hooks {
        Hooks::new(self.world.clone(), origin)
    }

    /// What all instances have in common.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Drops idle instances if memory is low. What waits must not be missing to those at work: they get half of a worker's
    /// memory at least.
    pub(crate) fn make_room<I>(&self, idle: &mut Vec<I>) {
        while self.world.budget.is_low() && !idle.is_empty() {
            drop(idle.remove(0));
        }
    }
}

/// All instances of a component of WASI 0.2.
pub(crate) struct Stock {
    factory: Factory<ProxyPre<Guest>>,
    max_uses: Cell<u32>,
    /// The one that was used last is at the end, and is used next.
    idle: RefCell<Vec<Live>>,
    /// Some instance has answered a second request.
    is_proven: Cell<bool>,
    /// How many have not, until one has.
    failed_trials: Cell<u32>,
}

/// What a request allows to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// To run it twice is as good as once (RFC 9110, section 9.2.1), and it can be sent twice.
    Safe,
    Never,
}

impl Repeat {
    /// Whether a request can be tried again that went to an instance which did not answer it.
    pub(crate) fn of<B: Body>(request: &Request<B>) -> Self {
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if is_safe && request.body().is_end_stream() { Self::Safe } else { Self::Never }
    }
}

impl Stock {
    pub(crate) fn new(factory: Factory<ProxyPre<Guest>>, max_uses: u32) -> Self {
        let (idle, is_proven) = (RefCell::default(), Cell::new(false));
        Self { factory, max_uses: Cell::new(max_uses), idle, is_proven, failed_trials: Cell::new(0) }
    }

    /// What all its instances have in common.
    pub(crate) fn world(&self) -> &World {
        self.factory.world()
    }

    /// An instance for a request: one that waits, or a fresh one. Until it is known that an instance can serve a second
    /// request, only what can be repeated is tried with one.
    pub(crate) async fn take(&self, origin: Origin, repeat: Repeat) -> Result<Live, Failure> {
        let may_wait = repeat == Repeat::Safe || self.is_proven.get();
        let waiting = if may_wait { self.waiting() } else { None };
        match waiting {
            Some(mut live) => {
                origin.got(InstanceUse::Reused);
                live.store.data_mut().begin(self.factory.hooks(origin), true);
                Ok(live)
            }
            None => self.fresh(origin).await,
        }
    }

    /// The one that was used last, of those that have today's configuration. The others are dropped.
    fn waiting(&self) -> Option<Live> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find(|live| live.store.data().is_current())
    }

    /// A fresh instance, whoever waits.
    pub(crate) async fn fresh(&self, origin: Origin) -> Result<Live, Failure> {
        origin.got(InstanceUse::Fresh);
        let (store, exports) = self.factory.fresh(origin).await?;
        Ok(Live { store, exports, uses: 0, handles: 0, idle_since: Instant::now() })
    }

    /// Takes an instance back that has served its request well.
    pub(crate) fn give_back(&self, mut live: Live) {
        live.uses += 1;
        if live.uses >= self.max_uses.get() {
            return;
        }
        let handles = live.store.data_mut().end();
        if live.uses == 1 {
            live.handles = handles;
        } else if handles > live.handles {
            tracing::debug!(handles, before = live.handles, "an instance is not reused: it leaks handles");
            return;
        }
        live.idle_since = Instant::now();
        let mut idle = self.idle.borrow_mut();
        // One is enough to try whether it can serve again; others may not be taken for a long time.
        if self.is_proven.get() || idle.is_empty() {
            idle.push(live);
        }
        self.factory.make_room(&mut idle);
    }

    /// Whether it is not known yet that an instance can serve more than one request.
    pub(crate) fn is_unproven(&self) -> bool {
        !self.is_proven.get()
    }

    /// An instance has answered its second request.
    pub(crate) fn passed_trial(&self) {
        self.is_proven.set(true);
    }

    /// An instance did not answer its second request, and a fresh one did.
    pub(crate) fn failed_trial(&self) {
        let failed = self.failed_trials.get() + 1;
        self.failed_trials.set(failed);
        tracing::debug!(failed, "a reused instance did not answer a request; a fresh one did");
        // Others that were tried at the same time may have succeeded.
        if failed < MAX_FAILED_TRIALS || self.is_proven.get() {
            return;
        }
        if self.max_uses.replace(1) > 1 {
            tracing::warn!(
                "the component does not answer a second request in the same instance; from now on every request gets a \
                 fresh instance"
            );
        }
        self.idle.borrow_mut().clear();
    }

    /// Drops instances that wait for too long.
    pub(crate) fn trim(&self) {
        let mut idle = self.idle.borrow_mut();
        let stale = idle.iter().take_while(|live| live.idle_since.elapsed() > MAX_IDLE).count();
        idle.drain(..stale);
    }
}
