//! What was deployed: the generations that may still be needed, and what of them survives the primary.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::process::Deployment;
use crate::component::WasiHttp;
use crate::folders;
use crate::ids::Generation;
use crate::ipc::ToCompiler;

/// Versions that can be brought back, the one that is served included. Each keeps two descriptors open, and its native code
/// in memory.
const MAX_HISTORY: usize = 8;

/// The generations of a running cluster that have workers, may get some, or may be brought back.
#[derive(Debug)]
pub(super) struct Generations {
    known: BTreeMap<Generation, Known>,
    current: Generation,
    /// What a primary before this one served before its last version.
    remembered: Option<Version>,
    last: Generation,
}

#[derive(Debug)]
struct Known {
    deployment: Rc<Deployment>,
    before: Before,
    is_committed: bool,
    /// When this version, under whatever number, was first committed by this primary.
    since: Option<Instant>,
}

/// What a rollback from a generation leads to. One that was brought back has the past that it had the first time, so
/// that the next rollback goes on backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Kept(Generation),
    Remembered,
    Nothing,
}

/// Where a candidate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is new.
    Compiled,
    /// It is what this generation was.
    Kept(Generation),
    /// It was served by a primary before this one.
    Remembered,
}

impl Generations {
    pub(super) fn new(current: Generation, deployment: Deployment, remembered: Option<Version>) -> Self {
        let before = if remembered.is_some() { Before::Remembered } else { Before::Nothing };
        // Of one that is resumed, nobody knows.
        let since = (current == Generation(1)).then(Instant::now);
        let first = Known { deployment: Rc::new(deployment), before, is_committed: true, since };
        Self { known: BTreeMap::from([(current, first)]), current, remembered, last: current }
    }

    /// Takes in a candidate under a number that no generation had before.
    pub(super) fn add(&mut self, deployment: Rc<Deployment>, origin: Origin) -> Generation {
        let (before, since) = match origin {
            Origin::Compiled => (Before::Kept(self.current), None),
            Origin::Kept(kept) => self.known.get(&kept).map_or((Before::Nothing, None), |it| (it.before, it.since)),
            Origin::Remembered => (Before::Nothing, None),
        };
        self.last = Generation(self.last.0 + 1);
        self.known.insert(self.last, Known { deployment, before, is_committed: false, since });
        self.last
    }

    /// The candidate is what is served from now on.
    pub(super) fn commit(&mut self, candidate: Generation) {
        if let Some(known) = self.known.get_mut(&candidate) {
            known.is_committed = true;
            known.since.get_or_insert_with(Instant::now);
            self.current = candidate;
        }
        self.forget_others();
        while self.known.len() > MAX_HISTORY {
            self.known.pop_first();
        }
    }

    /// Forgets candidates that were not committed.
    pub(super) fn forget_others(&mut self) {
        self.known.retain(|_, known| known.is_committed);
    }

    pub(super) fn get(&self, generation: Generation) -> Option<&Rc<Deployment>> {
        Some(&self.known.get(&generation)?.deployment)
    }

    pub(super) fn current(&self) -> (Generation, &Rc<Deployment>) {
        (self.current, &self.known.get(&self.current).expect("the current generation is kept").deployment)
    }

    /// When what is served now was first served, if this primary knows.
    pub(super) fn served_since(&self) -> Option<Instant> {
        self.known.get(&self.current)?.since
    }

    /// What a rollback brings back, if this primary served it.
    pub(super) fn previous(&self) -> Option<(Generation, &Rc<Deployment>)> {
        match self.known.get(&self.current)?.before {
            Before::Kept(before) => Some((before, self.get(before)?)),
            Before::Remembered | Before::Nothing => None,
        }
    }

    /// What a rollback brings back, if it is only known from the primary before this one.
    pub(super) fn remembered(&self) -> Option<&Version> {
        self.remembered
            .as_ref()
            .filter(|_| self.known.get(&self.current).is_some_and(|it| it.before == Before::Remembered))
    }

