//! WebSocket: a request that asks for one, and the connection that it becomes when its guest accepts. The guest's end is a
//! [`SocketLink`]; `websocket/machine.rs` decides what is said to the client, and when.
//!
//! The guest is polled in the connection's own task, as with any answer: a client that does not take what is sent slows its
//! guest down. When the connection has ended, a guest that goes on gets a task of its own, and as long as any guest behind
//! its answer.

mod machine;
mod pipe;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::ReadBuf;
use tokio::sync::OwnedSemaphorePermit;

use super::answers::Answer;
use super::body::{Body, outlive};
use super::buffers::{Buffers, FREE, Share};
use super::drain::Time;
use super::exchange::Exchange;
use super::handler::Incoming as IncomingBody;
use super::http1::LOOK_EVERY;
use super::outcome::Verdict;
use super::server::Server;
use super::timer::{Beat, Timer};
use super::transport::{Side, Transport};
use crate::logging::one_line;
use crate::wire::counter::Held;
use crate::worker::Phase;
use crate::worker::guest::call::{Call, Failure};
use crate::worker::guest::outbound::listed;
use crate::worker::guest::websocket::{Closed, SocketLink, TICKET, code};
use crate::worker::requests::log_of;
use machine::{Arrived, Bounds, SocketMachine, TooLate};

/// What a client's key is hashed with (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The version of RFC 6455.
const VERSION: &str = "13";
/// Bytes of a key.
const KEY: usize = 16;
/// Bytes that wait for the client before its guest does.
const MAX_UNSENT: usize = 64 * 1024;
/// Bytes that are read before others have their turn, and at once.
const MAX_READ: usize = 64 * 1024;
const READ: usize = 16 * 1024;
/// How a client is told that its worker goes.
const RESTART: &str = "the server is shutting down";

/// What a client sends behind its handshake over HTTP/2; an error is the end.
pub(super) type SocketInflow = UnsyncBoxBody<Bytes, ()>;

/// How a request asks for a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// With the value of the answer's `Sec-WebSocket-Accept`.
    Http1(HeaderValue),
    Http2,
}

/// Why a request that asks for a WebSocket gets none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHandshake {
    Malformed(&'static str),
    /// It is of another version than that of RFC 6455.
    Version,
}

impl Handshake {
    /// Whether and how a request asks for one. Over HTTP/1, whoever does not want to speak a protocol that is offered ignores
    /// the offer (RFC 9110, section 7.8), so one that is not made properly is none; one with the right header and wrong
    /// contents is a mistake.
    pub(super) fn of<B: IncomingBody>(request: &Request<B>) -> Option<Result<Self, BadHandshake>> {
        let headers = request.headers();
        if request.version() == Version::HTTP_2 {
            let protocol = request.extensions().get::<h2::ext::Protocol>()?;
            let is_asked = protocol.as_str().eq_ignore_ascii_case("websocket");
            return is_asked.then(|| check_version(headers).map(|()| Self::Http2));
        }
        let is_asked = request.version() == Version::HTTP_11
            && *request.method() == Method::GET
            && has_token(headers, &CONNECTION, "upgrade")
            && has_token(headers, &UPGRADE, "websocket");
        is_asked.then(|| {
            check_version(headers)?;
            if !request.body().is_end_stream() {
                return Err(BadHandshake::Malformed("a request for a WebSocket has no body"));
            }
            let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
            let accept = match (keys.next(), keys.next()) {
                (Some(key), None) => accept(key.as_bytes()),
                _ => None,
            };
            accept
                .map(Self::Http1)
                .ok_or(BadHandshake::Malformed("the request needs one valid Sec-WebSocket-Key header"))
        })
    }
}

fn check_version(headers: &HeaderMap) -> Result<(), BadHandshake> {
    let mut versions = headers.get_all(SEC_WEBSOCKET_VERSION).iter();
    let is_ours = versions.next().is_some_and(|version| version == VERSION) && versions.next().is_none();
    if is_ours { Ok(()) } else { Err(BadHandshake::Version) }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    listed(headers, name).any(|other| other.eq_ignore_ascii_case(token))
}

/// What proves that a key was read (RFC 6455, section 4.2.2); `None` if it is none.
fn accept(key: &[u8]) -> Option<HeaderValue> {
    if data_encoding::BASE64.decode(key).ok()?.len() != KEY {
        return None;
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID.as_bytes()].concat());
    HeaderValue::try_from(data_encoding::BASE64.encode(hash.as_ref())).ok()
}

