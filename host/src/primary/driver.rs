//! The driver: turns what happens to the primary into events for the supervisor, and the supervisor's actions into
//! system calls. `select!` only learns what happened; everything is decided and done in plain functions after it.

use std::collections::{BTreeMap, VecDeque};
use std::future;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::control::{Control, GenerationStatus, Query, Status, Totals, WorkerStatus};
use super::output::Output;
use super::process::{CompilerProcess, Deployment, WorkerProcess, reap};
use super::state::{Action, Event, Haste, Outcome, Supervisor, WorkerState};
use crate::config::{MAX_WORKERS, Settings, WorkerSettings};
use crate::ids::{Generation, Slot, WorkerId};
use crate::ipc::{FromCompiler, Identity, IpcError, ToCompiler, ToPrimary, ToWorker};
use crate::limits;
use crate::listener::{BindError, ListenAddr, Listener};
use crate::stats::Snapshot;

/// How long a busy address is tried again: the workers of a primary that was killed keep theirs for a second.
const BIND_PATIENCE: Duration = Duration::from_secs(3);
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// How often heartbeats are read within the hang timeout.
const READS_PER_HANG_TIMEOUT: u32 = 10;
/// Messages of workers, and questions of commands, that wait for the driver.
const MAX_QUEUED: usize = 64;

/// Serves `settings.app` until it is told to stop. An error means that it never served, or cannot any more.
pub(crate) fn serve(settings: Settings) -> anyhow::Result<()> {
    limits::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = Control::bind(&settings.name, &settings.control)?;
        let listeners = bind_all(&settings.listen, settings.backlog).await?;
        let output = Output::start(settings.logging)?;
        let mut signals = Signals::install()?;
        let served = async {
            let Some(deployment) = compile_first(&settings, &mut signals).await? else {
                return Ok(());
            };
            let (queries, asked) = mpsc::channel(MAX_QUEUED);
            control.serve(queries)?;
            Driver::new(&settings, deployment, listeners, &output).run(signals, asked).await
        }
        .await;
        output.finish();
        served
    })
}

async fn bind_all(addresses: &[ListenAddr], backlog: i32) -> Result<Vec<Listener>, BindError> {
    let deadline = Instant::now() + BIND_PATIENCE;
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(loop {
            match Listener::bind(address, backlog) {
                Err(BindError::InUse(_)) if Instant::now() < deadline => tokio::time::sleep(BIND_AGAIN).await,
                bound => break bound?,
            }
        });
    }
    Ok(listeners)
}

/// The signals that a primary acts on.
struct Signals {
    child: Signal,
    stop: StopSignals,
}

/// Those that want it to stop.
struct StopSignals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            child: tokio::signal::unix::signal(SignalKind::child())?,
            stop: StopSignals {
                hangup: tokio::signal::unix::signal(SignalKind::hangup())?,
                interrupt: tokio::signal::unix::signal(SignalKind::interrupt())?,
                quit: tokio::signal::unix::signal(SignalKind::quit())?,
                terminate: tokio::signal::unix::signal(SignalKind::terminate())?,
            },
        })
    }
}

impl StopSignals {
    async fn next(&mut self) -> Haste {
        tokio::select! {
            _ = self.hangup.recv() => Haste::Drain,
            _ = self.interrupt.recv() => Haste::Drain,
            _ = self.terminate.recv() => Haste::Drain,
            _ = self.quit.recv() => Haste::Now,
        }
    }
}

/// Has the component compiled, or found in the store. `None` when a signal ended it.
async fn compile_first(settings: &Settings, signals: &mut Signals) -> anyhow::Result<Option<Deployment>> {
    let progress = Progress::start(format!("Compiling {}", settings.app.display()));
    let deployment = tokio::select! {
        deployment = compile(settings, Generation(1), &mut signals.child) => deployment.map(Some),
        _ = signals.stop.next() => Ok(None),
    };
    drop(progress);
    deployment
}

