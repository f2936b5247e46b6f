//! The keeper process: writes the stores that are in files, for all workers.
//!
//! Each store has a thread, which commits whatever has come meanwhile as one: so a write is on the disk before it is
//! answered, and many at a time cost little more than one. A worker is served through a pair of sockets whose other end it
//! has; it costs nobody else anything when it does not read, talks nonsense, or dies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::file::FileWriter;
use super::frames::{KeeperAnswer, WriteOrder, codec, decode, encode};
use super::{Write, WriteFailure, Written};
use crate::wire::channel::{Channel, Received, Wait, bounded};
use crate::wire::messages::{FileStore, FromKeeper, ToKeeper};

/// Writes that are committed as one, at most.
const MAX_GROUP: usize = 1024;
/// Bytes of them. One that is larger goes alone.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Writes of one worker that wait for their answer, at most. It waits before it may send more.
const MAX_WAITING: usize = 1024;
/// KiB of writes that are kept until they are done, of all workers together.
const MAX_KEPT: usize = 64 << 10;
/// How often the primary is told that the keeper is at work.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// A commit that takes longer holds that back: the disk hangs, or the keeper does.
const LONG_COMMIT: Duration = Duration::from_secs(2);
/// How long a keeper without a primary serves the workers that are left. They have a second.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// How long a keeper lives on whose store has failed.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

type KeeperEnd = Channel<FromKeeper, ToKeeper>;

/// A write on its way to the disk.
struct Job {
    id: u64,
    write: Write,
    answers: mpsc::Sender<KeeperAnswer>,
    /// One of [`MAX_WAITING`], and its part of [`MAX_KEPT`].
    _kept: [OwnedSemaphorePermit; 2],
}

/// How a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Openness {
    Opening,
    Open,
    Unusable(String),
}

/// A store that is written.
struct KeptStore {
    jobs: mpsc::Sender<Job>,
    openness: watch::Receiver<Openness>,
    shared: Arc<StoreThread>,
}

/// What the thread of a store shares.
struct StoreThread {
    /// Milliseconds after the start at which the commit that is under way began; 0 if none is.
    committing_since: AtomicU64,
    max_size: AtomicU64,
    /// A worker has died.
    has_stale_readers: AtomicBool,
}

/// The process: its channel to the primary is its standard input.
pub(crate) fn keeper_main() -> anyhow::Result<()> {
    let primary = KeeperEnd::from(io::stdin().as_fd().try_clone_to_owned()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Keeper::new(primary.into_async()?).run().await })
}

struct Keeper {
    primary: Arc<AsyncFd<KeeperEnd>>,
    started: Instant,
    stores: BTreeMap<PathBuf, KeptStore>,
    kept: Arc<Semaphore>,
    /// Ends when the last connection has.
    connections: (mpsc::Sender<()>, mpsc::Receiver<()>),
    /// A store of which nobody knows what is in it, before it is opened anew.
    broken: (mpsc::Sender<anyhow::Error>, mpsc::Receiver<anyhow::Error>),
}

impl Keeper {
    fn new(primary: AsyncFd<KeeperEnd>) -> Self {
        let kept = Arc::new(Semaphore::new(MAX_KEPT));
        Self {
            primary: Arc::new(primary),
            started: Instant::now(),
            stores: BTreeMap::new(),
            kept,
            connections: mpsc::channel(1),
            broken: mpsc::channel(1),
        }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut turns = tokio::time::interval(ALIVE_EVERY);
        let failed = loop {
            let primary = self.primary.clone();
            tokio::select! {
                received = receive(&primary) => match received? {
                    Some((ToKeeper::Serve { stores, .. }, descriptors)) => {
                        let socket = descriptors.into_iter().next().context("a worker came without its socket")?;
                        self.serve(&stores, socket)?;
                    }
                    Some((ToKeeper::Gone { .. }, _)) => self.clear_stale_readers(),
                    None => break None,
                },
                _ = turns.tick() => if !self.hangs() {
                    // A primary that takes nothing now is told again.
                    let _ = self.primary.get_ref().send(&FromKeeper::Alive, &[]);
                },
                failed = self.broken.1.recv() => break failed,
            }
        };
        if let Some(error) = failed {
            // The answers have a moment to leave. The next keeper sees what became of the store.
            tokio::time::sleep(LAST_ANSWERS).await;
            return Err(error);
        }
        let (connections, mut ended) = self.connections;
        drop(connections);
        let _ = tokio::time::timeout(LAST_WRITES, ended.recv()).await;
        // Threads that wait for a disk end with the process.
        Ok(())
    }