    /// A generation to bring back, or why not.
    pub(super) fn committed(&self, generation: Generation) -> Result<&Rc<Deployment>, String> {
        if generation == self.current {
            return Err(format!("generation {generation} is what is served"));
        }
        self.known.get(&generation).filter(|known| known.is_committed).map(|known| &known.deployment).ok_or_else(|| {
            let others = self.known.iter().filter(|(number, known)| known.is_committed && **number != self.current);
            let others: Vec<String> = others
                .map(|(number, known)| {
                    let Deployment { source, compiled, .. } = &*known.deployment;
                    format!("{number} ({}, {})", source.display(), compiled.digest)
                })
                .collect();
            match others[..] {
                [] => format!("generation {generation} is not known, nor is any other but the one that is served"),
                _ => format!("generation {generation} is not known; those that are: {}", others.join(", ")),
            }
        })
    }
}

/// A component that was deployed, as far as it is needed to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// `sha256:` and 64 hexadecimal digits.
    digest: String,
    http: WasiHttp,
    /// Where it was read from.
    pub(super) source: PathBuf,
}

impl Version {
    fn of(deployment: &Deployment) -> Self {
        let Deployment { compiled, source, .. } = deployment;
        Self { digest: compiled.digest.clone(), http: compiled.http, source: source.clone() }
    }

    /// How to have it found in `store`.
    pub(super) fn find(&self, store: PathBuf) -> ToCompiler {
        ToCompiler::Find { digest: self.digest.clone(), http: self.http, source: self.source.clone(), store }
    }
}

/// What survives the primary: which generation was committed last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Committed {
    schema: u32,
    pub(super) generation: Generation,
    /// What `serve` was given, as an absolute path.
    pub(super) app: PathBuf,
    pub(super) current: Version,
    pub(super) previous: Option<Version>,
}

impl Committed {
    pub(super) fn of(generations: &Generations, app: PathBuf) -> Self {
        let (generation, deployment) = generations.current();
        let previous = generations.previous().map(|(_, deployment)| Version::of(deployment));
        let previous = previous.or_else(|| generations.remembered().cloned());
        Self { schema: SCHEMA, generation, app, current: Version::of(deployment), previous }
    }

