//! The body of an answer, with the guest that is still writing it.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Method;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use wasmtime_wasi_http::Error;

use super::connection::Connection;
use super::exchange::Exchange;
use super::head::{content_length, has_no_body};
use super::outcome::Verdict;
use super::websocket::Conversation;
use crate::logging::one_line;
use crate::worker::guest::call::{Call, Failure, said};
use crate::worker::requests::log_of;

/// Bytes of an answer that are taken before its head is sent, if the guest has written them by then.
const MAX_GATHERED: usize = 64 * 1024;

/// Why an answer cannot become whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Incomplete {
    #[error("its body is longer than its content-length")]
    TooLong,
    #[error("its body ended {0} bytes before its content-length")]
    TooShort(u64),
    #[error("the guest dropped its body without finishing it")]
    Unfinished,
    #[error("the guest trapped")]
    Trapped,
    #[error("there was no memory for another instance")]
    Full,
    /// The guest's own words: one line.
    #[error("the guest ended it with an error: {0}")]
    Said(String),
}

impl Incomplete {
    /// `remaining` is how much was still to come, if that is known.
    fn of(error: Error, remaining: Option<u64>) -> Self {
        match (error, remaining) {
            // Wasmtime counts as well, and words both as if the body was too long.
            (Error::HttpProtocolError | Error::HttpResponseBodySize(_), Some(rest @ 1..)) => Self::TooShort(rest),
            (Error::HttpResponseBodySize(_), _) => Self::TooLong,
            (Error::HttpProtocolError, _) => Self::Unfinished,
            (error, _) => Self::Said(one_line(&said(error)).to_string()),
        }
    }
}

/// What was taken of an answer before its head is sent. As a rule that is one frame.
#[derive(Default)]
struct Gathered {
    first: Option<Frame<Bytes>>,
    further: VecDeque<Frame<Bytes>>,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn push(&mut self, frame: Frame<Bytes>) {
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.further.push_back(frame),
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let next = self.further.pop_front();
        mem::replace(&mut self.first, next)
    }

    fn is_plain(&self) -> bool {
        self.first.iter().chain(&self.further).all(Frame::is_data)
    }
}

/// The body of an answer, with the guest that is still writing it.
pub(super) struct Body {
    gathered: Gathered,
    /// Its length, if that is all and the head does not say it.
    length: Option<u64>,
    /// What the guest writes; `None` after its end.
    frames: Option<UnsyncBoxBody<Bytes, Error>>,
    call: Option<Call>,
    /// None of an answer of our own that is not on its way yet.
    exchange: Option<Rc<Exchange>>,
    /// How much of the declared content-length is still to come from the guest.
    remaining: Option<u64>,
    /// Its connection, once it is on its way.
    sent_on: Option<Rc<Connection>>,
    /// What follows instead of a body.
    conversation: Option<Box<Conversation>>,
}

impl Body {
    fn new(
        frames: Option<UnsyncBoxBody<Bytes, Error>>,
        call: Option<Call>,
        exchange: Option<Rc<Exchange>>,
        remaining: Option<u64>,
    ) -> Self {
        Self {
            gathered: Gathered::default(),
            length: None,
            frames,
            call,
            exchange,
            remaining,
            sent_on: None,
            conversation: None,
        }
    }

    pub(super) fn text(text: String) -> Self {
        let frames = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        Self::new(Some(frames), None, None, None)
    }

    pub(super) fn of_guest(
        head: &http::response::Parts,
        frames: UnsyncBoxBody<Bytes, Error>,
        call: Option<Call>,
        exchange: Rc<Exchange>,
        method: &Method,
    ) -> Self {
        let remaining = if has_no_body(method, head.status) { Some(0) } else { content_length(&head.headers).ok() };
        Self::new(Some(frames), call, Some(exchange), remaining)
    }

    /// None, since a WebSocket follows.
    pub(super) fn of_websocket(conversation: Conversation) -> Self {
        let exchange = Some(conversation.exchange().clone());
        let mut body = Self::new(None, None, exchange, None);
        body.conversation = Some(Box::new(conversation));
        body
    }

    /// The WebSocket that follows.
    pub(super) fn take_conversation(&mut self) -> Option<Box<Conversation>> {
        self.conversation.take()
    }

