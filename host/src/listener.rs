//! Where a cluster listens: parsing `--listen`, binding, and what to say when it fails.
//!
//! The primary binds once and keeps the sockets for life; workers get duplicates and block in `accept`. A listening
//! socket therefore stays in blocking mode (the flag is shared by all duplicates) and has a receive timeout, set before
//! anybody blocks on it, that lets a blocked `accept` return now and then.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};

/// How long a blocked `accept` waits before it returns to see whether it is still wanted.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a connection that wait in the kernel and are not sent yet, from which on it takes no more. Without a bound
/// these are megabytes, of which the kernel lets a third drain before it takes any: a client that reads slowly would look
/// like one that does not read.
const MAX_UNSENT: u32 = 128 * 1024;

/// One `--listen`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum ListenAddr {
    /// `HOST:PORT`, as written; resolved when it is bound.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("expected a path after unix:".into()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let form = || format!("expected HOST:PORT, [IPV6]:PORT or unix:PATH{}", hint(text));
        let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains('/') || (host.contains(':') && !bracketed) {
            return Err(form());
        }
        port.parse::<u16>().map_err(|_| format!("'{port}' is not a port (0 to 65535); {}", form()))?;
        Ok(Self::Tcp(text.into()))
    }
}

/// What to write instead of something that is nearly an address.
fn hint(text: &str) -> String {
    let port = text.trim_start_matches(':');
    let authority = text.split_once("://").map(|(_, rest)| rest.trim_end_matches('/'));
    if port.parse::<u16>().is_ok() {
        format!("; write 127.0.0.1:{port}, or 0.0.0.0:{port} to be reached from other machines")
    } else if let Some(authority) = authority.filter(|it| !it.contains("://") && it.parse::<ListenAddr>().is_ok()) {
        format!("; write {authority}")
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
        match self {
            Self::Tcp(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("cannot listen on {0}: the address is in use. Stop the other server, or choose another with --listen")]
    InUse(ListenAddr),
    #[error(
        "cannot listen on {0}: permission denied. Ports below 1024 need a privilege: choose a higher port with \
         --listen, or grant it once with: sudo setcap cap_net_bind_service=+ep \"$(command -v wasmcluster)\""
    )]
    Privileged(ListenAddr),
    #[error("cannot listen on {0}: {1}")]
    Other(ListenAddr, io::Error),
}

impl BindError {
    fn new(address: &ListenAddr, error: io::Error) -> Self {
        match (error.kind(), address) {
            (io::ErrorKind::AddrInUse, _) => Self::InUse(address.clone()),
            (io::ErrorKind::PermissionDenied, ListenAddr::Tcp(_)) => Self::Privileged(address.clone()),
            _ => Self::Other(address.clone(), error),
        }
    }
}

/// A bound and listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    /// What a client would be told: `http://HOST:PORT`, or `unix:PATH`.
    url: String,
    /// Removed on drop.
    socket_file: Option<PathBuf>,
}

impl Listener {
    /// Binds and listens.
    pub(crate) fn bind(address: &ListenAddr, backlog: i32) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddr::Tcp(text) => bind_tcp(text, backlog),
            ListenAddr::Unix(path) => bind_unix(path, backlog),
        };
        bound.map_err(|error| BindError::new(address, error))
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.socket_file {
            // Nothing can be done when it is gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(text: &str, backlog: i32) -> io::Result<Listener> {
    let mut failure = None;
    for address in text.to_socket_addrs()? {
        match bind_address(address, backlog) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

fn bind_address(address: SocketAddr, backlog: i32) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Inherited by every connection: an answer that comes in pieces must not wait for the client's acknowledgements.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(MAX_UNSENT)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    listen(&socket, backlog)?;
    let bound = socket.local_addr()?.as_socket().ok_or(Errno::EAFNOSUPPORT)?;
    Ok(Listener { socket: socket.into(), url: format!("http://{bound}"), socket_file: None })
}

fn bind_unix(path: &Path, backlog: i32) -> io::Result<Listener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            remove_socket(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    listen(&socket, backlog)?;
    Ok(Listener { socket: socket.into(), url: format!("unix:{}", path.display()), socket_file: Some(path.into()) })
}

fn listen(socket: &Socket, backlog: i32) -> io::Result<()> {
    socket.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
    socket.listen(backlog)
}

/// Removes a socket file that was left behind. Whatever else has that name is not ours to remove.
pub(crate) fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file of that name exists, and is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A socket file that nobody listens on any more. Asked without waiting: one whose queue is full would keep us.
pub(crate) fn is_stale(path: &Path) -> bool {
    let connected = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    });
    matches!(connected, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse() {
        let check = |text: &str, expected: Option<ListenAddr>| {
            assert_eq!(text.parse::<ListenAddr>().ok(), expected, "{text}");
        };
        check("127.0.0.1:8080", Some(ListenAddr::Tcp("127.0.0.1:8080".into())));
        check("localhost:0", Some(ListenAddr::Tcp("localhost:0".into())));
        check("[::]:80", Some(ListenAddr::Tcp("[::]:80".into())));
        check("unix:/run/app.sock", Some(ListenAddr::Unix("/run/app.sock".into())));
        for bad in ["", "8080", ":8080", "::1:80", "localhost", "localhost:http", "localhost:65536", "unix:"] {
            check(bad, None);
        }
    }

    #[test]
    fn what_is_nearly_an_address_is_answered_with_one() {
        for (text, hint) in [
            ("8080", "; write 127.0.0.1:8080, or 0.0.0.0:8080 to be reached from other machines"),
            (":8080", "; write 127.0.0.1:8080, or 0.0.0.0:8080 to be reached from other machines"),
            ("http://localhost:80/", "; write localhost:80"),
            ("::1:80", "; write [::1]:80"),
            ("/run/app.sock", "; write unix:/run/app.sock"),
            ("localhost", "unix:PATH"),
            ("http://", "unix:PATH"),
        ] {
            let error = text.parse::<ListenAddr>().unwrap_err();
            assert!(error.ends_with(hint), "{text}: {error}");
        }
    }

    #[test]
    fn port_zero_picks_a_port_and_a_second_bind_is_refused() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let address = listener.url().strip_prefix("http://").unwrap().to_owned();
        assert!(!address.ends_with(":0"));
        let second = Listener::bind(&address.parse().unwrap(), 16);
        assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
    }

    #[test]
    fn stale_socket_files_are_replaced_and_live_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = ListenAddr::Unix(folder.path().join("app.sock"));
        let live = Listener::bind(&address, 16).unwrap();
        assert!(matches!(Listener::bind(&address, 16), Err(BindError::InUse(_))));
        let ListenAddr::Unix(path) = &address else { unreachable!() };
        drop(live);
        assert!(!path.exists());
        // What a killed primary leaves behind: a bound file without a listener.
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&address, 16).unwrap());
        // A slip of the keyboard must not cost a file.
        std::fs::write(path, "precious").unwrap();
        assert!(Listener::bind(&address, 16).is_err());
        assert_eq!(std::fs::read(path).unwrap(), b"precious");
    }
}
