//! Accepting connections: a plain thread per listener that blocks in `accept`.
//!
//! All workers block on the same sockets and the kernel wakes the one that waited longest, which spreads connections
//! evenly; readiness notifications would wake the same worker again and again. A thread looks at its [`Gate`] before it
//! accepts, so a worker that is busy, full or stuck leaves the connections to its siblings.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{SCHED_BATCH, SOCK_CLOEXEC, SOCK_NONBLOCK, sched_setscheduler};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use super::forwarded::Remote;
use crate::os::listener::{Entrance, Security};
use crate::settings::Limits;
use crate::wire::counter::Held;
use crate::wire::stats::Stats;

/// Wakes a thread out of `accept`; it does nothing else.
const WAKE: Signal = Signal::SIGUSR1;
/// How often a thread that is to stop is woken until it has noticed.
const WAKE_EVERY: Duration = Duration::from_millis(2);
/// Connections that were queued before the stop and are still accepted, at most.
const MAX_LAST: u32 = 4096;
/// How long to wait when the process or the machine is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// How often it is said that connections are too many for something.
pub(crate) const SAID_EVERY: Duration = Duration::from_secs(10);

/// Connections on their way to the executor, those that a thread has yet to accept included; but each thread may bring
/// one. So many can a worker swallow whose executor does not turn.
const HAND_OFF: usize = 8;
/// An executor that leaves a connection lie for so long does not turn.
const LAG: Duration = Duration::from_millis(50);
/// How often a thread looks whether its gate has opened.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a connection may lie in the kernel's queue, while this worker is full, before it is told so.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that are told so at the same time.
const MAX_REFUSED: u64 = 64;

/// An accepted connection, non-blocking.
#[derive(Debug)]
pub(crate) struct Accepted {
    socket: Socket,
    pub(super) entrance: Entrance,
    pub(super) client: Remote,
    pub(super) admission: Admission,
}

/// What is to be done for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Serve,
    /// All are full: its first request is answered 503.
    Refuse,
}

/// A connection's stream, of the kind its listener is.
#[derive(Debug)]
pub(crate) enum AcceptedStream {
    Tcp(TcpStream),
    /// The client is to begin with a TLS handshake.
    Tls(TcpStream),
    Unix(UnixStream),
}

impl Accepted {
    /// Registers the connection with the executor; to be called on it.
    pub(crate) fn into_stream(self) -> io::Result<AcceptedStream> {
        let fd = OwnedFd::from(self.socket);
        match socket2::SockRef::from(&fd).domain()? {
            socket2::Domain::UNIX => Ok(AcceptedStream::Unix(UnixStream::from_std(fd.into())?)),
            _ if self.entrance.security == Security::Tls => Ok(AcceptedStream::Tls(TcpStream::from_std(fd.into())?)),
            _ => Ok(AcceptedStream::Tcp(TcpStream::from_std(fd.into())?)),
        }
    }
}

impl AcceptedStream {
    /// Waits for bytes and takes them as `recv` does with these flags.
    pub(super) async fn receive(&self, bytes: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        let mut receive = |fd| Ok(recv(fd, bytes, flags)?);
        match self {
            Self::Tcp(stream) | Self::Tls(stream) => {
                stream.async_io(Interest::READABLE, || receive(stream.as_raw_fd())).await
            }
            Self::Unix(stream) => stream.async_io(Interest::READABLE, || receive(stream.as_raw_fd())).await,
        }
    }
}

/// Whether a worker should take another connection. Its threads and its executor share it.
#[derive(Debug)]
pub(crate) struct Gate {
    stats: &'static Stats,
    max_in_flight: u64,
    max_connections: u64,
    started: Instant,
    /// Connections that lie between the threads and the executor.
    lying: AtomicU64,
    /// When one of them was taken, or the first put there, in milliseconds since `started`.
    moved: AtomicU64,
    /// Connections that are being refused.
    refused: AtomicU64,
    /// Told when a connection cannot be accepted: another is to make room.
    pub(crate) exhausted: Notify,
}

/// What the gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GateState {
    Open,
    /// Of requests or of connections: its executor can tell a client so.
    Full,
    /// The executor does not turn.
    Lagging,
}

impl Gate {
    pub(crate) fn new(limits: &Limits, stats: &'static Stats) -> Self {
        let (max_in_flight, max_connections) = (limits.max_in_flight as u64, limits.max_connections as u64);
        let count = || AtomicU64::new(0);
        let started = Instant::now();
        let (lying, moved, refused) = (count(), count(), count());
        Self { stats, max_in_flight, max_connections, started, lying, moved, refused, exhausted: Notify::new() }
    }

    /// The executor took a connection out of the queue. It counts as one until what is returned is dropped.
    pub(crate) fn taken(&self) -> Held {
        let held = self.stats.connections.hold();
        self.moved();
        self.lying.fetch_sub(1, Ordering::Release);
        held
    }

