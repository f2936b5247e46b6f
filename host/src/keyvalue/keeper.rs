//! The keeper process: writes the stores that are in files, for all workers.
//!
//! Each store has a thread, which commits whatever has come meanwhile as one: so a write is on the disk before it is
//! answered, and many at a time cost little more than one. What goes wrong with a store, or its disk, harms no other. A worker is served through a pair of sockets whose other end it
//! has; it costs nobody else anything when it does not read, talks nonsense, or dies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::file::{FileIdentity, FileWriter};
use super::frames::{KeeperAnswer, WriteOrder, codec, decode, encode};
use super::{Write, WriteFailure, Written};
use crate::os::signal::ignore;
use crate::wire::channel::{self, Channel, IpcError, bounded};
use crate::wire::messages::{FileStore, FromKeeper, ToKeeper};

/// Writes that are committed as one, at most.
const MAX_GROUP: usize = 1024;
/// Bytes of them. One that is larger goes alone.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Writes that wait for a store, of all workers; more are refused at once: a disk that hangs holds up nobody else.
const MAX_QUEUED: usize = 4096;
/// Bytes of them.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Writes of one worker to one store that wait for their answer, at most.
const MAX_WAITING: usize = 1024;
/// Other answers that a worker may leave unread, before it is no longer listened to.
const MAX_UNREAD: usize = 64;
/// What a key takes up beside its bytes.
const OVERHEAD: usize = 64;
/// How often the primary is told that the keeper is at work, and stores are looked at.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// A disk that takes longer is told of.
const LONG_COMMIT: Duration = Duration::from_secs(5);
/// How long a keeper without a primary serves the workers that are left. They have a second.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// A store that cannot be used is opened again after this.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// What would end the process, and is not meant for it: the primary lets it end, and a file that may not grow is an error.
const IGNORED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGXFSZ];

type KeeperEnd = Channel<FromKeeper, ToKeeper>;
/// An answer, and what is given back when it has left.
type Leaving = (KeeperAnswer, Option<OwnedSemaphorePermit>);

/// A write on its way to the disk.
struct Job {
    id: u64,
    write: Write,
    bytes: usize,
    /// The limit of the store by the settings of whoever writes.
    max_size: u64,
    answers: mpsc::UnboundedSender<Leaving>,
    /// One of [`MAX_WAITING`].
    place: OwnedSemaphorePermit,
    thread: Arc<StoreThread>,
}

impl Job {
    /// The worker may be gone by now.
    fn answer(self, written: Result<Written, WriteFailure>) {
        self.thread.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let _ = self.answers.send((KeeperAnswer::Done { id: self.id, written }, Some(self.place)));
    }
}

/// How a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Openness {
    Opening,
    Open,
    /// Why, for a person.
    Unusable(String),
}

/// The way to a store's thread, which lives as long as the process.
#[derive(Clone)]
struct KeptStore {
    jobs: SyncSender<Job>,
    openness: watch::Receiver<Openness>,
    thread: Arc<StoreThread>,
}

/// What the thread of a store shares.
#[derive(Default)]
struct StoreThread {
    /// Milliseconds after the start at which it began what it is at; 0 if it waits for something to do.
    at_work_since: AtomicU64,
    /// Of the writes that wait.
    queued_bytes: AtomicUsize,
    /// A worker has died.
    has_stale_readers: AtomicBool,
    /// That it takes long was told.
    is_told_slow: AtomicBool,
}

/// The process: its channel to the primary is its standard input.
pub(crate) fn keeper_main() -> anyhow::Result<()> {
    for signal in IGNORED {
        ignore(signal as i32)?;
    }
    let primary = KeeperEnd::from(io::stdin().as_fd().try_clone_to_owned()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Keeper::new(primary.into_async()?).run().await })
}

