//! What is served: a component in a file, a folder that it is built from, or a component in a registry.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};
use oci_client::Reference;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::os::files;

/// What the names of components in registries begin with.
const SCHEME: &str = "oci://";
/// Hexadecimal digits of a digest that people are shown.
const SHOWN_DIGITS: usize = 12;

/// What the argument APP names, and where a version came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum App {
    /// A file, or a folder.
    Path(PathBuf),
    Image(ImageName),
}

impl App {
    /// None if it is in a registry.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Image(_) => None,
        }
    }

    pub(crate) fn image(&self) -> Option<&ImageName> {
        match self {
            Self::Path(_) => None,
            Self::Image(image) => Some(image),
        }
    }

    /// The folder that it is to be built from.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.path().filter(|path| path.is_dir())
    }

    /// The same for a process in another folder.
    pub(crate) fn absolute(&self) -> io::Result<Self> {
        match self {
            Self::Path(path) => Ok(Self::Path(files::absolute(path)?)),
            Self::Image(_) => Ok(self.clone()),
        }
    }

    /// Whether both name the same, also by different paths.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(one), Self::Path(other)) => files::is_same(one, other),
            _ => self == other,
        }
    }

    /// For people, with the beginning of the manifest's digest if it is known and not said.
    pub(crate) fn with_manifest(&self, manifest: Option<&str>) -> String {
        match (self, manifest) {
            (Self::Image(image), Some(digest)) if image.digest().is_none() => {
                let end = digest.find(':').map_or(0, |colon| colon + 1) + SHOWN_DIGITS;
                format!("{image}@{}", digest.get(..end).unwrap_or(digest))
            }
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Image(image) => image.fmt(f),
        }
    }
}

impl From<PathBuf> for App {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&str> for App {
    /// Of a path; names in registries may be wrong.
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

impl TryFrom<OsString> for App {
    type Error = String;

    fn try_from(text: OsString) -> Result<Self, String> {
        match text.to_str().filter(|text| text.starts_with(SCHEME)) {
            Some(name) => name.parse().map(Self::Image),
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl ValueParserFactory for App {
    type Parser = clap::builder::ValueParser;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().try_map(Self::try_from).into()
    }
}

/// As one string: a path, or `oci://…`.
impl Serialize for App {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Path(path) => path.serialize(serializer),
            Self::Image(image) => image.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for App {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::try_from(OsString::from(text)).map_err(de::Error::custom)
    }
}

/// The name of a component in a registry: `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`, tag `latest` if there is
/// neither tag nor digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName(Reference);

impl ImageName {
    pub(crate) fn reference(&self) -> &Reference {
        &self.0
    }

    /// The host, with its port if it has one.
    pub(crate) fn host(&self) -> &str {
        self.0.registry()
    }

    /// Of the manifest, if the name pins it.
    pub(crate) fn digest(&self) -> Option<&str> {
        self.0.digest()
    }

    /// The same, pinned.
    pub(crate) fn pinned(&self, digest: &str) -> Self {
        let (host, repository) = (self.0.registry().to_owned(), self.0.repository().to_owned());
        Self(match self.0.tag() {
            Some(tag) => Reference::with_tag_and_digest(host, repository, tag.into(), digest.into()),
            None => Reference::with_digest(host, repository, digest.into()),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.0)
    }
}

impl Serialize for ImageName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "expected oci://HOST/REPOSITORY:TAG, as in oci://ghcr.io/acme/shop:1.2";
        let name = text.strip_prefix(SCHEME).ok_or(form)?;
        // What has no host means a file of ours to one tool and Docker Hub to another.
        let host = name.split_once('/').map(|(host, _)| host);
        if !host.is_some_and(|host| host.contains(['.', ':']) || host == "localhost") {
            return Err(format!("it names no host; {form}"));
        }
        let reference = Reference::from_str(name).map_err(|error| format!("{error}; {form}"))?;
        match reference.digest() {
            Some(digest) if !is_sha256(digest) => {
                Err("a digest is sha256: and 64 lower-case hexadecimal digits".into())
            }
            _ => Ok(Self(reference)),
        }
    }
}

fn is_sha256(digest: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    digest.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.chars().all(is_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(text: &str) -> Result<App, String> {
        App::try_from(OsString::from(text))
    }

    #[test]
    fn what_is_served_is_a_path_or_the_name_of_an_image() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (given, shown) in [
            ("oci://ghcr.io/acme/shop:1.2", "oci://ghcr.io/acme/shop:1.2".to_owned()),
            ("oci://localhost:5000/shop", "oci://localhost:5000/shop:latest".to_owned()),
            ("oci://localhost/a/b/c:x", "oci://localhost/a/b/c:x".to_owned()),
            (&format!("oci://ghcr.io/shop:1@{digest}"), format!("oci://ghcr.io/shop:1@{digest}")),
            (&format!("oci://ghcr.io/shop@{digest}"), format!("oci://ghcr.io/shop@{digest}")),
        ] {
            let app = app(given).unwrap();
            assert_eq!(app.to_string(), shown);
            assert!(app.image().is_some() && app.path().is_none());
            let json = serde_json::to_string(&app).unwrap();
            assert_eq!(serde_json::from_str::<App>(&json).unwrap(), app);
        }
        for path in ["app.wasm", "oci:/x", "oci", "/srv/oci://x"] {
            assert_eq!(app(path).unwrap().path(), Some(Path::new(path)));
        }
    }

    #[test]
    fn names_of_images_that_may_mean_something_else_are_refused() {
        for (wrong, why) in [
            ("oci://", "no host"),
            ("oci://shop:1.2", "no host"),
            ("oci://acme/shop", "no host"),
            ("oci://ghcr.io/Acme/shop", "expected"),
            ("oci://ghcr.io/shop:", "expected"),
            ("oci://ghcr.io/shop@sha256:ab", "expected"),
            ("oci://user:password@ghcr.io/shop", "expected"),
            ("oci://ghcr.io/", "expected"),
            (&format!("oci://ghcr.io/shop@sha256:{}", "AB".repeat(32)), "lower-case"),
            (&format!("oci://ghcr.io/shop@sha512:{}", "ab".repeat(64)), "sha256"),
        ] {
            let error = app(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn people_are_shown_which_manifest_a_tag_was() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let tagged = app("oci://ghcr.io/shop:1").unwrap();
        assert_eq!(tagged.with_manifest(Some(&digest)), "oci://ghcr.io/shop:1@sha256:abababababab");
        assert_eq!(tagged.with_manifest(None), "oci://ghcr.io/shop:1");
        let pinned = App::Image(tagged.image().unwrap().pinned(&digest));
        assert_eq!(pinned.with_manifest(Some(&digest)), format!("oci://ghcr.io/shop:1@{digest}"));
    }
}