/// A guest's way to its client, which ends when nobody serves it any more.
struct Line(Arc<SocketLink>);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.shut(Closed::new(code::LOST, ""));
    }
}

/// A WebSocket that a guest may accept.
pub(super) struct Offer {
    handshake: Handshake,
    line: Line,
    /// The protocols that the client offers.
    protocols: Vec<String>,
    /// Of HTTP/2.
    inflow: Option<SocketInflow>,
    place: OwnedSemaphorePermit,
}

impl Offer {
    /// Makes `request` one for a guest.
    pub(super) fn of<B: IncomingBody>(
        handshake: Handshake,
        request: Request<B>,
        exchange: &Exchange,
        place: OwnedSemaphorePermit,
    ) -> (Request<Empty<Bytes>>, Self) {
        let (mut head, body) = request.into_parts();
        head.method = Method::GET;
        let protocols = listed(&head.headers, &SEC_WEBSOCKET_PROTOCOL).map(ToOwned::to_owned).collect();
        for name in [SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_EXTENSIONS, CONTENT_LENGTH] {
            head.headers.remove(name);
        }
        let line = Line(SocketLink::new(exchange.number()));
        head.headers.insert(TICKET, line.0.ticket().into());
        let inflow = (handshake == Handshake::Http2).then(|| body.map_err(|_| ()).boxed_unsync());
        (Request::from_parts(head, Empty::new()), Self { handshake, line, protocols, inflow, place })
    }

    pub(super) fn link(&self) -> Arc<SocketLink> {
        self.line.0.clone()
    }

    /// The answer to a guest's 101, and what follows it. An error is what is wrong with the guest's.
    pub(super) fn accept(
        self,
        mut head: response::Parts,
        call: Option<Call>,
        exchange: &Rc<Exchange>,
    ) -> Result<Answer, &'static str> {
        let Self { handshake, line, protocols, inflow, place } = self;
        if !line.0.is_accepted() {
            return Err("its status is 101, but it has not accepted the WebSocket");
        }
        let mut chosen = head.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let (chosen, more) = (chosen.next(), chosen.next());
        let is_offered = |chosen: &HeaderValue| protocols.iter().any(|offered| chosen == offered.as_str());
        if more.is_some() || !chosen.is_none_or(is_offered) {
            return Err("its sec-websocket-protocol is not one that the client offers");
        }
        for name in [SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, CONTENT_LENGTH, TRANSFER_ENCODING] {
            head.headers.remove(name);
        }
        match handshake {
            Handshake::Http1(accept) => {
                head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                head.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            Handshake::Http2 => head.status = StatusCode::OK,
        }
        if call.is_none() {
            line.0.abandon();
        }
        let conversation = Conversation { line, call, inflow, exchange: exchange.clone(), place };
        Ok(Response::from_parts(head, Body::of_websocket(conversation)))
    }
}

/// A WebSocket whose client has yet to be told that it has one.
pub(super) struct Conversation {
    line: Line,
    call: Option<Call>,
    inflow: Option<SocketInflow>,
    exchange: Rc<Exchange>,
    place: OwnedSemaphorePermit,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line.0.fmt(f)
    }
}

impl Conversation {
    pub(super) fn exchange(&self) -> &Rc<Exchange> {
        &self.exchange
    }

    /// What the client sends over HTTP/2.
    pub(super) fn take_inflow(&mut self) -> Option<SocketInflow> {
        self.inflow.take()
    }