struct Keeper {
    primary: Arc<AsyncFd<KeeperEnd>>,
    started: Instant,
    stores: BTreeMap<PathBuf, KeptStore>,
    /// Ends when the last connection has.
    connections: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

impl Keeper {
    fn new(primary: AsyncFd<KeeperEnd>) -> Self {
        let connections = mpsc::channel(1);
        Self { primary: Arc::new(primary), started: Instant::now(), stores: BTreeMap::new(), connections }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut turns = tokio::time::interval(ALIVE_EVERY);
        loop {
            let primary = self.primary.clone();
            tokio::select! {
                received = channel::next(&primary) => match received {
                    // There was no descriptor left for what came with it: that worker waits, the others do not.
                    Err(IpcError::Truncated) => {}
                    Err(error) => return Err(error.into()),
                    Ok(Some((ToKeeper::Serve { stores, .. }, descriptors))) => {
                        // One that cannot be served waits, and is told so.
                        if let Some(socket) = descriptors.into_iter().next()
                            && let Err(error) = self.serve(&stores, socket)
                        {
                            self.tell(format!("the keeper of the key-value stores cannot serve a worker: {error:#}"));
                        }
                    }
                    Ok(Some((ToKeeper::Gone { .. }, _))) => self.clear_stale_readers(),
                    Ok(None) => break,
                },
                _ = turns.tick() => {
                    self.look_at_stores();
                    // A primary that takes nothing now is told again.
                    let _ = self.primary.get_ref().send(&FromKeeper::Alive, &[]);
                }
            }
        }
        let (connections, mut ended) = self.connections;
        drop(connections);
        let _ = tokio::time::timeout(LAST_WRITES, ended.recv()).await;
        // Threads that wait for a disk end with the process.
        Ok(())
    }

    fn tell(&self, text: String) {
        let _ = self.primary.get_ref().send(&FromKeeper::Trouble { text: bounded(text) }, &[]);
    }

    /// A disk that hangs is told of, once.
    fn look_at_stores(&self) {
        let now = self.started.elapsed();
        for (path, kept) in &self.stores {
            let since = kept.thread.at_work_since.load(Ordering::Relaxed);
            let is_slow = since > 0 && now.saturating_sub(Duration::from_millis(since)) > LONG_COMMIT;
            if is_slow && !kept.thread.is_told_slow.swap(true, Ordering::Relaxed) {
                self.tell(format!(
                    "the disk of the key-value store in {} takes longer than {LONG_COMMIT:?}; what is written there waits",
                    path.display()
                ));
            }
        }
    }

    fn clear_stale_readers(&self) {
        for kept in self.stores.values() {
            kept.thread.has_stale_readers.store(true, Ordering::Relaxed);
        }
    }

    fn serve(&mut self, stores: &[FileStore], socket: OwnedFd) -> anyhow::Result<()> {
        let kept = |store: &FileStore| Ok(ServedStore::new(self.kept(store)?, store));
        let stores = stores.iter().map(kept).collect::<io::Result<Vec<_>>>()?;
        let socket = StdUnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let counted = self.connections.0.clone();
        tokio::spawn(async move {
            // Whatever came of it, the worker sees the end of its connection.
            let _ = connection(socket, &stores).await;
            drop(counted);
        });
        Ok(())
    }

