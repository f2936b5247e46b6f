//! HTTP/2 on one connection (RFC 9113): h2 between the client's bytes and the streams, each of which is answered in a task of
//! its own, see `stream.rs`. h2 is used without hyper, which can neither end a connection with an error of our choice nor
//! tell when a stream is reset.
//!
//! When the connection drains, the client is told so twice: first not to begin anything new, then, when its answer to a PING
//! shows that it has heard of that, which of its streams are still answered. h2 does that; a client that does not
//! answer, or goes on, has as long as the machine in `drain.rs` gives it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use h2::Reason;
use h2::server::{self, Handshake};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::accept::Admission;
use super::buffers::FREE;
use super::connection::{Connection, linger};
use super::drain::{ConnectionEvent, Duty};
use super::frames::{Abuse, Frames, MAX_FRAME};
use super::http1::LOOK_EVERY;
use super::outbox::Turn;
use super::outcome::{Outcome, Verdict};
use super::server::Server;
use super::stream::{Piece, Stream};
use super::timer::{Beat, Timer};
use super::transport::{Side, Transport, poll_write_together};
use crate::worker::Phase;

/// What a stream's client may send before somebody reads it, in bytes. A connection's window has room for all of its
/// streams: guests that do not read stop no others. What can lie there is bounded by the requests in flight.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The largest there is (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of an answer that wait for the connection.
const MAX_UNSENT: usize = 64 * 1024;
/// Streams that go wrong by the client's fault, before the connection does.
const MAX_FAULTS: usize = 128;
/// Streams that the client took back before they were begun with. Its resets are counted in `frames.rs`, which permits a
/// few less at once.
const MAX_TAKEN_BACK: usize = 512;
/// Streams that were reset and of which the client may not know yet.
const MAX_FORGOTTEN: usize = 128;
/// What small frames of a connection may cost while they wait for somebody to read them: each takes some 500 bytes, and
/// costs by how much it is shorter than 256. Some that nobody will ever read, h2 counts for good, so there is room for them.
const SMALL_FRAMES: usize = 8 * 1024 * 1024;
/// Bytes that are read from a client before others have their turn.
const MAX_READ: usize = 64 * 1024;

type Connected<S> = server::Connection<FrameIo<S>, Piece>;

/// h2, before and after it has said which settings it goes by.
enum Machine<S: Transport> {
    Greeting(Handshake<FrameIo<S>, Piece>),
    Connected(Connected<S>),
}