    /// A connection that was accepted to be refused is at hand, until this is dropped.
    pub(crate) fn refusing(&self) -> Refusing<'_> {
        Refusing(self)
    }

    /// Whether there are as many connections as there may be.
    fn is_full_of_connections(&self) -> bool {
        // In this order one that is taken meanwhile counts twice, rather than not at all.
        let lying = self.lying.load(Ordering::Acquire);
        lying + self.stats.connections.get() >= self.max_connections
    }

    fn handed_over(&self, admission: Admission) {
        if self.lying.fetch_add(1, Ordering::Relaxed) == 0 {
            self.moved();
        }
        if admission == Admission::Refuse {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn moved(&self) {
        self.moved.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn state(&self) -> GateState {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        if self.lying.load(Ordering::Relaxed) > 0 && self.started.elapsed() > moved + LAG {
            GateState::Lagging
        } else if self.stats.in_flight.get() >= self.max_in_flight || self.is_full_of_connections() {
            GateState::Full
        } else {
            GateState::Open
        }
    }

    /// What to do with a connection that has been queued for `queued`, as far as this thread has seen; `None` is to wait.
    fn admission(&self, queued: Duration) -> Option<Admission> {
        match self.state() {
            GateState::Open => Some(Admission::Serve),
            GateState::Full if queued >= PATIENCE && self.refused.load(Ordering::Relaxed) < MAX_REFUSED => {
                Some(Admission::Refuse)
            }
            GateState::Full | GateState::Lagging => None,
        }
    }
}

/// A connection that is being refused.
#[derive(Debug)]
pub(crate) struct Refusing<'a>(&'a Gate);

impl Drop for Refusing<'_> {
    fn drop(&mut self) {
        self.0.refused.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Threads that accept, and what they have accepted.
pub(crate) fn start(
    listeners: Vec<(OwnedFd, Entrance)>,
    gate: &Arc<Gate>,
) -> io::Result<(Vec<Acceptor>, mpsc::Receiver<Accepted>)> {
    install_wake_handler()?;
    let (sender, connections) = mpsc::channel(HAND_OFF.max(listeners.len()));
    let start = |(listener, entrance)| Acceptor::start(listener, entrance, sender.clone(), gate.clone());
    Ok((listeners.into_iter().map(start).collect::<io::Result<_>>()?, connections))
}

/// A thread that accepts from one listener.
#[derive(Debug)]
pub(crate) struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    /// Starts accepting. The listener is closed when the thread ends.
    fn start(
        listener: OwnedFd,
        entrance: Entrance,
        connections: mpsc::Sender<Accepted>,
        gate: Arc<Gate>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let span = tracing::Span::current();
        let runtime = Handle::current();
        let thread = std::thread::Builder::new().name("accept".into()).spawn(move || {
            let _span = span.enter();
            run_in_batches();
            accept_all(&Socket::from(listener), entrance, &connections, &runtime, &gate, &stopping);
        })?;
        Ok(Self { stop, thread })
    }

    /// Wakes the thread until it has ended. It still hands over what was queued.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        while !self.thread.is_finished() {
            // A signal can fall between the thread's look at the flag and its `accept`: hence again and again. That the
            // thread may have just ended is no error.
            let _ = pthread_kill(self.thread.as_pthread_t(), WAKE);
            tokio::time::sleep(WAKE_EVERY).await;
        }
    }
}

fn accept_all(
    listener: &Socket,
    entrance: Entrance,
    connections: &mpsc::Sender<Accepted>,
    runtime: &Handle,
    gate: &Gate,
    stop: &AtomicBool,
) {
    let mut last_words = MAX_LAST;
    let (mut queued_since, mut said_at) = (None, None::<Instant>);
    while !stop.load(Ordering::Relaxed) || (last_words > 0 && is_queued(listener)) {
        // A place first: a connection in a thread's hand is one that no sibling can serve.
        let place = connections.try_reserve().or_else(|_| runtime.block_on(connections.reserve()));
        let Ok(place) = place else { return };
        let admission = if stop.load(Ordering::Relaxed) {
            last_words -= 1;
            // The last worker of a cluster leaves nobody behind.
            Admission::Serve
        } else {
            match wait_for_admission(listener, gate, stop, &mut queued_since) {
                Some(admission) => admission,
                None => continue,
            }
        };
        match listener.accept4(SOCK_NONBLOCK | SOCK_CLOEXEC) {
            Ok((socket, client)) => {
                gate.handed_over(admission);
                let address = client.as_socket().map(|client| client.ip());
                let client = Remote { address, security: entrance.security, is_stranger: false };
                place.send(Accepted { socket, entrance, client, admission });
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // The wake-up signal, the listener's timeout, a client that left while it was queued.
                Some(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED) => {}
                _ => {
                    if said_at.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                        tracing::warn!(
                            "cannot accept a connection: {error}; closing an idle one to make room, if there is one"
                        );
                        said_at = Some(Instant::now());
                    }
                    gate.exhausted.notify_one();
                    std::thread::sleep(EXHAUSTED_PAUSE);
                }
            },
        }
    }
}