    /// Speaks with the client over `wire` until one of them closes the WebSocket. The client has the answer's head.
    /// Says whether all that was said has left.
    pub(super) async fn run(self, wire: impl SocketWire, server: &Server) -> Parting {
        let Self { line, call, exchange, place, .. } = self;
        exchange.upgraded();
        line.0.attend();
        let bounds = Bounds {
            silence: server.limits.websocket_timeout,
            stall: server.limits.stream_timeout,
            max_message: server.limits.max_websocket_message,
        };
        let now = server.started.elapsed();
        let mut talk = Talk {
            machine: SocketMachine::new(now, bounds),
            line,
            call,
            exchange,
            wire,
            is_sent: true,
            leaves: None,
            grace: server.timeouts.grace,
            unfinished: Share::of(server.messages.clone()),
            messages: server.messages.clone(),
            parting: Parting::Orderly,
            place: Some(place),
            _counted: server.stats.websockets.hold(),
        };
        let mut phases = server.phases.clone();
        // The sender lives as long as the process, so waiting cannot fail.
        let mut drain_begins = pin!(phases.wait_for(|&phase| phase == Phase::Draining));
        let mut timer = Timer::default();
        poll_fn(|context| {
            let mut now = server.started.elapsed();
            if talk.leaves.is_none() && drain_begins.as_mut().poll(context).is_ready() {
                talk.leave(now);
            }
            loop {
                if talk.poll(now, context).is_ready() {
                    return Poll::Ready(());
                }
                let Some(at) = talk.deadline() else { return Poll::Pending };
                ready!(timer.poll(server.started + at, context));
                now = server.started.elapsed();
                talk.pass(now);
            }
        })
        .await;
        talk.parting
    }
}

/// How a WebSocket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    Orderly,
    /// The client is gone, or takes nothing.
    Lost,
}

/// A WebSocket in use.
struct Talk<W> {
    machine: SocketMachine,
    line: Line,
    call: Option<Call>,
    exchange: Rc<Exchange>,
    wire: W,
    /// Nothing of what left the machine waits in the wire.
    is_sent: bool,
    /// When it is closed at the latest, as the worker drains.
    leaves: Option<Time>,
    grace: Duration,
    /// Its part of the memory for messages that are not whole.
    unfinished: Share,
    messages: Rc<Buffers>,
    parting: Parting,
    /// Until its guest is done.
    place: Option<OwnedSemaphorePermit>,
    _counted: Held,
}

impl<W: SocketWire> Talk<W> {
    fn link(&self) -> &SocketLink {
        &self.line.0
    }

    /// The worker drains: its guest may say goodbye.
    fn leave(&mut self, now: Time) {
        self.leaves = Some(now + self.grace);
        self.link().end(Closed::new(code::GOING_AWAY, RESTART));
    }

    fn deadline(&self) -> Option<Time> {
        let leaves = self.leaves.filter(|_| self.machine.is_open());
        leaves.into_iter().chain(self.machine.deadline()).min()
    }

    fn pass(&mut self, now: Time) {
        if self.machine.is_open() && self.leaves.is_some_and(|at| now >= at) {
            self.send();
            self.close(now, &Closed::new(code::GOING_AWAY, RESTART));
        }
        match self.machine.pass(now) {
            None => {}
            Some(TooLate::Unanswered) => self.lost(),
            Some(TooLate::Silent) => {
                log_of!(
                    debug,
                    &self.exchange,
                    "a WebSocket was cut: its client answers no pings; see --websocket-timeout"
                );
                self.lost();
            }
            Some(TooLate::Stuck) => {
                self.exchange.judge(Verdict::Late);
                log_of!(warn, &self.exchange, "a WebSocket was cut: its client takes nothing; see --stream-timeout");
                self.lost();
            }
        }
    }

    fn close(&mut self, now: Time, closed: &Closed) {
        self.machine.close(now, closed);
        self.link().shut(closed.clone());
    }

    /// Ready when the connection is to be closed.
    fn poll(&mut self, now: Time, context: &mut Context<'_>) -> Poll<()> {
        self.link().wakes(context.waker());
        let (mut left, mut guest_is_due) = (MAX_READ, true);
        loop {
            if std::mem::take(&mut guest_is_due) {
                self.poll_guest(now, context);
            }
            self.take_from_guest(now);
            let has_written = self.poll_write(now, context);
            if self.machine.is_over() && self.machine.output().is_empty() && self.is_sent {
                return Poll::Ready(());
            }
            let unsent = self.machine.output().len();
            guest_is_due = has_written | self.give_to_guest(now);
            let has_read = !guest_is_due && self.poll_read(now, &mut left, context);
            // The machine has its own to say: pongs, and its part of a close.
            let left_to_send = self.machine.output().len();
            let has_more = left_to_send > unsent || (left_to_send == 0 && self.is_sent && self.machine.is_over());
            if !guest_is_due && !has_read && !has_more {
                return Poll::Pending;
            }
        }
    }