impl Server {
    /// Serves a connection whose client speaks HTTP/2, and has sent `ahead` so far.
    pub(super) async fn serve_http2<S: Transport>(
        self: &Rc<Self>,
        stream: S,
        ahead: Vec<u8>,
        connection: Rc<Connection>,
        admission: Admission,
        alive: mpsc::Sender<()>,
    ) {
        let shared = Rc::new(Shared::default());
        let io = FrameIo::new(stream, ahead, connection.clone(), shared.clone(), Turn::new(self.outbox.clone()));
        let mut machine = Machine::Greeting(self.http2().handshake(io));
        let mut streams = JoinSet::new();
        let mut phases = self.phases.clone();
        // The sender lives as long as the process, so waiting cannot fail.
        let mut drain_begins = pin!(phases.wait_for(|&phase| phase == Phase::Draining));
        let (mut timer, mut stall, mut look) = (Timer::default(), Timer::default(), Beat::default());
        let (mut is_told, mut is_ending) = (false, false);
        poll_fn(|context| {
            connection.polled(context);
            shared.left.set(MAX_READ);
            if !connection.is_draining() && drain_begins.as_mut().poll(context).is_ready() {
                connection.step(ConnectionEvent::DrainBegan);
            }
            loop {
                let accepted = match &mut machine {
                    Machine::Greeting(greeting) => match Pin::new(greeting).poll(context) {
                        Poll::Ready(Ok(connected)) => {
                            machine = Machine::Connected(connected);
                            continue;
                        }
                        Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
                        Poll::Pending => Poll::Pending,
                    },
                    Machine::Connected(h2) => {
                        // A client that has just come is about to send its first request: it has the grace for that.
                        let has_begun = connection.is_busy() || connection.requests() > 0;
                        if has_begun && connection.is_draining() && !std::mem::replace(&mut is_told, true) {
                            h2.graceful_shutdown();
                        }
                        if let Some(abuse) = shared.abuse.take() {
                            h2.abrupt_shutdown(self.abused(abuse));
                            is_ending = true;
                            connection.step(ConnectionEvent::Shut);
                        }
                        h2.poll_accept(context)
                    }
                };
                match accepted {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let stream = Stream::begin(self.clone(), connection.clone(), respond, admission);
                        // Boxed: a task is moved several times before it is polled, and this one has kilobytes.
                        streams.spawn_local(Box::pin(stream.answer(request, alive.clone())));
                        if admission == Admission::Refuse {
                            connection.step(ConnectionEvent::DrainBegan);
                        }
                    }
                    Poll::Ready(ended) => {
                        // The client has been told already what was wrong.
                        if let Some(Err(error)) = ended {
                            self.failed(&error);
                        }
                        let has_left = connection.has_client_left();
                        connection.step(if has_left { ConnectionEvent::ClientLeft } else { ConnectionEvent::Shut });
                        return Poll::Ready(());
                    }
                    // It may have come while h2 read, which can end the connection only when it is set up.
                    Poll::Pending if shared.abuse.get().is_some() && matches!(machine, Machine::Connected(_)) => {}
                    Poll::Pending => break,
                }
            }
            // Their ends need not wake this task: it is polled for every stream that comes.
            while streams.try_join_next().is_some() {}
            if let Some((exchange, at)) = connection.stalls_at()
                && stall.poll(at, context).is_ready()
            {
                exchange.stalled();
                connection.step(ConnectionEvent::ClientLeft);
            }
            if connection.is_spare() {
                self.make_room();
            }
            self.free_buffers();
            if !connection.is_deaf() {
                look.rest();
            } else if look.poll(LOOK_EVERY, context).is_ready() {
                shared.looks.set(true);
            }
            loop {
                match connection.duty() {
                    Duty::Close => {
                        if let Machine::Connected(h2) = &mut machine
                            && connection.keeps_a_place()
                        {
                            dismiss(h2, context);
                        }
                        return Poll::Ready(());
                    }
                    Duty::Refuse | Duty::Linger if !is_ending => {
                        is_ending = true;
                        if connection.duty() == Duty::Refuse {
                            Outcome::of_no_request(Verdict::Late).count(self.stats);
                            connection.step(ConnectionEvent::Shut);
                        }
                        let Machine::Connected(h2) = &mut machine else { return Poll::Ready(()) };
                        h2.abrupt_shutdown(Reason::NO_ERROR);
                        context.waker().wake_by_ref();
                    }
                    Duty::Serve | Duty::Refuse | Duty::Linger => {}
                }
                let Some(deadline) = connection.next_deadline() else { return Poll::Pending };
                ready!(timer.poll(deadline, context));
                connection.step(ConnectionEvent::DeadlinePassed);
                if connection.is_draining() && !is_told {
                    // It is old: the client is told so above.
                    context.waker().wake_by_ref();
                }
            }
        })
        .await;
        // Guests first: their clients are gone, or have been told.
        drop(streams);
        drop(machine);
        if connection.keeps_a_place() {
            // To linger would keep it for a second more.
            connection.step(ConnectionEvent::ClientLeft);
        }
        if let Some(stream) = shared.stream.take() {
            linger(stream, &connection).await;
        }
    }

    fn http2(&self) -> server::Builder {
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(
                STREAM_WINDOW.saturating_mul(self.limits.max_streams as u32).min(MAX_WINDOW),
            )
            .max_frame_size(MAX_FRAME)
            .max_concurrent_streams(self.limits.max_streams as u32)
            .max_header_list_size(self.limits.max_header_bytes as u32)
            .max_send_buffer_size(MAX_UNSENT)
            .max_local_error_reset_streams(Some(MAX_FAULTS))
            .max_pending_accept_reset_streams(MAX_TAKEN_BACK)
            .max_concurrent_reset_streams(MAX_FORGOTTEN)
            .data_frame_budget(SMALL_FRAMES);
        if self.instances.speaks_websocket() {
            builder.enable_connect_protocol();
        }
        builder
    }

    /// Counts it; what its client is told.
    fn abused(&self, abuse: Abuse) -> Reason {
        let (reason, why) = match abuse {
            Abuse::NoSettings => (Reason::PROTOCOL_ERROR, "it did not begin with its settings"),
            Abuse::WrongSize => (Reason::FRAME_SIZE_ERROR, "a frame has a wrong size"),
            Abuse::TooMuch => (Reason::ENHANCE_YOUR_CALM, "it sent too many resets, pings, settings or empty frames"),
        };
        tracing::debug!("ended an HTTP/2 connection: {why}");
        Outcome::of_no_request(Verdict::Refused).count(self.stats);
        reason
    }

    fn failed(&self, error: &h2::Error) {
        tracing::debug!("an HTTP/2 connection ended early: {error}");
        if error.is_library() {
            Outcome::of_no_request(Verdict::Refused).count(self.stats);
        }
    }
}

