//! What the connections of a worker share: the guests, the places to work at, the limits, and who has to make room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::accept::{Gate, SAID_EVERY};
use super::access::AccessLog;
use super::buffers::Buffers;
use super::connection::Connection;
use super::drain::{Awaited, Timeouts};
use super::exchange::Reports;
use super::outbox::Outbox;
use super::tls::Handshakes;
use crate::settings::{Limits, TrustedProxies};
use crate::wire::messages::Identity;
use crate::wire::stats::Stats;
use crate::wire::worker_settings::WorkerSettings;
use crate::worker::Phase;
use crate::worker::guest::instance::Instances;
use crate::worker::requests::Requests;

/// What connections share.
pub(crate) struct Server {
    pub(super) instances: Rc<Instances>,
    pub(super) requests: Rc<Requests>,
    pub(super) phases: watch::Receiver<Phase>,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) trusted_proxies: Rc<TrustedProxies>,
    /// One for each request that may be at work.
    places: Arc<Semaphore>,
    /// One for each WebSocket.
    pub(super) websockets: Arc<Semaphore>,
    /// Requests that wait for a place.
    waiting: Cell<usize>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) outbox: Rc<Outbox>,
    pub(super) buffers: Rc<Buffers>,
    /// Of messages on WebSockets that are not whole.
    pub(super) messages: Rc<Buffers>,
    /// None if no listener speaks TLS.
    pub(super) handshakes: Option<Handshakes>,
    /// When it was said last that connections make room.
    said_at: Cell<Option<Instant>>,
    /// When it was logged that requests are rejected.
    said_busy_at: Cell<Option<Instant>>,
    /// By the order in which they came.
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    last_connection: Cell<u64>,
    pub(super) started: Instant,
    pub(super) reports: Rc<Reports>,
    pub(super) server_timing: bool,
    pub(super) stats: &'static Stats,
}

impl Server {
    #[expect(clippy::too_many_arguments, reason = "called once, with all that connections share")]
    pub(crate) fn new(
        instances: Rc<Instances>,
        requests: Rc<Requests>,
        phases: watch::Receiver<Phase>,
        settings: &WorkerSettings,
        gate: Arc<Gate>,
        handshakes: Option<Handshakes>,
        access_log: Option<AccessLog>,
        identity: Identity,
        stats: &'static Stats,
    ) -> Self {
        let limits = settings.limits;
        let (keep_alive, header) = (limits.keep_alive_timeout, limits.header_timeout);
        let (grace, age) = (settings.drain_idle_grace, limits.max_connection_age);
        let timeouts = Timeouts { keep_alive, grace, header, age };
        let websockets = Arc::new(Semaphore::new(instances.websockets(&limits)));
        let (places, waiting) = (Arc::new(Semaphore::new(limits.max_in_flight)), Cell::new(0));
        Self {
            instances,
            requests,
            phases,
            timeouts,
            limits,
            trusted_proxies: Rc::new(settings.trusted_proxies.clone()),
            places,
            websockets,
            waiting,
            gate,
            outbox: Rc::default(),
            buffers: Rc::new(Buffers::new(&limits)),
            messages: Rc::new(Buffers::new(&limits)),
            handshakes,
            said_at: Cell::new(None),
            said_busy_at: Cell::new(None),
            connections: RefCell::default(),
            last_connection: Cell::new(0),
            started: Instant::now(),
            reports: Rc::new(Reports { access_log, identity }),
            server_timing: settings.server_timing,
            stats,
        }
    }

    /// Has one closed, if there are too many.
    pub(super) fn make_room(&self) {
        if self.connections.borrow().len() >= self.limits.max_connections {
            self.evict();
        }
    }

    /// Closes the connection that has been idle for longest, or else the one whose head has taken longest.
    pub(crate) fn evict(&self) {
        let Some(((awaited, _), evicted)) = self.evict_first(Connection::spare_since) else { return };
        evicted.is_in_the_way();
        if awaited == Awaited::RestOfHead {
            let max = self.limits.max_connections;
            self.say(format_args!(
                "all {max} connections are in use, so those that have waited longest for a request's head get a 408; \
                 see --max-connections and --header-timeout"
            ));
        }
    }

    /// Ends connections whose clients have been waited for longest, until the others hold no more than they may.
    pub(super) fn free_buffers(&self) {
        while self.buffers.is_exceeded() && self.evict_first(Connection::holding_since).is_some() {
            let max = ByteSize::b(self.buffers.max() as u64);
            self.say(format_args!(
                "incomplete requests held more than {max} of memory, so the connections that took longest were closed; \
                 see --header-timeout and --max-header-bytes"
            ));
        }
    }

    /// Ends the connection that comes first by `key`.
    fn evict_first<K: Ord>(&self, key: impl Fn(&Connection) -> Option<K>) -> Option<(K, Rc<Connection>)> {
        let mut connections = self.connections.borrow_mut();
        let (key, number) =
            connections.iter().filter_map(|(&number, connection)| Some((key(connection)?, number))).min()?;
        let evicted = connections.remove(&number)?;
        evicted.evict();
        Some((key, evicted))
    }

    /// Logs what many clients may be the cause of.
    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        if self.said_at.get().is_none_or(|at| at.elapsed() >= SAID_EVERY) {
            self.said_at.set(Some(Instant::now()));
            tracing::warn!("{what}");
        }
    }

    /// Whether one more rejected request is worth a line in the log.
    pub(super) fn may_say_busy(&self) -> bool {
        let may = self.said_busy_at.get().is_none_or(|at| at.elapsed() >= SAID_EVERY);
        if may {
            self.said_busy_at.set(Some(Instant::now()));
        }
        may
    }

    /// A place to work at. Some may wait for one until `deadline`; `None` if those are too many, or there is none by then.
    pub(super) async fn place(&self, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        if self.waiting.get() >= self.limits.max_in_flight {
            return None;
        }
        let _waits = Waits::begin(&self.waiting);
        let place = self.places.clone().acquire_owned();
        tokio::time::timeout_at(deadline.into(), place).await.ok()?.ok()
    }
}

/// A connection in its server's list.
pub(super) struct Listed<'a> {
    server: &'a Server,
    number: u64,
}

impl<'a> Listed<'a> {
    pub(super) fn new(server: &'a Server, connection: Rc<Connection>) -> Self {
        let number = server.last_connection.get() + 1;
        server.last_connection.set(number);
        server.connections.borrow_mut().insert(number, connection);
        Self { server, number }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.server.connections.borrow_mut().remove(&self.number);
    }
}

/// Counts one that waits.
struct Waits<'a>(&'a Cell<usize>);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