    fn poll_guest(&mut self, now: Time, context: &mut Context<'_>) {
        let Some(call) = &mut self.call else { return };
        let Poll::Ready(ended) = Pin::new(call).poll(context) else { return };
        self.call = None;
        match ended {
            Ok(()) => self.link().abandon(),
            Err(failure) => {
                self.exchange.blame();
                if let Failure::Trap(error) = failure {
                    self.exchange.trapped(&error);
                }
                self.send();
                self.close(now, &Closed::new(code::INTERNAL, ""));
            }
        }
    }

    /// Takes what the guest sends, as long as the client takes it.
    fn take_from_guest(&mut self, now: Time) {
        while self.machine.output().len() < MAX_UNSENT
            && let Some(message) = self.link().take()
        {
            self.machine.send(message);
        }
        if self.machine.is_open()
            && let Some(Closed { code, reason }) = self.link().close()
        {
            // A guest that ends because its worker does, has not closed it.
            let code = if self.leaves.is_some() && code == code::NORMAL { code::GOING_AWAY } else { code };
            self.close(now, &Closed { code, reason });
        }
    }

    /// Sends all that the guest has sent, behind which nothing follows.
    fn send(&mut self) {
        while let Some(message) = self.link().take() {
            self.machine.send(message);
        }
    }

    /// Whether there may be room for more now.
    fn poll_write(&mut self, now: Time, context: &mut Context<'_>) -> bool {
        let before = self.machine.output().len();
        if before == 0 && self.is_sent {
            return false;
        }
        let polled = self.wire.poll_write(self.machine.output(), context);
        let after = self.machine.output().len();
        self.is_sent = polled.is_ready();
        self.machine.moved(now, after < before, self.is_sent);
        if matches!(polled, Poll::Ready(Err(_))) {
            self.lost();
        }
        before >= MAX_UNSENT && after < MAX_UNSENT
    }

    /// Whether what the client sends is read: its guest takes it, or none will, and the client takes the answers to its pings.
    fn reads(&mut self) -> bool {
        let is_taken = self.link().has_room() || !self.machine.is_open();
        is_taken && !self.machine.is_over() && self.machine.output().len() < MAX_UNSENT
    }

    /// Whether the guest has something to do now.
    fn give_to_guest(&mut self, now: Time) -> bool {
        let mut has_given = false;
        while self.reads() {
            match self.machine.next(now) {
                Some(Arrived::Message(message)) => self.link().deliver(message),
                Some(Arrived::Closed(closed)) => {
                    log_of!(debug, &self.exchange, "a WebSocket ended with code {}{}", closed.code, why(&closed));
                    self.link().shut(closed);
                }
                None => break,
            }
            has_given = true;
        }
        if has_given {
            self.account(now);
        }
        has_given
    }

    fn poll_read(&mut self, now: Time, left: &mut usize, context: &mut Context<'_>) -> bool {
        let reads = self.reads();
        self.machine.listens(now, reads);
        if !reads {
            // It is not read from, but may be gone.
            if self.wire.poll_gone(context).is_ready() {
                self.lost();
                return true;
            }
            return false;
        }
        if *left == 0 {
            context.waker().wake_by_ref();
            return false;
        }
        let machine = &mut self.machine;
        match self.wire.poll_read(&mut |bytes| machine.feed(now, bytes), context) {
            Poll::Ready(Ok(read @ 1..)) => {
                *left = left.saturating_sub(read);
                self.account(now);
                true
            }
            Poll::Ready(_) => {
                self.lost();
                true
            }
            Poll::Pending => false,
        }
    }

    /// Counts what is kept of a message that is not whole. Those of a worker have a budget: whoever is over it may try again.
    fn account(&mut self, now: Time) {
        let bytes = self.machine.unfinished();
        self.unfinished.set(if bytes > FREE { bytes } else { 0 });
        if self.machine.is_open() && !self.unfinished.is_empty() && self.messages.is_exceeded() {
            log_of!(debug, &self.exchange, "a WebSocket was closed: unfinished messages take up too much memory");
            self.close(now, &Closed::new(code::TRY_AGAIN, "too many large messages"));
        }
    }

    fn lost(&mut self) {
        self.parting = Parting::Lost;
        if let Some(closed) = self.machine.lost() {
            self.link().shut(closed);
        }
        self.machine.output().clear();
        self.is_sent = true;
    }
}

