//! A connection's stream as hyper sees it, and what is learned on the way: when a head begins, when an answer has been
//! handed over, when the client left. Hyper keeps all of that to itself.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::{Request, Version};
use hyper::body::{Body, Incoming};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

use super::buffers::{Buffers, FREE, Share};
use super::drain::{self, Awaited, Duty, Event};
use super::framing::{Bad, Framing, Part, Violation};
use super::outbox::{MAX_SHORT, Outbox};
use crate::worker::requests::InFlight;

/// Why a client is sent away before there is a request to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its head takes too long (RFC 9110, section 15.5.9).
    Late,
    /// It has too many bytes or fields (RFC 6585, section 5).
    TooLarge,
    /// What it sends is no request, or could be read as more than one.
    Malformed,
    /// Its answer failed before a byte of it was sent.
    Failed,
}

impl Refusal {
    fn answer(self) -> &'static [u8] {
        match self {
            Self::Late => b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            Self::TooLarge => {
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            }
            Self::Malformed => b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            Self::Failed => b"HTTP/1.1 500 Internal Server Error\r\n",
        }
    }
}

/// How long a connection may be silent in the beginning, when others want its place.
const CHANCE: Duration = Duration::from_secs(1);
/// So short an answer is put together before it is written: to copy it costs less than `writev` takes for its parts.
const PUT_TOGETHER: usize = 1024;
/// Bytes of a client that nobody wants any more, read at a time.
const DISCARDED: usize = 4 * 1024;
/// Bytes of a request line that are logged when it is refused.
const MAX_QUOTED: usize = 128;

/// What is known of a client's side without asking the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Open,
    /// Nothing comes behind what is still to be read. The client may have left, or read on.
    Shut,
    /// The connection is broken.
    Gone,
}

impl Side {
    fn of(ready: impl Future<Output = io::Result<Ready>>) -> Self {
        // Nobody is woken by it.
        match pin!(ready).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(ready)) if ready.is_write_closed() => Self::Gone,
            Poll::Ready(Ok(ready)) if ready.is_read_closed() => Self::Shut,
            Poll::Ready(Err(_)) => Self::Gone,
            Poll::Ready(Ok(_)) | Poll::Pending => Self::Open,
        }
    }
}

/// The stream of a client. What the kernel last said of its readiness has the ends of both directions.
pub(crate) trait ClientStream: AsyncRead + AsyncWrite + AsFd + Unpin + 'static {
    fn side(&self) -> Side;
}

/// Of what is asked for, these are told: PRIORITY comes with the end of what can be read, and is nothing that is
/// registered for by itself; WRITABLE with that of what can be written.
const ENDS: Interest = Interest::PRIORITY.add(Interest::WRITABLE);

impl ClientStream for TcpStream {
    fn side(&self) -> Side {
        Side::of(self.ready(ENDS))
    }
}

impl ClientStream for UnixStream {
    fn side(&self) -> Side {
        Side::of(self.ready(ENDS))
    }
}

