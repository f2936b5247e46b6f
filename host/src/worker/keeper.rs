//! The worker's connection to the keeper, over which it writes stores that are in files.
//!
//! The primary hands over another one when there is another keeper. What was under way on the one before may have been
//! written, or not.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::codec::{FramedRead, FramedWrite};

use crate::keyvalue::frames::{KeeperAnswer, WriteOrder, codec, decode, encode};
use crate::keyvalue::{Write, WriteFailure, Written};

/// Writes that wait to be sent.
const MAX_UNSENT: usize = 64;

/// What an order waits for.
type Promised = oneshot::Sender<Result<Written, WriteFailure>>;

/// A connection that orders can be sent over.
#[derive(Clone, Debug)]
struct KeeperConnection {
    orders: mpsc::Sender<Bytes>,
    /// What the keeper said of each store, by number.
    opened: Arc<Mutex<BTreeMap<u16, Result<(), String>>>>,
    waiting: Arc<Mutex<BTreeMap<u64, Promised>>>,
}

/// The worker's side of all connections to keepers, one after the other.
#[derive(Debug)]
pub(crate) struct KeeperLink {
    /// What the guardian was handed, for the executor.
    handed: watch::Sender<Option<Arc<OwnedFd>>>,
    /// None while there is no keeper. Changes whenever something is to be looked at.
    connected: watch::Sender<Option<KeeperConnection>>,
    last_id: Mutex<u64>,
}

impl Default for KeeperLink {
    fn default() -> Self {
        Self { handed: watch::Sender::new(None), connected: watch::Sender::new(None), last_id: Mutex::new(0) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KeeperLink {
    /// Takes the place of the connection there was. Called by the guardian.
    pub(crate) fn hand(&self, socket: OwnedFd) {
        self.handed.send_replace(Some(Arc::new(socket)));
    }

    /// Speaks with one keeper after the other. To be run on the executor for as long as the worker lives.
    pub(crate) async fn run(&self) {
        let mut handed = self.handed.subscribe();
        loop {
            let socket = handed.borrow_and_update().clone();
            let speaking = async {
                match socket {
                    Some(socket) => {
                        if let Err(error) = self.speak(&socket).await {
                            tracing::debug!(
                                "the connection to the keeper of the key-value stores has ended: {error:#}"
                            );
                        }
                        std::future::pending::<()>().await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = speaking => {}
                // The sender is this.
                changed = handed.changed() => if changed.is_err() { return },
            }
            self.lose();
        }
    }

    /// Whoever waits is told that nobody knows.
    fn lose(&self) {
        if let Some(KeeperConnection { waiting, .. }) = self.connected.send_replace(None) {
            for (_, done) in std::mem::take(&mut *lock(&waiting)) {
                let reason = "the keeper of the store ended before it answered";
                let _ = done.send(Err(WriteFailure::Unknown(reason.into())));
            }
        }
    }

    async fn speak(&self, socket: &OwnedFd) -> anyhow::Result<()> {
        let socket = StdUnixStream::from(socket.try_clone()?);
        socket.set_nonblocking(true)?;
        let (reads, writes) = UnixStream::from_std(socket)?.into_split();
        let (mut answers, mut out) = (FramedRead::new(reads, codec()), FramedWrite::new(writes, codec()));
        let (orders, mut unsent) = mpsc::channel::<Bytes>(MAX_UNSENT);
        let connected = KeeperConnection { orders, opened: Arc::default(), waiting: Arc::default() };
        self.connected.send_replace(Some(connected.clone()));
        let sending = async {
            while let Some(order) = unsent.recv().await {
                out.feed(order).await?;
                while let Ok(order) = unsent.try_recv() {
                    out.feed(order).await?;
                }
                SinkExt::<Bytes>::flush(&mut out).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let hearing = async {
            while let Some(frame) = answers.next().await {
                match decode(&frame?)? {
                    KeeperAnswer::Opened { store, opened } => {
                        lock(&connected.opened).insert(store, opened);
                        self.connected.send_modify(|_| {});
                    }
                    KeeperAnswer::Done { id, written } => {
                        if let Some(done) = lock(&connected.waiting).remove(&id) {
                            let _ = done.send(written);
                        }
                    }
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        let ended = tokio::select! {
            ended = sending => ended,
            ended = hearing => ended,
        };
        self.lose();
        ended
    }

    /// Waits until the keeper has said that a store can be used.
    pub(crate) async fn opened(&self, store: u16, patience: Duration) -> Result<(), String> {
        let mut connected = self.connected.subscribe();
        let known = connected.wait_for(|connected| {
            connected.as_ref().is_some_and(|connected| lock(&connected.opened).contains_key(&store))
        });
        match tokio::time::timeout(patience, known).await {
            Ok(Ok(connected)) => {
                let opened = connected.as_ref().and_then(|connected| lock(&connected.opened).get(&store).cloned());
                opened.unwrap_or(Ok(()))
            }
            Ok(Err(_)) | Err(_) => Err(format!("the store was not opened within {patience:?}: its keeper is away")),
        }
    }

    /// What came of a write, or that it is not known within `patience`.
    pub(crate) async fn write(&self, store: u16, write: Write, patience: Duration) -> Result<Written, WriteFailure> {
        let deadline = tokio::time::Instant::now() + patience;
        let away =
            || WriteFailure::Refused(format!("the keeper of the store was away for {patience:?}; nothing was written"));
        let mut connected = self.connected.subscribe();
        let (done, answer) = oneshot::channel();
        let id = {
            let mut last = lock(&self.last_id);
            *last += 1;
            *last
        };
        let order =
            encode(&WriteOrder { id, store, write }).map_err(|error| WriteFailure::Refused(error.to_string()))?;
        let (orders, waiting) = loop {
            let is_there = tokio::time::timeout_at(deadline, connected.wait_for(Option::is_some)).await;
            let there = is_there.ok().and_then(|there| there.ok()?.clone());
            let KeeperConnection { orders, waiting, .. } = there.ok_or_else(away)?;
            match tokio::time::timeout_at(deadline, orders.reserve_owned()).await {
                Ok(Ok(place)) => break (place, waiting),
                // That connection is lost; there will be another.
                Ok(Err(_)) => tokio::task::yield_now().await,
                Err(_) => return Err(away()),
            }
        };
        let order_is_waiting = Registered::new(&waiting, id, done);
        orders.send(order);
        let answered = tokio::time::timeout_at(deadline, answer).await;
        drop(order_is_waiting);
        match answered {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err(WriteFailure::Unknown("the keeper of the store has ended".into())),
            Err(_) => Err(WriteFailure::Unknown(format!("the keeper of the store did not answer within {patience:?}"))),
        }
    }
}

/// An order that waits for its answer, until its guest has gone.
struct Registered<'a>(&'a Mutex<BTreeMap<u64, Promised>>, u64);

impl<'a> Registered<'a> {
    fn new(waiting: &'a Mutex<BTreeMap<u64, Promised>>, id: u64, done: Promised) -> Self {
        lock(waiting).insert(id, done);
        Self(waiting, id)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}
