//! What this machine knows of names: `/etc/hosts`, and in `/etc/resolv.conf` whom to ask for all others. Both are read again
//! when they have changed, which is looked at when a name is looked up.
//!
//! Both are read where the executor runs: they are small, and nearly always there. Tokio's threads for files may all be
//! waiting for a folder that was granted to a guest and has hung.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::finding::Finding;
use super::name_servers::NameServers;
use super::{AddressSource, order};
use crate::logging::one_line;

/// How often it is looked at whether the files have changed, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a file that is read.
const MAX_FILE: u64 = 1024 * 1024;

type StaticNames = HashMap<String, Vec<IpAddr>>;

pub(crate) struct SystemNames(Mutex<Known>);

struct Known {
    looked_at: Option<Instant>,
    hosts: SystemFile,
    resolv_conf: SystemFile,
    names: Arc<StaticNames>,
    name_servers: Arc<NameServers>,
}

impl Default for SystemNames {
    fn default() -> Self {
        Self::new(Path::new("/etc/hosts"), Path::new("/etc/resolv.conf"))
    }
}

impl SystemNames {
    fn new(hosts: &Path, resolv_conf: &Path) -> Self {
        let file = |path: &Path| SystemFile { path: path.to_owned(), seen: None };
        Self(Mutex::new(Known {
            looked_at: None,
            hosts: file(hosts),
            resolv_conf: file(resolv_conf),
            names: Arc::default(),
            name_servers: Arc::default(),
        }))
    }

    fn known<T>(&self, get: impl FnOnce(&mut Known) -> T) -> T {
        get(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AddressSource for SystemNames {
    fn has_changed(&self) -> bool {
        self.known(Known::look)
    }

    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let names = self.known(|known| known.names.clone());
        let of_hosts = names.get(name);
        if name != "localhost" && !name.ends_with(".localhost") {
            return of_hosts.map(|addresses| order::sorted(addresses.iter().copied()));
        }
        // Loopback, whoever says otherwise (RFC 6761, section 6.3), but the one that the machine's owner chose.
        let chosen: Vec<_> = of_hosts.into_iter().flatten().copied().filter(IpAddr::is_loopback).collect();
        let any = || vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        Some(if chosen.is_empty() { any() } else { order::sorted(chosen) })
    }

    fn ask(&self, name: &str) -> impl Future<Output = Finding> + Send + 'static {
        let (name_servers, name) = (self.known(|known| known.name_servers.clone()), name.to_owned());
        async move { name_servers.look_up(&name).await }
    }
}

impl Known {
    /// Whether what is known is other than before.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        if self.looked_at.is_some_and(|at| now < at + LOOK_EVERY) {
            return false;
        }
        self.looked_at = Some(now);
        let names = self.hosts.changed(|text| Ok(static_names(text)));
        let name_servers = self.resolv_conf.changed(NameServers::parse);
        let has_changed = names.is_some() || name_servers.is_some();
        self.names = names.map_or_else(|| self.names.clone(), Arc::new);
        self.name_servers = name_servers.map_or_else(|| self.name_servers.clone(), Arc::new);
        has_changed
    }
}

/// Names of a file of hosts: a line has an address, and names for it.
fn static_names(text: &str) -> StaticNames {
    let mut names = StaticNames::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        for name in words {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            names.entry(name).or_default().push(address);
        }
    }
    names
}

struct SystemFile {
    path: PathBuf,
    /// As it was when it was last read, also if it could not be used then.
    seen: Option<Option<FileState>>,
}

/// What differs when a file was written or replaced.
#[derive(PartialEq, Eq)]
struct FileState {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl SystemFile {
    /// What it says now, if it was written since it was last read, and can be used. A file that is not there says nothing.
    fn changed<T>(&mut self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let stamp = self.stamp();
        if self.seen.as_ref() == Some(&stamp) {
            return None;
        }
        let is_there = stamp.is_some();
        self.seen = Some(stamp);
        let text = if is_there { self.read() } else { Ok(String::new()) };
        match text.map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                let (path, reason) = (self.path.display(), one_line(&reason));
                tracing::warn!(
                    "cannot use {path}, so guests' requests go by what it said before: {reason}; correct it, and it is \
                     read again"
                );
                None
            }
        }
    }

    fn stamp(&self) -> Option<FileState> {
        let of = std::fs::metadata(&self.path).ok()?;
        Some(FileState {
            file: (of.dev(), of.ino()),
            bytes: of.len(),
            modified: (of.mtime(), of.mtime_nsec()),
            changed: (of.ctime(), of.ctime_nsec()),
        })
    }

    fn read(&self) -> io::Result<String> {
        // To open anything else may wait for ever.
        if !std::fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&self.path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[test]
    fn hosts_are_read_as_they_are_written() {
        let names = static_names(
            "# 192.0.2.9 comment\n192.0.2.1\tA.example  b # c\n2001:db8::1 a.example.\nfe80::1%eth0 d\nwrong e\n\n192.0.2.2",
        );
        assert_eq!(names["a.example"], ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        let mut all: Vec<_> = names.keys().collect();
        all.sort();
        assert_eq!(all, ["a.example", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_read_again_when_they_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (hosts, resolv_conf) = (folder.path().join("hosts"), folder.path().join("resolv.conf"));
        let system = SystemNames::new(&hosts, &resolv_conf);
        let servers = || system.known(|known| known.name_servers.clone()).addresses();
        assert!(system.has_changed());
        assert_eq!(servers(), ["127.0.0.1:53".parse().unwrap()], "as the C library does without the file");
        std::fs::write(&hosts, "192.0.2.1 here").unwrap();
        std::fs::write(&resolv_conf, "nameserver 192.0.2.53").unwrap();
        assert!(!system.has_changed(), "it looked a moment ago");
        advance(LOOK_EVERY).await;
        assert!(system.has_changed());
        assert_eq!(system.addresses("here"), Some(vec!["192.0.2.1".parse().unwrap()]));
        advance(LOOK_EVERY).await;
        assert!(!system.has_changed());
        for broken in ["nameserver 192.0.2.\n".to_owned(), "#".repeat(MAX_FILE as usize + 1)] {
            std::fs::write(&resolv_conf, broken).unwrap();
            advance(LOOK_EVERY).await;
            assert!(!system.has_changed());
            assert_eq!(servers(), ["192.0.2.53:53".parse().unwrap()], "what could be used last");
        }
        // Replaced as by an editor.
        std::fs::write(folder.path().join("new"), "nameserver 192.0.2.54").unwrap();
        std::fs::rename(folder.path().join("new"), &resolv_conf).unwrap();
        advance(LOOK_EVERY).await;
        assert!(system.has_changed());
        assert_eq!(servers(), ["192.0.2.54:53".parse().unwrap()]);
    }

    #[test]
    fn localhost_is_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        let of = |text: &str, name: &str| {
            std::fs::write(&hosts, text).unwrap();
            let system = SystemNames::new(&hosts, &folder.path().join("none"));
            system.known(Known::look);
            system.addresses(name)
        };
        let (four, six) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        assert_eq!(of("", "localhost"), Some(vec![six, four]));
        assert_eq!(of("", "a.localhost"), Some(vec![six, four]));
        assert_eq!(of("127.0.0.1 localhost", "localhost"), Some(vec![four]));
        assert_eq!(of("192.0.2.1 localhost", "localhost"), Some(vec![six, four]), "whoever says otherwise");
        assert_eq!(of("", "mylocalhost"), None);
    }
}
