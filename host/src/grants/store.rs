//! Key-value stores that guests may open: the value of `--kv`.
//!
//! Only the text is looked at: whether there is such a store is for those who open it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const FORM: &str = "write sessions=file:./sessions, or sessions=memory: for a store of each worker's own";
/// Bytes of a name.
const MAX_NAME: usize = 64;

/// One `--kv NAME=URL`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct StoreGrant {
    /// By which guests open it.
    pub(crate) name: String,
    pub(crate) place: StorePlace,
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StorePlace {
    /// A folder that it has for itself, as written: relative to wherever the text came from.
    File(PathBuf),
    /// In the memory of each worker, as long as that lives.
    Memory,
}

impl FromStr for StoreGrant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or_else(|| format!("expected NAME=URL; {FORM}"))?;
        let in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(in_name) {
            return Err(format!("a store's name has 1 to {MAX_NAME} letters, digits, '-', '_' or '.'; {FORM}"));
        }
        Ok(Self { name: name.into(), place: url.parse()? })
    }
}

impl FromStr for StorePlace {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once(':').ok_or_else(|| format!("expected NAME=URL; {FORM}"))?;
        match scheme {
            "file" => {
                // As URLs are written, of which the path follows an authority that is empty.
                let path = rest.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(rest);
                if path.is_empty() || path.starts_with("//") || path.contains('\0') {
                    return Err(format!("the path of the store's folder is missing, or names another machine; {FORM}"));
                }
                Ok(Self::File(path.into()))
            }
            "memory" if rest.is_empty() => Ok(Self::Memory),
            "memory" => Err("memory: has nothing behind it".into()),
            _ => Err(format!("{scheme}: is no kind of store; there are file: and memory:; {FORM}")),
        }
    }
}

impl TryFrom<String> for StoreGrant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StoreGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.place)
    }
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_named_and_have_a_place() {
        let check = |text: &str, name: &str, place: StorePlace| {
            let grant: StoreGrant = text.parse().unwrap();
            assert_eq!(grant, StoreGrant { name: name.into(), place }, "{text}");
            assert_eq!(grant.to_string().parse(), Ok(grant));
        };
        check("a=file:/srv/a", "a", StorePlace::File("/srv/a".into()));
        check("a=file:///srv/a", "a", StorePlace::File("/srv/a".into()));
        check("a.b-c_1=file:./x=y:z", "a.b-c_1", StorePlace::File("./x=y:z".into()));
        check("m=memory:", "m", StorePlace::Memory);
        for (text, message) in [
            ("", "NAME=URL"),
            ("a", "NAME=URL"),
            ("a=", "NAME=URL"),
            ("a=x", "NAME=URL"),
            ("=file:/x", "name has"),
            ("a/b=file:/x", "name has"),
            ("a=file:", "is missing"),
            ("a=file://host/x", "another machine"),
            ("a=memory:x", "nothing behind it"),
            ("a=s3://x", "no kind of store"),
        ] {
            let error = text.parse::<StoreGrant>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
