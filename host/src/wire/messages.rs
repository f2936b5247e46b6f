//! What a primary says to its workers, its compilers and pullers, its keeper, its admin server and its exporter, and they to it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::channel::{Channel, Message};
use super::ids::{Generation, Slot, WorkerId};
use super::trace::Attributes;
use super::version::{Compiled, Version};
use crate::os::listener::{Entrance, MAX_LISTENERS};
use crate::settings::{App, ImageName, Otlp, Registries};

impl Message for ToWorker {
    // The kernel's own bound is 253.
    const MAX_DESCRIPTORS: usize = 64;
}

impl Message for ToPrimary {
    const MAX_DESCRIPTORS: usize = 0;
}

impl Message for ToCompiler {
    const MAX_DESCRIPTORS: usize = 1;
}

impl Message for FromCompiler {
    const MAX_DESCRIPTORS: usize = 2;
}

impl Message for ToPuller {
    const MAX_DESCRIPTORS: usize = 0;
}

impl Message for FromPuller {
    const MAX_DESCRIPTORS: usize = 1;
}

impl Message for ToKeeper {
    const MAX_DESCRIPTORS: usize = 1;
}

impl Message for FromKeeper {
    const MAX_DESCRIPTORS: usize = 0;
}

impl Message for ToAdmin {
    const MAX_DESCRIPTORS: usize = MAX_LISTENERS;
}

impl Message for FromAdmin {
    const MAX_DESCRIPTORS: usize = 0;
}

impl Message for ToExporter {
    const MAX_DESCRIPTORS: usize = 1;
}

impl Message for FromExporter {
    const MAX_DESCRIPTORS: usize = 0;
}

/// What a primary tells a worker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first frame: who the worker is. Beside it come the descriptors that it begins with, in the order in which
    /// they are named.
    Start { identity: Identity, inherited: Vec<Inherited> },
    /// Accept connections from now on.
    StartAccepting,
    /// Stop accepting, finish what was begun, exit.
    Drain,
    /// Go on as the [`Revision`](super::revisions::Revision) beside it says, and with the TLS material behind that, if the
    /// worker was started with some, and say [`ToPrimary::Configured`].
    Configure,
    /// Beside it comes the socket to the keeper of the stores, in place of the one before.
    Keeper,
    /// Beside it comes the file of the access log, in place of the one before.
    AccessLog,
}

/// What a descriptor is that a worker begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Inherited {
    /// The stats page.
    Stats,
    /// The settings of its generation, sealed.
    Settings,
    /// The live configuration, sealed: a [`Revision`](super::revisions::Revision).
    Live,
    /// What https listeners are served with, sealed. Not there if no listener speaks TLS.
    Tls,
    /// Native code, sealed.
    Artifact,
    /// The pipe for its log.
    Log,
    /// The file of the access log. Not there if there is none.
    AccessLog,
    /// The pipe for spans. Not there if nobody asked for traces.
    Spans,
    /// A listening socket. There are one or more.
    Listener(Entrance),
}

/// What a worker tells its primary.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToPrimary {
    /// The component is loaded and was instantiated once.
    Ready,
    /// Connections are accepted from now on.
    Accepting,
    /// The worker is ready but serves nobody yet, and its health check went well again.
    Healthy,
    /// The worker is ready but serves nobody yet, and its health check does not go well any more.
    Unhealthy {
        /// What came of it, for a person.
        reason: String,
    },
    /// It goes by the revision of that number.
    Configured { revision: u64 },
    /// The component may use key-value stores, and some of those are in files: the worker needs the keeper.
    NeedsKeeper,
    /// Somebody else told the worker to drain: it exits when it has finished what it began.
    Draining,
    /// The component cannot be loaded or instantiated; the worker exits.
    LoadFailed {
        /// What failed and why, for a person.
        reason: String,
    },
}

/// What a primary asks of a compiler.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToCompiler {
    /// Compile the component at `source`, or find what was compiled before, in the artifact store at `store`. Old
    /// entries may be removed from there, but none of what clusters with the state folder `state` may want to start
    /// again. One from a registry comes beside it. Its instances are to start from a snapshot that fits into so many bytes.
    Compile { source: App, snapshot: Option<u64>, store: PathBuf, state: Option<PathBuf> },
    /// Find what was compiled before.
    Find { version: Version, snapshot: Option<u64>, store: PathBuf, state: Option<PathBuf> },
}

/// What a primary asks of a puller.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToPuller {
    /// Fetch a component, unless it is in the artifact store at `store`.
    Pull { image: ImageName, registries: Registries, store: PathBuf },
    /// Tell what a name stands for now.
    Resolve { image: ImageName, registries: Registries },
}

/// What a puller answers, once.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromPuller {
    /// Beside it comes the component, a sealed file. The digest is its manifest's.
    Pulled {
        manifest: String,
    },
    Resolved {
        manifest: String,
    },
    /// Why it cannot be had, for a person.
    Refused {
        reason: String,
    },
}

/// What a compiler answers, once.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromCompiler {
    /// Beside it come the artifact, a sealed file, and, if it was kept, its entry in the store, which is not removed as
    /// long as it is open.
    Done(Compiled),
    /// The component cannot be served.
    Refused {
        /// What is wrong and what to do, for a person.
        reason: String,
    },
}

/// What a primary tells the keeper of key-value stores, which ends when its channel does.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToKeeper {
    /// Beside it comes the socket of a worker, which may write these stores.
    Serve { worker: WorkerId, stores: Vec<FileStore> },
    /// That worker has ended: what it left in the stores may be cleared.
    Gone { worker: WorkerId },
}

/// What the keeper tells its primary.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromKeeper {
    /// It is at work. Said twice a second.
    Alive,
    /// A store cannot be used: why and what to do, for a person.
    Trouble { text: String },
}

/// What a primary tells the admin server, which shows it to others and ends when its channel does.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToAdmin {
    /// The first frame. Beside it come the listening sockets.
    Start {
        /// Workers that must be ready for the cluster to be.
        ready_min: u32,
    },
    /// How the cluster is. Beside it comes a sealed file with what there is to show.
    Sample,
    /// Something happened: a line of JSON.
    Event { line: String },
}

/// What the admin server tells its primary.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromAdmin {
    /// It is at work. Said twice a second.
    Alive,
    /// Something is wrong with it: what, for a person.
    Trouble { text: String },
}

/// What a primary tells the exporter of traces, which ends when its channel does.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToExporter {
    /// The first frame. Beside it comes the pipe from which it reads spans.
    Start(ExporterStart),
}

/// Where traces go, and what is said of the service that they are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExporterStart {
    pub(crate) otlp: Otlp,
    pub(crate) service: Attributes,
}

/// What the exporter tells its primary.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromExporter {
    /// It is at work, and so many spans have gone well, or are lost. Said twice a second.
    Alive { exported: u64, lost: u64 },
    /// Something is wrong with the collector: what, for a person.
    Trouble { text: String },
    /// It is well again.
    Well { text: String },
}

/// A key-value store in a file, as its keeper is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStore {
    /// The folder that it has for itself.
    pub(crate) path: PathBuf,
    /// Bytes that it may take up.
    pub(crate) max_size: u64,
    /// Bytes of a value.
    pub(crate) max_value: u64,
}

/// Who a worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) worker: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) generation: Generation,
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) digest: String,
    /// How many workers the cluster was asked for.
    pub(crate) workers: u32,
}

/// The primary's end to a worker.
pub(crate) type PrimaryEnd = Channel<ToWorker, ToPrimary>;
/// The worker's end.
pub(crate) type WorkerEnd = Channel<ToPrimary, ToWorker>;