/// What is known of a connection, shared by its stream, its answers and its task.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Where the machine's time begins.
    epoch: Instant,
    machine: RefCell<drain::Connection>,
    /// The request that is being answered, until its answer has been handed over.
    in_flight: RefCell<Option<Rc<InFlight>>>,
    /// An answer's body has ended, but may not be handed over yet.
    body_ended: Cell<bool>,
    /// Requests that hyper has handed over.
    requests: Cell<u64>,
    /// Requests to be answered before the client is told that what follows makes no sense.
    good: Cell<Option<u64>>,
    /// The last request had a body, which may not have been read to its end.
    has_upload: Cell<bool>,
    /// The last request was of HTTP/1.0, whose answers may have no other end than that of the connection.
    is_old: Cell<bool>,
    client_left: Cell<bool>,
    /// The last read found nothing, so that whatever comes next wakes the connection's task.
    listens: Cell<bool>,
    /// Answers whose head hyper has, and that were not flushed since.
    unsent: Cell<u32>,
    /// Bytes were written that were not flushed.
    has_written: Cell<bool>,
    /// The answer under way will never be whole.
    was_cut: Cell<bool>,
    /// When a byte last moved, while an answer's body is under way.
    moved_at: Cell<Option<Instant>>,
    /// Of another client, once it was evicted.
    keeps_a_place: Cell<bool>,
    /// Bytes of memory for what its client sends, beyond what every connection may have.
    held: Cell<usize>,
    /// As much of it as counts.
    share: Share,
    /// Of the connection's task.
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    pub(crate) fn new(epoch: Instant, timeouts: drain::Timeouts, buffers: Rc<Buffers>) -> Self {
        let machine = RefCell::new(drain::Connection::new(epoch.elapsed(), timeouts));
        Self {
            epoch,
            machine,
            in_flight: RefCell::new(None),
            body_ended: Cell::new(false),
            requests: Cell::new(0),
            good: Cell::new(None),
            has_upload: Cell::new(false),
            is_old: Cell::new(false),
            client_left: Cell::new(false),
            listens: Cell::new(false),
            unsent: Cell::new(0),
            has_written: Cell::new(false),
            was_cut: Cell::new(false),
            moved_at: Cell::new(None),
            keeps_a_place: Cell::new(false),
            held: Cell::new(0),
            share: Share::of(buffers),
            waker: RefCell::new(None),
        }
    }

    pub(crate) fn step(&self, event: Event) {
        self.machine.borrow_mut().step(self.epoch.elapsed(), event);
        self.settle();
    }

    /// The stream and hyper hold so many bytes of memory for what the client sends.
    fn holds(&self, bytes: usize) {
        self.held.set(bytes);
        self.settle();
    }

    /// Counts what is held, while nobody is answered.
    fn settle(&self) {
        let is_awaited = self.machine.borrow().awaited().is_some();
        self.share.set(if is_awaited { self.held.get() } else { 0 });
    }

    /// Since when its client is waited for, if it holds memory meanwhile.
    pub(crate) fn holding_since(&self) -> Option<drain::Time> {
        let (_, since) = self.machine.borrow().awaited()?;
        (!self.share.is_empty()).then_some(since)
    }

    pub(crate) fn duty(&self) -> Duty {
        self.machine.borrow().duty()
    }

    /// What its client is waited for, and since when, if it may make room for another. One that has just come may not.
    pub(crate) fn spare_since(&self) -> Option<(Awaited, drain::Time)> {
        let (awaited, since) = self.machine.borrow().awaited()?;
        let was_answered = awaited == Awaited::Request && self.requests.get() > 0;
        (was_answered || self.epoch.elapsed() > since + CHANCE).then_some((awaited, since))
    }

    /// Whether it is idle, and may make room for another.
    pub(crate) fn is_spare(&self) -> bool {
        self.spare_since().is_some_and(|(awaited, _)| awaited == Awaited::Request)
    }

    /// Ends the connection, unless a request is being answered, to make room for another.
    pub(crate) fn evict(&self) {
        self.step(Event::Evicted);
        self.wake();
    }

    /// Another client waits for its place.
    pub(crate) fn is_in_the_way(&self) {
        self.keeps_a_place.set(true);
    }

    pub(crate) fn keeps_a_place(&self) -> bool {
        self.keeps_a_place.get()
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// The connection's task is polled.
    pub(crate) fn polled(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.machine.borrow().is_draining()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.machine.borrow().next_deadline().map(|time| self.epoch + time)
    }

    pub(crate) fn has_client_left(&self) -> bool {
        self.client_left.get()
    }

    /// Whether the client may be sending what nobody reads any more.
    pub(crate) fn may_have_unread(&self) -> bool {
        self.has_upload.get()
    }

    /// A request is there; its answer has been handed over when the guard is gone and everything is flushed.
    pub(crate) fn answering(self: Rc<Self>, in_flight: Rc<InFlight>, request: &Request<Incoming>) -> Answering {
        // It may have been read together with the one before.
        self.body_ended.set(false);
        self.moved_at.set(None);
        self.has_upload.set(!request.body().is_end_stream());
        self.is_old.set(request.version() == Version::HTTP_10);
        self.in_flight.replace(Some(in_flight));
        self.requests.set(self.requests.get() + 1);
        self.step(Event::RequestBegan);
        Answering { watch: self, whole: true }
    }

    /// The head of the answer is there; its body may take longer.
    pub(crate) fn streams(&self) {
        self.unsent.set(self.unsent.get() + 1);
        self.moved_at.set(Some(Instant::now()));
    }

    /// Requests that hyper has handed over.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Whether the answer under way has failed, and can be replaced by another.
    pub(crate) fn can_answer_anew(&self) -> bool {
        // Not behind another that hyper has yet to write.
        self.was_cut.get() && self.unsent.get() == 1 && !self.has_written.get()
    }

    /// Whether a request is being answered, and nobody would be told that its client leaves: hyper does not read while it
    /// has bytes of the next request, or while the guest does not take those of this one.
    pub(crate) fn is_deaf(&self) -> bool {
        !self.listens.get() && self.machine.borrow().is_busy()
    }

    /// The client has closed its side while it waits for an answer.
    fn client_shut(&self) {
        // What it does next, only a look tells.
        self.listens.set(false);
        if !self.machine.borrow().is_client_shut() {
            self.step(Event::ClientShut);
        }
    }

    /// When a byte last moved, while an answer's body is under way.
    pub(crate) fn moved_at(&self) -> Option<Instant> {
        self.moved_at.get()
    }

    fn moved(&self) {
        if self.moved_at.get().is_some() {
            self.moved_at.set(Some(Instant::now()));
        }
    }

    fn wrote(&self, bytes: usize) {
        self.moved();
        if bytes > 0 {
            self.has_written.set(true);
        }
        if self.machine.borrow().is_client_shut() {
            self.step(Event::AnswerMoved);
        }
    }

    /// Whether the connection ends in the middle of an answer, and its end could be taken for the answer's.
    fn ends_too_early(&self) -> bool {
        self.is_old.get() && self.moved_at.get().is_some()
    }

    /// The request that is being answered.
    pub(crate) fn in_flight(&self) -> Option<Rc<InFlight>> {
        self.in_flight.borrow().clone()
    }

    /// What follows the first `good` requests makes no sense.
    fn malformed(&self, good: u64) {
        self.good.set(Some(good));
        self.refuse_in_turn();
    }

    fn refuse_in_turn(&self) {
        let Some(good) = self.good.get() else { return };
        let begun = self.requests.get();
        let is_busy = self.machine.borrow().is_busy();
        let is_turn = if is_busy { begun > good } else { begun >= good };
        if is_turn {
            // Of a request whose body turned out bad, an answer may be under way, or have come to its end.
            let is_answered = self.moved_at.get().is_some() || (!is_busy && begun > good);
            self.step(if is_answered { Event::ClientLeft } else { Event::Malformed });
        }
    }

    /// All that hyper had was written.
    fn flushed(&self) {
        self.unsent.set(0);
        self.has_written.set(false);
    }

    fn handed_over(&self) {
        self.moved_at.set(None);
        self.step(Event::Answered);
        self.refuse_in_turn();
        if self.machine.borrow().is_client_shut() {
            // Now hyper may learn that nothing follows.
            self.wake();
        }
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.answered();
        }
    }
}

