//! Gets components: has them pulled from registries, and compiled, each by a process that is asked once, answers and ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use super::execute::{Environment, execute};
use crate::os::child::Child;
use crate::settings::{App, Application, Cluster, ImageName, Registries};
use crate::wire::channel::{self, Channel, Message};
use crate::wire::messages::{FromCompiler, FromPuller, ToCompiler, ToPuller};
use crate::wire::version::{Compiled, Version};

/// What it means, as a rule, that a compiler is killed which nobody here killed.
const MEMORY_HINT: &str = ", probably because memory ran out. Give the machine or its container more memory, or \
                           compile the component on another machine with `wasmcluster compile`";
/// What it means, as a rule, that a puller gives up.
const ENDLESS_HINT: &str = ", probably because the registry sent more than it should";
/// How long a process may live that has nothing more to say.
const GRACE: Duration = Duration::from_secs(2);

/// Which component is wanted.
#[derive(Clone, Debug)]
pub(crate) enum WantedComponent {
    /// What there is now.
    Present(App),
    /// One that was deployed before.
    Former(Version),
}

impl WantedComponent {
    pub(crate) fn source(&self) -> &App {
        match self {
            Self::Present(app) => app,
            Self::Former(version) => &version.source,
        }
    }

    /// What has to be pulled first.
    pub(crate) fn image(&self) -> Option<&ImageName> {
        match self {
            Self::Present(app) => app.image(),
            // The store has it, as a rule.
            Self::Former(_) => None,
        }
    }
}

/// A component that came from a registry.
#[derive(Debug)]
pub(crate) struct PulledComponent {
    /// The digest of its manifest.
    pub(crate) manifest: String,
    /// A sealed file.
    bytes: OwnedFd,
}

/// A component that can be deployed.
#[derive(Debug)]
pub(crate) struct CompiledComponent {
    pub(crate) source: App,
    /// Of one from a registry, the digest of its manifest.
    pub(crate) manifest: Option<String>,
    pub(crate) compiled: Compiled,
    pub(crate) artifact: OwnedFd,
    /// Open, so that the store keeps it. None if the store has not got it.
    pub(crate) entry: Option<OwnedFd>,
}

/// Where components are kept and come from.
#[derive(Clone, Debug)]
pub(crate) struct Supply {
    store: PathBuf,
    state: Option<PathBuf>,
    /// The memory of an instance, in bytes, if they are to start from one.
    snapshot: Option<u64>,
    registries: Registries,
    /// Variables that are nobody else's business.
    hidden: Vec<String>,
}

impl Supply {
    pub(crate) fn new(cluster: &Cluster, application: &Application) -> Self {
        let (store, state, registries) = (cluster.store.clone(), cluster.state_dir.clone(), cluster.registries.clone());
        let (snapshot, hidden) = (application.snapshot_memory(), application.secret_variables());
        Self { store, state, snapshot, registries, hidden }
    }

    /// The same for an application with these settings.
    pub(crate) fn with(&self, application: &Application) -> Self {
        Self { snapshot: application.snapshot_memory(), hidden: application.secret_variables(), ..self.clone() }
    }

    /// Pulls and compiles. `pulled` is told the manifest when the one is done and the other begins.
    pub(crate) async fn get(
        &self,
        wanted: &WantedComponent,
        pulled: impl FnOnce(&str),
    ) -> anyhow::Result<CompiledComponent> {
        let component = match wanted.image() {
            Some(image) => Some(self.pull(image).await?),
            None => None,
        };
        if let Some(component) = &component {
            pulled(&component.manifest);
        }
        self.compile(wanted, component).await
    }

    pub(crate) async fn pull(&self, image: &ImageName) -> anyhow::Result<PulledComponent> {
        let (image, registries, store) = (image.clone(), self.registries.clone(), self.store.clone());
        match self.ask_puller(&ToPuller::Pull { image, registries, store }).await? {
            (FromPuller::Pulled { manifest }, beside) => {
                let bytes = beside.into_iter().next().context("the puller's answer came without a component")?;
                Ok(PulledComponent { manifest, bytes })
            }
            _ => bail!("the puller answered something else"),
        }
    }

    /// The digest of the manifest that a name stands for now.
    pub(crate) async fn resolve(&self, image: &ImageName) -> anyhow::Result<String> {
        let (image, registries) = (image.clone(), self.registries.clone());
        match self.ask_puller(&ToPuller::Resolve { image, registries }).await? {
            (FromPuller::Resolved { manifest }, _) => Ok(manifest),
            _ => bail!("the puller answered something else"),
        }
    }

    async fn ask_puller(&self, request: &ToPuller) -> anyhow::Result<(FromPuller, Vec<OwnedFd>)> {
        let puller = Errand::<_, FromPuller>::start("puller", Environment::Without(&self.hidden), request, &[]);
        match puller.context("cannot start the puller")?.answer().await {
            ErrandResult::Said(FromPuller::Refused { reason }, _) => bail!(reason),
            ErrandResult::Said(answer, beside) => Ok((answer, beside)),
            ErrandResult::Failed(how) => {
                let likely = if how.ends_with(Signal::SIGABRT.as_str()) { ENDLESS_HINT } else { "" };
                bail!("the process that speaks to the registry {how}{likely}")
            }
        }
    }

