//! The worker process: runs one component behind the shared listening sockets until it is told to drain.
//!
//! It gets everything from its primary in the first IPC frame, loads the artifact, instantiates the component once to
//! know that it can, says `Ready`, and accepts connections only when told to. One thread runs the executor; beside it
//! stand plain threads: one that accepts for each listener, the epoch ticker, and the guardian.

mod clock;
mod cost;
mod guest;
mod http;
mod keeper;
mod process;
mod requests;
mod traces;
mod values;

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use tokio::sync::{Notify, mpsc, watch};

use crate::logging::{LogFormat, one_line, several_lines};
use crate::os::listener::{Entrance, Security};
use crate::os::log_file::{END_WITHIN, LogFile};
use crate::os::pagemap;
use crate::os::pipe::LineWriter;
use crate::os::resources;
use crate::settings::{HealthPath, LiveConfig, MAX_OUTPUT};
use crate::tls::credentials::Credentials;
use crate::tls::material::Material;
use crate::wire::channel::{Received, Wait, bounded};
use crate::wire::messages::{Identity, Inherited, ToPrimary, ToWorker, WorkerEnd};
use crate::wire::revisions::Revision;
use crate::wire::stats::{Page, Stats};
use crate::wire::worker_settings::WorkerSettings;
use guest::call::Failure;
use guest::epoch::Epoch;
use guest::instance::Instances;
use guest::quota::Gauges;
use guest::reuse::MAX_IDLE;
use http::accept::{Accepted, Gate};
use http::access::AccessLog;
use http::server::Server;
use http::tls::Handshakes;
use keeper::KeeperLink;
use process::guardian::{Configurable, Guardian};
use requests::Requests;
use traces::Tracer;
use values::LiveValues;

pub(crate) use guest::check_links;

/// How often the executor shows that it turns.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long the first instantiation may take at least and at most; between, as long as a request.
const MIN_LOAD_PATIENCE: Duration = Duration::from_secs(5);
const MAX_LOAD_PATIENCE: Duration = Duration::from_secs(30);
/// How often instances that wait for a request are looked at.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// How often a worker that is ready and serves nobody yet checks its health.
const HEALTH_CHECK: Duration = Duration::from_millis(100);
/// Threads for what guests do with files; what is over waits.
const MAX_BLOCKING: usize = 16;

/// What the worker is to do. It only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Waiting,
    Accepting,
    Draining,
}

/// What a primary hands to a new worker.
#[derive(Debug)]
struct WorkerStart {
    identity: Identity,
    config: LiveConfig,
    stats: &'static Stats,
    settings: WorkerSettings,
    artifact: OwnedFd,
    log: OwnedFd,
    tls: Option<OwnedFd>,
    access_log: Option<OwnedFd>,
    spans: Option<OwnedFd>,
    listeners: Vec<(OwnedFd, Entrance)>,
}

impl WorkerStart {
    fn receive(primary: &WorkerEnd) -> anyhow::Result<Self> {
        let start = primary.receive(Wait::Yes).context("this command is started by wasmcluster itself")?;
        let Received::Message(ToWorker::Start { identity, inherited }, descriptors) = start else {
            return Err(anyhow!("the first frame was not Start"));
        };
        ensure!(inherited.len() == descriptors.len(), "the first frame does not name what came with it");
        let mut given: Vec<(Inherited, OwnedFd)> = inherited.into_iter().zip(descriptors).collect();
        let mut take = |what: Inherited| {
            let place = given.iter().position(|(name, _)| *name == what);
            place.map(|place| given.remove(place).1).with_context(|| format!("the first frame came without {what:?}"))
        };
        let stats = Page::open(&take(Inherited::Stats)?)?;
        stats.frames.increment();
        let settings = WorkerSettings::read(&take(Inherited::Settings)?)?;
        let config = Revision::read(&take(Inherited::Live)?)?.config;
        let (artifact, log) = (take(Inherited::Artifact)?, take(Inherited::Log)?);
        let (tls, access_log) = (take(Inherited::Tls).ok(), take(Inherited::AccessLog).ok());
        let spans = take(Inherited::Spans).ok();
        let listeners = given.into_iter().filter_map(|(name, fd)| match name {
            Inherited::Listener(entrance) => Some((fd, entrance)),
            _ => None,
        });
        let listeners: Vec<_> = listeners.collect();
        ensure!(!listeners.is_empty(), "the first frame came without a listener");
        let needs_tls = listeners.iter().any(|(_, entrance)| entrance.security == Security::Tls);
        ensure!(!needs_tls || tls.is_some(), "there are no certificates for its https listeners");
        Ok(Self { identity, config, stats, settings, artifact, log, tls, access_log, spans, listeners })
    }
}

