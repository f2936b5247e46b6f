//! Connections that were used and are kept for the next request to the same place: by grant, scheme, host, and the address
//! that was checked. So a guest that may reach a host by one grant gets no connection that was made by another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::upstream::Upstream;
use crate::grants::Destination;

/// How long a connection is kept if its server does not say what it likes: many close theirs after five seconds, and a
/// request that crosses the end is lost.
pub(crate) const IDLE: Duration = Duration::from_secs(4);
/// And if it says more.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(60);
/// Connections that are kept. One place may have all of them, and gives way to others: a place that has as many requests at a
/// time as that would otherwise close most of its connections after each, and hold a port for a minute with every one.
const MAX_KEPT: usize = 256;
/// How often those are looked for that were idle for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Where a connection goes, and by which grant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    grant: usize,
    destination: Destination,
    address: SocketAddr,
}

impl Key {
    pub(crate) fn new(grant: usize, destination: &Destination, address: SocketAddr) -> Self {
        Self { grant, destination: destination.clone(), address }
    }
}

/// A connection with its place.
pub(crate) struct KeptConnection {
    key: Key,
    pub(crate) upstream: Upstream,
    /// It has carried a request.
    pub(crate) is_used: bool,
}

/// One that is idle, or shared.
struct Idle {
    upstream: Upstream,
    until: Instant,
}

/// All that a worker keeps.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The last of a place is the one that was used last. None is empty.
    idle: HashMap<Key, Vec<Idle>>,
    count: usize,
    is_swept: bool,
}

impl Kept {
    /// Closes the connection that has been idle for longest, of the place that has most.
    fn make_room(&mut self) {
        let most = self.idle.iter_mut().max_by_key(|(_, idle)| idle.len());
        if let Some((key, idle)) = most.map(|(key, idle)| (key.clone(), idle)) {
            idle.remove(0);
            self.count -= 1;
            if idle.is_empty() {
                self.idle.remove(&key);
            }
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to there that takes a request now.
    pub(crate) fn take(&self, key: Key) -> Option<KeptConnection> {
        let mut kept = self.lock();
        let idle = kept.idle.get_mut(&key)?;
        let (now, before) = (Instant::now(), idle.len());
        idle.retain(|idle| idle.until > now && !idle.upstream.is_closed());
        // The one that was used last: so those that are not needed grow old.
        let found = idle.iter().rposition(|idle| idle.upstream.is_ready());
        let upstream = found.map(|place| match idle[place].upstream.join() {
            Some(joined) => joined,
            None => idle.remove(place).upstream,
        });
        let (after, is_empty) = (idle.len(), idle.is_empty());
        kept.count -= before - after;
        if is_empty {
            kept.idle.remove(&key);
        }
        upstream.map(|upstream| KeptConnection { key, upstream, is_used: true })
    }

    /// A new connection. One that can be shared is there for others from now on.
    pub(crate) fn keep(self: &Arc<Self>, key: Key, upstream: Upstream) -> KeptConnection {
        if let Some(shared) = upstream.share() {
            self.put(key.clone(), shared, IDLE);
        }
        KeptConnection { key, upstream, is_used: false }
    }

    /// An exchange is over, and its connection is good for another, within that time.
    pub(crate) fn give_back(self: &Arc<Self>, connection: KeptConnection, idle_for: Duration) {
        let KeptConnection { key, upstream, .. } = connection;
        if upstream.is_http2() {
            // It is in there, and was used just now.
            if let Some(idle) = self.lock().idle.get_mut(&key) {
                idle.iter_mut().for_each(|idle| idle.until = Instant::now() + idle_for);
            }
        } else if !upstream.is_closed() {
            self.put(key, upstream, idle_for);
        }
    }

    fn put(self: &Arc<Self>, key: Key, upstream: Upstream, idle_for: Duration) {
        let mut kept = self.lock();
        if kept.count >= MAX_KEPT {
            kept.make_room();
        }
        kept.count += 1;
        kept.idle.entry(key).or_default().push(Idle { upstream, until: Instant::now() + idle_for });
        if !std::mem::replace(&mut kept.is_swept, true) {
            tokio::spawn(self.clone().sweep());
        }
    }

    /// Closes what was idle for too long, until there is nothing left.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let mut kept = self.lock();
            let now = Instant::now();
            kept.idle.retain(|_, idle| {
                idle.retain(|idle| idle.until > now && !idle.upstream.is_closed());
                !idle.is_empty()
            });
            kept.count = kept.idle.values().map(Vec::len).sum();
            if kept.count == 0 {
                kept.is_swept = false;
                return;
            }
        }
    }
}
