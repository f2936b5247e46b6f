//! A connection's stream as hyper sees it, and what is learned on the way: when a head begins, when an answer has been
//! handed over, when the client left. Hyper keeps all of that to itself.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::{Request, Version};
use hyper::body::{Body, Incoming};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::drain::{self, Duty, Event};
use super::framing::{Bad, Framing, Part, Violation};
use super::outbox::{MAX_SHORT, Outbox};
use super::requests::InFlight;

/// Why a client is sent away before there is a request to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its head takes too long (RFC 9110, section 15.5.9).
    Late,
    /// It has too many bytes or fields (RFC 6585, section 5).
    TooLarge,
    /// What it sends is no request, or could be read as more than one.
    Malformed,
}

impl Refusal {
    fn answer(self) -> &'static [u8] {
        match self {
            Self::Late => b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            Self::TooLarge => {
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            }
            Self::Malformed => b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        }
    }
}

/// How long a connection may be silent in the beginning, when others want its place.
const CHANCE: Duration = Duration::from_secs(1);
/// So short an answer is put together before it is written: to copy it costs less than `writev` takes for its parts.
const PUT_TOGETHER: usize = 1024;
/// Bytes of a client that nobody wants any more, read at a time.
const DISCARDED: usize = 16 * 1024;

/// What is known of a connection, shared by its stream, its answers and its task.
#[derive(Debug)]
pub(super) struct Watch {
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
    /// When a byte last moved, while an answer's body is under way.
    moved_at: Cell<Option<Instant>>,
    /// Of the connection's task.
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    pub(super) fn new(epoch: Instant, timeouts: drain::Timeouts) -> Self {
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
            moved_at: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    pub(super) fn step(&self, event: Event) {
        self.machine.borrow_mut().step(self.epoch.elapsed(), event);
    }

    pub(super) fn duty(&self) -> Duty {
        self.machine.borrow().duty()
    }

    /// When it became idle, if it is, and may make room for another. One that has just come may not.
    pub(super) fn spare_since(&self) -> Option<drain::Time> {
        let since = self.machine.borrow().idle_since()?;
        let has_had_its_chance = self.requests.get() > 0 || self.epoch.elapsed() > since + CHANCE;
        has_had_its_chance.then_some(since)
    }

    /// Closes the connection, if it is idle, to make room for another.
    pub(super) fn evict(&self) {
        self.step(Event::Evicted);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// The connection's task is polled.
    pub(super) fn polled(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.machine.borrow().is_draining()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.machine.borrow().next_deadline().map(|time| self.epoch + time)
    }

    pub(super) fn has_client_left(&self) -> bool {
        self.client_left.get()
    }

    /// Whether the client may be sending what nobody reads any more.
    pub(super) fn may_have_unread(&self) -> bool {
        self.has_upload.get()
    }

    /// A request is there; its answer has been handed over when the guard is gone and everything is flushed.
    pub(super) fn answering(self: Rc<Self>, in_flight: Rc<InFlight>, request: &Request<Incoming>) -> Answering {
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
    pub(super) fn streams(&self) {
        self.moved_at.set(Some(Instant::now()));
    }

    /// When a byte last moved, while an answer's body is under way.
    pub(super) fn moved_at(&self) -> Option<Instant> {
        self.moved_at.get()
    }

    fn moved(&self) {
        if self.moved_at.get().is_some() {
            self.streams();
        }
    }

    /// Whether the connection ends in the middle of an answer, and its end could be taken for the answer's.
    fn ends_too_early(&self) -> bool {
        self.is_old.get() && self.moved_at.get().is_some()
    }

    /// What the request in flight is called.
    pub(super) fn request(&self) -> Option<String> {
        self.in_flight.borrow().as_ref().map(|in_flight| in_flight.id.to_string())
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

    fn handed_over(&self) {
        self.moved_at.set(None);
        self.step(Event::Answered);
        self.refuse_in_turn();
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.answered();
        }
    }
}

/// Lives as long as the body of an answer.
#[derive(Debug)]
pub(super) struct Answering {
    watch: Rc<Watch>,
    whole: bool,
}

impl Answering {
    /// The answer will never be whole.
    pub(super) fn cut(mut self) {
        self.whole = false;
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
pub(super) struct Io<S> {
    stream: S,
    watch: Rc<Watch>,
    framing: Framing,
    /// What follows cannot be read.
    refusal: Option<Refusal>,
    outbox: Rc<Outbox>,
    /// The next write has waited for others.
    has_waited: bool,
}

impl<S: AsyncRead + AsyncWrite + AsFd + Unpin> Io<S> {
    pub(super) fn new(stream: S, watch: Rc<Watch>, framing: Framing, outbox: Rc<Outbox>) -> Self {
        Self { stream, watch, framing, refusal: None, outbox, has_waited: false }
    }

    /// Tells the client why there will be no answer.
    pub(super) async fn refuse(&mut self) -> Refusal {
        let refusal = self.refusal.unwrap_or(Refusal::Late);
        // Whoever is so slow may not read it either: what the kernel does not take at once is not sent.
        poll_fn(|context| {
            let _ = Pin::new(&mut self.stream).poll_write(context, refusal.answer());
            Poll::Ready(())
        })
        .await;
        self.watch.step(Event::Shut);
        refusal
    }

    /// Shuts our side, if that was not done, and reads what still comes for as long as that is its duty. A connection that
    /// is closed with bytes unread is reset, which can destroy an answer that the client has not read.
    pub(super) async fn linger(mut self) {
        if self.watch.ends_too_early() {
            // Closing then resets the connection.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
            return;
        }
        if self.watch.duty() == Duty::Close || self.stream.shutdown().await.is_err() {
            return;
        }
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

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, watch, framing, refusal, .. } = &mut *self;
        if refusal.is_some() {
            // The connection ends without hyper, which is asked no more.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        let bytes = &buffer.filled()[before..];
        if bytes.is_empty() {
            watch.client_left.set(true);
            return Poll::Ready(Ok(()));
        }
        watch.moved();
        match framing.follow(bytes) {
            Ok(()) => {
                match framing.inside() {
                    Some(Part::Head) => watch.step(Event::HeadBegan),
                    Some(Part::Body) => watch.step(Event::BodyCame),
                    // Hyper has a whole request, and hands it over.
                    None => {}
                }
                Poll::Ready(Ok(()))
            }
            Err(Bad { good, part, violation }) => {
                tracing::debug!("a client is refused: {violation}");
                *refusal = Some(match violation {
                    Violation::HeadTooLarge => Refusal::TooLarge,
                    _ => Refusal::Malformed,
                });
                // Of a body, the head has been counted.
                watch.malformed(framing.heads() - u64::from(part == Part::Body));
                buffer.set_filled(before + good);
                // No bytes would mean that the client has left.
                if good > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(bytes.len()));
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.watch.moved();
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
        self.watch.moved();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Hyper flushes the stream when it has written all that it had.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        if self.watch.body_ended.take() {
            self.watch.handed_over();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