/// The connection is no more, also one that was dropped with others. Its guest gets to know, and may finish what it does;
/// until then it keeps its place.
impl<W> Drop for Talk<W> {
    fn drop(&mut self) {
        self.line.0.shut(Closed::new(code::LOST, ""));
        let (place, exchange) = (self.place.take(), self.exchange.clone());
        if let Some(call) = self.call.take() {
            tokio::task::spawn_local(async move {
                outlive(call, exchange, "its WebSocket ended").await;
                drop(place);
            });
        }
    }
}

/// What an operator can do about a close of ours.
fn why(closed: &Closed) -> String {
    match (closed.code, closed.reason.as_str()) {
        (code::TOO_BIG, _) => ": a message is too large; see --max-websocket-message".to_owned(),
        (_, "") => String::new(),
        (_, reason) => format!(": {}", one_line(reason)),
    }
}

/// What carries the bytes of a WebSocket.
pub(super) trait SocketWire {
    /// Hands over what the client has sent: how many bytes; 0 at the end.
    fn poll_read(&mut self, to: &mut dyn FnMut(&[u8]), context: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Sends as much of `output` as the client takes, and removes it there.
    fn poll_write(&mut self, output: &mut BytesMut, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when the client is gone, as far as that can be told without reading.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

/// A connection of HTTP/1.1.
pub(super) struct Bare<'a, S> {
    stream: &'a mut S,
    look: Beat,
}

impl<'a, S> Bare<'a, S> {
    pub(super) fn new(stream: &'a mut S) -> Self {
        Self { stream, look: Beat::default() }
    }
}

impl<S: Transport> SocketWire for Bare<'_, S> {
    fn poll_read(&mut self, to: &mut dyn FnMut(&[u8]), context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = [MaybeUninit::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut *self.stream).poll_read(context, &mut buffer))?;
        to(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, output: &mut BytesMut, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !output.is_empty() {
            match ready!(Pin::new(&mut *self.stream).poll_write(context, output))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => output.advance(written),
            }
        }
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { stream, look } = self;
        // Nobody is woken when a connection that is not read from breaks.
        while look.poll(LOOK_EVERY, context).is_ready() {
            if stream.side() == Side::Gone {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, headers: &[(&str, &str)]) -> Option<Result<Handshake, BadHandshake>> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Handshake::of(&request.body(Empty::<Bytes>::new()).unwrap())
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");
    const UPGRADE: (&str, &str) = ("upgrade", "websocket");
    const CONNECTION: (&str, &str) = ("connection", "keep-alive, Upgrade");

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_key_is_proven() {
        let handshake = asked("GET", &[KEY, VERSION, UPGRADE, CONNECTION]).unwrap().unwrap();
        assert_eq!(handshake, Handshake::Http1(HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    }

    #[test]
    fn what_is_not_offered_properly_is_ignored() {
        for headers in [
            &[KEY, VERSION][..],
            &[KEY, VERSION, UPGRADE],
            &[KEY, VERSION, CONNECTION],
            &[("upgrade", "h2c"), CONNECTION],
        ] {
            assert_eq!(asked("GET", headers), None, "{headers:?}");
        }
        assert_eq!(asked("POST", &[KEY, VERSION, UPGRADE, CONNECTION]), None);
        assert!(asked("GET", &[KEY, VERSION, ("upgrade", "h2c, WebSocket"), CONNECTION]).is_some());
    }

    #[test]
    fn what_is_wrong_in_a_handshake_is_told() {
        let with = |key: &str, version: &str| {
            asked("GET", &[("sec-websocket-key", key), ("sec-websocket-version", version), UPGRADE, CONNECTION])
                .unwrap()
        };
        for version in ["12", "", "013", "13, 8"] {
            assert_eq!(with(KEY.1, version), Err(BadHandshake::Version), "{version}");
        }
        for key in ["", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE=", "AAAA"] {
            assert!(matches!(with(key, "13"), Err(BadHandshake::Malformed(_))), "{key}");
        }
        assert!(matches!(
            asked("GET", &[KEY, KEY, VERSION, UPGRADE, CONNECTION]),
            Some(Err(BadHandshake::Malformed(_)))
        ));
        assert_eq!(asked("GET", &[KEY, UPGRADE, CONNECTION]), Some(Err(BadHandshake::Version)));
    }
}
