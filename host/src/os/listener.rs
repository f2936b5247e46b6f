//! Where a cluster listens: parsing `--listen`, binding, and what to say when it fails.
//!
//! The primary binds once and keeps the sockets for life; workers get duplicates and block in `accept`. A listening
//! socket therefore stays in blocking mode (the flag is shared by all duplicates) and has a receive timeout, set before
//! anybody blocks on it, that lets a blocked `accept` return now and then.

mod passed;
mod unix;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::os::files::Inode;
use crate::os::service_manager::take_passed_sockets;
use unix::UnixAddr;

/// How long a blocked `accept` waits before it returns to see whether it is still wanted.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a connection that wait in the kernel and are not sent yet, from which on it takes no more. Without a bound
/// these are megabytes, of which the kernel lets a third drain before it takes any: a client that reads slowly would
/// look like one that does not read.
const MAX_UNSENT: u32 = 128 * 1024;

/// Listening sockets of a cluster; each takes a descriptor beside a worker's first frame, and a thread in each worker.
pub(crate) const MAX_LISTENERS: usize = 32;
/// How often another port is picked when the first address of a name had one free that the next has not.
const MAX_PORTS: usize = 16;

/// All sockets that the service manager passed on. Those of a name are `systemd:NAME`.
pub(crate) const PASSED: &str = "systemd";

/// What stands in front of an address where clients speak TLS.
const HTTPS: &str = "https://";

/// What clients of a listener speak below HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Security {
    Clear,
    Tls,
}

/// What a connection of a listener begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entrance {
    pub(crate) security: Security,
    /// Before anything else, a proxy says who its client is, by the PROXY protocol.
    pub(crate) takes_proxy: bool,
}

/// One `--listen`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ListenAddr {
    /// As it was written.
    text: String,
    pub(crate) entrance: Entrance,
    endpoint: Endpoint,
}

/// What is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    /// `HOST:PORT`; resolved when it is bound.
    Tcp(String),
    Unix(UnixAddr),
    /// Sockets that the service manager passed on, all or those of a name.
    Passed(Option<String>),
}

/// The option of an address whose clients begin with the PROXY protocol.
const PROXY_PROTOCOL: &str = "proxy-protocol";

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, options) =
            text.split_once('?').map_or((text, None), |(address, options)| (address, Some(options)));
        let mut options: Vec<&str> = options.into_iter().flat_map(|options| options.split('&')).collect();
        let given = options.len();
        options.retain(|option| *option != PROXY_PROTOCOL);
        let takes_proxy = match given - options.len() {
            0 => false,
            1 => true,
            _ => return Err(format!("'{PROXY_PROTOCOL}' is given twice")),
        };
        let (security, endpoint) = match address.strip_prefix("unix:") {
            Some(path) => (Security::Clear, Endpoint::Unix(UnixAddr::parse(path, &options)?)),
            None => {
                let (security, endpoint) = parse_network(address)?;
                if let Some(option) = options.first() {
                    return Err(format!(
                        "'{option}' is not an option here; the only one is {PROXY_PROTOCOL}: write {address}?{PROXY_PROTOCOL}"
                    ));
                }
                (security, endpoint)
            }
        };
        Ok(Self { text: text.into(), entrance: Entrance { security, takes_proxy }, endpoint })
    }
}

/// `HOST:PORT` or what was passed on, or that behind `https://`.
fn parse_network(text: &str) -> Result<(Security, Endpoint), String> {
    let form =
        || format!("expected HOST:PORT, [IPV6]:PORT, https://HOST:PORT, unix:PATH or systemd:NAME{}", hint(text));
    let (security, address) =
        text.strip_prefix(HTTPS).map_or((Security::Clear, text), |address| (Security::Tls, address));
    if address == PASSED {
        return Ok((security, Endpoint::Passed(None)));
    }
    let (host, port) = address.rsplit_once(':').ok_or_else(form)?;
    if host == PASSED && !port.is_empty() {
        return Ok((security, Endpoint::Passed(Some(port.into()))));
    }
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains('/') || (host.contains(':') && !bracketed) {
        return Err(form());
    }
    port.parse::<u16>().map_err(|_| format!("'{port}' is not a port (0 to 65535); {}", form()))?;
    Ok((security, Endpoint::Tcp(address.into())))
}

