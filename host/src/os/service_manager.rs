//! The service manager that started this process, if one did: what it is told (sd_notify(3)), and the sockets that it has
//! passed on (sd_listen_fds(3)). systemd is one; others do the same.

use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use sd_notify::NotifyState;

/// Where the manager hears how its service is.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: UnixDatagram,
    to: SocketAddr,
}

impl Notifier {
    /// `None` if there is no manager that wants to hear it.
    pub(crate) fn new() -> Option<Self> {
        let to = env::var_os("NOTIFY_SOCKET").filter(|to| !to.is_empty())?;
        Self::to(to.as_bytes())
            .inspect_err(|error| tracing::warn!("cannot report to the service manager: {error}"))
            .ok()
    }

    /// To a path, or to an abstract name behind an `@`.
    fn to(to: &[u8]) -> io::Result<Self> {
        let to = match to {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not listen must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to })
    }

    /// Tells it one message: some lines, each of one state. An error of the kind `WouldBlock` says that it has yet to read
    /// what it was told before.
    pub(crate) fn tell(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.to).map(|_| ())
    }
}

/// How long the manager waits for a sign of life before it ends this process.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
}

/// How many sockets the manager has passed on to this process.
fn passed() -> RawFd {
    let number = |name| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| is_ours).map_or(0, |count| count.try_into().unwrap_or(RawFd::MAX))
}

/// Whether the manager has passed sockets on to this process.
pub(crate) fn has_passed_sockets() -> bool {
    passed() > 0
}

/// The sockets that the manager has passed on, by name. They are there once.
pub(crate) fn take_passed_sockets() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    for fd in (FIRST_PASSED..FIRST_PASSED.saturating_add(passed())).take(MAX_PASSED) {
        if !is_inherited(fd) {
            return Err(io::Error::other(format!(
                "LISTEN_FDS says that descriptor {fd} was passed on, and it was not"
            )));
        }
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: each was open when this process began, as it is the only kind that is not closed on exec, and nobody here knows
    // of it; they are taken once.
    Ok(passed.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}

/// The first descriptor that is passed on (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;
/// More than these are looked at in vain: a process may not have as many descriptors.
const MAX_PASSED: usize = 1 << 20;

/// Whether this process was started with a descriptor: all that it opens itself is closed on exec.
fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: it is only asked about the number, whatever that stands for.
    let flags = unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD) };
    flags >= 0 && flags & nix::libc::FD_CLOEXEC == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstract_name = format!("wasmcluster-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (manager, to) in [
            (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), format!("@{abstract_name}")),
        ] {
            let notifier = Notifier::to(to.as_bytes()).unwrap();
            notifier.tell("READY=1\nSTATUS=serving\n").unwrap();
            let mut heard = [0; 64];
            let length = manager.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1\nSTATUS=serving\n");
            // One that does not listen holds nobody up.
            let full = (0..10_000).find_map(|_| notifier.tell("WATCHDOG=1\n").err()).unwrap();
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
            drop(manager);
            assert_ne!(notifier.tell("STOPPING=1\n").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}
