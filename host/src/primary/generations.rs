//! What was deployed: the generations that may still be needed, and what of them survives the primary.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::process::Deployment;
use crate::component::WasiHttp;
use crate::folders;
use crate::ids::Generation;
use crate::ipc::ToCompiler;

/// The generations of a running cluster that have workers, or may get some.
#[derive(Debug)]
pub(super) struct Generations {
    deployments: BTreeMap<Generation, Rc<Deployment>>,
    current: Generation,
    previous: Option<Generation>,
    /// The previous version of a primary before this one, as long as there is none of this one's.
    remembered: Option<Version>,
    last: Generation,
}

impl Generations {
    pub(super) fn new(current: Generation, deployment: Deployment, remembered: Option<Version>) -> Self {
        let deployments = BTreeMap::from([(current, Rc::new(deployment))]);
        Self { deployments, current, previous: None, remembered, last: current }
    }

    /// Takes in a candidate under a number that no generation had before.
    pub(super) fn add(&mut self, deployment: Rc<Deployment>) -> Generation {
        self.last = Generation(self.last.0 + 1);
        self.deployments.insert(self.last, deployment);
        self.last
    }

    /// The candidate is what is served from now on.
    pub(super) fn commit(&mut self, candidate: Generation) {
        self.previous = Some(self.current);
        self.remembered = None;
        self.current = candidate;
        self.forget_others();
    }

    /// Forgets what no worker will be started of any more.
    pub(super) fn forget_others(&mut self) {
        let kept = [Some(self.current), self.previous];
        self.deployments.retain(|generation, _| kept.contains(&Some(*generation)));
    }

    pub(super) fn get(&self, generation: Generation) -> Option<&Rc<Deployment>> {
        self.deployments.get(&generation)
    }

    pub(super) fn current(&self) -> (Generation, &Rc<Deployment>) {
        (self.current, self.deployments.get(&self.current).expect("the current generation is kept"))
    }

    pub(super) fn previous(&self) -> Option<(Generation, &Rc<Deployment>)> {
        self.previous.and_then(|previous| Some((previous, self.deployments.get(&previous)?)))
    }

    /// The previous version, if it is only known from the primary before this one.
    pub(super) fn remembered(&self) -> Option<&Version> {
        self.remembered.as_ref()
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