/// What to write instead of something that is nearly an address.
fn hint(text: &str) -> String {
    let port = text.trim_start_matches(':');
    let authority = text.split_once("://").map(|(_, rest)| rest.trim_end_matches('/'));
    let scheme = if text.starts_with(HTTPS) { HTTPS } else { "" };
    if port.parse::<u16>().is_ok() {
        format!("; write 127.0.0.1:{port}, or 0.0.0.0:{port} to be reached from other machines")
    } else if let Some(authority) = authority.filter(|it| !it.contains("://") && it.parse::<ListenAddr>().is_ok()) {
        format!("; write {scheme}{authority}")
    } else if let Some((host, port)) = text.rsplit_once(':')
        && host.parse::<std::net::Ipv6Addr>().is_ok()
    {
        format!("; write [{host}]:{port}")
    } else if text.starts_with('/') {
        format!("; write unix:{text}")
    } else {
        String::new()
    }
}

impl TryFrom<String> for ListenAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("cannot listen on {0}: the address is in use. Stop the other server, or choose another with --listen")]
    InUse(ListenAddr),
    #[error("cannot listen on {0}: this cluster already listens there, on {1}. Leave one of the two out")]
    Twice(ListenAddr, String),
    #[error(
        "cannot listen on {address}: systemd has passed on {}. Start the socket unit, not its service alone; \
         systemd:NAME is the socket with FileDescriptorName=NAME",
        listed(.names)
    )]
    NotPassed { address: ListenAddr, names: Vec<String> },
    #[error("cannot take the sockets that were passed on: {0}")]
    Passed(io::Error),
    #[error("cannot listen on {0} addresses; the limit is {MAX_LISTENERS}")]
    TooMany(usize),
    #[error(
        "cannot listen on {0}: permission denied. Ports below 1024 need a privilege: choose a higher port with \
         --listen, or grant it once with: sudo setcap cap_net_bind_service=+ep \"$(command -v wasmcluster)\""
    )]
    Privileged(ListenAddr),
    #[error("cannot listen on {0}: {1}")]
    Other(ListenAddr, io::Error),
}

/// Names of sockets.
fn listed(names: &[String]) -> String {
    if names.is_empty() { "no sockets".into() } else { format!("only {}", names.join(", ")) }
}

impl BindError {
    fn new(address: &ListenAddr, error: io::Error) -> Self {
        match (error.kind(), &address.endpoint) {
            (io::ErrorKind::AddrInUse, _) => Self::InUse(address.clone()),
            (io::ErrorKind::PermissionDenied, Endpoint::Tcp(_)) => Self::Privileged(address.clone()),
            _ => Self::Other(address.clone(), error),
        }
    }
}

/// A bound and listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    entrance: Entrance,
    /// What a client would be told: `http://HOST:PORT`, `https://HOST:PORT`, or `unix:PATH`.
    url: String,
    /// Removed on drop, if it is still that file.
    socket_file: Option<(PathBuf, Inode)>,
}

impl Listener {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn entrance(&self) -> Entrance {
        self.entrance
    }

