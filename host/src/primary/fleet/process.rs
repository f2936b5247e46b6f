//! Child processes of the primary: how they are started and talked to.
//!
//! A child is this very binary, executed anew: its own address space, no inherited thread or lock, an environment of
//! a few variables, and an IPC channel as its standard input.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::io::unix::AsyncFd;

use super::output::{Output, OutputStream, Source, SourceKind};
use crate::os::child::Child;
use crate::os::files;
use crate::os::listener::Listener;
use crate::os::pipe::output_pipe;
use crate::settings::{Application, Cluster, Limits};
use crate::wire::channel::{self, Channel, IpcError, MAX_UNREAD, Received, Wait};
use crate::wire::messages::{
    FileStore, FromCompiler, Identity, Inherited, PrimaryEnd, ToCompiler, ToPrimary, ToWorker,
};
use crate::wire::stats::Page;
use crate::wire::version::{Compiled, Version};
use crate::wire::worker_settings::WorkerSettings;

/// What it means, as a rule, that a compiler is killed which nobody here killed.
const MEMORY_HINT: &str = ", probably because memory ran out. Give the machine or its container more memory, or \
                           compile the component on another machine with `wasmcluster compile`";

/// What the workers of a generation are given. The descriptors stay open for as long as it may be needed.
#[derive(Debug)]
pub(crate) struct Deployment {
    /// Where the component was read from.
    pub(crate) source: PathBuf,
    pub(crate) compiled: Compiled,
    artifact: OwnedFd,
    /// Open, so that the store keeps it.
    entry: Option<OwnedFd>,
    /// What it goes by.
    pub(crate) application: Application,
    /// What the file said.
    pub(crate) table: toml::Table,
    /// As workers are given it.
    settings: OwnedFd,
    /// The key-value stores that its workers may write by way of the keeper.
    pub(crate) file_stores: Vec<FileStore>,
}

impl Deployment {
    /// Of what the compiler said; an error says why there is nothing to deploy.
    pub(crate) fn new(
        cluster: &Cluster,
        (application, table): (Application, toml::Table),
        source: &Path,
        CompiledComponent { compiled, descriptors }: CompiledComponent,
    ) -> anyhow::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let artifact = descriptors.next().context("the compiler's answer came without an artifact")?;
        tracing::debug!(digest = compiled.digest, cached = compiled.cached, "the component is compiled");
        if !compiled.kept {
            tracing::warn!(
                "the artifact store has no native code of this component for this machine and is not writable, so \
                 every start compiles it again"
            );
        }
        let source = files::absolute(source)?;
        Self::of(cluster, application, table, source, compiled, artifact, descriptors.next())
    }

    fn of(
        cluster: &Cluster,
        application: Application,
        table: toml::Table,
        source: PathBuf,
        compiled: Compiled,
        artifact: OwnedFd,
        entry: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let file_stores = file_stores(&application);
        let settings = WorkerSettings::new(cluster, &application, &compiled).write()?;
        Ok(Self { source, compiled, artifact, entry, application, table, settings, file_stores })
    }

    /// The same component with these settings.
    pub(crate) fn with(&self, cluster: &Cluster, application: Application) -> anyhow::Result<Self> {
        let artifact = self.artifact.try_clone()?;
        let entry = self.entry.as_ref().map(OwnedFd::try_clone).transpose()?;
        let (table, source, compiled) = (self.table.clone(), self.source.clone(), self.compiled.clone());
        Self::of(cluster, application, table, source, compiled, artifact, entry)
    }

    /// Whether it is the same component with the same settings.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.compiled.digest == other.compiled.digest && self.application == other.application
    }

    pub(crate) fn version(&self) -> Version {
        let Compiled { digest, http, .. } = &self.compiled;
        Version { digest: digest.clone(), http: *http, source: self.source.clone() }
    }
}

fn file_stores(application: &Application) -> Vec<FileStore> {
    let Limits { kv_max_size: max_size, kv_max_value: max_value, .. } = application.limits;
    let store = |path: &PathBuf| FileStore { path: path.clone(), max_size, max_value };
    application.granted.file_stores().into_iter().map(store).collect()
}

