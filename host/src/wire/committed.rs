//! What survives the primary: which version was committed last under a name, in a file of the state folder.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::os::files::{self, Owner};
use crate::settings::{App, Changes, paths};
use crate::wire::ids::Generation;
use crate::wire::version::Version;

/// How the file is to be read.
const SCHEMA: u32 = 1;
/// Far more clusters than one user has on a machine.
const MAX_PINNED: usize = 256;
/// Largest file that can be one of ours, in bytes.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// What survives the primary: which generation was committed last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    schema: u32,
    pub(crate) generation: Generation,
    /// What `serve` was given; a path is absolute.
    pub(crate) app: App,
    pub(crate) current: Version,
    pub(crate) previous: Option<Version>,
    /// What `config set` changed since the start.
    #[serde(default)]
    pub(crate) config: Changes,
}

impl Committed {
    pub(crate) fn new(
        generation: Generation,
        app: App,
        current: Version,
        previous: Option<Version>,
        config: Changes,
    ) -> Self {
        Self { schema: SCHEMA, generation, app, current, previous, config }
    }

    /// SchemaOnly whole or not at all.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        let of = || format!("state folder {} (choose another with --state-dir)", folder.display());
        paths::prepare_state(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(of)?;
        file.write_all(&serde_json::to_vec_pretty(self)?).with_context(of)?;
        file.as_file().sync_all().with_context(of)?;
        file.persist(path(folder, name)).map_err(|error| error.error).with_context(of)?;
        File::open(folder)?.sync_all().with_context(of)
    }

    /// What the cluster `name` committed last; `None` if it never did.
    pub(crate) fn read(folder: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        let path = path(folder, name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Self::parse(&path, &file)
            .map(Some)
            .map_err(|error| anyhow!("{}: {error:#}; remove it to start anew", path.display()))
    }

    /// What is run next is in the file: it must be ours.
    fn parse(path: &Path, file: &File) -> anyhow::Result<Self> {
        let metadata = file.metadata()?;
        files::check_private(path, &metadata, Owner::Us)?;
        ensure!(metadata.is_file() && metadata.len() <= MAX_FILE, "it was not written by wasmcluster");
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        // Read first: another schema may have other fields.
        let SchemaOnly { schema } = serde_json::from_slice(&bytes).context("it is damaged")?;
        ensure!(schema == SCHEMA, "it was written by another version of wasmcluster (schema {schema}, not {SCHEMA})");
        serde_json::from_slice(&bytes).context("it is damaged")
    }
}

/// Of a file's fields, the one that says how to read the others.
#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// Components that some cluster with this state folder may want to start again, by digest.
pub(crate) fn pinned(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.take(MAX_PINNED).filter(|file| {
        let is_ours = file.path().extension().is_some_and(|extension| extension == "json");
        is_ours && file.metadata().is_ok_and(|metadata| metadata.is_file())
    });
    let open = |file: &fs::DirEntry| {
        // Without waiting, should it be a pipe by now.
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file.path()).ok()
    };
    let committed = files.filter_map(|file| Committed::parse(&file.path(), &open(&file)?).ok());
    committed
        .flat_map(|committed| [Some(committed.current), committed.previous])
        .flatten()
        .map(|it| it.digest)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::version::WasiHttp;

    fn committed(generation: u64, previous: Option<&str>) -> Committed {
        let version =
            |digest: String| Version { digest, http: WasiHttp::V0_2, source: "/app.wasm".into(), manifest: None };
        Committed {
            schema: 1,
            generation: Generation(generation),
            app: "/app.wasm".into(),
            current: version(format!("sha256:{generation}")),
            previous: previous.map(|digest| version(digest.into())),
            config: Changes::from([("key".into(), Some("value".into())), ("gone".into(), None)]),
        }
    }

    #[test]
    fn what_was_committed_is_read_again_and_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        assert_eq!(Committed::read(&folder, "default").unwrap(), None);
        assert!(pinned(&folder).is_empty());
        for state in [committed(1, None), committed(2, Some("sha256:1"))] {
            state.write(&folder, "default").unwrap();
            assert_eq!(Committed::read(&folder, "default").unwrap(), Some(state));
        }
        committed(7, None).write(&folder, "other").unwrap();
        let mut digests = pinned(&folder);
        digests.sort();
        assert_eq!(digests, ["sha256:1", "sha256:2", "sha256:7"]);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("default.json"), "{").unwrap();
        let error = Committed::read(folder.path(), "default").unwrap_err();
        assert!(format!("{error:#}").contains("remove it"), "{error:#}");
        assert!(pinned(folder.path()).is_empty());
    }

    #[test]
    fn a_file_of_another_schema_or_of_others_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let check = |part: &str| {
            let error = Committed::read(folder.path(), "default").unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
            assert!(pinned(folder.path()).is_empty());
        };
        let mut state = committed(1, None);
        state.schema = 2;
        state.write(folder.path(), "default").unwrap();
        check("schema 2, not 1");
        fs::write(folder.path().join("default.json"), "{\"schema\":2,\"other\":true}").unwrap();
        check("schema 2, not 1");
        committed(1, None).write(folder.path(), "default").unwrap();
        fs::set_permissions(folder.path().join("default.json"), fs::Permissions::from_mode(0o666)).unwrap();
        check("other users can write to");
    }
}