/// The worker process: the IPC channel is its standard input, the pipes for what guests print its standard output and
/// error.
pub(crate) fn worker_main() -> anyhow::Result<()> {
    let sigterm = process::guardian::take_signals()?;
    let primary = Arc::new(WorkerEnd::from(std::io::stdin().as_fd().try_clone_to_owned()?));
    let WorkerStart { identity, config, stats, settings, artifact, log, tls, access_log, spans, listeners } =
        WorkerStart::receive(&primary)?;

    // Lines for people are there as JSON, too, which does not go out.
    let forms = if settings.logging.format == LogFormat::Pretty { 2 } else { 1 };
    let log: &'static LineWriter = Box::leak(Box::new(LineWriter::limited(log, forms * MAX_OUTPUT)));
    let volume = settings.logging.install(config.log_level, move || log);
    log_panics();
    let span = tracing::info_span!("worker", id = identity.worker.0, generation = identity.generation.0);
    let _span = span.enter();

    resources::raise_descriptor_limit();
    resources::restrain_worker();
    pagemap::forgo_merging();
    if settings.pin_cpus {
        // Before there are threads, which inherit it.
        process::pin::pin(identity.slot);
    }
    let (phase, phases) = watch::channel(Phase::Waiting);
    let drain_timeout = settings.drain_timeout;
    let credentials = tls.map(|tls| Ok::<_, anyhow::Error>(Arc::new(Credentials::new(&Material::read(&tls)?)?)));
    let credentials = credentials.transpose().context("cannot use the certificates")?;
    let values = Arc::new(LiveValues::new(settings.values.clone(), &config.changed));
    let keeper = Arc::<KeeperLink>::default();
    let access_log = access_log.map(|file| LogFile::start(file, tell_unwritten(stats)).map(Arc::new)).transpose()?;
    let configurable = Configurable { volume, tls: credentials, values, keeper, access_log };
    let (phase, changes) = (Arc::new(phase), configurable.clone());
    Guardian { primary: primary.clone(), sigterm, phase, changes, stats, drain_timeout }.start()?;
    let access_log = configurable.access_log.clone();
    let tracer = spans.map(|pipe| Arc::new(Tracer::new(LineWriter::new(pipe), settings.trace_sample, stats)));
    if let Err(error) = run(&primary, settings, artifact, identity, listeners, configurable, tracer, phases, stats) {
        // If the primary is gone, nobody is left to be told.
        let _ = primary.send(&ToPrimary::LoadFailed { reason: bounded(format!("{error:#}")) }, &[]);
    }
    // The guardian has it too, and does not end before the process.
    if let Some(log) = access_log {
        log.finish(END_WITHIN);
    }
    Ok(())
}

/// Says that lines of the access log could not be written, once, and counts them.
fn tell_unwritten(stats: &'static Stats) -> impl Fn(u64, std::io::Error) + Send + 'static {
    let is_told = std::sync::atomic::AtomicBool::new(false);
    let span = tracing::Span::current();
    move |lines, error| {
        stats.access_dropped.add(lines);
        if !is_told.swap(true, std::sync::atomic::Ordering::Relaxed) {
            let _span = span.enter();
            tracing::error!("the access log cannot be written, so lines of it are lost: {error}");
        }
    }
}

/// Has panics of this process in its log. On standard error, where Rust prints them, they would be a guest's lines.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("without a message");
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, place, "a panic in the worker, which is a bug in wasmcluster: {}", one_line(message));
    }));
}

