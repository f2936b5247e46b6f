//! The worker process: runs one component behind the shared listening sockets until it is told to drain.
//!
//! It gets everything from its primary in the first IPC frame, loads the artifact, instantiates the component once to
//! know that it can, says `Ready`, and accepts connections only when told to. One thread runs the executor; beside it
//! stand plain threads: one that accepts for each listener, the epoch ticker, and the guardian.

mod accept;
mod guardian;
mod http;
mod instance;
mod stdio;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::WorkerSettings;
use crate::ipc::{Identity, Received, ToPrimary, ToWorker, Wait, WorkerEnd, bounded};
use crate::limits;
use crate::pipe::LineWriter;
use crate::stats::{Page, Stats};
use accept::{Acceptor, Connection};
use instance::Instances;

pub(crate) use instance::{Guest, add_identity};

/// How often the executor shows that it turns.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Connections that wait between the accept threads and the executor; with the one that an accept thread holds in its
/// hand, a wedged worker swallows eight.
const HAND_OFF: usize = 7;

/// What the worker is to do. It only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Waiting,
    Accepting,
    Draining,
}

/// What a primary hands to a new worker.
#[derive(Debug)]
struct Handover {
    identity: Identity,
    stats: &'static Stats,
    settings: WorkerSettings,
    artifact: OwnedFd,
    log: OwnedFd,
    listeners: Vec<OwnedFd>,
}

impl Handover {
    fn receive(primary: &WorkerEnd) -> anyhow::Result<Self> {
        let start = primary.receive(Wait::Yes).context("this command is started by wasmcluster itself")?;
        let Received::Message(ToWorker::Start(identity), descriptors) = start else {
            return Err(anyhow!("the first frame was not Start"));
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = |what: &str| descriptors.next().with_context(|| format!("the first frame came without {what}"));
        let stats = Page::open(&next("the stats page")?)?;
        let settings = WorkerSettings::read(next("the settings")?)?;
        let artifact = next("the artifact")?;
        let log = next("the log pipe")?;
        let listeners: Vec<OwnedFd> = descriptors.collect();
        ensure!(!listeners.is_empty(), "the first frame came without a listener");
        Ok(Self { identity, stats, settings, artifact, log, listeners })
    }
}

/// The worker process: the IPC channel is its standard input, the pipes for what guests print its standard output and
/// error.
pub(crate) fn worker_main() -> anyhow::Result<()> {
    let primary = Arc::new(WorkerEnd::from(io::stdin().as_fd().try_clone_to_owned()?));
    let Handover { identity, stats, settings, artifact, log, listeners } = Handover::receive(&primary)?;

    let log: &'static LineWriter = Box::leak(Box::new(LineWriter::new(log)));
    settings.logging.install(move || log);
    let span = tracing::info_span!("worker", id = identity.worker.0, generation = identity.generation.0);
    let _span = span.enter();

    limits::raise_descriptor_limit();
    if let Err(error) = run(&primary, settings, artifact, identity, listeners, stats) {
        // If the primary is gone, nobody is left to be told.
        let _ = primary.send(&ToPrimary::LoadFailed { reason: bounded(format!("{error:#}")) }, &[]);
    }
    Ok(())
}

fn run(
    primary: &Arc<WorkerEnd>,
    settings: WorkerSettings,
    artifact: OwnedFd,
    identity: Identity,
    listeners: Vec<OwnedFd>,
    stats: &'static Stats,
) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Waiting);
    let phase = Arc::new(phase);
    guardian::start(primary.clone(), phase.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        drain_on_sigterm(primary.clone(), phase)?;
        heartbeat(stats);
        let instances = load(&settings, artifact, identity, stats).await?;
        primary.send(&ToPrimary::Ready, &[])?;
        serve(instances, listeners, phases, settings.drain_idle_grace, stats).await
    })
}

/// SIGTERM sent to a worker is a planned drain of that worker.
fn drain_on_sigterm(primary: Arc<WorkerEnd>, phase: Arc<watch::Sender<Phase>>) -> io::Result<()> {
    let mut sigterm = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        if sigterm.recv().await.is_some() {
            // If the primary is gone, it does not matter what it believes.
            let _ = primary.send(&ToPrimary::Draining, &[]);
            advance(&phase, Phase::Draining);
        }
    });
    Ok(())
}

fn advance(phase: &watch::Sender<Phase>, to: Phase) {
    phase.send_if_modified(|now| {
        let forward = *now < to;
        *now = to.max(*now);
        forward
    });
}

fn heartbeat(stats: &'static Stats) {
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(HEARTBEAT);
        loop {
            turns.tick().await;
            stats.heartbeats.increment();
        }
    });
}

/// Loads the component and instantiates it once, so that what cannot work is known before a client meets it.
async fn load(
    settings: &WorkerSettings,
    artifact: OwnedFd,
    identity: Identity,
    stats: &'static Stats,
) -> anyhow::Result<Rc<Instances>> {
    let instances = Instances::load(settings, &artifact, identity, stats).context("cannot load the component")?;
    instances.probe().await.map_err(|error| anyhow!("the component fails while it is instantiated: {error:?}"))?;
    Ok(Rc::new(instances))
}

/// Accepts and serves from the moment the primary says so until everything is drained.
async fn serve(
    instances: Rc<Instances>,
    listeners: Vec<OwnedFd>,
    mut phases: watch::Receiver<Phase>,
    idle_grace: Duration,
    stats: &'static Stats,
) -> anyhow::Result<()> {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            // The sender lives as long as the guardian, so waiting cannot fail.
            if *phases.wait_for(|&phase| phase > Phase::Waiting).await? == Phase::Draining {
                return Ok(());
            }
            let (sender, mut connections) = mpsc::channel(HAND_OFF);
            let acceptors = listeners
                .into_iter()
                .map(|listener| Acceptor::start(listener, sender.clone()))
                .collect::<io::Result<Vec<_>>>()?;
            drop(sender);
            let (alive, mut all_done) = mpsc::channel::<()>(1);
            let server = Rc::new(http::Server::new(instances, phases.clone(), idle_grace, stats));
            loop {
                tokio::select! {
                    connection = connections.recv() => match connection {
                        Some(connection) => start(&server, connection, alive.clone()),
                        None => break,
                    },
                    _ = phases.wait_for(|&phase| phase == Phase::Draining) => break,
                }
            }
            for acceptor in acceptors {
                // An accept thread may hold a connection in its hand: take what comes until it is gone.
                let mut stopped = std::pin::pin!(acceptor.stop());
                loop {
                    tokio::select! {
                        Some(connection) = connections.recv() => start(&server, connection, alive.clone()),
                        () = &mut stopped => break,
                    }
                }
            }
            while let Some(connection) = connections.recv().await {
                start(&server, connection, alive.clone());
            }
            drop(server);
            drop(alive);
            // Ends when the last connection and the last guest dropped its sender.
            let _ = all_done.recv().await;
            Ok(())
        })
        .await
}

fn start(server: &Rc<http::Server>, connection: Connection, alive: mpsc::Sender<()>) {
    tokio::task::spawn_local(http::Server::serve(server.clone(), connection, alive));
}