    /// Takes what the guest has written by now, so that a short answer is sent with its length, and what is wrong with it is
    /// known while it can be another. After an error, nothing of it was sent.
    pub(super) fn gather(&mut self, context: &mut Context<'_>) -> Result<(), Incomplete> {
        let mut bytes = 0;
        while self.remaining != Some(0) && bytes < MAX_GATHERED {
            match self.poll_more(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    bytes += frame.data_ref().map_or(0, Bytes::len);
                    self.gathered.push(frame);
                }
                Poll::Ready(None) => {
                    self.length = (self.remaining.is_none() && self.gathered.is_plain()).then_some(bytes as u64);
                    break;
                }
                Poll::Ready(Some(Err(fault))) => return Err(fault),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// What the guest writes next. An error means that the answer can no longer become whole.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let mut polled = self.poll_written(context);
        if polled.is_pending() {
            self.poll_guest(context)?;
            polled = self.poll_written(context);
        }
        let frame = match ready!(polled) {
            Some(frame) => frame.map_err(|error| Incomplete::of(error, self.remaining))?,
            None => {
                if let Some(rest @ 1..) = self.remaining {
                    return Poll::Ready(Some(Err(Incomplete::TooShort(rest))));
                }
                // A trap ends the frames, also one on behalf of another request in the same instance.
                let ended = self.poll_guest(context);
                self.took_all(context);
                return Poll::Ready(ended.err().map(Err));
            }
        };
        if let Some(remaining) = self.remaining {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            // Hyper would drop what is over, and the client take the answer for whole.
            self.remaining = Some(remaining.checked_sub(length).ok_or(Incomplete::TooLong)?);
        }
        match self.remaining {
            Some(rest @ 1..) if frame.is_trailers() => return Poll::Ready(Some(Err(Incomplete::TooShort(rest)))),
            Some(0) => self.took_all(context),
            // Nothing follows them, and a client of HTTP/2 waits for nothing.
            _ if frame.is_trailers() => self.took_all(context),
            _ => {}
        }
        Poll::Ready(Some(Ok(frame)))
    }

    /// Lets the guest work.
    fn poll_guest(&mut self, context: &mut Context<'_>) -> Result<(), Incomplete> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let Poll::Ready(ended) = Pin::new(call).poll(context) else {
            return Ok(());
        };
        self.call = None;
        match ended {
            Ok(()) => Ok(()),
            Err(Failure::Full) => Err(Incomplete::Full),
            Err(Failure::Trap(error)) => {
                if let Some(exchange) = &self.exchange {
                    exchange.trapped(&error);
                }
                Err(Incomplete::Trapped)
            }
        }
    }

    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.frames {
            Some(frames) => Pin::new(frames).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    /// The answer is whole.
    fn took_all(&mut self, context: &mut Context<'_>) {
        self.frames = None;
        // A 0.3 guest may be waiting for just this, and then needs no task of its own.
        let _ = self.poll_guest(context);
    }

    fn has_its_length(&self) -> bool {
        self.remaining.is_none_or(|remaining| remaining == 0)
    }

    /// Whether all of it was taken: what its guest still does, its client does not wait for.
    pub(super) fn is_sent(&self) -> bool {
        http_body::Body::is_end_stream(self) || self.is_complete()
    }

    /// What it answers, once it is on its way.
    pub(super) fn exchange(&self) -> Option<Rc<Exchange>> {
        self.exchange.clone()
    }

    /// Whether nothing more of it is to be sent.
    fn is_complete(&self) -> bool {
        self.gathered.is_empty() && (self.frames.is_none() || self.remaining == Some(0))
    }

    pub(super) fn hint(&self) -> String {
        self.exchange.as_ref().map(|it| it.hint()).unwrap_or_default()
    }

    /// It is on its way: what is said of it from now on, its client learns.
    pub(super) fn send_on(&mut self, connection: Rc<Connection>, exchange: Rc<Exchange>) {
        if self.exchange.is_none() {
            // It is the server's own: if a guest was asked, that is over.
            exchange.guest_is_done();
        }
        (self.sent_on, self.exchange) = (Some(connection), Some(exchange));
    }

    /// Gives up: hyper closes the connection without a well-formed end.
    fn cut(&mut self, fault: Incomplete) -> Incomplete {
        if let Some(exchange) = &self.exchange {
            exchange.cut();
            exchange.blame();
            let can_be_replaced = self.sent_on.take().is_some_and(|connection| connection.can_answer_anew());
            let (what, hint) = (if can_be_replaced { "failed before it was sent" } else { "was cut" }, exchange.hint());
            log_of!(warn, exchange, "an answer {what}: {fault}{hint}");
        }
        (self.frames, self.call) = (None, None);
        fault
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        // The guest works only when nothing is left of what it wrote before.
        let polled = match self.gathered.pop() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.poll_more(context).map(|polled| polled.map(|frame| frame.map_err(|fault| self.cut(fault)))),
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(exchange)) = (&polled, &self.exchange)
            && let Some(data) = frame.data_ref()
        {
            exchange.sends(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // Of one that is too short, the end is an error.
        self.call.is_none()
            && self.gathered.is_empty()
            && self.frames.as_ref().is_none_or(|frames| self.has_its_length() && frames.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match (self.length, &self.frames) {
            (Some(length), _) => SizeHint::with_exact(length),
            (None, Some(frames)) if self.gathered.is_empty() => frames.size_hint(),
            (None, None) if self.gathered.is_empty() => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(exchange) = self.exchange.take() else { return };
        // One that was cut is on its way no more.
        let is_sent = self.sent_on.is_some();
        let is_complete = self.is_complete();
        // If it is not complete, the client is gone: so is the guest, as soon as its call drops.
        match self.call.take().filter(|_| is_complete) {
            Some(call) => {
                self.frames = None;
                tokio::task::spawn_local(outlive(call, exchange.clone(), "its answer"));
            }
            None => exchange.guest_is_done(),
        }
        if is_sent {
            exchange.whole();
        }
    }
}

/// Lets a guest finish what it does behind its answer, or behind `what`.
pub(super) async fn outlive(mut call: Call, exchange: Rc<Exchange>, what: &str) {
    match tokio::time::timeout(exchange.limit, &mut call).await {
        Ok(Err(Failure::Trap(error))) => {
            exchange.blame();
            exchange.trapped(&error);
        }
        Ok(_) => {}
        Err(_) => {
            exchange.judge(Verdict::Late);
            log_of!(warn, &exchange, "the guest was stopped {:?} after {what}; see --request-timeout", exchange.limit);
        }
    }
    drop(call);
    exchange.guest_is_done();
}