/// Waits until the gate opens, or somebody must be told that it does not; `None` if the thread is to stop. There has been
/// somebody in the queue, at each look, since `queued_since`.
fn wait_for_admission(
    listener: &Socket,
    gate: &Gate,
    stop: &AtomicBool,
    queued_since: &mut Option<Instant>,
) -> Option<Admission> {
    loop {
        let queued = queued_since.map_or(Duration::ZERO, |since| since.elapsed());
        match gate.admission(queued) {
            Some(Admission::Refuse) if !is_queued(listener) => *queued_since = None,
            Some(Admission::Refuse) => return Some(Admission::Refuse),
            Some(Admission::Serve) => {
                *queued_since = None;
                return Some(Admission::Serve);
            }
            None => {}
        }
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        std::thread::sleep(LOOK_AGAIN);
        if is_queued(listener) {
            queued_since.get_or_insert_with(Instant::now);
            if gate.is_full_of_connections() {
                gate.exhausted.notify_one();
            }
        } else {
            *queued_since = None;
        }
    }
}

/// Whether a connection waits that nobody would serve if this worker was the last. A sibling may still take it; then
/// `accept` ends by the signal or by the listener's timeout.
fn is_queued(listener: &Socket) -> bool {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Lets the executor, which the thread wakes for each connection, work off what there is before the next is accepted:
/// on one core they would otherwise take turns.
fn run_in_batches() {
    // SAFETY: all zeroes are a valid `sched_param`, and the policy wants priority 0; it is the calling thread's own.
    let refused = unsafe { sched_setscheduler(0, SCHED_BATCH, &std::mem::zeroed()) } != 0;
    if refused {
        tracing::debug!("cannot accept in batches: {}", io::Error::last_os_error());
    }
}

/// A handler that does nothing, without SA_RESTART, so that the signal interrupts `accept`.
fn install_wake_handler() -> io::Result<()> {
    extern "C" fn nothing(_: nix::libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any moment.
    unsafe { sigaction(WAKE, &action) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::wire::stats::Page;

    #[test]
    fn a_worker_that_is_full_leaves_connections_to_others() {
        let (page, fd) = Page::create().unwrap();
        let stats = Page::open(&fd).unwrap();
        let options = &toml::from_str("max-in-flight = 2\nmax-connections = 3").unwrap();
        let limits = Settings::new("app.wasm".into(), options).unwrap().application.limits;
        let gate = Gate::new(&limits, stats);
        let check = |state, patient| {
            assert_eq!(gate.state(), state);
            assert_eq!(gate.admission(PATIENCE), patient);
        };
        check(GateState::Open, Some(Admission::Serve));
        let requests = [stats.in_flight.hold(), stats.in_flight.hold()];
        check(GateState::Full, Some(Admission::Refuse));
        assert_eq!(gate.admission(PATIENCE / 2), None);
        drop(requests);
        check(GateState::Open, Some(Admission::Serve));
        let _connections = [stats.connections.hold(), stats.connections.hold()];
        gate.handed_over(Admission::Serve);
        check(GateState::Full, Some(Admission::Refuse));
        let taken = gate.taken();
        check(GateState::Full, Some(Admission::Refuse));
        drop(taken);
        for _ in 0..MAX_REFUSED {
            gate.handed_over(Admission::Refuse);
            drop(gate.taken());
        }
        check(GateState::Open, Some(Admission::Serve));
        let _last = stats.connections.hold();
        check(GateState::Full, None);
        drop(gate.refusing());
        check(GateState::Full, Some(Admission::Refuse));
        drop(page);
    }

    #[test]
    fn an_executor_that_does_not_turn_gets_nothing_more() {
        let (_page, fd) = Page::create().unwrap();
        let limits = Settings::new("app.wasm".into(), &Default::default()).unwrap().application.limits;
        let mut gate = Gate::new(&limits, Page::open(&fd).unwrap());
        gate.started = Instant::now().checked_sub(LAG * 10).unwrap();
        gate.handed_over(Admission::Serve);
        assert_eq!(gate.state(), GateState::Open, "it lies there since just now");
        gate.started = gate.started.checked_sub(LAG * 2).unwrap();
        assert_eq!((gate.state(), gate.admission(PATIENCE)), (GateState::Lagging, None));
        drop(gate.taken());
        assert_eq!(gate.state(), GateState::Open);
    }
}