    /// The store's thread, which is started if there is none.
    fn kept(&mut self, store: &FileStore) -> io::Result<KeptStore> {
        if let Some(kept) = self.stores.get(&store.path) {
            return Ok(kept.clone());
        }
        let (jobs, queue) = sync_channel(MAX_QUEUED);
        let (tell, openness) = watch::channel(Openness::Opening);
        let thread = Arc::<StoreThread>::default();
        let primary = self.primary.clone();
        let trouble = Box::new(move |text: &str| {
            let _ = primary.get_ref().send(&FromKeeper::Trouble { text: text.into() }, &[]);
        });
        let (path, started) = (store.path.clone(), self.started);
        let keeping =
            StoreLoop { path, max_size: store.max_size, queue, thread: thread.clone(), tell, started, trouble };
        std::thread::Builder::new().name("store".into()).spawn(move || keeping.run())?;
        let kept = KeptStore { jobs, openness, thread };
        self.stores.insert(store.path.clone(), kept.clone());
        Ok(kept)
    }
}

/// The thread of a store.
struct StoreLoop {
    path: PathBuf,
    /// Until a worker writes, which has a limit of its own.
    max_size: u64,
    queue: Receiver<Job>,
    thread: Arc<StoreThread>,
    tell: watch::Sender<Openness>,
    started: Instant,
    trouble: Box<dyn Fn(&str) + Send>,
}

impl StoreLoop {
    /// Opens the store and commits what comes, again and again.
    fn run(self) {
        let (mut told, mut identity) = (None, None);
        loop {
            self.begins();
            // Workers may have mapped the one that was there first.
            let in_place = identity.as_ref().map_or(Ok(()), |identity: &FileIdentity| identity.is_at(&self.path));
            let opened =
                in_place.map_err(anyhow::Error::msg).and_then(|()| Ok(FileWriter::open(&self.path, self.max_size)?));
            self.ends();
            let reason = match opened {
                Ok(writer) => {
                    identity.get_or_insert(writer.identity());
                    self.tells(Openness::Open);
                    let Some(reason) = self.commit_all(writer) else { return };
                    reason
                }
                Err(error) => format!("{error:#}"),
            };
            let reason = bounded(reason);
            if told.as_ref() != Some(&reason) {
                (self.trouble)(&reason);
                told = Some(reason.clone());
            }
            self.tells(Openness::Unusable(reason.clone()));
            if !self.refuse_all(&reason) {
                return;
            }
        }
    }

    fn tells(&self, openness: Openness) {
        self.tell.send_if_modified(|now| {
            let is_new = *now != openness;
            *now = openness;
            is_new
        });
    }

    fn begins(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.thread.at_work_since.store(now.max(1), Ordering::Relaxed);
    }

    fn ends(&self) {
        self.thread.at_work_since.store(0, Ordering::Relaxed);
        self.thread.is_told_slow.store(false, Ordering::Relaxed);
    }

