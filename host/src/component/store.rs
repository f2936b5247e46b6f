//! The store of compiled components.
//!
//! An entry is a folder named by what the native code in it depends on: the component's bytes, whether it was initialized
//! before, the wasmtime version, the engine's settings and the CPU's features. It is written beside its place and renamed
//! into it whole, so two compilers that work on the same component cannot trip over each other, and a reader never sees
//! half an entry. The component itself is kept in it too: from there it is compiled again when wasmtime or the CPU has
//! changed, though the file that it came from is another now.
//!
//! An artifact is native code: the store belongs to one user, us or root, and nobody else may write to it. What leaves it
//! is a sealed copy in memory, which nobody can change any more: a worker that is taken over can write to the files of its
//! user, and its siblings would run what it wrote.

use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use nix::fcntl::OFlag;
use nix::unistd::AccessFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use super::file;
use crate::os::files::{self, Owner};
use crate::os::memfd;
use crate::settings::App;
use crate::wire::version::{Compiled, SnapshotStart, WasiHttp};

/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 64 * 1024;
/// What an entry looks like. Another layout has other keys, so that versions of this program can share a store.
pub(super) const SCHEMA: u32 = 3;
const ARTIFACT: &str = "component.cwasm";
const COMPONENT: &str = "component.wasm";
const MANIFEST: &str = "manifest.json";
const DRAFT: &str = ".draft-";
/// Entries that are kept, however long ago they were needed.
const KEPT: usize = 32;
/// No compiler works for so long.
const MAX_DRAFT_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is written beside an artifact.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) schema: u32,
    /// Of the component.
    pub(super) digest: String,
    pub(super) http: WasiHttp,
    pub(super) can_hold_back: bool,
    pub(super) snapshot: Option<SnapshotStart>,
    /// Of the artifact, to notice one that was damaged on disk.
    pub(super) artifact_digest: String,
    /// Where the component was read from, for people who look into the store.
    pub(super) source: App,
}

/// The same of any schema.
#[derive(Debug, Deserialize)]
struct Named {
    pub(super) digest: String,
}

/// Native code that is ready to be run, and where it was found.
#[derive(Debug)]
pub(super) struct StoredArtifact {
    pub(super) manifest: Manifest,
    /// A sealed copy.
    pub(super) artifact: OwnedFd,
    /// The open entry, with a shared lock: while anybody has it, the primary above all, the entry is not removed. None if
    /// it could not be kept.
    pub(super) entry: Option<OwnedFd>,
    /// Why it could not be kept, if that was tried.
    pub(super) unkept: Option<String>,
    /// Where that entry is.
    pub(super) place: PathBuf,
    /// Whether it was there already.
    pub(super) cached: bool,
}

impl StoredArtifact {
    /// What the primary is told, and the descriptors beside it.
    pub(super) fn hand_over(self) -> (Compiled, Vec<OwnedFd>) {
        let Self { manifest, artifact, entry, cached, .. } = self;
        let Manifest { digest, http, can_hold_back, snapshot, .. } = manifest;
        let compiled = Compiled { digest, http, can_hold_back, snapshot, cached, kept: entry.is_some() };
        (compiled, [artifact].into_iter().chain(entry).collect())
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
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
/// settings of the engine and of the code generator, and the CPU features that the code may use. With `snapshot`, a
/// component that can be was initialized first.
pub(super) fn key(digest: &str, snapshot: bool, engine: &Engine) -> String {
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
    (SCHEMA, digest, snapshot).hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize())
}

/// Who may read what is put into a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    Owner,
    Everybody,
}

impl Readers {
    fn of_folders(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Everybody => 0o755,
        }
    }

    fn of_files(self) -> u32 {
        // Nothing in there is executable: native code is mapped, not started.
        self.of_folders() & 0o666
    }
}

/// The component of this digest, if the store in this folder has it.
pub(crate) fn kept_component(folder: &Path, digest: &str) -> Option<Vec<u8>> {
    // One that is not there is made by whoever has something to keep.
    folder.exists().then(|| Store::open(folder, Readers::Owner).ok()?.component(digest)).flatten()
}

