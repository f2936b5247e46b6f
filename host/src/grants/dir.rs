//! Folders that guests may open: the value of `--dir`.
//!
//! Only the text is looked at: whether the folder exists, and that guests stay inside, is for those who open it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const FORM: &str = "write ./data::/data, or ./data::/data:ro for read-only access";

/// One `--dir HOST::GUEST[:ro]`.
///
/// The last `::` divides: folders of the host have the names that they have, while those of guests are free to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DirGrant {
    /// As written: relative to wherever the text came from.
    pub(crate) host: PathBuf,
    /// Absolute and normalised: `/`, or `/` and a name, repeated.
    pub(crate) guest: String,
    pub(crate) access: Access,
}

/// What guests may do in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

impl FromStr for DirGrant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, rest) = text.rsplit_once("::").ok_or_else(|| format!("expected HOST::GUEST; {FORM}"))?;
        let (guest, access) = match rest.strip_suffix(":ro") {
            Some(guest) => (guest, Access::ReadOnly),
            None => (rest, Access::ReadWrite),
        };
        if host.is_empty() || host.contains('\0') {
            return Err(format!("the host's folder is missing or contains a NUL; {FORM}"));
        }
        check_guest(guest)?;
        Ok(Self { host: host.into(), guest: guest.into(), access })
    }
}

/// Guests find a folder by the text of its path, so each has one spelling.
fn check_guest(path: &str) -> Result<(), String> {
    let Some(names) = path.strip_prefix('/') else {
        return Err(format!("the guest's path must begin with /; {FORM}"));
    };
    let wrong = |name: &str| matches!(name, "" | "." | "..") || name.contains('\0');
    if !names.is_empty() && names.split('/').any(wrong) {
        return Err("the guest's path must not contain . or .., a double or trailing /, or a NUL".into());
    }
    // A slip like `:RO` must not become part of a name, and the folder open for writing.
    match names.rsplit('/').next().and_then(|last| last.split_once(':')) {
        Some((_, option)) => Err(format!("unknown option {option:?}: the only one is :ro; {FORM}")),
        None => Ok(()),
    }
}

/// Refuses two folders at the same path of the guest, where one would hide the other.
pub(crate) fn check_dirs(dirs: &[DirGrant]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match dirs.iter().find(|dir| !seen.insert(&dir.guest)) {
        Some(dir) => Err(format!("--dir {dir}: another folder is already at {}", dir.guest)),
        None => Ok(()),
    }
}

impl fmt::Display for DirGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.access {
            Access::ReadWrite => "",
            Access::ReadOnly => ":ro",
        };
        write!(f, "{}::{}{suffix}", self.host.display(), self.guest)
    }
}

impl TryFrom<String> for DirGrant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DirGrant> for String {
    fn from(dir: DirGrant) -> Self {
        dir.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Access::{ReadOnly, ReadWrite};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folders_parse_and_come_back() {
        let check = |text: &str, host: &str, guest: &str, access: Access| {
            let dir = DirGrant { host: host.into(), guest: guest.into(), access };
            assert_eq!(text.parse().as_ref(), Ok(&dir), "{text}");
            assert_eq!(dir.to_string(), text);
            let json = serde_json::to_string(&dir).unwrap();
            assert_eq!(serde_json::from_str::<DirGrant>(&json).unwrap(), dir, "{json}");
        };
        check("./data::/data", "./data", "/data", ReadWrite);
        check("/srv/static::/static:ro", "/srv/static", "/static", ReadOnly);
        check(".::/", ".", "/", ReadWrite);
        check(".::/:ro", ".", "/", ReadOnly);
        check("C:x::/a/b", "C:x", "/a/b", ReadWrite);
        check("a::b::/c", "a::b", "/c", ReadWrite);
        check("a::/b::/c", "a::/b", "/c", ReadWrite);
        check("a:::/c", "a:", "/c", ReadWrite);
        check("a:ro::/c", "a:ro", "/c", ReadWrite);
        check("a::/x:y/c", "a", "/x:y/c", ReadWrite);
        check("a::/...", "a", "/...", ReadWrite);
    }

    #[test]
    fn what_is_refused_says_why() {
        let check = |text: &str, message: &str| {
            let error = text.parse::<DirGrant>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        };
        for text in ["", "data", "./data:/data", "/srv:ro"] {
            check(text, "expected HOST::GUEST; write ./data::/data");
        }
        for text in ["::/data", "a\0b::/data"] {
            check(text, "the host's folder is missing");
        }
        for text in ["a::", "a::data", "a::./data", "a:: /data", "a::/data::ro", "a:::ro"] {
            check(text, "must begin with /");
        }
        for text in ["a:://", "a::/b/", "a::/b//c", "a::/.", "a::/b/../c", "a::/..:ro", "a::/b/:ro", "a::/b\0"] {
            check(text, "must not contain");
        }
        for text in ["a::/b:RO", "a::/b:rw", "a::/b:readonly", "a::/b:ro:ro", "a::/b:ro ", "a::/b:"] {
            check(text, "unknown option");
        }
    }

    #[test]
    fn a_path_of_the_guest_is_given_once() {
        let check = |texts: &[&str], message: Option<&str>| {
            let dirs: Vec<DirGrant> = texts.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(check_dirs(&dirs).err().as_deref(), message);
        };
        check(&[], None);
        check(&["a::/x", "a::/y", "b::/x/y"], None);
        check(&["a::/x", "b::/y", "c::/x:ro"], Some("--dir c::/x:ro: another folder is already at /x"));
    }

    proptest! {
        #[test]
        fn whatever_parses_comes_back(text in "[a:./]{1,8}::[a:./]{0,8}(:ro)?") {
            if let Ok(dir) = text.parse::<DirGrant>() {
                prop_assert_eq!(dir.to_string(), text);
            }
        }
    }
}