/// Lives as long as the body of an answer.
#[derive(Debug)]
pub(crate) struct Answering {
    watch: Rc<Watch>,
    whole: bool,
}

impl Answering {
    /// The answer will never be whole. Whether it can be replaced by another, as no byte of it was sent.
    pub(crate) fn cut(mut self) -> bool {
        self.whole = false;
        self.watch.was_cut.set(true);
        self.watch.can_answer_anew()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.whole {
            self.watch.body_ended.set(true);
        }
    }
}

/// The stream.
pub(crate) struct Io<S> {
    stream: S,
    watch: Rc<Watch>,
    framing: Framing,
    /// What of the client's bytes hyper had no room for, because some were escaped. All of it is judged.
    ahead: Vec<u8>,
    /// The most that hyper's buffer had room for. It keeps what it got.
    largest: usize,
    /// What follows cannot be read.
    refusal: Option<Refusal>,
    outbox: Rc<Outbox>,
    /// The next write has waited for others.
    has_waited: bool,
}

impl<S: ClientStream> Io<S> {
    pub(crate) fn new(stream: S, watch: Rc<Watch>, framing: Framing, outbox: Rc<Outbox>) -> Self {
        Self { stream, watch, framing, ahead: Vec::new(), largest: 0, refusal: None, outbox, has_waited: false }
    }