    fn hangs(&self) -> bool {
        let now = self.started.elapsed();
        self.stores.values().any(|kept| {
            let since = kept.shared.committing_since.load(Ordering::Relaxed);
            since > 0 && now.saturating_sub(Duration::from_millis(since)) > LONG_COMMIT
        })
    }

    fn clear_stale_readers(&self) {
        for kept in self.stores.values() {
            kept.shared.has_stale_readers.store(true, Ordering::Relaxed);
        }
    }

    fn serve(&mut self, stores: &[FileStore], socket: OwnedFd) -> anyhow::Result<()> {
        let stores: Vec<_> =
            stores.iter().map(|store| Ok((self.open(store)?, store.max_value))).collect::<io::Result<_>>()?;
        let socket = StdUnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let (kept, counted) = (self.kept.clone(), self.connections.0.clone());
        tokio::spawn(async move {
            // Whatever came of it, the worker sees the end of its connection.
            let _ = connection(socket, stores, kept).await;
            drop(counted);
        });
        Ok(())
    }

    /// The store's thread, which is started if there is none; again if it could not open it.
    fn open(&mut self, store: &FileStore) -> io::Result<Opened> {
        let is_unusable = |kept: &KeptStore| matches!(*kept.openness.borrow(), Openness::Unusable(_));
        if let Some(kept) = self.stores.get(&store.path).filter(|kept| !is_unusable(kept)) {
            kept.shared.max_size.store(store.max_size, Ordering::Relaxed);
            return Ok(kept.opened());
        }
        let kept = KeptStore::start(store.clone(), self.started, self.primary.clone(), self.broken.0.clone())?;
        let opened = kept.opened();
        self.stores.insert(store.path.clone(), kept);
        Ok(opened)
    }
}

/// The way to a store's thread.
#[derive(Clone)]
struct Opened {
    jobs: mpsc::Sender<Job>,
    openness: watch::Receiver<Openness>,
}

impl KeptStore {
    fn opened(&self) -> Opened {
        Opened { jobs: self.jobs.clone(), openness: self.openness.clone() }
    }

    fn start(
        store: FileStore,
        started: Instant,
        primary: Arc<AsyncFd<KeeperEnd>>,
        broken: mpsc::Sender<anyhow::Error>,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(MAX_GROUP);
        let (tell, openness) = watch::channel(Openness::Opening);
        let shared = Arc::new(StoreThread {
            committing_since: AtomicU64::new(0),
            max_size: AtomicU64::new(store.max_size),
            has_stale_readers: AtomicBool::new(false),
        });
        let own = shared.clone();
        std::thread::Builder::new().name("store".into()).spawn(move || {
            let writer = match FileWriter::open(&store.path, store.max_size) {
                Ok(writer) => writer,
                Err(error) => {
                    let text = bounded(format!("{:#}", anyhow!(error)));
                    let _ = primary.get_ref().send(&FromKeeper::Trouble { text: text.clone() }, &[]);
                    tell.send_replace(Openness::Unusable(text));
                    return;
                }
            };
            tell.send_replace(Openness::Open);
            if let Some(reason) = commit_all(writer, queue, started, &own) {
                let path = store.path.display();
                let _ = broken.blocking_send(anyhow!("cannot write the key-value store in {path}: {reason}"));
            }
        })?;
        Ok(Self { jobs, openness, shared })
    }
}

/// Commits what comes, as long as somebody may come; or why the store cannot be written any more.
fn commit_all(
    mut writer: FileWriter,
    mut queue: mpsc::Receiver<Job>,
    started: Instant,
    shared: &StoreThread,
) -> Option<String> {
    while let Some(first) = queue.blocking_recv() {
        let mut bytes = first.write.bytes();
        let mut group = vec![first];
        while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
            let Ok(job) = queue.try_recv() else { break };
            bytes += job.write.bytes();
            group.push(job);
        }
        let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        shared.committing_since.store(now.max(1), Ordering::Relaxed);
        if shared.has_stale_readers.swap(false, Ordering::Relaxed) {
            // They keep old pages, no more; the next time is soon enough.
            let _ = writer.clear_stale_readers();
        }
        // One that cannot be had is the one there was.
        let _ = writer.limit(shared.max_size.load(Ordering::Relaxed));
        let writes: Vec<&Write> = group.iter().map(|job| &job.write).collect();
        match writer.commit(&writes) {
            Ok(written) => group.into_iter().zip(written).for_each(|(job, written)| job.answer(written)),
            Err(reason) => {
                let failure = WriteFailure::Unknown(format!("the disk failed: {reason}"));
                group.into_iter().for_each(|job| job.answer(Err(failure.clone())));
                return Some(reason);
            }
        }
        shared.committing_since.store(0, Ordering::Relaxed);
    }
    None
}

