//! `--set-secret`: values for guests that are read from a file or a variable, and shown to nobody else.
//!
//! What is said is where a secret is, never the secret. It is read when a generation is made, and again when one is brought
//! back: whoever changes a password does not get the old one with an old version.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::values::check_key;
use crate::os::files;

const FORM: &str = "write db-password=file:/run/secrets/db, db-password=env:DB_PASSWORD or \
                    db-password=credential:db-password";
/// Bytes of a secret.
const MAX_SECRET: u64 = 256 * 1024;
/// Files in a folder of secrets.
const MAX_FILES: usize = 256;
/// Where systemd puts the credentials of a service.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What nobody is to see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Secret(String);

impl Secret {
    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// What the file says, without the line break at its end.
    pub(super) fn in_file(path: &Path) -> anyhow::Result<Self> {
        let text = String::from_utf8(files::contents(path, MAX_SECRET)?);
        let text = text.map_err(|_| anyhow!("it is not UTF-8"))?;
        Ok(Self(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// One `--set-secret KEY=SOURCE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretPlace {
    pub(super) key: String,
    source: SecretSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SecretSource {
    /// Or a folder: each file in it is a secret.
    File(PathBuf),
    Variable(String),
    /// A file of that name among the credentials that systemd hands over.
    Credential(String),
}

impl FromStr for SecretPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Not shown: it may be the secret itself.
        let (key, source) = text.split_once('=').ok_or_else(|| format!("expected KEY=SOURCE; {FORM}"))?;
        Self::new(key, source)
    }
}

/// Without what is wrong with it, which may be the secret itself.
impl<'de> Deserialize<'de> for SecretPlace {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl SecretPlace {
    fn new(key: &str, source: &str) -> Result<Self, String> {
        check_key(key)?;
        let is_plain = |name: &str| !name.is_empty() && !name.contains(['/', '\0', '=']) && !name.starts_with('.');
        let source = match source.split_once(':') {
            Some(("file", path)) if !path.is_empty() && !path.contains('\0') => SecretSource::File(path.into()),
            Some(("env", name)) if is_plain(name) => SecretSource::Variable(name.into()),
            Some(("credential", name)) if is_plain(name) => SecretSource::Credential(name.into()),
            _ => return Err(format!("the secret {key:?} has no source that is known; {FORM}")),
        };
        Ok(Self { key: key.into(), source })
    }

    /// What is there now: one secret, or those of a folder.
    fn read(&self) -> anyhow::Result<Vec<(String, Secret)>> {
        match &self.source {
            SecretSource::Variable(name) => {
                // The error of a variable that is not Unicode would show it.
                let value = std::env::var_os(name).with_context(|| format!("the variable {name} is not set"))?;
                let value = value.into_string().map_err(|_| anyhow!("the variable {name} is not UTF-8"))?;
                Ok(vec![(self.key.clone(), Secret(value))])
            }
            SecretSource::File(path) => self.read_path(path),
            SecretSource::Credential(name) => {
                let folder = std::env::var_os(CREDENTIALS).with_context(|| {
                    format!("${CREDENTIALS} is not set; systemd sets it for a service with LoadCredential=")
                })?;
                self.read_path(&Path::new(&folder).join(name))
            }
        }
    }

    fn read_path(&self, path: &Path) -> anyhow::Result<Vec<(String, Secret)>> {
        let read = |path: &Path| Secret::in_file(path).with_context(|| format!("cannot read {}", path.display()));
        if !path.is_dir() {
            return Ok(vec![(self.key.clone(), read(path)?)]);
        }
        // What its links lead to may be replaced at any moment: all of them are read from one version.
        let version = path.join("..data").canonicalize();
        let path = version.as_deref().unwrap_or(path);
        let mut secrets = Vec::new();
        for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
            let name = entry?.file_name().into_string().map_err(|_| anyhow!("a file's name is not UTF-8"))?;
            let file = path.join(&name);
            // Kubernetes keeps what its links lead to in folders whose names begin with a dot.
            if name.starts_with('.') || file.is_dir() {
                continue;
            }
            let key = format!("{}.{name}", self.key);
            check_key(&key).map_err(anyhow::Error::msg)?;
            secrets.push((key, read(&file)?));
            ensure!(secrets.len() <= MAX_FILES, "{} has more than {MAX_FILES} files", path.display());
        }
        Ok(secrets)
    }

    pub(super) fn variable(&self) -> Option<&str> {
        match &self.source {
            SecretSource::Variable(name) => Some(name),
            SecretSource::File(_) | SecretSource::Credential(_) => None,
        }
    }

    /// What is to be said of a file that others can read.
    pub(super) fn doubt(&self) -> Option<String> {
        match &self.source {
            SecretSource::File(path) if path.is_file() => files::exposed(path, "secret"),
            _ => None,
        }
    }
}

/// Reads all of them. An error names the secret, and shows none.
pub(super) fn read(places: &[SecretPlace]) -> anyhow::Result<BTreeMap<String, Secret>> {
    let mut secrets = BTreeMap::new();
    for place in places {
        for (key, secret) in place.read().with_context(|| format!("the secret {}", place.key))? {
            if secrets.insert(key.clone(), secret).is_some() {
                bail!("there are two secrets {key}");
            }
        }
    }
    Ok(secrets)
}

/// The table of the file.
pub(super) fn table<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<SecretPlace>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(from)?;
    let places = table.iter().map(|(key, source)| SecretPlace::new(key, source));
    places.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn place(text: &str) -> SecretPlace {
        text.parse().unwrap()
    }

    fn shown(places: &[SecretPlace]) -> Vec<(String, String)> {
        read(places).unwrap().into_iter().map(|(key, secret)| (key, secret.reveal().to_owned())).collect()
    }

    #[test]
    fn secrets_come_from_files_folders_and_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "first\r\n").unwrap();
        // As Kubernetes mounts them.
        fs::create_dir(path("..2030_01_01")).unwrap();
        fs::create_dir(path("mounted")).unwrap();
        fs::write(path("..2030_01_01").join("user"), "ada").unwrap();
        fs::write(path("..2030_01_01").join("password"), " two words \n").unwrap();
        symlink(path("..2030_01_01"), path("mounted").join("..data")).unwrap();
        for name in ["user", "password"] {
            symlink(format!("..data/{name}"), path("mounted").join(name)).unwrap();
        }
        let places = [
            place(&format!("a={}", format_args!("file:{}", path("one").display()))),
            place(&format!("db=file:{}", path("mounted").display())),
            place("home=env:PATH"),
        ];
        let variable = std::env::var("PATH").unwrap();
        let expected = [("a", "first"), ("db.password", " two words "), ("db.user", "ada"), ("home", &*variable)];
        assert_eq!(shown(&places), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let debug = format!("{:?}", read(&places).unwrap());
        assert!(debug.contains("\"a\": Secret") && !debug.contains("first"), "{debug}");
    }

