//! The compiler: a disposable process that answers one request of the primary, and what commands ask for that compile or
//! look at a component themselves.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine;
use super::file::{self, MAX_COMPONENT};
use super::preinit::{self, InitializedComponent, NoSnapshot};
use super::servable::{self, Links};
use super::store::{Manifest, Readers, SCHEMA, Store, StoredArtifact, key, sha256};
use super::surface::{Surface, Unservable, to_binary};
use crate::os::{memfd, resources};
use crate::settings::App;
use crate::wire::channel::{Channel, Received, Wait, bounded, end_with};
use crate::wire::committed::pinned;
use crate::wire::messages::{FromCompiler, ToCompiler};
use crate::wire::version::{SnapshotStart, Version, WasiHttp};

/// How long it may take to find out what must be kept.
const PINS_WITHIN: Duration = Duration::from_secs(2);

/// The compiler process: answers one request on its standard input, an IPC channel, and ends.
pub(crate) fn compiler_main(links: Links) -> anyhow::Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    let primary = Arc::new(Channel::<FromCompiler, ToCompiler>::from(fd));
    let request = primary.receive(Wait::Yes).context("this command is started by wasmcluster itself")?;
    let Received::Message(request, beside) = request else {
        return Ok(());
    };
    end_with(primary.clone());
    resources::restrain_compiler();
    let answer = match &request {
        ToCompiler::Compile { source, snapshot, store, state } => {
            compile(source, beside.first(), *snapshot, store, state.as_deref(), links)
        }
        ToCompiler::Find { version, snapshot, store, state } => {
            find(version, *snapshot, store, state.as_deref(), links)
        }
    };
    match answer.map(StoredArtifact::hand_over) {
        Ok((compiled, descriptors)) => {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            primary.send(&FromCompiler::Done(compiled), &descriptors)?;
        }
        Err(error) => {
            let (ToCompiler::Compile { source, .. } | ToCompiler::Find { version: Version { source, .. }, .. }) =
                request;
            let reason = bounded(format!("cannot serve {source}: {error:#}"));
            primary.send(&FromCompiler::Refused { reason }, &[])?;
        }
    }
    Ok(())
}

/// Finds the artifact of a component that was compiled before. Makes it anew, from the component that the store kept or
/// else the file at `source`, if it was made for another wasmtime or another CPU.
fn find(
    version: &Version,
    snapshot: Option<u64>,
    store: &Path,
    state: Option<&Path>,
    links: Links,
) -> anyhow::Result<StoredArtifact> {
    let Version { digest, http, source, .. } = version;
    let store = Store::open(store, Readers::Owner)?;
    if let Ok(found) = look_up(&store, digest, &engine::for_compiler(*http)?, snapshot) {
        return Ok(found);
    }
    let bytes = store.component(digest).or_else(|| {
        let bytes = to_binary(&file::read(source.path()?).ok()?).ok()?.into_owned();
        (sha256(&bytes) == *digest).then_some(bytes)
    });
    let bytes = bytes.context(if source.path().is_some() {
        "this version is no longer in the store, and the file has changed since; leave out --resume to serve the file \
             as it is"
    } else {
        "this version is no longer in the store"
    })?;
    compile_bytes(&bytes, source, snapshot, &store, state, links)
}

/// Finds the artifact of a component whose snapshot, if one is wanted, fits into so much memory. If there is none, whether one
/// with a snapshot should be made: not if that of the store, which was made for instances with more memory, does not fit.
fn look_up(store: &Store, digest: &str, engine: &Engine, snapshot: Option<u64>) -> Result<StoredArtifact, bool> {
    let find = |with_snapshot: bool| store.find(&key(digest, with_snapshot, engine));
    let Some(max_memory) = snapshot else { return find(false).ok_or(false) };
    match find(true) {
        None => Err(true),
        Some(StoredArtifact { manifest: Manifest { snapshot: Some(SnapshotStart::Taken { memory }), .. }, .. })
            if memory > max_memory =>
        {
            find(false).ok_or(false)
        }
        Some(found) => Ok(found),
    }
}

/// What can be told of a component without compiling it.
pub(crate) struct Inspected {
    pub(crate) digest: String,
    pub(crate) surface: Surface,
    /// The handler to call, or why it cannot be served.
    pub(crate) handler: anyhow::Result<WasiHttp>,
    /// None if there is nothing to initialize, or if that is not wanted.
    pub(crate) snapshot: Option<SnapshotStart>,
}

/// A component in binary form, of the file at `source`.
pub(crate) fn read(source: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(to_binary(&file::read(source)?)?.into_owned())
}

/// Looks at a component, and initializes it if a `snapshot` is wanted.
pub(crate) fn inspect(bytes: &[u8], snapshot: Option<u64>, links: Links) -> anyhow::Result<Inspected> {
    let surface = Surface::read(bytes)?;
    let handler = servable::check(bytes, &surface, links);
    if snapshot.is_some() && surface.has_initializer() {
        resources::restrain_compiler();
    }
    let attempt = |(max_memory, &http)| preinit::initialized(bytes, &surface, http, max_memory);
    let snapshot = snapshot.zip(handler.as_ref().ok()).and_then(attempt).map(|made| match made {
        Ok(InitializedComponent { memory, .. }) => SnapshotStart::Taken { memory },
        Err(NoSnapshot { reason, .. }) => SnapshotStart::Refused(bounded(reason)),
    });
    Ok(Inspected { digest: sha256(bytes), surface, handler, snapshot })
}

