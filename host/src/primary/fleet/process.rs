//! Workers: what they are given, how they are started and talked to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::io::unix::AsyncFd;

use super::errands::CompiledComponent;
use super::execute::{Environment, execute};
use super::output::{Output, OutputStream, Source, SourceKind};
use crate::os::child::Child;
use crate::os::listener::Listener;
use crate::os::pipe::output_pipe;
use crate::settings::{App, Application, Cluster, Limits};
use crate::wire::channel::{self, Channel, IpcError, MAX_UNREAD, Received, Wait};
use crate::wire::messages::{FileStore, Identity, Inherited, PrimaryEnd, ToPrimary, ToWorker};
use crate::wire::stats::Page;
use crate::wire::version::{Compiled, SnapshotStart, Version};
use crate::wire::worker_settings::WorkerSettings;

/// What the workers of a generation are given. The descriptors stay open for as long as it may be needed.
#[derive(Debug)]
pub(crate) struct Deployment {
    /// Where the component was read from.
    pub(crate) source: App,
    /// Of a component from a registry, the digest of its manifest then.
    pub(crate) manifest: Option<String>,
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
        CompiledComponent { source, manifest, compiled, artifact, entry }: CompiledComponent,
    ) -> anyhow::Result<Self> {
        tracing::debug!(digest = compiled.digest, cached = compiled.cached, "the component is compiled");
        if let Some(SnapshotStart::Refused(reason)) = &compiled.snapshot {
            tracing::info!("instances do not start from a snapshot: {reason}");
        }
        if !compiled.kept {
            tracing::warn!(
                "the artifact store has no native code of this component for this machine and is not writable, so \
                 every start compiles it again"
            );
        }
        Self::of(cluster, application, table, (source.absolute()?, manifest), compiled, artifact, entry)
    }

    fn of(
        cluster: &Cluster,
        application: Application,
        table: toml::Table,
        (source, manifest): (App, Option<String>),
        compiled: Compiled,
        artifact: OwnedFd,
        entry: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let file_stores = file_stores(&application);
        let settings = WorkerSettings::new(cluster, &application, &compiled).write()?;
        Ok(Self { source, manifest, compiled, artifact, entry, application, table, settings, file_stores })
    }

    /// The same component with these settings.
    pub(crate) fn with(&self, cluster: &Cluster, application: Application) -> anyhow::Result<Self> {
        let artifact = self.artifact.try_clone()?;
        let entry = self.entry.as_ref().map(OwnedFd::try_clone).transpose()?;
        let (table, compiled) = (self.table.clone(), self.compiled.clone());
        let source = (self.source.clone(), self.manifest.clone());
        Self::of(cluster, application, table, source, compiled, artifact, entry)
    }

    /// Whether it is the same component with the same settings.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.compiled.digest == other.compiled.digest && self.application == other.application
    }

    pub(crate) fn version(&self) -> Version {
        let Compiled { digest, http, .. } = &self.compiled;
        let (source, manifest) = (self.source.clone(), self.manifest.clone());
        Version { digest: digest.clone(), http: *http, source, manifest }
    }

    /// Where it came from, for people.
    pub(crate) fn described(&self) -> String {
        self.source.with_manifest(self.manifest.as_deref())
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
        let compiled =
            Compiled { digest: digest.into(), http, can_hold_back: false, snapshot: None, cached: true, kept: true };
        let (artifact, settings, file_stores) = (nothing(), nothing(), Vec::new());
        let of_nobody = crate::settings::Settings::new("/app.wasm".into(), &Default::default());
        let application = of_nobody.expect("the defaults are right").application;
        let table = toml::Table::new();
        let (source, manifest) = ("/app.wasm".into(), None);
        Self { source, manifest, compiled, artifact, entry: None, application, table, settings, file_stores }
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
        let child = execute("worker", Environment::Bare, theirs.into(), stdout_writer.into(), stderr_writer.into())?;
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