#[cfg(test)]
impl Deployment {
    /// One that no worker can be started of.
    pub(crate) fn of_nothing(digest: &str) -> Self {
        let nothing = || fs::File::open("/dev/null").expect("it is always there").into();
        let http = crate::wire::version::WasiHttp::V0_2;
        let compiled = Compiled { digest: digest.into(), http, can_hold_back: false, cached: true, kept: true };
        let (artifact, settings, file_stores) = (nothing(), nothing(), Vec::new());
        let of_nobody = crate::settings::Settings::new("/app.wasm".into(), &Default::default());
        let application = of_nobody.expect("the defaults are right").application;
        let table = toml::Table::new();
        let source = "/app.wasm".into();
        Self { source, compiled, artifact, entry: None, application, table, settings, file_stores }
    }
}

/// A running worker process.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    pub(crate) child: Child,
    pub(crate) stats: Page,
    channel: AsyncFd<PrimaryEnd>,
    /// Frames that were sent.
    sent: AtomicU64,
}

impl WorkerProcess {
    /// Starts a worker and hands it everything it needs. Must be called on the executor.
    pub(crate) fn spawn(
        identity: &Identity,
        live: &OwnedFd,
        optional: &[(Inherited, Option<BorrowedFd<'_>>)],
        deployment: &Deployment,
        listeners: &[Listener],
        output: &Output,
    ) -> io::Result<Self> {
        let (ours, theirs): (PrimaryEnd, Channel<ToPrimary, ToWorker>) = channel::pair()?;
        let (stats, stats_fd) = Page::create()?;
        let (stdout, stdout_writer) = output_pipe(None)?;
        let (stderr, stderr_writer) = output_pipe(None)?;
        let (log, log_writer) = output_pipe(None)?;
        let given = [
            (Inherited::Stats, stats_fd.as_fd()),
            (Inherited::Settings, deployment.settings.as_fd()),
            (Inherited::Live, live.as_fd()),
            (Inherited::Artifact, deployment.artifact.as_fd()),
            (Inherited::Log, log_writer.as_fd()),
        ];
        let optional = optional.iter().filter_map(|(what, descriptor)| Some((*what, (*descriptor)?)));
        let listeners = listeners.iter().map(|listener| (Inherited::Listener(listener.entrance()), listener.as_fd()));
        let (inherited, descriptors): (_, Vec<BorrowedFd<'_>>) =
            given.into_iter().chain(optional).chain(listeners).unzip();
        let start = ToWorker::Start { identity: identity.clone(), inherited };
        ours.send(&start, &descriptors).map_err(io::Error::other)?;

        // Before there is a process: one that is started here is followed, whatever fails.
        let channel = ours.into_async()?;
        let child = execute("worker", theirs.into(), stdout_writer.into(), stderr_writer.into())?;
        let guest = |stream| SourceKind::Guest { stream, worker: identity.worker, generation: identity.generation };
        output.add(Source::new(stdout, guest(OutputStream::Stdout)));
        output.add(Source::new(stderr, guest(OutputStream::Stderr)));
        output.add(Source::new(log, SourceKind::Log(Some(identity.worker))));
        Ok(Self { child, stats, channel, sent: AtomicU64::new(1) })
    }

    /// A worker that does not take its orders is [`IpcError::Full`] of them.
    pub(crate) fn send(&self, message: &ToWorker, beside: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let unread = self.sent.load(Ordering::Relaxed).saturating_sub(self.stats.frames.get());
        if unread >= MAX_UNREAD {
            return Err(IpcError::Full);
        }
        self.channel.get_ref().send(message, beside)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Resident memory in bytes, 0 when the process is gone.
    pub(crate) fn rss(&self) -> u64 {
        let pages = fs::read_to_string(format!("/proc/{}/statm", self.pid())).ok();
        let resident = pages.and_then(|pages| pages.split(' ').nth(1)?.parse().ok());
        resident.unwrap_or(0_u64).saturating_mul(page_size())
    }

    /// The next message; `None` when the worker has closed its end.
    pub(crate) async fn receive(&self) -> Result<Option<ToPrimary>, IpcError> {
        Ok(channel::next(&self.channel).await?.map(|(message, _)| message))
    }

    /// A message that is here already.
    pub(crate) fn receive_now(&self) -> Option<ToPrimary> {
        match self.channel.get_ref().receive(Wait::No) {
            Ok(Received::Message(message, _)) => Some(message),
            _ => None,
        }
    }
}

fn page_size() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size.unsigned_abs())
}

/// What came of a compiler.
#[derive(Debug)]
pub(crate) enum CompilerAnswer {
    /// It answered, with what came beside.
    Said(FromCompiler, Vec<OwnedFd>),
    /// It ended, or was ended, without an answer that makes sense: how.
    Failed(String),
}

/// What a compiler has made, with what came beside.
#[derive(Debug)]
pub(crate) struct CompiledComponent {
    compiled: Compiled,
    descriptors: Vec<OwnedFd>,
}

impl CompilerAnswer {
    /// What it has made of `source`, or why there is nothing to deploy.
    pub(crate) fn component(self, source: &Path) -> anyhow::Result<CompiledComponent> {
        match self {
            Self::Said(FromCompiler::Done(compiled), descriptors) => Ok(CompiledComponent { compiled, descriptors }),
            Self::Said(FromCompiler::Refused { reason }, _) => bail!(reason),
            Self::Failed(how) => {
                let likely = if how.ends_with(Signal::SIGKILL.as_str()) { MEMORY_HINT } else { "" };
                bail!("cannot serve {}: the compiler {how}{likely}", source.display())
            }
        }
    }
}

/// How long a compiler may live that has nothing more to say.
const COMPILER_GRACE: Duration = Duration::from_secs(2);

/// A running compiler process.
#[derive(Debug)]
pub(crate) struct CompilerProcess {
    child: Child,
    channel: AsyncFd<Channel<ToCompiler, FromCompiler>>,
}

impl CompilerProcess {
    pub(crate) fn spawn(request: &ToCompiler) -> anyhow::Result<Self> {
        let spawn = || {
            let (ours, theirs) = channel::pair()?;
            ours.send(request, &[]).map_err(io::Error::other)?;
            let channel = ours.into_async()?;
            let child = execute("compiler", OwnedFd::from(theirs), Stdio::null(), Stdio::inherit())?;
            Ok::<_, io::Error>(Self { child, channel })
        };
        spawn().context("cannot start the compiler")
    }

    /// One that nobody waits for any more is killed.
    pub(crate) async fn answer(self) -> CompilerAnswer {
        match channel::next(&self.channel).await {
            Ok(Some((answer, descriptors))) => CompilerAnswer::Said(answer, descriptors),
            // It has closed its end, so it is about to die; how is what matters.
            Ok(None) => {
                if tokio::time::timeout(COMPILER_GRACE, self.child.end()).await.is_err() {
                    self.child.signal(Signal::SIGKILL);
                }
                CompilerAnswer::Failed(self.child.end().await)
            }
            Err(error) => CompilerAnswer::Failed(format!("gave an invalid answer: {error}")),
        }
    }
}

impl Drop for CompilerProcess {
    fn drop(&mut self) {
        // One that has answered is about to end, or has.
        self.child.signal(Signal::SIGKILL);
    }
}

/// Starts this binary anew as `role`.
pub(super) fn execute(role: &str, stdin: OwnedFd, stdout: Stdio, stderr: Stdio) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("wasmcluster")
        .arg(role)
        .env_clear()
        // A huge page for a heap of a few megabytes would cost each worker ten more.
        .env("MIMALLOC_ALLOW_THP", "0")
        // The heap is reserved, not taken: what is taken counts against the limit on a compiler's memory at once.
        .envs((role == "compiler").then_some(("MIMALLOC_ARENA_EAGER_COMMIT", "0")))
        // Where the machine's trusted certificates are, if not in the usual places.
        .envs(["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        // Errors on the ordinary path of a request would capture native backtraces; panics still can.
        .env("RUST_LIB_BACKTRACE", "0")
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    // In a process group of its own, Ctrl-C reaches the primary alone, which then drains its workers.
    Ok(Child::spawn(&mut command)?.0)
}