    fn address(&self) -> Option<SocketAddr> {
        SockRef::from(&self.socket).local_addr().ok()?.as_socket()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.socket_file
            && Inode::at(path) == Some(*inode)
        {
            // Nothing can be done when it is gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A `--listen` with the addresses that its name has.
#[derive(Debug)]
pub(crate) struct Binding {
    address: ListenAddr,
    /// Of a Unix socket, none. Whether `[::]` leaves IPv4 to another listener is told beside each.
    sockets: Vec<(SocketAddr, OnlyV6)>,
    /// Those that were passed on for it, by name.
    passed: Vec<(String, OwnedFd)>,
}

type OnlyV6 = bool;

/// Looks up the names, and finds the sockets that were passed on.
pub(crate) fn resolve(addresses: &[ListenAddr]) -> Result<Vec<Binding>, BindError> {
    let mut all_passed = take_passed_sockets().map_err(BindError::Passed)?;
    let names: Vec<String> = all_passed.iter().map(|(name, _)| name.clone()).collect();
    let mut bindings = Vec::new();
    for address in addresses {
        let (mut sockets, mut passed) = (Vec::new(), Vec::new());
        match &address.endpoint {
            Endpoint::Tcp(text) => {
                let found = text.to_socket_addrs().map_err(|error| BindError::new(address, error))?;
                let mut seen = BTreeSet::new();
                sockets.extend(found.filter(|socket| seen.insert(*socket)).map(|socket| (socket, false)));
                if sockets.is_empty() {
                    let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                    return Err(BindError::new(address, error));
                }
            }
            Endpoint::Unix(_) => {}
            Endpoint::Passed(name) => {
                let is_meant = |(of, _): &mut (String, OwnedFd)| name.as_ref().is_none_or(|name| name == of);
                passed.extend(all_passed.extract_if(.., is_meant));
                if passed.is_empty() {
                    return Err(BindError::NotPassed { address: address.clone(), names });
                }
            }
        }
        bindings.push(Binding { address: address.clone(), sockets, passed });
    }
    if let Some((name, _)) = all_passed.first() {
        tracing::warn!("systemd has passed on the socket {name}, which no --listen takes; add --listen systemd:{name}");
    }
    let count = bindings.iter().map(|binding| (binding.sockets.len() + binding.passed.len()).max(1)).sum();
    if count > MAX_LISTENERS {
        return Err(BindError::TooMany(count));
    }
    // Ports that an IPv4 socket of ours has; `[::]` would take them as well.
    let all = bindings.iter().flat_map(|binding| &binding.sockets);
    let taken: BTreeSet<u16> = all.filter(|(it, _)| it.is_ipv4()).map(|(it, _)| it.port()).collect();
    for binding in &mut bindings {
        let has_v4 = binding.sockets.iter().any(|(socket, _)| socket.is_ipv4());
        for (socket, leaves) in &mut binding.sockets {
            *leaves = match socket.port() {
                0 => has_v4,
                port => taken.contains(&port),
            };
        }
    }
    Ok(bindings)
}

impl Binding {
    /// Binds all of its addresses and listens, beside those that this cluster has `already`.
    pub(crate) fn bind(&mut self, already: &[Listener], backlog: i32) -> Result<Vec<Listener>, BindError> {
        let entrance = self.address.entrance;
        let bound = match &self.address.endpoint {
            Endpoint::Tcp(_) => self.bind_tcp(backlog),
            Endpoint::Unix(address) => unix::bind(address, entrance, backlog).map(|listener| vec![listener]),
            Endpoint::Passed(_) => {
                self.passed.drain(..).map(|(name, socket)| passed::adopt(&name, socket, entrance)).collect()
            }
        };
        bound.map_err(|error| match self.held_by(already) {
            Some(other) if error.kind() == io::ErrorKind::AddrInUse => {
                BindError::Twice(self.address.clone(), other.url.clone())
            }
            _ => BindError::new(&self.address, error),
        })
    }

    /// The listener of this cluster that has one of these addresses.
    fn held_by<'a>(&self, already: &'a [Listener]) -> Option<&'a Listener> {
        already.iter().find(|listener| match (&self.address.endpoint, listener.address()) {
            (Endpoint::Tcp(_), Some(other)) => self.sockets.iter().any(|(socket, _)| overlap(socket, &other)),
            (Endpoint::Unix(UnixAddr { path, .. }), None) => {
                // However the path is spelled.
                listener.socket_file.as_ref().is_some_and(|&(_, inode)| Inode::at(path) == Some(inode))
            }
            _ => false,
        })
    }

    /// With port 0, all have the same.
    fn bind_tcp(&self, backlog: i32) -> io::Result<Vec<Listener>> {
        let mut tries = 1;
        loop {
            match self.bind_each(backlog) {
                // Another process has the port that was picked, on another of the addresses.
                Err(error) if self.picks_a_port() && error.kind() == io::ErrorKind::AddrInUse && tries < MAX_PORTS => {
                    tries += 1;
                }
                bound => return bound,
            }
        }
    }

    fn picks_a_port(&self) -> bool {
        self.sockets.len() > 1 && self.sockets[0].0.port() == 0
    }

    /// A name may have addresses that this machine has not, `::1` without IPv6 above all: these are left out.
    fn bind_each(&self, backlog: i32) -> io::Result<Vec<Listener>> {
        let mut bound: Vec<Listener> = Vec::new();
        let mut missing = None;
        for &(mut socket, only_v6) in &self.sockets {
            if let Some(first) = bound.first().and_then(Listener::address) {
                socket.set_port(first.port());
            }
            match bind_socket(socket, self.address.entrance, only_v6, backlog) {
                Ok(listener) => bound.push(listener),
                Err(error) if is_missing(&error) => missing = missing.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(error) if bound.is_empty() => Err(error),
            _ => Ok(bound),
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

/// Whether two sockets cannot listen at the same time; `[::]` may have IPv4 too.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let covers = |one: &SocketAddr, other: &SocketAddr| {
        one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4()) || one.ip() == other.ip()
    };
    one.port() == other.port() && (covers(one, other) || covers(other, one))
}

fn bind_socket(address: SocketAddr, entrance: Entrance, only_v6: OnlyV6, backlog: i32) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Inherited by every connection: an answer that comes in pieces must not wait for the client's acknowledgements.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(MAX_UNSENT)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    listen(SockRef::from(&socket), backlog)?;
    let url = url_of(&socket.local_addr()?, entrance);
    Ok(Listener { socket: socket.into(), entrance, url, socket_file: None })
}

/// What a client would be told.
fn url_of(address: &SockAddr, entrance: Entrance) -> String {
    let scheme = if entrance.security == Security::Tls { "https" } else { "http" };
    match (address.as_socket(), address.as_pathname()) {
        (Some(address), _) => format!("{scheme}://{address}"),
        (None, Some(path)) => format!("unix:{}", path.display()),
        (None, None) => "unix:".into(),
    }
}

fn listen(socket: SockRef<'_>, backlog: i32) -> io::Result<()> {
    socket.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
    socket.listen(backlog)
}

/// Removes a socket file that was left behind. Whatever else has that name is not ours to remove.
pub(crate) fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file exists there and is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Who has the socket that a file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Nobody listens any more: the file is a leftover.
    Nobody,
    Listener,
    /// It takes datagrams, not connections.
    AnotherKind,
}

