//! Key-value stores that guests may open: the value of `--kv`.
//!
//! Only the text is looked at: whether there is such a store is for those who open it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::{Host, parse_digits, parse_port, split_port};

const FORM: &str = "write sessions=file:./sessions, sessions=redis://127.0.0.1:6379/0, or sessions=memory: for a store \
                    of each worker's own";
/// Bytes of a store's name.
const MAX_NAME: usize = 64;
const REDIS_PORT: u16 = 6379;

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
    Redis(RedisPlace),
    /// In the memory of each worker, as long as that lives.
    Memory,
}

/// A database of a Redis or Valkey, or the keys of one that begin alike.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RedisPlace {
    pub(crate) server: RedisServer,
    pub(crate) user: Option<String>,
    /// Never shown.
    pub(crate) password: Option<String>,
    /// What the password is read from.
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) db: u32,
    /// What all keys begin with there, and guests do not see.
    pub(crate) prefix: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RedisServer {
    Tcp { host: Host, port: u16, tls: bool },
    Unix(PathBuf),
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
            "redis" | "rediss" => RedisPlace::tcp(rest, scheme == "rediss").map(Self::Redis),
            "unix" => RedisPlace::unix(rest).map(Self::Redis),
            "memory" if rest.is_empty() => Ok(Self::Memory),
            "memory" => Err("memory: has nothing behind it".into()),
            _ => Err(format!(
                "{scheme}: is no kind of store; there are file:, redis:, rediss:, unix: and memory:; {FORM}"
            )),
        }
    }
}

impl RedisPlace {
    pub(crate) fn has_password(&self) -> bool {
        self.password.is_some() || self.password_file.is_some()
    }

    fn at(server: RedisServer) -> Self {
        Self { server, user: None, password: None, password_file: None, db: 0, prefix: String::new() }
    }

    /// `//[[USER]:PASSWORD@]HOST[:PORT][/DB][?prefix=PREFIX]`, as the registration of the scheme with IANA has it.
    fn tcp(rest: &str, tls: bool) -> Result<Self, String> {
        let rest = rest.strip_prefix("//").ok_or("expected // before the server; write redis://127.0.0.1:6379/0")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, address) = authority.rsplit_once('@').map_or((None, authority), |(login, at)| (Some(login), at));
        let (host, port) = split_port(address)?;
        let port = port.map_or(Ok(REDIS_PORT), parse_port)?;
        let mut place = Self::at(RedisServer::Tcp { host: Host::parse(host)?, port, tls });
        if let Some(login) = login {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            place.user = Some(decoded(user)?).filter(|user| !user.is_empty());
            place.password = Some(decoded(password)?).filter(|password| !password.is_empty());
        }
        if !path.is_empty() {
            place.db = parse_digits(path).ok_or("what follows the server is the number of a database, as in /0")?;
        }
        place.query(query, &["prefix", "password-file"])
    }

    /// `PATH[?db=DB&user=USER&password=PASSWORD&prefix=PREFIX]`
    fn unix(rest: &str) -> Result<Self, String> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.is_empty() || path.contains('\0') {
            return Err("the path of the server's socket is missing; write unix:/run/redis/redis.sock".into());
        }
        Self::at(RedisServer::Unix(path.into())).query(query, &["prefix", "password-file", "db", "user", "password"])
    }

    fn query(mut self, query: &str, known: &[&str]) -> Result<Self, String> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&key) {
                // Not which: it may be part of a password.
                return Err(format!("what follows ? is {}; escape a ? in a password as %3F", known.join("=…, ")));
            }
            let value = decoded(value)?;
            match key {
                "db" => self.db = parse_digits(&value).ok_or("db is the number of a database")?,
                "user" => self.user = Some(value),
                "password" => self.password = Some(value),
                "password-file" => self.password_file = Some(value.into()),
                _ => self.prefix = value,
            }
        }
        if self.password.is_some() && self.password_file.is_some() {
            return Err("the password is given twice".into());
        }
        if self.user.is_some() && self.password.is_none() && self.password_file.is_none() {
            return Err("a user needs a password; write redis://USER:PASSWORD@HOST, or add ?password-file=PATH".into());
        }
        Ok(self)
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "what is escaped with % must be UTF-8")?;
    Ok(decoded.into_owned())
}

impl TryFrom<String> for StoreGrant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Redis(place) => place.fmt(f),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

/// Without what nobody is to see.
impl fmt::Display for RedisPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            RedisServer::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                match host {
                    Host::Name(name) => write!(f, "{scheme}://{name}:{port}/{}", self.db),
                    Host::Address(address) => {
                        write!(f, "{scheme}://{}/{}", std::net::SocketAddr::new(*address, *port), self.db)
                    }
                }
            }
            RedisServer::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisPlace").field(&self.to_string()).field(&self.prefix).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> StorePlace {
        let grant: StoreGrant = format!("a={text}").parse().unwrap();
        assert_eq!(grant.name, "a");
        grant.place
    }

    #[test]
    fn stores_are_named_and_have_a_place() {
        assert_eq!(place("file:/srv/a"), StorePlace::File("/srv/a".into()));
        assert_eq!(place("file:///srv/a"), StorePlace::File("/srv/a".into()));
        assert_eq!(place("file:./x=y:z"), StorePlace::File("./x=y:z".into()));
        assert_eq!(place("memory:"), StorePlace::Memory);
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
            ("a=redis:x", "expected //"),
            ("a=redis://", "host is missing"),
            ("a=redis://x:0", "1 to 65535"),
            ("a=redis://x/a", "number of a database"),
            ("a=redis://user@x", "needs a password"),
            ("a=unix:/x?user=app", "needs a password"),
            ("a=redis://x?db=1", "what follows ? is prefix="),
            ("a=redis://:p@x?password-file=/p", "given twice"),
            ("a=redis://:%ff@x", "UTF-8"),
            ("a=unix:", "is missing"),
            ("a=unix:/x?db=a", "number of a database"),
        ] {
            let error = text.parse::<StoreGrant>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn servers_are_read_and_their_passwords_never_shown() {
        let redis = |text: &str| match place(text) {
            StorePlace::Redis(place) => place,
            other => panic!("{other:?}"),
        };
        let full = redis("rediss://ada:p%40ss%3a@Redis.example:7000/3?prefix=app%3A");
        let host = Host::Name("redis.example".into());
        assert_eq!(full.server, RedisServer::Tcp { host, port: 7000, tls: true });
        assert_eq!((full.user.as_deref(), full.password.as_deref()), (Some("ada"), Some("p@ss:")));
        assert_eq!((full.db, full.prefix.as_str()), (3, "app:"));
        for shown in [format!("{full:?}"), full.to_string(), format!("{:?}", StorePlace::Redis(full.clone()))] {
            assert!(shown.contains("rediss://redis.example:7000/3") && !shown.contains("p@ss"), "{shown}");
        }
        assert_eq!(redis("redis://:secret@[::1]").to_string(), "redis://[::1]:6379/0");
        assert_eq!(redis("redis://:secret@[::1]").user, None);
        let both = redis("redis://ada@x?password-file=/p");
        assert_eq!((both.user.as_deref(), both.password_file), (Some("ada"), Some("/p".into())));
        let unix = redis("unix:/run/r.sock?db=2&password=x");
        assert_eq!((unix.server, unix.db), (RedisServer::Unix("/run/r.sock".into()), 2));
    }
}