#[expect(clippy::too_many_arguments, reason = "called once, with all that the worker was given")]
fn run(
    primary: &WorkerEnd,
    settings: WorkerSettings,
    artifact: OwnedFd,
    identity: Identity,
    listeners: Vec<(OwnedFd, Entrance)>,
    Configurable { tls, values, keeper, access_log, .. }: Configurable,
    tracer: Option<Arc<Tracer>>,
    phases: watch::Receiver<Phase>,
    stats: &'static Stats,
) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(MAX_BLOCKING).build()?;
    let epoch = Arc::new(Epoch::default());
    runtime.block_on(async {
        let gauges = Arc::<OnceLock<Gauges>>::default();
        heartbeat(stats, gauges.clone());
        let requests = Rc::new(Requests::new(identity.worker, tracer, stats));
        let instances = load(&settings, artifact, identity.clone(), epoch.clone(), values, keeper.clone(), stats).await?;
        let _ = gauges.set(instances.gauges());
        if instances.needs_keeper() {
            tokio::spawn(async move { keeper.run().await });
            primary.send(&ToPrimary::NeedsKeeper, &[])?;
        }
        primary.send(&ToPrimary::Ready, &[])?;
        if let Some(path) = &settings.health_path {
            let phases = phases.clone();
            tokio::select! {
                // Ends when the wait is over, whatever the primary wants of the worker.
                () = wait(phases) => {}
                reason = becomes_unhealthy(&instances, path, primary) => primary.send(&ToPrimary::Unhealthy { reason }, &[])?,
            }
        }
        let gate = Arc::new(Gate::new(&settings.limits, stats));
        let handshakes = tls.map(|credentials| Handshakes::new(credentials, settings.limits.max_handshakes));
        let access_log = access_log.zip(settings.access_format);
        let access_log = access_log.map(|(file, format)| AccessLog::new(file, format, identity.clone(), stats));
        let server = Server::new(
            instances.clone(),
            requests,
            phases.clone(),
            &settings,
            gate.clone(),
            handshakes,
            access_log,
            identity,
            stats,
        );
        serve(Rc::new(server), instances, primary, listeners, &gate, phases, stats).await
    })
}

fn advance(phase: &watch::Sender<Phase>, to: Phase) {
    phase.send_if_modified(|now| {
        let forward = *now < to;
        *now = to.max(*now);
        forward
    });
}

/// Shows that the executor turns, and what its guests have.
fn heartbeat(stats: &'static Stats, gauges: Arc<OnceLock<Gauges>>) {
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(HEARTBEAT);
        loop {
            turns.tick().await;
            stats.heartbeats.increment();
            if let Some(gauges) = gauges.get() {
                stats.instances.set(gauges.instances());
                stats.guest_memory.set(gauges.memory());
            }
        }
    });
}

/// Loads the component and instantiates it once, so that what cannot work is known before a client meets it.
async fn load(
    settings: &WorkerSettings,
    artifact: OwnedFd,
    identity: Identity,
    epoch: Arc<Epoch>,
    values: Arc<LiveValues>,
    keeper: Arc<KeeperLink>,
    stats: &'static Stats,
) -> anyhow::Result<Rc<Instances>> {
    let instances = Instances::load(settings, &artifact, identity, epoch, values, keeper, stats)
        .context("cannot load the component")?;
    let patience = settings.limits.request_timeout.clamp(MIN_LOAD_PATIENCE, MAX_LOAD_PATIENCE);
    let probed = tokio::time::timeout(patience, instances.probe()).await;
    let probed = probed.map_err(|_| anyhow!("the component was not instantiated within {patience:?}"))?;
    probed.map_err(|error| {
        let reason = match error {
            Failure::Full => "there is not enough memory for one instance; see --max-worker-memory".into(),
            // With the guest's own backtrace, which takes several lines.
            Failure::Trap(error) => guest::quota::explain(&format!("{error:#}"), &settings.limits)
                .unwrap_or_else(|| several_lines(&format!("{error:?}")).to_string()),
        };
        anyhow!("cannot instantiate the component: {}", reason.trim_end())
    })?;
    if let Some(path) = &settings.health_path {
        instances.check_health(path).await.map_err(anyhow::Error::msg)?;
    }
    Ok(Rc::new(instances))
}

async fn wait(mut phases: watch::Receiver<Phase>) {
    // The sender lives as long as the guardian.
    let _ = phases.wait_for(|&phase| phase > Phase::Waiting).await;
}

