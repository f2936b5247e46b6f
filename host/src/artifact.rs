//! The store of compiled components, and the disposable process that fills it.
//!
//! An entry is a folder named by what the native code in it depends on: the component's bytes, the wasmtime version,
//! the engine's settings and the CPU's features. It is written beside its place and renamed into it whole, so two
//! compilers that work on the same component cannot trip over each other, and a reader never sees half an entry.
//!
//! An artifact is native code: the store belongs to one user, and nobody else may write to it.

use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::component::{Refusal, Surface, WasiHttp, to_binary};
use crate::engine;
use crate::ipc::{Channel, Compiled, FromCompiler, Received, ToCompiler, Wait, bounded};
use crate::limits;

/// Largest component that is read, in bytes.
const MAX_COMPONENT: u64 = 512 * 1024 * 1024;
const ARTIFACT: &str = "component.cwasm";
const MANIFEST: &str = "manifest.json";
const DRAFT: &str = ".draft-";
/// Entries that are kept, however long ago they were needed.
const KEPT: usize = 32;
/// No compiler works for so long.
const MAX_DRAFT_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is written beside an artifact.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    schema: u32,
    /// Of the component.
    digest: String,
    http: WasiHttp,
    can_hold_back: bool,
    /// Of the artifact, to notice one that was damaged on disk.
    artifact_digest: String,
    /// Where the component was read from, for people who look into the store.
    source: PathBuf,
}

impl Manifest {
    /// What the primary is told of an entry that was there.
    fn found(self) -> Compiled {
        Compiled { digest: self.digest, http: self.http, can_hold_back: self.can_hold_back, cached: true }
    }
}

/// The compiler process: answers one request on its standard input, an IPC channel, and ends.
pub(crate) fn compiler_main() -> anyhow::Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    let primary = std::sync::Arc::new(Channel::<FromCompiler, ToCompiler>::from(fd));
    let request = primary.receive(Wait::Yes).context("this command is started by wasmcluster itself")?;
    let Received::Message(request, _) = request else {
        return Ok(());
    };
    end_with(primary.clone());
    limits::restrain_compiler();
    let answer = match &request {
        ToCompiler::Compile { source, store, pinned } => compile(source, store, pinned),
        ToCompiler::Find { digest, http, source, store } => find(digest, *http, source, store),
    };
    match answer {
        Ok((compiled, artifact)) => primary.send(&FromCompiler::Done(compiled), &[artifact.as_fd()])?,
        Err(error) => {
            let (ToCompiler::Compile { source, .. } | ToCompiler::Find { source, .. }) = request;
            let reason = bounded(format!("cannot serve {}: {error:#}", source.display()));
            primary.send(&FromCompiler::Refused { reason }, &[])?;
        }
    }
    Ok(())
}

/// Ends this process as soon as the primary is gone: nobody waits for the artifact any more.
fn end_with(primary: std::sync::Arc<Channel<FromCompiler, ToCompiler>>) {
    std::thread::spawn(move || {
        while let Ok(Received::Message(..)) = primary.receive(Wait::Yes) {}
        #[expect(clippy::exit, reason = "the compiler holds nothing that a destructor would have to save")]
        std::process::exit(1);
    });
}

/// Finds the artifact of a component that was compiled before; makes it anew if the component is still at `source`.
fn find(digest: &str, http: WasiHttp, source: &Path, store: &Path) -> anyhow::Result<(Compiled, OwnedFd)> {
    let key = key(digest, &engine::for_compiler(http)?);
    if let Some((manifest, artifact)) = Store::open(store)?.find(&key) {
        return Ok((manifest.found(), artifact));
    }
    let is_there = snapshot(source).and_then(|bytes| Ok(sha256(&to_binary(&bytes)?) == digest));
    ensure!(
        is_there.unwrap_or(false),
        "the version that is wanted back is not in the store any more, or was compiled by another wasmcluster, and the \
         file is another now; leave out --resume to serve the file as it is"
    );
    compile(source, store, &[digest.into()])
}