/// Tells the client which of its streams were seen, if it takes that at once.
fn dismiss<S: Transport>(h2: &mut Connected<S>, context: &mut Context<'_>) {
    h2.abrupt_shutdown(Reason::NO_ERROR);
    // A short write lets others go first, once.
    let _ = h2.poll_accept(context).is_ready() || h2.poll_accept(context).is_ready();
}

/// What a connection's task and its I/O tell each other.
struct Shared<S> {
    abuse: Cell<Option<Abuse>>,
    /// Bytes that may still be read in this turn.
    left: Cell<usize>,
    /// Whether the client is there is to be looked at.
    looks: Cell<bool>,
    /// What h2 had, when it is gone.
    stream: RefCell<Option<S>>,
}

impl<S> Default for Shared<S> {
    fn default() -> Self {
        Self { abuse: Cell::new(None), left: Cell::new(0), looks: Cell::new(false), stream: RefCell::new(None) }
    }
}

/// The stream of bytes.
struct FrameIo<S> {
    /// `None` only when it is dropped.
    stream: Option<S>,
    /// What was read already. All of it is followed.
    ahead: Vec<u8>,
    connection: Rc<Connection>,
    frames: Frames,
    /// The client has closed its side.
    has_ended: bool,
    shared: Rc<Shared<S>>,
    turn: Turn,
}

impl<S> Drop for FrameIo<S> {
    fn drop(&mut self) {
        self.shared.stream.replace(self.stream.take());
    }
}

impl<S: Transport> FrameIo<S> {
    fn new(stream: S, ahead: Vec<u8>, connection: Rc<Connection>, shared: Rc<Shared<S>>, turn: Turn) -> Self {
        let frames = Frames::new(connection.now());
        let mut io =
            Self { stream: Some(stream), ahead: Vec::new(), connection, frames, has_ended: false, shared, turn };
        io.follow(&ahead);
        io.ahead = ahead;
        io
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn follow(&mut self, bytes: &[u8]) {
        if let Err(abuse) = self.frames.follow(self.connection.now(), bytes) {
            self.shared.abuse.set(Some(abuse));
        }
        self.connection.owes(self.frames.is_inside());
        self.connection.holds(self.frames.held().saturating_sub(FREE));
    }

    /// The client has closed its side. h2 would drop all streams, if it knew: so it does not learn that before they are
    /// answered.
    fn ended(&mut self, context: &Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.has_ended, true) {
            // h2 hands over the streams that it has when there is nothing to read.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let is_there = self.stream.as_ref().is_some_and(|stream| stream.side() != Side::Gone);
        if self.connection.is_busy() && is_there {
            self.connection.client_shut();
            return Poll::Pending;
        }
        self.connection.client_left();
        Poll::Ready(Ok(()))
    }

    /// Looks whether the client is there, if that was asked for.
    fn look(&mut self) {
        if self.shared.looks.take()
            && let Some(stream) = &self.stream
        {
            self.connection.looked(stream.side());
        }
    }
}

impl<S: Transport> AsyncRead for FrameIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.drain(..length);
            return Poll::Ready(Ok(()));
        }
        if self.shared.abuse.get().is_some() {
            return Poll::Pending;
        }
        let left = self.shared.left.get();
        if left == 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = self.stream()?.poll_read(context, buffer);
        self.connection.listens(read.is_pending());
        ready!(read)?;
        let bytes = &buffer.filled()[before..];
        if bytes.is_empty() {
            return self.ended(context);
        }
        self.shared.left.set(left.saturating_sub(bytes.len()));
        self.follow(bytes);
        if self.shared.abuse.get().is_some() {
            // h2 would find something else wrong with them.
            buffer.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for FrameIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll(bytes.len()));
        let written = ready!(self.stream()?.poll_write(context, bytes))?;
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll(slices.iter().map(|slice| slice.len()).sum()));
        let written = ready!(poll_write_together(self.stream()?, context, slices))?;
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    /// h2 flushes when it has written all that it had, and when it has no room for more.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look();
        ready!(self.stream()?.poll_flush(context))?;
        self.connection.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

impl<S> FrameIo<S> {
    fn wrote(&mut self, bytes: usize) -> Poll<io::Result<usize>> {
        self.frames.sent(bytes, self.connection.take_parts());
        self.connection.wrote(bytes);
        Poll::Ready(Ok(bytes))
    }
}