/// What [`prepare`] made ready.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// `sha256:` and 64 hexadecimal digits of the component's bytes.
    pub(crate) digest: String,
    pub(crate) http: WasiHttp,
    /// The folder in the store.
    pub(crate) place: PathBuf,
    /// Of the native code, in bytes.
    pub(crate) size: u64,
    /// None if there was nothing to initialize, or if that was not wanted.
    pub(crate) snapshot: Option<SnapshotStart>,
    /// Whether it was there already.
    pub(crate) cached: bool,
}

/// Why [`prepare`] could not.
#[derive(Debug)]
pub(crate) enum Unprepared {
    /// The component cannot be served.
    Refused(anyhow::Error),
    /// It can, but the store does not take it.
    Store(anyhow::Error),
}

/// Makes ready what `serve` will need of a component from `source`, in a store that `readers` may read.
pub(crate) fn prepare(
    bytes: &[u8],
    source: &App,
    snapshot: Option<u64>,
    folder: &Path,
    readers: Readers,
    links: Links,
) -> Result<Prepared, Unprepared> {
    resources::restrain_compiler();
    let store = Store::open(folder, readers).map_err(Unprepared::Store)?;
    let found = compile_bytes(bytes, source, snapshot, &store, None, links).map_err(Unprepared::Refused)?;
    if found.entry.is_none() {
        let reason = found.unkept.unwrap_or_else(|| "it is not writable".into());
        return Err(Unprepared::Store(anyhow::anyhow!("artifact store {}: {reason}", folder.display())));
    }
    let size = File::from(found.artifact).metadata().map_err(|error| Unprepared::Store(error.into()))?.len();
    let Manifest { digest, http, snapshot, .. } = found.manifest;
    Ok(Prepared { digest, http, place: found.place, size, snapshot, cached: found.cached })
}

/// Finds or makes the artifact of the component at `source`, or of the one that was `pulled` from there.
fn compile(
    source: &App,
    pulled: Option<&OwnedFd>,
    snapshot: Option<u64>,
    store: &Path,
    state: Option<&Path>,
    links: Links,
) -> anyhow::Result<StoredArtifact> {
    let bytes = match (pulled, source) {
        (Some(file), _) => memfd::read(file, MAX_COMPONENT)?,
        (None, App::Path(path)) => file::read(path)?,
        (None, App::Image(_)) => bail!("it came without the component"),
    };
    let bytes = to_binary(&bytes)?;
    compile_bytes(&bytes, source, snapshot, &Store::open(store, Readers::Owner)?, state, links)
}

/// The same of a component that has been read.
fn compile_bytes(
    bytes: &[u8],
    source: &App,
    snapshot: Option<u64>,
    store: &Store,
    state: Option<&Path>,
    links: Links,
) -> anyhow::Result<StoredArtifact> {
    let surface = Surface::read(bytes)?;
    let http = surface.handler()?;
    let digest = sha256(bytes);
    let engine = engine::for_compiler(http)?;
    let is_wanted = match look_up(store, &digest, &engine, snapshot) {
        Ok(found) => return Ok(found),
        Err(is_wanted) => is_wanted,
    };
    servable::check(bytes, &surface, links)?;
    let max_memory = snapshot.filter(|_| is_wanted);
    let made = max_memory.and_then(|max_memory| preinit::initialized(bytes, &surface, http, max_memory));
    let (made, refusal) = match made {
        Some(Ok(made)) => (Some(made), None),
        Some(Err(refusal)) => (None, Some(refusal)),
        None => (None, None),
    };
    // Wizer does not check what it has written.
    let started = made.and_then(|made| Some((Component::new(&engine, &made.bytes).ok()?, made.memory)));
    let is_taken = started.is_some();
    let (component, snapshot) = match started {
        Some((component, memory)) => (component, Some(SnapshotStart::Taken { memory })),
        None => {
            let component = Component::new(&engine, bytes);
            let component = component.map_err(|error| Unservable::Invalid(format!("{error:#}")))?;
            (component, refusal.as_ref().map(|refusal| SnapshotStart::Refused(bounded(refusal.reason.clone()))))
        }
    };
    let native = component.serialize()?;
    // What may pass is tried again the next time.
    let lasts = is_taken || refusal.as_ref().is_none_or(|refusal| !refusal.may_pass);
    let manifest = Manifest {
        schema: SCHEMA,
        digest: digest.clone(),
        http,
        can_hold_back: surface.can_hold_back,
        snapshot: snapshot.clone().filter(|_| lasts),
        artifact_digest: sha256(&native),
        source: source.absolute()?,
    };
    let mut found = store.insert(&key(&digest, is_wanted && lasts, &engine), manifest, bytes, &native)?;
    found.manifest.snapshot = snapshot;
    // Rather than remove one that some cluster needs, all are kept.
    if let Some(pinned) = pinned_in_time(state) {
        store.remove_old_entries(&pinned);
    }
    Ok(found)
}

/// What must not be removed; `None` if the folder of the state does not answer. Its file system is of no concern to the
/// component, which has been compiled.
fn pinned_in_time(state: Option<&Path>) -> Option<Vec<String>> {
    let Some(folder) = state.map(Path::to_owned) else { return Some(Vec::new()) };
    let (done, pins) = mpsc::channel();
    std::thread::spawn(move || drop(done.send(pinned(&folder))));
    pins.recv_timeout(PINS_WITHIN).ok()
}