    /// Tells the client why there will be no answer, or none but this.
    pub(crate) async fn refuse(&mut self) -> Refusal {
        let refusal = match self.refusal {
            _ if self.watch.was_cut.get() => Refusal::Failed,
            refusal => refusal.unwrap_or(Refusal::Late),
        };
        let mut answer = refusal.answer().to_vec();
        if refusal == Refusal::Failed {
            let name = self.watch.in_flight().map(|in_flight| in_flight.name()).unwrap_or_default();
            let text = format!("internal error (request {name})\n");
            let length = text.len();
            answer.extend_from_slice(
                format!(
                    "content-type: text/plain\r\nx-request-id: {name}\r\ncontent-length: {length}\r\nconnection: \
                     close\r\n\r\n{text}"
                )
                .as_bytes(),
            );
        }
        // Whoever is so slow may not read it either: what the kernel does not take at once is not sent.
        poll_fn(|context| {
            let _ = Pin::new(&mut self.stream).poll_write(context, &answer);
            Poll::Ready(())
        })
        .await;
        self.watch.step(Event::Shut);
        refusal
    }

    /// Requests whose head was whole, and that hyper has not handed over: it reads no further when the client is gone.
    pub(crate) fn unseen(&self) -> u64 {
        self.framing.heads().saturating_sub(self.watch.requests())
    }

    /// Shuts our side, if that was not done, and reads what still comes for as long as that is its duty. A connection that
    /// is closed with bytes unread is reset, which can destroy an answer that the client has not read.
    pub(crate) async fn linger(mut self) {
        if self.watch.ends_too_early() {
            // Closing then resets the connection.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
            return;
        }
        if self.watch.duty() == Duty::Close || self.stream.shutdown().await.is_err() {
            return;
        }
        // Until the client is gone, nothing is kept for it.
        drop((self.framing, self.ahead));
        let mut discarded = vec![0; DISCARDED];
        while let Some(deadline) = self.watch.next_deadline() {
            let event = tokio::select! {
                read = self.stream.read(&mut discarded) => match read {
                    Ok(0) | Err(_) => Event::ClientLeft,
                    Ok(_) => continue,
                },
                () = tokio::time::sleep_until(deadline.into()) => Event::DeadlinePassed,
            };
            self.watch.step(event);
        }
    }
}

impl<S> Io<S> {
    /// Lets others that are ready go first, once for each short write.
    fn poll_turn(&mut self, bytes: usize) -> Poll<()> {
        self.has_waited = !self.has_waited && bytes <= MAX_SHORT;
        if !self.has_waited {
            return Poll::Ready(());
        }
        self.outbox.put_aside();
        Poll::Pending
    }
}

impl<S: ClientStream> Io<S> {
    /// The client has closed its side. Hyper would drop what it is working on, if it knew: so it does not learn that before
    /// everything is answered that came whole.
    fn ended(&self) -> Poll<io::Result<()>> {
        let is_owed = self.unseen() > 0 || self.watch.machine.borrow().is_busy();
        if is_owed && self.framing.inside().is_none() && self.stream.side() != Side::Gone {
            self.watch.client_shut();
            return Poll::Pending;
        }
        self.watch.client_left.set(true);
        Poll::Ready(Ok(()))
    }