    /// Written whole or not at all.
    pub(super) fn write(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        let of = || format!("state folder {} (choose another with --state-dir)", folder.display());
        folders::prepare_state(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(of)?;
        file.write_all(&serde_json::to_vec_pretty(self)?).with_context(of)?;
        file.as_file().sync_all().with_context(of)?;
        file.persist(path(folder, name)).map_err(|error| error.error).with_context(of)?;
        File::open(folder)?.sync_all().with_context(of)
    }

    /// What the cluster `name` committed last; `None` if it never did.
    pub(super) fn read(folder: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        let path = path(folder, name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Self::parse(&file).map(Some).with_context(|| format!("{}: remove it to start anew", path.display()))
    }

    /// What is run next is in the file: it must be ours.
    fn parse(file: &File) -> anyhow::Result<Self> {
        let metadata = file.metadata()?;
        ensure!(folders::is_private(&metadata), "it must belong to you and be writable by nobody else");
        ensure!(metadata.is_file() && metadata.len() <= MAX_FILE, "it is no file of ours");
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        // Read first: another schema may have other fields.
        let Written { schema } = serde_json::from_slice(&bytes).context("it is damaged")?;
        ensure!(schema == SCHEMA, "it was written by another version of wasmcluster (schema {schema}, not {SCHEMA})");
        serde_json::from_slice(&bytes).context("it is damaged")
    }
}

/// Of a file's fields, the one that says how to read the others.
#[derive(Deserialize)]
struct Written {
    schema: u32,
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// Components that some cluster with this state folder may want to start again, by digest.
pub(super) fn pinned(folder: Option<&Path>) -> Vec<String> {
    let files = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let files = files.take(MAX_PINNED).filter(|file| {
        let is_ours = file.path().extension().is_some_and(|extension| extension == "json");
        is_ours && file.metadata().is_ok_and(|metadata| metadata.is_file())
    });
    let committed = files.filter_map(|file| Committed::parse(&File::open(file.path()).ok()?).ok());
    committed
        .flat_map(|committed| [Some(committed.current), committed.previous])
        .flatten()
        .map(|it| it.digest)
        .collect()
}

/// How the file is to be read.
const SCHEMA: u32 = 1;
/// Far more clusters than one user has on a machine.
const MAX_PINNED: usize = 256;
/// Largest file that can be one of ours, in bytes.
const MAX_FILE: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(generation: u64, previous: Option<&str>) -> Committed {
        let version = |digest: String| Version { digest, http: WasiHttp::V0_2, source: "/app.wasm".into() };
        Committed {
            schema: 1,
            generation: Generation(generation),
            app: "/app.wasm".into(),
            current: version(format!("sha256:{generation}")),
            previous: previous.map(|digest| version(digest.into())),
        }
    }

    fn deploy(generations: &mut Generations, origin: Origin) -> Generation {
        let deployment = match origin {
            Origin::Kept(kept) => generations.get(kept).unwrap().clone(),
            _ => Rc::new(Deployment::of_nothing("sha256:new")),
        };
        generations.add(deployment, origin)
    }

    fn commit(generations: &mut Generations, origin: Origin) {
        let candidate = deploy(generations, origin);
        generations.commit(candidate);
    }

    fn previous(generations: &Generations) -> Option<u64> {
        generations.previous().map(|(previous, _)| previous.0)
    }

    #[test]
    fn what_was_brought_back_has_the_past_that_it_had() {
        let first = Deployment::of_nothing("sha256:1");
        let remembered = Version { digest: "sha256:0".into(), http: WasiHttp::V0_2, source: "/old.wasm".into() };
        let mut generations = Generations::new(Generation(1), first, Some(remembered));
        commit(&mut generations, Origin::Compiled);
        commit(&mut generations, Origin::Compiled);
        assert_eq!(previous(&generations), Some(2));
        // One that was not committed leaves no trace.
        deploy(&mut generations, Origin::Compiled);
        generations.forget_others();
        assert!(generations.committed(Generation(4)).unwrap_err().contains("not known; those that are: 1 ("));
        commit(&mut generations, Origin::Kept(Generation(2)));
        assert_eq!((generations.current().0, previous(&generations)), (Generation(5), Some(1)));
        commit(&mut generations, Origin::Kept(Generation(1)));
        assert!(previous(&generations).is_none() && generations.remembered().is_some());
        commit(&mut generations, Origin::Remembered);
        assert!(previous(&generations).is_none() && generations.remembered().is_none());
        // A new version comes after what is served, and everything before it can be reached by name.
        commit(&mut generations, Origin::Compiled);
        assert_eq!(previous(&generations), Some(7));
        assert!(generations.committed(Generation(3)).is_ok());
    }

    #[test]
    fn history_is_bounded() {
        let mut generations = Generations::new(Generation(1), Deployment::of_nothing("sha256:1"), None);
        for _ in 0..100 {
            commit(&mut generations, Origin::Compiled);
            assert!(generations.known.len() <= MAX_HISTORY);
        }
        for _ in 0..100 {
            let Some(before) = previous(&generations) else { return };
            commit(&mut generations, Origin::Kept(Generation(before)));
        }
        panic!("the history has an end");
    }

    #[test]
    fn what_was_committed_is_read_again_and_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        assert_eq!(Committed::read(&folder, "default").unwrap(), None);
        assert!(pinned(Some(&folder)).is_empty());
        for state in [committed(1, None), committed(2, Some("sha256:1"))] {
            state.write(&folder, "default").unwrap();
            assert_eq!(Committed::read(&folder, "default").unwrap(), Some(state));
        }
        committed(7, None).write(&folder, "other").unwrap();
        let mut digests = pinned(Some(&folder));
        digests.sort();
        assert_eq!(digests, ["sha256:1", "sha256:2", "sha256:7"]);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("default.json"), "{").unwrap();
        let error = Committed::read(folder.path(), "default").unwrap_err();
        assert!(format!("{error:#}").contains("remove it"), "{error:#}");
        assert!(pinned(Some(folder.path())).is_empty());
    }

    #[test]
    fn a_file_of_another_schema_or_of_others_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let check = |part: &str| {
            let error = Committed::read(folder.path(), "default").unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
            assert!(pinned(Some(folder.path())).is_empty());
        };
        let mut state = committed(1, None);
        state.schema = 2;
        state.write(folder.path(), "default").unwrap();
        check("schema 2, not 1");
        fs::write(folder.path().join("default.json"), "{\"schema\":2,\"other\":true}").unwrap();
        check("schema 2, not 1");
        committed(1, None).write(folder.path(), "default").unwrap();
        fs::set_permissions(folder.path().join("default.json"), fs::Permissions::from_mode(0o666)).unwrap();
        check("writable by nobody else");
    }
}
