//! Accepting connections: a plain thread per listener that blocks in `accept`.
//!
//! All workers block on the same sockets and the kernel wakes the one that waited longest, which spreads connections
//! evenly; readiness notifications would wake the same worker again and again. The thread hands connections over a short
//! queue, so a worker whose executor does not turn soon stops taking connections away from its siblings.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{SOCK_CLOEXEC, SOCK_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use socket2::Socket;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

/// Wakes a thread out of `accept`; it does nothing else.
const WAKE: Signal = Signal::SIGUSR1;
/// How often a thread that is to stop is woken until it has noticed.
const WAKE_EVERY: Duration = Duration::from_millis(2);
/// Connections that were queued before the stop and are still accepted, at most.
const MAX_LAST: u32 = 4096;
/// How long to wait when the process or the machine is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection, non-blocking.
#[derive(Debug)]
pub(super) struct Connection(Socket);

/// A connection's stream, of the kind its listener is.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Registers the connection with the executor; to be called on it.
    pub(super) fn into_stream(self) -> io::Result<Stream> {
        let fd = OwnedFd::from(self.0);
        match socket2::SockRef::from(&fd).domain()? {
            socket2::Domain::UNIX => Ok(Stream::Unix(UnixStream::from_std(fd.into())?)),
            _ => Ok(Stream::Tcp(TcpStream::from_std(fd.into())?)),
        }
    }
}

/// A thread that accepts from one listener.
#[derive(Debug)]
pub(super) struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    /// Starts accepting. The listener is closed when the thread ends.
    pub(super) fn start(listener: OwnedFd, connections: mpsc::Sender<Connection>) -> io::Result<Self> {
        install_wake_handler()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new().name("accept".into()).spawn(move || {
            let _span = span.enter();
            accept_all(&Socket::from(listener), &connections, &stopping);
        })?;
        Ok(Self { stop, thread })
    }

    /// Wakes the thread until it has ended. It still hands over what was queued.
    pub(super) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        while !self.thread.is_finished() {
            // A signal can fall between the thread's look at the flag and its `accept`: hence again and again. That the
            // thread may have just ended is no error.
            let _ = pthread_kill(self.thread.as_pthread_t(), WAKE);
            tokio::time::sleep(WAKE_EVERY).await;
        }
    }
}

fn accept_all(listener: &Socket, connections: &mpsc::Sender<Connection>, stop: &AtomicBool) {
    let mut last_words = MAX_LAST;
    while !stop.load(Ordering::Relaxed) || (last_words > 0 && is_queued(listener)) {
        if stop.load(Ordering::Relaxed) {
            last_words -= 1;
        }
        match listener.accept4(SOCK_NONBLOCK | SOCK_CLOEXEC) {
            Ok((socket, _)) => {
                if connections.blocking_send(Connection(socket)).is_err() {
                    return;
                }
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // The wake-up signal, the listener's timeout, a client that left while it was queued.
                Some(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED) => {}
                _ => {
                    tracing::warn!("cannot accept a connection: {error}");
                    std::thread::sleep(EXHAUSTED_PAUSE);
                }
            },
        }
    }
}

/// Whether a connection waits that nobody would serve if this worker was the last. A sibling may still take it; then
/// `accept` ends by the signal or by the listener's timeout.
fn is_queued(listener: &Socket) -> bool {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// A handler that does nothing, without SA_RESTART, so that the signal interrupts `accept`.
fn install_wake_handler() -> io::Result<()> {
    extern "C" fn nothing(_: nix::libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any moment.
    unsafe { sigaction(WAKE, &action) }?;
    Ok(())
}