/// Asked without waiting: a listener whose queue is full would keep us.
pub(crate) fn behind(path: &Path) -> Behind {
    let connected = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    });
    match connected {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Behind::Nobody,
        Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => Behind::AnotherKind,
        _ => Behind::Listener,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse() {
        let check = |text: &str, expected: Option<(Endpoint, Security, bool)>| {
            let parsed = text.parse::<ListenAddr>().ok();
            assert!(parsed.as_ref().is_none_or(|address| address.to_string() == text), "{text}");
            let parsed = parsed.map(|ListenAddr { endpoint, entrance: Entrance { security, takes_proxy }, .. }| {
                (endpoint, security, takes_proxy)
            });
            assert_eq!(parsed, expected, "{text}");
        };
        let tcp =
            |authority: &str, security, takes_proxy| Some((Endpoint::Tcp(authority.into()), security, takes_proxy));
        check("127.0.0.1:8080", tcp("127.0.0.1:8080", Security::Clear, false));
        check("localhost:0", tcp("localhost:0", Security::Clear, false));
        check("[::]:80", tcp("[::]:80", Security::Clear, false));
        check("https://[::]:443", tcp("[::]:443", Security::Tls, false));
        check("[::]:80?proxy-protocol", tcp("[::]:80", Security::Clear, true));
        check("https://[::]:443?proxy-protocol", tcp("[::]:443", Security::Tls, true));
        let unix = |options| Endpoint::Unix(UnixAddr::parse("/run/app.sock", options).unwrap());
        check("unix:/run/app.sock", Some((unix(&[]), Security::Clear, false)));
        check("unix:/run/app.sock?mode=0660&proxy-protocol", Some((unix(&["mode=0660"]), Security::Clear, true)));
        check("systemd", Some((Endpoint::Passed(None), Security::Clear, false)));
        check("systemd:web?proxy-protocol", Some((Endpoint::Passed(Some("web".into())), Security::Clear, true)));
        check("https://systemd:web", Some((Endpoint::Passed(Some("web".into())), Security::Tls, false)));
        for bad in [
            "systemd:",
            "systemd?",
            "",
            "8080",
            ":8080",
            "::1:80",
            "localhost",
            "localhost:http",
            "localhost:65536",
            "unix:",
            "https://",
            "[::]:80?",
            "[::]:80?mode=0660",
            "[::]:80?proxy-protocol&proxy-protocol",
            "[::]:80?proxy-protocol=1",
        ] {
            check(bad, None);
        }
    }

    fn bind(addresses: &[&str]) -> Result<Vec<Listener>, BindError> {
        let addresses: Vec<ListenAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let mut bound = Vec::new();
        for mut binding in resolve(&addresses)? {
            let more = binding.bind(&bound, 16)?;
            bound.extend(more);
        }
        Ok(bound)
    }

    #[test]
    fn what_is_nearly_an_address_is_answered_with_one() {
        for (text, hint) in [
            ("8080", "; write 127.0.0.1:8080, or 0.0.0.0:8080 to be reached from other machines"),
            (":8080", "; write 127.0.0.1:8080, or 0.0.0.0:8080 to be reached from other machines"),
            ("http://localhost:80/", "; write localhost:80"),
            ("https://localhost:443/", "; write https://localhost:443"),
            ("::1:80", "; write [::1]:80"),
            ("/run/app.sock", "; write unix:/run/app.sock"),
            ("localhost", "systemd:NAME"),
            ("http://", "systemd:NAME"),
        ] {
            let error = text.parse::<ListenAddr>().unwrap_err();
            assert!(error.ends_with(hint), "{text}: {error}");
        }
    }

    #[test]
    fn port_zero_picks_a_port_and_a_second_bind_is_refused() {
        let [listener] = &bind(&["127.0.0.1:0"]).unwrap()[..] else { panic!("one listener") };
        let address = listener.url().strip_prefix("http://").unwrap().to_owned();
        assert!(!address.ends_with(":0"));
        let second = bind(&[&address]);
        assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
    }

    #[test]
    fn an_address_that_is_given_twice_is_not_anothers() {
        for (one, two) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")] {
            // Somebody else may take the port before it is tried.
            let (free, error) = (0..100)
                .map(|_| {
                    let free = bind(&["127.0.0.1:0"]).unwrap()[0].address().unwrap().port();
                    (free, bind(&[&format!("{one}:{free}"), &format!("{two}:{free}")]).unwrap_err())
                })
                .find(|(_, error)| !matches!(error, BindError::InUse(_)))
                .unwrap();
            let parts = [format!("on {two}:{free}"), format!("already listens there, on http://{one}:{free}")];
            assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}", folder.path().join("a.sock").display());
        let spelled_otherwise = format!("unix:{}", folder.path().join("./a.sock").display());
        for second in [&socket, &spelled_otherwise] {
            assert!(matches!(bind(&[&socket, second]), Err(BindError::Twice(..))), "{second}");
        }
    }

    #[test]
    fn more_addresses_than_a_worker_can_have_are_refused() {
        let many: Vec<String> = (0..=MAX_LISTENERS).map(|port| format!("127.0.0.1:{}", port + 1)).collect();
        let error = resolve(&many.iter().map(|it| it.parse().unwrap()).collect::<Vec<_>>()).unwrap_err();
        assert!(error.to_string().contains("33 addresses; the limit is 32"), "{error}");
    }

    #[test]
    fn stale_socket_files_are_replaced_and_live_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("app.sock");
        let address = &*format!("unix:{}", path.display());
        let live = bind(&[address]).unwrap();
        assert!(matches!(bind(&[address]), Err(BindError::InUse(_))));
        drop(live);
        assert!(!path.exists());
        // What a killed primary leaves behind: a bound file without a listener.
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(path.exists());
        // A child that another test starts has the listener too, between its fork and its exec.
        let replaced =
            (0..1000).find_map(|_| bind(&[address]).map_err(|_| std::thread::sleep(Duration::from_millis(10))).ok());
        drop(replaced.expect("a leftover is replaced"));
        // A slip of the keyboard must not cost a file.
        std::fs::write(path, "precious").unwrap();
        assert!(bind(&[address]).is_err());
        assert_eq!(std::fs::read(path).unwrap(), b"precious");
    }
}