/// What can be told of the component at `source` without compiling it: its digest and its surface.
pub(crate) fn inspect(source: &Path) -> anyhow::Result<(String, Surface)> {
    let bytes = snapshot(source)?;
    let bytes = to_binary(&bytes)?;
    Ok((sha256(&bytes), Surface::read(&bytes)?))
}

/// Finds or makes the artifact of the component at `source`.
fn compile(source: &Path, store: &Path, pinned: &[String]) -> anyhow::Result<(Compiled, OwnedFd)> {
    let bytes = snapshot(source)?;
    let bytes = to_binary(&bytes)?;
    let surface = Surface::read(&bytes)?;
    let http = surface.handler()?;
    let digest = sha256(&bytes);
    let engine = engine::for_compiler(http)?;
    let store = Store::open(store)?;
    let key = key(&digest, &engine);

    if let Some((manifest, artifact)) = store.find(&key) {
        return Ok((manifest.found(), artifact));
    }
    let component = Component::new(&engine, &bytes).map_err(|error| Refusal::Invalid(format!("{error:#}")))?;
    check_links(&component, http)?;
    let native = component.serialize()?;
    let manifest = Manifest {
        schema: 1,
        digest,
        http,
        can_hold_back: surface.can_hold_back,
        artifact_digest: sha256(&native),
        source: std::path::absolute(source)?,
    };
    let artifact = store.insert(&key, &manifest, &native)?;
    store.remove_old_entries(pinned);
    Ok((Compiled { cached: false, ..manifest.found() }, artifact))
}

/// The bytes of the file at one moment: a file that changes while it is read is refused, not half-read.
fn snapshot(source: &Path) -> anyhow::Result<Vec<u8>> {
    // Without waiting for whoever may write to it, should it be a pipe.
    let file =
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(source).map_err(|error| match error
            .kind()
        {
            io::ErrorKind::NotFound => anyhow::anyhow!("no such file"),
            _ => error.into(),
        })?;
    let before = file.metadata()?;
    if before.is_dir() {
        bail!("it is a folder; give the component that `wasmcluster build` makes of it");
    }
    ensure!(before.is_file(), "it is not a regular file");
    ensure!(before.len() <= MAX_COMPONENT, "it has {} bytes; the limit is {MAX_COMPONENT}", before.len());
    let mut bytes = Vec::new();
    (&file).take(MAX_COMPONENT + 1).read_to_end(&mut bytes)?;
    let after = file.metadata()?;
    let unchanged = bytes.len() as u64 == before.len() && modified(&before) == modified(&after);
    ensure!(unchanged, "the file changed while it was read; try again when it is complete");
    Ok(bytes)
}

fn modified(metadata: &fs::Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

/// Links the component as a worker will, to say what does not fit before a worker is started.
fn check_links(component: &Component, http: WasiHttp) -> anyhow::Result<()> {
    let linked = engine::linker(component.engine(), http)?.instantiate_pre(component).and_then(|pre| match http {
        WasiHttp::V0_2 => wasmtime_wasi_http::p2::bindings::ProxyPre::new(pre).map(drop),
        WasiHttp::V0_3 => wasmtime_wasi_http::p3::bindings::ServicePre::new(pre).map(drop),
    });
    linked.map_err(|error| anyhow::anyhow!("one of its imports, or its handler, does not fit: {error:#}"))
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name of an entry: everything that native code depends on. The engine's hash covers wasmtime's version, the
/// settings of the engine and of the code generator, and the CPU features that the code may use.
fn key(digest: &str, engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        fn finish(&self) -> u64 {
            unreachable!("only the digest is used")
        }
    }
    let mut hasher = Sha(Sha256::new());
    digest.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize())
}

/// A folder of entries that only its owner can write to.
#[derive(Debug)]
struct Store {
    folder: PathBuf,
}

impl Store {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let of = || format!("artifact store {} (choose another with --store)", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(of)?;
        let metadata = fs::metadata(folder).with_context(of)?;
        ensure!(is_private(&metadata), "{}: it must belong to you and be writable by nobody else", of());
        let store = Self { folder: folder.into() };
        store.remove_old_drafts();
        Ok(store)
    }