/// A folder of entries that only its owner can write to. If that is not us, or the file system cannot be written to, it
/// is used as it is.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    readers: Readers,
    is_writable: bool,
}

impl Store {
    pub(super) fn open(folder: &Path, readers: Readers) -> anyhow::Result<Self> {
        let of = || format!("artifact store {} (choose another with --store)", folder.display());
        let is_new = !folder.exists();
        DirBuilder::new().recursive(true).mode(readers.of_folders()).create(folder).with_context(of)?;
        if is_new {
            // Whatever the umask.
            fs::set_permissions(folder, fs::Permissions::from_mode(readers.of_folders())).with_context(of)?;
        }
        let metadata = fs::metadata(folder).with_context(of)?;
        files::check_private(folder, &metadata, Owner::UsOrRoot).with_context(of)?;
        let is_writable = nix::unistd::access(folder, AccessFlags::W_OK).is_ok();
        let store = Self { folder: folder.into(), readers, is_writable };
        store.remove_old_drafts();
        Ok(store)
    }

    /// The artifact under `key`, if it is there and whole.
    pub(super) fn find(&self, key: &str) -> Option<StoredArtifact> {
        let entry = self.folder.join(key);
        match read_entry(&entry) {
            Ok(found) => {
                // For `remove_old_entries`: it was needed now. That it cannot be noted does no harm.
                let _ = File::open(entry.join(MANIFEST)).and_then(|file| file.set_modified(SystemTime::now()));
                Some(found)
            }
            Err(error) => {
                if entry.exists() {
                    tracing::debug!("not using the damaged entry {}: {error:#}", entry.display());
                }
                None
            }
        }
    }