    #[test]
    fn an_error_names_the_secret_and_shows_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bytes");
        fs::write(&file, b"\xff hush").unwrap();
        let at = |path: &Path| place(&format!("db=file:{}", path.display()));
        for (places, said) in [
            (&[at(&file)][..], "it is not UTF-8"),
            (&[at(&folder.path().join("none"))], "No such file"),
            (&[place("db=file:/dev/null")], "it is not a file"),
            (&[place("db=env:NO_SUCH_VARIABLE")], "NO_SUCH_VARIABLE is not set"),
            (&[place("db=env:PATH"), place("db=env:PATH")], "there are two secrets db"),
        ] {
            let error = format!("{:#}", read(places).unwrap_err());
            assert!(error.contains(said) && error.contains("db") && !error.contains("hush"), "{error}");
        }
        for (text, said) in [
            ("hush", "expected KEY=SOURCE"),
            ("=file:/x", "the key is empty"),
            ("db=hush", "has no source that is known"),
            ("db=file:", "has no source that is known"),
            ("db=credential:../x", "has no source that is known"),
            ("wasmcluster.x=env:A", "the server's own"),
        ] {
            let error = text.parse::<SecretPlace>().unwrap_err();
            assert!(error.contains(said) && !error.contains("hush"), "{text}: {error}");
        }
    }
}
