//! What is served: a component in a file, a folder that it is built from, or a component in a registry.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::os::files;

/// What the names of components in registries begin with.
const SCHEME: &str = "oci://";
/// The tag of what has no other.
const USUAL_TAG: &str = "latest";
/// Whose registry answers under another name.
const DOCKER_HUB: &str = "docker.io";
/// Characters that tell one digest from another for a person: `sha256:` and twelve digits.
const SHOWN_OF_DIGEST: usize = 19;

/// A digest as people are shown it.
pub(crate) fn short_digest(digest: &str) -> &str {
    digest.get(..SHOWN_OF_DIGEST).unwrap_or(digest)
}

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
                format!("{image}@{}", short_digest(digest))
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
pub(crate) struct ImageName {
    /// In lower case, with its port if it has one.
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageName {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Who speaks for the host.
    pub(crate) fn real_host(&self) -> &str {
        if self.host == DOCKER_HUB { "registry-1.docker.io" } else { &self.host }
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    pub(crate) fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(USUAL_TAG)
    }

    /// Of the manifest, if the name pins it.
    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same, pinned.
    pub(crate) fn pinned(&self, digest: &str) -> Self {
        Self { digest: Some(digest.into()), ..self.clone() }
    }

    /// Whether both are versions of the same.
    pub(crate) fn is_sibling(&self, other: &Self) -> bool {
        (&self.host, &self.repository) == (&other.host, &other.repository)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
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
        const FORM: &str = "expected oci://HOST/REPOSITORY:TAG, as in oci://ghcr.io/acme/shop:1.2";
        let name = text.strip_prefix(SCHEME).ok_or(FORM)?;
        let (host, path) = name.split_once('/').unwrap_or(("", name));
        // What has no host means a file of ours to one tool and Docker Hub to another.
        if !looks_like_host(host) {
            return Err(format!("it names no host; {FORM}"));
        }
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => (path, Some(digest)),
            None => (path, None),
        };
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_host(host) || !is_repository(repository) || !tag.is_none_or(is_tag) {
            return Err(FORM.into());
        }
        if !digest.is_none_or(is_sha256) {
            return Err("a digest is sha256: and 64 lower-case hexadecimal digits".into());
        }
        let host = host.to_ascii_lowercase();
        // Docker's own images are known by one word.
        let is_short = host == DOCKER_HUB && !repository.contains('/');
        let repository = if is_short { format!("library/{repository}") } else { repository.into() };
        let tag = tag.or(digest.is_none().then_some(USUAL_TAG)).map(str::to_owned);
        Ok(Self { host, repository, tag, digest: digest.map(str::to_owned) })
    }
}

fn looks_like_host(host: &str) -> bool {
    host.contains(['.', ':']) || host.eq_ignore_ascii_case("localhost")
}

/// Whether somebody may have meant the name of an image, and not a file.
pub(crate) fn looks_like_image(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_other_case = text.get(..SCHEME.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(SCHEME));
    let host = text.split_once('/').map(|(host, _)| host);
    is_other_case || host.is_some_and(|host| !host.starts_with('.') && looks_like_host(host))
}

/// A name or an address, with its port if it has one.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_address = || {
        name.strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .is_some_and(|name| name.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
        && (name.split('.').all(is_label) || is_address())
}

/// Words of lower case, digits and single separators, between slashes.
fn is_repository(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_word = |word: &str| {
        let ends = word.starts_with(is_plain) && word.ends_with(is_plain);
        ends && word.chars().all(|c| is_plain(c) || matches!(c, '.' | '_' | '-')) && !word.contains("..")
    };
    text.len() <= 255 && text.split('/').all(is_word)
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(is_word) && text.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

/// Whether it is a digest of the one kind that is known here.
pub(crate) fn is_sha256(digest: &str) -> bool {
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
            ("oci://GHCR.io/a_b/c-d:X_1.2-3", "oci://ghcr.io/a_b/c-d:X_1.2-3".to_owned()),
            ("oci://[::1]:5000/shop:1", "oci://[::1]:5000/shop:1".to_owned()),
            ("oci://docker.io/shop:1", "oci://docker.io/library/shop:1".to_owned()),
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
            ("oci://ghcr.io/shop@sha256:ab", "64"),
            ("oci://ghcr.io/shop:1:2", "expected"),
            ("oci://ghcr.io//shop", "expected"),
            ("oci://ghcr.io/a/../b", "expected"),
            ("oci://ghcr.io:0/shop", "expected"),
            ("oci://ghcr.io:port/shop", "expected"),
            ("oci://ghcr.io/shop?x", "expected"),
            ("oci://-x.io/shop", "expected"),
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
    fn a_name_that_was_meant_for_a_registry_is_recognised() {
        for (path, is_image) in [
            ("ghcr.io/acme/shop:1", true),
            ("OCI://ghcr.io/acme/shop:1", true),
            ("localhost/shop", true),
            ("app.wasm", false),
            ("./app.wasm", false),
            ("../a/b.wasm", false),
            ("/srv/a.b/c", false),
            ("target/app.wasm", false),
        ] {
            assert_eq!(looks_like_image(Path::new(path)), is_image, "{path}");
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