    /// The component of this digest, from whichever entry has it.
    pub(super) fn component(&self, digest: &str) -> Option<Vec<u8>> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut named = entries.filter(|entry| read_manifest::<Named>(entry).is_ok_and(|(it, _)| it.digest == digest));
        named.find_map(|entry| {
            let bytes = file::read(&entry.join(COMPONENT)).ok()?;
            (sha256(&bytes) == *digest).then_some(bytes)
        })
    }

    /// Writes an entry, unless another compiler was first. The code that is handed on is what was compiled here, which
    /// nobody can have touched.
    pub(super) fn insert(
        &self,
        key: &str,
        manifest: Manifest,
        component: &[u8],
        native: &[u8],
    ) -> anyhow::Result<StoredArtifact> {
        let place = self.folder.join(key);
        // A full disk is no reason not to serve what was compiled.
        let written = self.is_writable.then(|| self.write(&place, &manifest, component, native)).transpose();
        let (entry, unkept) = match written {
            Ok(entry) => (entry, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let artifact = memfd::constant(c"wasmcluster-artifact", native)?;
        Ok(StoredArtifact { artifact, manifest, entry, unkept, place, cached: false })
    }

    /// Opens the entry that was written.
    fn write(&self, place: &Path, manifest: &Manifest, component: &[u8], native: &[u8]) -> anyhow::Result<OwnedFd> {
        let draft = self.draft()?;
        let manifest = serde_json::to_vec_pretty(manifest)?;
        for (name, bytes) in [(ARTIFACT, native), (COMPONENT, component), (MANIFEST, &manifest)] {
            write_synced(&draft.path().join(name), bytes, self.readers.of_files())?;
        }
        fs::set_permissions(draft.path(), fs::Permissions::from_mode(self.readers.of_folders()))?;
        let entry = File::open(draft.path().join(MANIFEST))?;
        entry.lock_shared()?;
        let is_taken =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists);
        let mut renamed = fs::rename(draft.path(), place);
        if renamed.as_ref().is_err_and(is_taken) && read_entry(place).is_err() {
            // It is damaged. That goes first: another compiler may be about to put a whole one there.
            fs::rename(place, self.draft()?.path().join("damaged"))?;
            renamed = fs::rename(draft.path(), place);
        }
        match renamed {
            Ok(()) => {
                // It has another name now: nothing is left to remove.
                let _ = draft.keep();
                File::open(&self.folder)?.sync_all()?;
                Ok(entry.into())
            }
            Err(error) if is_taken(&error) => Ok(read_manifest::<Named>(place)?.1.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn draft(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix(DRAFT).tempdir_in(&self.folder)
    }

    /// Removes the entries that were not needed for longest, when there are many. Never one that a primary holds open, or
    /// whose component is `pinned`.
    pub(super) fn remove_old_entries(&self, pinned: &[String]) {
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
        let (manifest, file) = read_manifest::<Named>(entry)?;
        ensure!(!pinned.contains(&manifest.digest), "a cluster may still resume its component");
        // Whoever may need it holds it open, with a shared lock; this one ends with the file.
        file.try_lock().context("it is in use")?;
        let draft = self.draft()?;
        fs::rename(entry, draft.path().join("old"))?;
        Ok(())
    }

    /// What compilers left behind that were killed.
    fn remove_old_drafts(&self) {
        if !self.is_writable {
            return;
        }
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

fn read_entry(entry: &Path) -> anyhow::Result<StoredArtifact> {
    let (manifest, open) = read_manifest::<Manifest>(entry)?;
    ensure!(manifest.schema == SCHEMA, "unknown schema {}", manifest.schema);
    ensure!(entry.join(COMPONENT).is_file(), "the component is missing");
    let mut hashing = Hashing { of: open_trusted(&entry.join(ARTIFACT))?, hasher: Sha256::new() };
    // What is looked at is the copy: the file may change while it is read.
    let artifact = memfd::constant(c"wasmcluster-artifact", &mut hashing)?;
    let digest = format!("sha256:{}", hex(&hashing.hasher.finalize()));
    ensure!(digest == manifest.artifact_digest, "the artifact was changed");
    Ok(StoredArtifact { manifest, artifact, entry: Some(open.into()), unkept: None, place: entry.into(), cached: true })
}

/// The manifest of an entry, and its open file with a shared lock.
fn read_manifest<M: DeserializeOwned>(entry: &Path) -> anyhow::Result<(M, File)> {
    let file = open_trusted(&entry.join(MANIFEST))?;
    // Whoever may read it can lock it, and must not be waited for.
    file.try_lock_shared().context("another process has locked it")?;
    let mut bytes = Vec::new();
    (&file).take(MAX_MANIFEST).read_to_end(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, file))
}

/// A file that is no link, and that nobody else can have written.
fn open_trusted(path: &Path) -> anyhow::Result<File> {
    let file = File::options().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "{} is not a file", path.display());
    files::check_private(path, &metadata, Owner::UsOrRoot)?;
    Ok(file)
}

/// Reads, and has a look at what is read.
struct Hashing<R> {
    of: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.of.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::component::engine;

    fn manifest(native: &[u8]) -> Manifest {
        Manifest {
            schema: SCHEMA,
            digest: sha256(b"component"),
            http: WasiHttp::V0_2,
            can_hold_back: false,
            snapshot: None,
            artifact_digest: sha256(native),
            source: "/app.wasm".into(),
        }
    }

    fn put(store: &Store, key: &str, native: &[u8]) -> StoredArtifact {
        store.insert(key, manifest(native), b"component", native).unwrap()
    }

    fn contents(found: StoredArtifact) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let file = File::from(found.artifact);
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn entries_are_kept_and_the_first_writer_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("new/store"), Readers::Owner).unwrap();
        assert!(store.find("key").is_none());
        assert_eq!(contents(put(&store, "key", b"native")), b"native");
        assert_eq!(contents(put(&store, "key", b"native")), b"native");
        assert_eq!(contents(store.find("key").unwrap()), b"native");
        assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn damaged_entries_are_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), Readers::Owner).unwrap();
        let damage: [fn(&Path); 4] = [
            |entry| fs::remove_file(entry.join(COMPONENT)).unwrap(),
            |entry| fs::write(entry.join(ARTIFACT), b"nativ").unwrap(),
            |entry| fs::write(entry.join(MANIFEST), b"{").unwrap(),
            |entry| fs::set_permissions(entry.join(ARTIFACT), fs::Permissions::from_mode(0o666)).unwrap(),
        ];
        for damage in damage {
            put(&store, "key", b"native");
            damage(&store.folder.join("key"));
            assert!(store.find("key").is_none());
            assert_eq!(contents(put(&store, "key", b"native")), b"native");
            assert_eq!(contents(store.find("key").unwrap()), b"native");
        }
        assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn the_component_is_found_whatever_its_code_was_made_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Readers::Owner).unwrap();
        put(&store, "another engine's", b"native");
        let entry = folder.path().join("another engine's");
        // Of a later version, of which only the digest is known.
        fs::write(entry.join(MANIFEST), format!("{{\"digest\":\"{}\"}}", sha256(b"component"))).unwrap();
        assert_eq!(store.component(&sha256(b"component")).unwrap(), b"component");
        assert!(store.component(&sha256(b"other")).is_none());
        fs::write(entry.join(COMPONENT), "changed").unwrap();
        assert!(store.component(&sha256(b"component")).is_none());
    }

    #[test]
    fn a_store_that_cannot_be_written_to_is_used_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Readers::Everybody).unwrap();
        put(&store, "key", b"native");
        // As for another user; the tests may be root's.
        let store = Store { is_writable: false, ..store };
        assert_eq!(contents(store.find("key").unwrap()), b"native");
        let unkept = put(&store, "new", b"other");
        assert!(unkept.entry.is_none() && !unkept.place.exists());
        assert_eq!(contents(unkept), b"other");
    }

    #[test]
    fn a_store_is_for_its_owner_unless_it_is_made_for_everybody() {
        for (readers, expected) in
            [(Readers::Owner, [0o700, 0o700, 0o600]), (Readers::Everybody, [0o755, 0o755, 0o644])]
        {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("store"), readers).unwrap();
            let entry = put(&store, "key", b"native").place;
            for name in [ARTIFACT, COMPONENT, MANIFEST] {
                let paths = [store.folder.clone(), entry.clone(), entry.join(name)];
                assert_eq!(paths.map(|path| fs::metadata(path).unwrap().mode() & 0o777), expected, "{name}");
            }
        }
    }

    #[test]
    fn old_entries_go_unless_they_are_in_use_or_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Readers::Owner).unwrap();
        let mut open = Vec::new();
        for number in 0..KEPT + 4 {
            let native = format!("native {number}");
            let manifest = Manifest { digest: format!("sha256:{number}"), ..manifest(native.as_bytes()) };
            let found = store.insert(&number.to_string(), manifest, b"component", native.as_bytes()).unwrap();
            let needed = SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64);
            File::open(store.folder.join(number.to_string()).join(MANIFEST)).unwrap().set_modified(needed).unwrap();
            // The second oldest is in use.
            open.extend((number == 1).then_some(found));
        }
        // The oldest of all was needed just now, and the third oldest is what some cluster served last.
        assert!(store.find("0").is_some());
        let is_there = |number: usize| store.folder.join(number.to_string()).exists();
        // A process that another test is about to start has all that is open here for a moment, locks included.
        let remove = |pinned: &[String], unwanted: [usize; 2]| {
            for _ in 0..1000 {
                store.remove_old_entries(pinned);
                if !unwanted.into_iter().any(is_there) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        remove(&["sha256:2".into()], [3, 4]);
        let gone: Vec<usize> = (0..KEPT + 4).filter(|&number| !is_there(number)).collect();
        assert_eq!(gone, [3, 4], "of the four that are too many, two must stay");
        assert_eq!(contents(open.remove(0)), b"native 1");
        remove(&[], [1, 2]);
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
        Store::open(folder.path(), Readers::Owner).unwrap();
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn a_store_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            format!("{:#}", Store::open(folder.path(), Readers::Owner).unwrap_err()).contains("other users can write")
        );
    }

    #[test]
    fn the_key_depends_on_component_and_engine() {
        let v2 = engine::for_compiler(WasiHttp::V0_2).unwrap();
        let v3 = engine::for_compiler(WasiHttp::V0_3).unwrap();
        assert_eq!(key("a", true, &v2), key("a", true, &engine::for_compiler(WasiHttp::V0_2).unwrap()));
        assert_ne!(key("a", true, &v2), key("b", true, &v2));
        assert_ne!(key("a", true, &v2), key("a", false, &v2));
        assert_ne!(key("a", true, &v2), key("a", true, &v3));
    }
}
