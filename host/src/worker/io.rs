//! A connection's stream as hyper sees it, and what is learned on the way: when a head begins, when an answer has been
//! handed over, when the client left. Hyper keeps all of that to itself.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::drain::{self, Duty, Event};
use super::requests::InFlight;

/// The answer to a head that took too long (RFC 9110, section 15.5.9).
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
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
    /// The last request had a body, which may not have been read to its end.
    has_upload: Cell<bool>,
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
            has_upload: Cell::new(false),
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

    /// When it became idle, if it is.
    pub(super) fn idle_since(&self) -> Option<drain::Time> {
        self.machine.borrow().idle_since()
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
    pub(super) fn answering(self: Rc<Self>, in_flight: Rc<InFlight>, has_upload: bool) -> Answering {
        // It may have been read together with the one before.
        self.body_ended.set(false);
        self.moved_at.set(None);
        self.has_upload.set(has_upload);
        self.in_flight.replace(Some(in_flight));
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

    /// What the request in flight is called.
    pub(super) fn request(&self) -> Option<String> {
        self.in_flight.borrow().as_ref().map(|in_flight| in_flight.id.to_string())
    }

    fn handed_over(&self) {
        self.moved_at.set(None);
        self.step(Event::Answered);
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
#[derive(Debug)]
pub(super) struct Io<S> {
    stream: S,
    watch: Rc<Watch>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    pub(super) fn new(stream: S, watch: Rc<Watch>) -> Self {
        Self { stream, watch }
    }

    /// Tells the client that its head took too long.
    pub(super) async fn refuse(&mut self) {
        // Whoever is so slow may not read it either: what the kernel does not take at once is not sent.
        let _ = self.stream.write(LATE).await;
        self.watch.step(Event::Shut);
    }

    /// Shuts our side, if that was not done, and reads what still comes for as long as that is its duty. A connection that
    /// is closed with bytes unread is reset, which can destroy an answer that the client has not read.
    pub(super) async fn linger(mut self) {
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

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.watch.moved();
            // After an upload it cannot be told whether this is the rest of it. The next head is noticed when it is whole.
            self.watch.step(if self.watch.has_upload.get() { Event::BodyCame } else { Event::HeadBegan });
        } else {
            self.watch.client_left.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.watch.moved();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
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