/// Checks the component's health again and again; why it is not well any more.
async fn becomes_unhealthy(instances: &Instances, path: &HealthPath, primary: &WorkerEnd) -> String {
    loop {
        tokio::time::sleep(HEALTH_CHECK).await;
        if let Err(reason) = instances.check_health(path).await {
            return reason;
        }
        // A primary that does not listen now hears the next.
        let _ = primary.send(&ToPrimary::Healthy, &[]);
    }
}

/// Accepts and serves from the moment the primary says so until everything is drained.
async fn serve(
    server: Rc<Server>,
    instances: Rc<Instances>,
    primary: &WorkerEnd,
    listeners: Vec<(OwnedFd, Entrance)>,
    gate: &Arc<Gate>,
    mut phases: watch::Receiver<Phase>,
    stats: &'static Stats,
) -> anyhow::Result<()> {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            // The sender lives as long as the guardian, so waiting cannot fail.
            if *phases.wait_for(|&phase| phase > Phase::Waiting).await? == Phase::Draining {
                return Ok(());
            }
            let (acceptors, mut connections) = http::accept::start(listeners, gate)?;
            primary.send(&ToPrimary::Accepting, &[])?;
            let (alive, mut all_done) = mpsc::channel::<()>(1);
            let outbox = server.outbox.clone();
            let sending = tokio::task::spawn_local(async move { outbox.run_last().await });
            let trimming = tokio::task::spawn_local(async move {
                let due = trim_when_due(stats);
                loop {
                    due.notified().await;
                    instances.trim();
                }
            });
            loop {
                tokio::select! {
                    connection = connections.recv() => match connection {
                        Some(connection) => start(&server, connection, alive.clone()),
                        None => break,
                    },
                    () = gate.exhausted.notified() => server.evict(),
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
            trimming.abort();
            sending.abort();
            Ok(())
        })
        .await
}

/// Tells when to look at instances that wait for a request: not when none can be there, so that an idle worker sleeps.
fn trim_when_due(stats: &'static Stats) -> Arc<Notify> {
    let due = Arc::new(Notify::new());
    let told = due.clone();
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(TRIM_EVERY);
        let (mut requests, mut last_request) = (0, None);
        loop {
            let now = turns.tick().await;
            if stats.in_flight.get() > 0 || stats.requests.get() != requests {
                (requests, last_request) = (stats.requests.get(), Some(now));
            }
            // Turns behind, so that the last one to wait is seen when its time is over.
            if last_request.is_some_and(|at| now < at + MAX_IDLE + 2 * TRIM_EVERY) {
                told.notify_one();
            }
        }
    });
    due
}

fn start(server: &Rc<Server>, connection: Accepted, alive: mpsc::Sender<()>) {
    // Not when its task runs first: until then the threads would accept too many.
    let held = server.gate.taken();
    let server = server.clone();
    tokio::task::spawn_local(async move {
        server.outbox.run(server.clone().serve(connection, alive)).await;
        drop(held);
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::logging::{LogFormat, LogLevel, Logging};

    const CHILD: &str = "WASMCLUSTER_TEST_PANICS";

    /// In a process of its own, as a hook is for all threads.
    #[test]
    fn a_panic_of_the_worker_is_an_error_in_its_own_log() {
        if std::env::var_os(CHILD).is_some() {
            Logging { format: LogFormat::Json, colour: false }.install(LogLevel::Info, std::io::stdout);
            log_panics();
            let span = tracing::info_span!("worker", id = 7);
            let thread = std::thread::Builder::new().name("accept".into());
            let panics = thread.spawn(move || span.in_scope(|| panic!("two\nlines")));
            assert!(panics.unwrap().join().is_err());
            return;
        }
        let name = "worker::tests::a_panic_of_the_worker_is_an_error_in_its_own_log";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let ended = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        // What is printed there is taken for a guest's.
        assert!(ended.stderr.is_empty(), "{ended:?}");
        let stdout = String::from_utf8(ended.stdout).unwrap();
        let lines: Vec<&str> = stdout.lines().filter(|line| line.contains("a panic in the worker")).collect();
        let [line] = lines[..] else { panic!("one line: {stdout}") };
        let line: serde_json::Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
        assert_eq!(line["level"], "ERROR", "{line}");
        assert_eq!(line["worker"], 7, "{line}");
        assert!(line["message"].as_str().unwrap().contains("bug in wasmcluster: two\\nlines"), "{line}");
    }
}