    /// The artifact under `key`, if it is there and whole. A damaged entry is moved out of the way, to be made anew.
    fn find(&self, key: &str) -> Option<(Manifest, OwnedFd)> {
        let entry = self.folder.join(key);
        let damage = match read_entry(&entry) {
            Ok(found) => {
                // For `remove_old_entries`: it was needed now. That it cannot be noted does no harm.
                let _ = File::open(entry.join(MANIFEST)).and_then(|file| file.set_modified(SystemTime::now()));
                return Some(found);
            }
            Err(error) => error,
        };
        if entry.exists() {
            tracing::debug!("dropping the damaged entry {}: {damage:#}", entry.display());
            // Moved first: another compiler may be about to put a whole one in its place. If it stays, `insert` says
            // why it cannot be replaced.
            let _ = self.draft().and_then(|draft| fs::rename(&entry, draft.path().join("damaged")));
        }
        None
    }

    /// Writes an entry, unless another compiler was first, and opens the artifact. The artifact that was written here
    /// is as good as the other's, and nobody can have touched it.
    fn insert(&self, key: &str, manifest: &Manifest, native: &[u8]) -> anyhow::Result<OwnedFd> {
        let of = || format!("artifact store {}", self.folder.display());
        let draft = self.draft().with_context(of)?;
        write_synced(&draft.path().join(ARTIFACT), native).with_context(of)?;
        write_synced(&draft.path().join(MANIFEST), &serde_json::to_vec_pretty(manifest)?).with_context(of)?;
        let (_, artifact) = read_entry(draft.path()).with_context(of)?;
        match fs::rename(draft.path(), self.folder.join(key)) {
            Ok(()) => {
                // It has another name now: nothing is left to remove.
                let _ = draft.keep();
                File::open(&self.folder)?.sync_all().with_context(of)?;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(error).with_context(of),
        }
        Ok(artifact)
    }

    fn draft(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix(DRAFT).tempdir_in(&self.folder)
    }

    /// Removes the entries that were not needed for longest, when there are many. Never one that a primary holds open, or
    /// whose component is `pinned`.
    fn remove_old_entries(&self, pinned: &[String]) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut entries: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| {
                let needed = fs::metadata(entry.path().join(MANIFEST)).ok()?.modified().ok()?;
                (!entry.file_name().to_string_lossy().starts_with(DRAFT)).then(|| (needed, entry.path()))
            })
            .collect();
        entries.sort();
        let too_many = entries.len().saturating_sub(KEPT);
        for (_, entry) in entries.into_iter().take(too_many) {
            if let Err(error) = self.remove_unused(&entry, pinned) {
                tracing::debug!("keeping the old entry {}: {error:#}", entry.display());
            }
        }
    }

    fn remove_unused(&self, entry: &Path, pinned: &[String]) -> anyhow::Result<()> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(entry.join(MANIFEST))?)?;
        ensure!(!pinned.contains(&manifest.digest), "its component is the last that some cluster served");
        let artifact = File::open(entry.join(ARTIFACT))?;
        // Whoever may need it holds it open, with a shared lock; this one ends with the file.
        artifact.try_lock().context("it is in use")?;
        let draft = self.draft()?;
        fs::rename(entry, draft.path().join("old"))?;
        Ok(())
    }

    /// What compilers left behind that were killed.
    fn remove_old_drafts(&self) {
        let age = |entry: &fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let is_draft = entry.file_name().to_string_lossy().starts_with(DRAFT);
            if is_draft && age(&entry).is_some_and(|age| age > MAX_DRAFT_AGE) {
                // One that stays costs space, nothing else.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn read_entry(entry: &Path) -> anyhow::Result<(Manifest, OwnedFd)> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(entry.join(MANIFEST))?)?;
    ensure!(manifest.schema == 1, "unknown schema {}", manifest.schema);
    let mut artifact = File::options().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(entry.join(ARTIFACT))?;
    ensure!(is_private(&artifact.metadata()?), "the artifact is not private to its owner");
    // Held as long as anybody has this open file, the primary above all: such an entry is not removed.
    artifact.lock_shared()?;
    let mut hasher = Sha256::new();
    io::copy(&mut artifact, &mut HashWriter(&mut hasher))?;
    ensure!(format!("sha256:{}", hex(&hasher.finalize())) == manifest.artifact_digest, "the artifact was changed");
    Ok((manifest, artifact.into()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Ours, and writable by nobody else.
fn is_private(metadata: &fs::Metadata) -> bool {
    metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn manifest(native: &[u8]) -> Manifest {
        Manifest {
            schema: 1,
            digest: sha256(b"component"),
            http: WasiHttp::V0_2,
            can_hold_back: false,
            artifact_digest: sha256(native),
            source: "/app.wasm".into(),
        }
    }

    fn contents(fd: OwnedFd) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let file = File::from(fd);
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn entries_are_kept_and_the_first_writer_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("new/store")).unwrap();
        assert!(store.find("key").is_none());
        assert_eq!(contents(store.insert("key", &manifest(b"native"), b"native").unwrap()), b"native");
        assert_eq!(contents(store.insert("key", &manifest(b"native"), b"native").unwrap()), b"native");
        assert_eq!(contents(store.find("key").unwrap().1), b"native");
        assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn damaged_entries_are_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let damage: [fn(&Path); 3] = [
            |entry| fs::write(entry.join(ARTIFACT), b"nativ").unwrap(),
            |entry| fs::write(entry.join(MANIFEST), b"{").unwrap(),
            |entry| fs::set_permissions(entry.join(ARTIFACT), fs::Permissions::from_mode(0o666)).unwrap(),
        ];
        for damage in damage {
            store.insert("key", &manifest(b"native"), b"native").unwrap();
            damage(&store.folder.join("key"));
            assert!(store.find("key").is_none());
            assert_eq!(contents(store.insert("key", &manifest(b"native"), b"native").unwrap()), b"native");
        }
    }

    #[test]
    fn old_entries_go_unless_they_are_in_use_or_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut open = Vec::new();
        for number in 0..KEPT + 4 {
            let native = format!("native {number}");
            let manifest = Manifest { digest: format!("sha256:{number}"), ..manifest(native.as_bytes()) };
            let artifact = store.insert(&number.to_string(), &manifest, native.as_bytes()).unwrap();
            let needed = SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64);
            File::open(store.folder.join(number.to_string()).join(MANIFEST)).unwrap().set_modified(needed).unwrap();
            // The second oldest is in use.
            open.extend((number == 1).then_some(artifact));
        }
        // The oldest of all was needed just now, and the third oldest is what some cluster served last.
        assert!(store.find("0").is_some());
        store.remove_old_entries(&["sha256:2".into()]);
        let is_there = |number: usize| store.folder.join(number.to_string()).exists();
        let gone: Vec<usize> = (0..KEPT + 4).filter(|&number| !is_there(number)).collect();
        assert_eq!(gone, [3, 4], "of the four that are too many, two must stay");
        assert_eq!(contents(open.remove(0)), b"native 1");
        store.remove_old_entries(&[]);
        assert!(!is_there(1) && !is_there(2), "nobody needs them any more");
        assert_eq!(fs::read_dir(&store.folder).unwrap().count(), KEPT);
    }

    #[test]
    fn drafts_of_killed_compilers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join(".draft-old");
        fs::create_dir(&old).unwrap();
        fs::write(old.join(ARTIFACT), "half").unwrap();
        File::open(&old).unwrap().set_modified(SystemTime::now() - 2 * MAX_DRAFT_AGE).unwrap();
        let young = folder.path().join(".draft-young");
        fs::create_dir(&young).unwrap();
        Store::open(folder.path()).unwrap();
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn a_store_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Store::open(folder.path()).unwrap_err().to_string().contains("writable by nobody else"));
    }

    #[test]
    fn the_key_depends_on_component_and_engine() {
        let v2 = engine::for_compiler(WasiHttp::V0_2).unwrap();
        let v3 = engine::for_compiler(WasiHttp::V0_3).unwrap();
        assert_eq!(key("a", &v2), key("a", &engine::for_compiler(WasiHttp::V0_2).unwrap()));
        assert_ne!(key("a", &v2), key("b", &v2));
        assert_ne!(key("a", &v2), key("a", &v3));
    }
}