    /// Compiles what was pulled, or what is in a file or in the store.
    pub(crate) async fn compile(
        &self,
        wanted: &WantedComponent,
        pulled: Option<PulledComponent>,
    ) -> anyhow::Result<CompiledComponent> {
        let version = match wanted {
            WantedComponent::Present(app) => return self.compile_present(app, pulled).await,
            WantedComponent::Former(version) => version,
        };
        let (store, state) = (self.store.clone(), self.state.clone());
        let find = ToCompiler::Find { version: version.clone(), snapshot: self.snapshot, store, state };
        let found = ask_compiler(&find, &version.source, version.manifest.clone(), &[]).await;
        // What is no longer in the store is still in the registry, as a rule.
        let (Err(error), App::Image(image), Some(manifest)) = (&found, &version.source, &version.manifest) else {
            return found;
        };
        tracing::info!("{error:#}; pulling it again");
        let pulled = self.pull(&image.pinned(manifest)).await?;
        let found = self.compile_present(&version.source, Some(pulled)).await?;
        ensure!(found.compiled.digest == version.digest, "the registry has another component under {manifest}");
        Ok(found)
    }

    async fn compile_present(&self, app: &App, pulled: Option<PulledComponent>) -> anyhow::Result<CompiledComponent> {
        let (store, state) = (self.store.clone(), self.state.clone());
        let request = ToCompiler::Compile { source: app.clone(), snapshot: self.snapshot, store, state };
        let (manifest, bytes) = pulled.map(|pulled| (pulled.manifest, pulled.bytes)).unzip();
        let beside: Vec<BorrowedFd<'_>> = bytes.iter().map(AsFd::as_fd).collect();
        ask_compiler(&request, app, manifest, &beside).await
    }
}

async fn ask_compiler(
    request: &ToCompiler,
    source: &App,
    manifest: Option<String>,
    beside: &[BorrowedFd<'_>],
) -> anyhow::Result<CompiledComponent> {
    let compiler = Errand::<_, FromCompiler>::start("compiler", Environment::Bare, request, beside);
    match compiler.context("cannot start the compiler")?.answer().await {
        ErrandResult::Said(FromCompiler::Done(compiled), descriptors) => {
            let mut descriptors = descriptors.into_iter();
            let artifact = descriptors.next().context("the compiler's answer came without an artifact")?;
            let (source, entry) = (source.clone(), descriptors.next());
            Ok(CompiledComponent { source, manifest, compiled, artifact, entry })
        }
        ErrandResult::Said(FromCompiler::Refused { reason }, _) => bail!(reason),
        ErrandResult::Failed(how) => {
            let likely = if how.ends_with(Signal::SIGKILL.as_str()) { MEMORY_HINT } else { "" };
            bail!("cannot serve {source}: the compiler {how}{likely}")
        }
    }
}

/// What came of an errand.
#[derive(Debug)]
enum ErrandResult<A> {
    /// The process answered, with what came beside.
    Said(A, Vec<OwnedFd>),
    /// It ended, or was ended, without an answer that makes sense: how.
    Failed(String),
}

/// A running process that was asked something.
#[derive(Debug)]
struct Errand<Q, A> {
    child: Child,
    channel: AsyncFd<Channel<Q, A>>,
}

impl<Q: Serialize, A: Message> Errand<Q, A> {
    fn start(role: &str, environment: Environment<'_>, request: &Q, beside: &[BorrowedFd<'_>]) -> io::Result<Self>
    where
        Q: Message,
        A: Serialize,
    {
        let (ours, theirs): (Channel<Q, A>, Channel<A, Q>) = channel::pair()?;
        ours.send(request, beside).map_err(io::Error::other)?;
        let channel = ours.into_async()?;
        let child = execute(role, environment, OwnedFd::from(theirs), Stdio::null(), Stdio::inherit())?;
        Ok(Self { child, channel })
    }

    /// One that nobody waits for any more is killed.
    async fn answer(self) -> ErrandResult<A> {
        match channel::next(&self.channel).await {
            Ok(Some((answer, descriptors))) => ErrandResult::Said(answer, descriptors),
            // It has closed its end, so it is about to die; how is what matters.
            Ok(None) => {
                if tokio::time::timeout(GRACE, self.child.end()).await.is_err() {
                    self.child.signal(Signal::SIGKILL);
                }
                ErrandResult::Failed(self.child.end().await)
            }
            Err(error) => ErrandResult::Failed(format!("gave an invalid answer: {error}")),
        }
    }
}

impl<Q, A> Drop for Errand<Q, A> {
    fn drop(&mut self) {
        // One that has answered is about to end, or has. What it started, as a helper that knows passwords, ends with it.
        self.child.kill_group();
    }
}