async fn compile(settings: &Settings, generation: Generation, children: &mut Signal) -> anyhow::Result<Deployment> {
    let request = ToCompiler::Compile { source: settings.app.clone(), store: settings.store.clone() };
    let compiler = CompilerProcess::spawn(&request).context("cannot start the compiler")?;
    let (compiled, artifact) = match compiler.answer().await.context("the compiler's answer makes no sense")? {
        Some((FromCompiler::Done(compiled), Some(artifact))) => (compiled, artifact),
        Some((FromCompiler::Done(_), None)) => bail!("the compiler's answer came without an artifact"),
        Some((FromCompiler::Refused { reason }, _)) => bail!(reason),
        None => bail!("cannot serve {}: the compiler {}", settings.app.display(), end_of(compiler.pid, children).await),
    };
    tracing::debug!(digest = compiled.digest, cached = compiled.cached, "the component is compiled");
    let http = compiled.http;
    let worker_settings = WorkerSettings {
        http,
        env: settings.env.clone(),
        drain_idle_grace: settings.drain_idle_grace,
        logging: settings.logging,
    };
    Deployment::new(generation, compiled, artifact, &worker_settings)
}

async fn end_of(child: Pid, children: &mut Signal) -> String {
    loop {
        if let Some((_, how)) = reap().into_iter().find(|(pid, _)| *pid == child) {
            return how;
        }
        children.recv().await;
    }
}

/// A line on a terminal that says what takes so long, from the first second on, and vanishes afterwards.
struct Progress(Option<AbortHandle>);

impl Progress {
    fn start(what: String) -> Self {
        use std::io::IsTerminal;
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let task = tokio::spawn(async move {
            for seconds in 1.. {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _ = write!(io::stderr(), "\r{what} … {seconds} s\x1b[K");
            }
        });
        Self(Some(task.abort_handle()))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A worker process as the driver knows it.
struct Running {
    process: Arc<WorkerProcess>,
    since: Instant,
    listening: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Something the driver learned.
enum News {
    Said(Event),
    ChildEnded,
    Stop(Haste),
    DeadlinePassed,
    HeartbeatsDue,
    Asked(Query),
}

struct Driver<'a> {
    settings: &'a Settings,
    deployment: Deployment,
    /// Empty once the cluster stops.
    listeners: Vec<Listener>,
    urls: Vec<String>,
    output: &'a Output,
    started: Instant,
    supervisor: Supervisor,
    workers: BTreeMap<WorkerId, Running>,
    /// Where the workers' messages come together.
    says: mpsc::Sender<Event>,
    said: mpsc::Receiver<Event>,
    /// What workers counted that are gone.
    past: Snapshot,
    crashes: u64,
    outcome: Option<Outcome>,
}

impl<'a> Driver<'a> {
    fn new(settings: &'a Settings, deployment: Deployment, listeners: Vec<Listener>, output: &'a Output) -> Self {
        let (says, said) = mpsc::channel(MAX_QUEUED);
        Self {
            settings,
            deployment,
            urls: listeners.iter().map(|listener| listener.url().to_owned()).collect(),
            listeners,
            output,
            started: Instant::now(),
            supervisor: Supervisor::new(settings.workers, settings.policy, fastrand::u64(..)),
            workers: BTreeMap::new(),
            says,
            said,
            past: Snapshot::default(),
            crashes: 0,
            outcome: None,
        }
    }

    async fn run(mut self, mut signals: Signals, mut asked: mpsc::Receiver<Query>) -> anyhow::Result<()> {
        let mut heartbeats = tokio::time::interval(self.settings.policy.hang_timeout / READS_PER_HANG_TIMEOUT);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first = self.supervisor.start();
        self.carry_out(first);
        loop {
            match self.outcome.take() {
                Some(Outcome::Stopped) => return Ok(()),
                Some(Outcome::BootFailed(reason)) => {
                    return Err(anyhow!("cannot serve {}: {reason}", self.settings.app.display()));
                }
                None => {}
            }
            let news = tokio::select! {
                Some(event) = self.said.recv() => News::Said(event),
                _ = signals.child.recv() => News::ChildEnded,
                haste = signals.stop.next() => News::Stop(haste),
                () = at(self.supervisor.next_deadline().map(|time| self.started + time)) => News::DeadlinePassed,
                _ = heartbeats.tick() => News::HeartbeatsDue,
                Some(query) = asked.recv() => News::Asked(query),
            };
            self.take(news);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Said(event) => self.tell(event),
            News::ChildEnded => self.children_ended(),
            News::Stop(haste) => self.stop(haste),
            News::DeadlinePassed => self.tell(Event::DeadlinePassed),
            News::HeartbeatsDue => {
                let beats = self.workers.iter().map(|(&id, running)| (id, running.process.stats.heartbeats.get()));
                let beats = beats.collect();
                self.tell(Event::HeartbeatsRead(beats));
            }
            News::Asked(query) => self.answer(query),
        }
    }

    /// Answers a command, which may have given up by now.
    fn answer(&mut self, query: Query) {
        match query {
            Query::Status(back) => drop(back.send(self.status())),
            Query::Scale(scale, back) => drop(back.send(self.scale(scale.workers.get()))),
            Query::Stop(stop, back) => {
                self.stop(if stop.now { Haste::Now } else { Haste::Drain });
                drop(back.send(Ok(())));
            }
        }
    }

    fn stop(&mut self, haste: Haste) {
        tracing::info!("stopping");
        self.tell(Event::ShutdownRequested(haste));
    }

    fn scale(&mut self, workers: u32) -> Result<(), String> {
        if workers > MAX_WORKERS {
            return Err(format!("{workers} workers are over the limit of {MAX_WORKERS}"));
        }
        if self.supervisor.is_booting() || self.supervisor.is_stopping() {
            return Err(format!("it is {} just now", self.state()));
        }
        tracing::info!(from = self.supervisor.slots(), to = workers, "scaling");
        self.tell(Event::ScaleRequested { slots: workers });
        Ok(())
    }

    fn state(&self) -> &'static str {
        match (self.supervisor.is_booting(), self.supervisor.is_stopping()) {
            (true, _) => "starting",
            (_, true) => "stopping",
            _ => "running",
        }
    }

    /// Tells the supervisor, and does what it says.
    fn tell(&mut self, event: Event) {
        let actions = self.supervisor.step(self.started.elapsed(), event);
        self.carry_out(actions);
    }

    /// An action that fails comes back to the supervisor as an event, whose actions are done after these.
    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            if let Some(failure) = self.act(action) {
                actions.extend(self.supervisor.step(self.started.elapsed(), failure));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn { worker, slot } => {
                return self
                    .spawn(worker, slot)
                    .err()
                    .map(|error| Event::SpawnFailed { worker, reason: format!("could not be started: {error}") });
            }
            Action::StartAccepting { worker } => return self.send(worker, &ToWorker::StartAccepting),
            Action::CloseListeners => self.listeners.clear(),
            Action::SendDrain { worker } => return self.send(worker, &ToWorker::Drain),
            Action::Abort { worker } => self.signal(worker, signal::Signal::SIGABRT),
            Action::Kill { worker } => self.signal(worker, signal::Signal::SIGKILL),
            Action::ReportDegraded(true) => {
                tracing::error!("workers crash again and again: the cluster is degraded; those that are healthy go on");
            }
            Action::ReportDegraded(false) => tracing::info!("the storm of crashes is over"),
            Action::AnnounceServing => self.announce(),
            Action::ReleaseOutput => self.output.release(),
            Action::ReportCrash { worker, slot, reason, retry_in } => {
                self.crashes += 1;
                let retry_ms = retry_in.as_millis() as u64;
                tracing::error!(worker = worker.0, slot = slot.0, retry_ms, "a worker died: {reason}");
            }
            Action::Exit(outcome) => self.outcome = Some(outcome),
        }
        None
    }