    /// Looks whether the client is there.
    fn look(&self) {
        match self.stream.side() {
            Side::Open => {}
            Side::Shut => self.watch.client_shut(),
            Side::Gone => self.watch.step(Event::ClientLeft),
        }
    }
}

impl<S> Io<S> {
    /// Escapes what `framing` found in the bytes behind the first `before`. What `buffer` has no room for then, comes with
    /// the next read.
    fn escape(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        let bytes = &buffer.filled()[before..];
        let mut escaped = Vec::with_capacity(bytes.len() + 2 * self.framing.odd().len());
        let mut from = 0;
        for &at in self.framing.odd().iter().filter(|&&at| at < bytes.len()) {
            escaped.extend_from_slice(&bytes[from..at]);
            escaped.extend_from_slice(format!("%{:02X}", bytes[at]).as_bytes());
            from = at + 1;
        }
        escaped.extend_from_slice(&bytes[from..]);
        buffer.set_filled(before);
        self.ahead = escaped;
        self.hand_over(buffer);
    }

    /// Gives hyper what there is room for.
    fn hand_over(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..length]);
        self.ahead.drain(..length);
        if self.ahead.is_empty() {
            self.ahead = Vec::new();
        }
    }
}

/// The beginning of a line that is refused, for the log.
fn quoted(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty()).unwrap_or_default();
    format!("({})", line[..line.len().min(MAX_QUOTED)].escape_ascii())
}

impl<S: ClientStream> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            self.hand_over(buffer);
            return Poll::Ready(Ok(()));
        }
        let Self { stream, watch, framing, refusal, largest, .. } = &mut *self;
        if refusal.is_some() {
            // The connection ends without hyper, which is asked no more.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        watch.listens.set(read.is_pending());
        ready!(read)?;
        let bytes = &buffer.filled()[before..];
        if bytes.is_empty() {
            return self.ended();
        }
        watch.moved();
        // Of a head that is not whole, hyper has all that was read before.
        *largest = (*largest).max(framing.begun() + buffer.capacity());
        match framing.follow(bytes) {
            Ok(()) => {
                watch.holds((framing.held() + *largest).saturating_sub(FREE));
                match framing.inside() {
                    Some(Part::Head) => watch.step(Event::HeadBegan),
                    Some(Part::Body) => watch.step(Event::BodyCame),
                    // Hyper has a whole request, and hands it over.
                    None => {}
                }
                if !framing.odd().is_empty() {
                    self.escape(buffer, before);
                }
                Poll::Ready(Ok(()))
            }
            Err(Bad { good, part, violation }) => {
                let line = if part == Part::Head { quoted(&bytes[good..]) } else { String::new() };
                tracing::debug!("a client is refused: {violation} {line}");
                *refusal = Some(match violation {
                    Violation::HeadTooLarge => Refusal::TooLarge,
                    _ => Refusal::Malformed,
                });
                // Of a body, the head has been counted.
                watch.malformed(framing.heads() - u64::from(part == Part::Body));
                buffer.set_filled(before + good);
                if !framing.odd().is_empty() {
                    self.escape(buffer, before);
                }
                // No bytes would mean that the client has left.
                if good > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
            }
        }
    }
}

impl<S: ClientStream> AsyncWrite for Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(bytes.len()));
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.watch.wrote(*written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        ready!(self.poll_turn(length));
        let stream = Pin::new(&mut self.stream);
        let written = if length <= PUT_TOGETHER {
            let mut whole = [0; PUT_TOGETHER];
            let length = (&mut whole[..]).write_vectored(slices)?;
            ready!(stream.poll_write(context, &whole[..length]))
        } else {
            ready!(stream.poll_write_vectored(context, slices))
        };
        self.watch.wrote(*written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Hyper flushes the stream when it has written all that it had.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.is_deaf() {
            self.look();
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.watch.flushed();
        if self.watch.body_ended.take() {
            self.watch.handed_over();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