impl Job {
    /// There is room: no more are taken of a worker than there is. One that is gone does not mind.
    fn answer(self, written: Result<Written, WriteFailure>) {
        let _ = self.answers.try_send(KeeperAnswer::Done { id: self.id, written });
    }
}

/// Serves a worker until it is gone. An error is its fault.
async fn connection(socket: UnixStream, stores: Vec<(Opened, u64)>, kept: Arc<Semaphore>) -> anyhow::Result<()> {
    let (reads, writes) = socket.into_split();
    let (mut orders, mut out) = (FramedRead::new(reads, codec()), FramedWrite::new(writes, codec()));
    // Each write that waits has a place, and each store its first word.
    let (answers, mut answered) = mpsc::channel(MAX_WAITING + stores.len());
    for (number, (opened, _)) in stores.iter().enumerate() {
        let (mut openness, answers) = (opened.openness.clone(), answers.clone());
        tokio::spawn(async move {
            let Ok(known) = openness.wait_for(|openness| *openness != Openness::Opening).await.map(|it| it.clone())
            else {
                return;
            };
            let opened = if let Openness::Unusable(reason) = known { Err(reason) } else { Ok(()) };
            let _ = answers.send(KeeperAnswer::Opened { store: number as u16, opened }).await;
        });
    }
    let telling = tokio::spawn(async move {
        while let Some(answer) = answered.recv().await {
            out.feed(encode(&answer)?).await?;
            while let Ok(answer) = answered.try_recv() {
                out.feed(encode(&answer)?).await?;
            }
            SinkExt::<Bytes>::flush(&mut out).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    let taken = take_orders(&mut orders, &stores, &kept, &answers).await;
    drop(answers);
    if taken.is_err() {
        telling.abort();
    }
    // What was begun is finished, and told if somebody listens.
    let _ = telling.await;
    taken
}

async fn take_orders(
    orders: &mut FramedRead<tokio::net::unix::OwnedReadHalf, tokio_util::codec::LengthDelimitedCodec>,
    stores: &[(Opened, u64)],
    kept: &Arc<Semaphore>,
    answers: &mpsc::Sender<KeeperAnswer>,
) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_WAITING));
    loop {
        // What is not taken waits in the socket, and then with the worker.
        let place = places.clone().acquire_owned().await?;
        let Some(frame) = orders.next().await else { return Ok(()) };
        let WriteOrder { id, store, write } = decode(&frame?)?;
        let (opened, max_value) = stores.get(store as usize).context("there is no such store")?;
        let share = u32::try_from(write.bytes() >> 10).unwrap_or(u32::MAX).clamp(1, MAX_KEPT as u32);
        let share = kept.clone().acquire_many_owned(share).await?;
        if let Err(reason) = write.check(*max_value) {
            answers.try_send(KeeperAnswer::Done { id, written: Err(WriteFailure::Refused(reason)) })?;
            continue;
        }
        let job = Job { id, write, answers: answers.clone(), _kept: [place, share] };
        if let Err(refused) = opened.jobs.send(job).await {
            let openness = opened.openness.borrow().clone();
            let reason = if let Openness::Unusable(reason) = openness { reason } else { "the store is closed".into() };
            refused.0.answer(Err(WriteFailure::Refused(reason)));
        }
    }
}

/// The next message of the primary; None if it is gone.
async fn receive(primary: &AsyncFd<KeeperEnd>) -> anyhow::Result<Option<(ToKeeper, Vec<OwnedFd>)>> {
    loop {
        let mut ready = primary.readable().await?;
        match primary.get_ref().receive(Wait::No)? {
            Received::Message(message, descriptors) => return Ok(Some((message, descriptors))),
            Received::Closed => return Ok(None),
            Received::Nothing => ready.clear_ready(),
        }
    }
}