    fn spawn(&mut self, worker: WorkerId, slot: Slot) -> io::Result<()> {
        let identity = Identity {
            worker,
            slot,
            generation: self.deployment.generation,
            digest: self.deployment.compiled.digest.clone(),
            workers: self.supervisor.slots(),
        };
        let process = Arc::new(WorkerProcess::spawn(&identity, &self.deployment, &self.listeners, self.output)?);
        tracing::debug!(worker = worker.0, slot = slot.0, pid = process.pid.as_raw(), "started a worker");
        let listening = tokio::spawn(listen(worker, process.clone(), self.says.clone())).abort_handle();
        self.workers.insert(worker, Running { process, since: Instant::now(), listening });
        Ok(())
    }

    fn send(&mut self, worker: WorkerId, message: &ToWorker) -> Option<Event> {
        match self.workers.get(&worker)?.process.send(message) {
            Err(error @ IpcError::Full) => Some(Event::Misbehaved { worker, reason: error.to_string() }),
            // It has just died, which is about to be noticed.
            Err(_) | Ok(()) => None,
        }
    }

    fn signal(&self, worker: WorkerId, signal: signal::Signal) {
        if let Some(running) = self.workers.get(&worker) {
            running.process.signal(signal);
        }
    }

    fn announce(&self) {
        for url in &self.urls {
            let slash = if url.starts_with("http") { "/" } else { "" };
            // Whoever closed our standard error does not want to know.
            let _ = writeln!(io::stderr(), "Serving HTTP on {url}{slash}");
        }
        self.output.release();
        let workers = self.settings.workers;
        tracing::info!(workers, digest = self.deployment.compiled.digest, "serving {}", self.settings.app.display());
    }