    /// Until the store is opened again. Whether somebody may still come.
    fn refuse_all(&self, reason: &str) -> bool {
        let again = Instant::now() + OPEN_AGAIN;
        loop {
            match self.queue.recv_timeout(again.saturating_duration_since(Instant::now())) {
                Ok(job) => job.answer(Err(WriteFailure::Refused(reason.into()))),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Commits what comes, as long as somebody may come; or why the store cannot be written any more.
    fn commit_all(&self, mut writer: FileWriter) -> Option<String> {
        while let Ok(first) = self.queue.recv() {
            let mut bytes = first.bytes;
            let mut group = vec![first];
            while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
                let Ok(job) = self.queue.try_recv() else { break };
                bytes += job.bytes;
                group.push(job);
            }
            self.begins();
            if self.thread.has_stale_readers.swap(false, Ordering::Relaxed) {
                // They keep old pages, no more; the next time is soon enough.
                let _ = writer.clear_stale_readers();
            }
            // One that cannot be had is the one there was.
            let _ = writer.limit(group.iter().map(|job| job.max_size).max().unwrap_or_default());
            if let Err(reason) = writer.is_in_place() {
                group.into_iter().for_each(|job| job.answer(Err(WriteFailure::Refused(reason.clone()))));
                self.ends();
                return Some(reason);
            }
            let writes: Vec<&Write> = group.iter().map(|job| &job.write).collect();
            let committed = writer.commit(&writes);
            self.ends();
            match committed {
                Ok(written) => group.into_iter().zip(written).for_each(|(job, written)| job.answer(written)),
                Err(reason) => {
                    // Whoever opens the store next sees what became of it.
                    let failure = WriteFailure::Unknown(format!("the disk failed: {reason}"));
                    group.into_iter().for_each(|job| job.answer(Err(failure.clone())));
                    return Some(format!("the key-value store in {} cannot be written: {reason}", self.path.display()));
                }
            }
        }
        None
    }
}

/// A store as one worker has it.
struct ServedStore {
    kept: KeptStore,
    max_value: u64,
    max_size: u64,
    places: Arc<Semaphore>,
}

impl ServedStore {
    fn new(kept: KeptStore, FileStore { max_value, max_size, .. }: &FileStore) -> Self {
        let (max_value, max_size) = (*max_value, *max_size);
        Self { kept, max_value, max_size, places: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// Puts a write into the queue; or why that is not possible. Never waits.
    fn take(&self, id: u64, write: Write, answers: &mpsc::UnboundedSender<Leaving>) -> Result<(), String> {
        write.check(self.max_value)?;
        let busy = || "the store is busy, as its disk does not keep up; nothing was written".to_owned();
        let bytes = write.bytes() + OVERHEAD * write.keys();
        let place = self.places.clone().try_acquire_owned().map_err(|_| busy())?;
        let thread = self.kept.thread.clone();
        if thread.queued_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > MAX_QUEUED_BYTES {
            thread.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(busy());
        }
        let job = Job { id, write, bytes, max_size: self.max_size, answers: answers.clone(), place, thread };
        self.kept.jobs.try_send(job).map_err(|refused| {
            let (TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused;
            job.thread.queued_bytes.fetch_sub(job.bytes, Ordering::Relaxed);
            busy()
        })
    }
}

/// Serves a worker until it is gone. An error is its fault.
async fn connection(socket: UnixStream, stores: &[ServedStore]) -> anyhow::Result<()> {
    let (reads, writes) = socket.into_split();
    let (mut orders, mut out) = (FramedRead::new(reads, codec()), FramedWrite::new(writes, codec()));
    // No more is in it than there are places.
    let (answers, mut answered) = mpsc::unbounded_channel::<Leaving>();
    for (number, ServedStore { kept, .. }) in stores.iter().enumerate() {
        tokio::spawn(tell_openness(number as u16, kept.openness.clone(), answers.clone()));
    }
    let telling = tokio::spawn(async move {
        while let Some(leaving) = answered.recv().await {
            let mut left = vec![leaving.1];
            out.feed(encode(&leaving.0)?).await?;
            while let Ok((answer, place)) = answered.try_recv() {
                out.feed(encode(&answer)?).await?;
                left.push(place);
            }
            SinkExt::<Bytes>::flush(&mut out).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    let taken = take_orders(&mut orders, stores, &answers).await;
    // What was begun is finished; nobody listens any more.
    telling.abort();
    taken
}

/// Says whenever a store can be used, or not any more.
async fn tell_openness(store: u16, mut openness: watch::Receiver<Openness>, answers: mpsc::UnboundedSender<Leaving>) {
    loop {
        let known = openness.borrow_and_update().clone();
        let opened = match known {
            Openness::Opening => None,
            Openness::Open => Some(Ok(())),
            Openness::Unusable(reason) => Some(Err(reason)),
        };
        if let Some(opened) = opened
            && answers.send((KeeperAnswer::Opened { store, opened }, None)).is_err()
        {
            return;
        }
        tokio::select! {
            changed = openness.changed() => if changed.is_err() { return },
            () = answers.closed() => return,
        }
    }
}

async fn take_orders(
    orders: &mut FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    stores: &[ServedStore],
    answers: &mpsc::UnboundedSender<Leaving>,
) -> anyhow::Result<()> {
    let unread = Arc::new(Semaphore::new(MAX_UNREAD));
    while let Some(frame) = orders.next().await {
        let WriteOrder { id, store, write } = decode(&frame?)?;
        let store = stores.get(store as usize).context("there is no such store")?;
        if let Err(reason) = store.take(id, write, answers) {
            // Who does not read what it is told is not listened to.
            let place = unread.clone().acquire_owned().await?;
            answers.send((KeeperAnswer::Done { id, written: Err(WriteFailure::Refused(reason)) }, Some(place)))?;
        }
    }
    Ok(())
}