    fn children_ended(&mut self) {
        // All that have ended are taken out first: from here on nothing is sent to them, least of all a signal.
        let mut ended = Vec::new();
        for (pid, how) in reap() {
            let found = self.workers.iter().find(|(_, running)| running.process.pid == pid).map(|(&worker, _)| worker);
            // Otherwise a compiler, or an orphan that was left to us.
            if let Some(running) = found.and_then(|worker| self.workers.remove_entry(&worker)) {
                ended.push((running, how));
            }
        }
        for ((worker, running), how) in ended {
            self.remember(&running);
            // Its last words may still be on their way.
            while let Ok(event) = self.said.try_recv() {
                self.tell(event);
            }
            while let Some(message) = running.process.receive_now() {
                self.tell(understand(worker, message));
            }
            self.tell(Event::Exited { worker, how });
        }
    }

    /// Keeps what a worker counted; its gauges end with it.
    fn remember(&mut self, gone: &Running) {
        let counted = gone.process.stats.snapshot();
        self.past.add(&Snapshot { in_flight: 0, connections: 0, ..counted });
    }

    fn status(&self) -> Status {
        let mut totals = self.past;
        for running in self.workers.values() {
            totals.add(&running.process.stats.snapshot());
        }
        let mut workers: Vec<WorkerStatus> = self.workers.keys().filter_map(|&id| self.worker_status(id)).collect();
        workers.extend(self.supervisor.waiting().map(|(slot, _, restarts)| WorkerStatus {
            id: None,
            slot: slot.0,
            pid: None,
            generation: self.deployment.generation.0,
            state: "backoff".into(),
            uptime_ms: 0,
            requests: 0,
            in_flight: 0,
            connections: 0,
            restarts,
        }));
        workers.sort_by_key(|worker| worker.slot);
        Status {
            schema: 1,
            name: self.settings.name.clone(),
            pid: std::process::id(),
            state: self.state().into(),
            degraded: self.supervisor.is_degraded(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            listen: self.urls.clone(),
            generation: GenerationStatus {
                current: self.deployment.generation.0,
                digest: self.deployment.compiled.digest.clone(),
                source: self.settings.app.clone(),
            },
            workers,
            totals: Totals {
                requests: totals.requests,
                errors: totals.errors,
                traps: totals.traps,
                rejected: totals.rejected,
                aborted: totals.aborted,
                crashes: self.crashes,
            },
        }
    }

    fn worker_status(&self, id: WorkerId) -> Option<WorkerStatus> {
        let (slot, state, restarts) = self.supervisor.describe(id)?;
        let running = self.workers.get(&id)?;
        let stats = running.process.stats.snapshot();
        Some(WorkerStatus {
            id: Some(id.0),
            slot: slot.0,
            pid: Some(running.process.pid.as_raw()),
            generation: self.deployment.generation.0,
            state: match state {
                WorkerState::Starting => "starting",
                WorkerState::Ready => "ready",
                WorkerState::Draining => "draining",
            }
            .into(),
            uptime_ms: running.since.elapsed().as_millis() as u64,
            requests: stats.requests,
            in_flight: stats.in_flight,
            connections: stats.connections,
            restarts,
        })
    }
}

/// Passes on what a worker says until it says no more.
async fn listen(worker: WorkerId, process: Arc<WorkerProcess>, says: mpsc::Sender<Event>) {
    loop {
        let (event, last) = match process.receive().await {
            Ok(Some(message)) => (understand(worker, message), false),
            Ok(None) => return,
            Err(error) => (Event::Misbehaved { worker, reason: format!("broke the protocol: {error}") }, true),
        };
        if says.send(event).await.is_err() || last {
            return;
        }
    }
}

fn understand(worker: WorkerId, message: ToPrimary) -> Event {
    match message {
        ToPrimary::Ready => Event::BecameReady { worker },
        ToPrimary::Draining => Event::BeganDraining { worker },
        ToPrimary::LoadFailed { reason } => Event::LoadFailed { worker, reason },
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}
