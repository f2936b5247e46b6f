//! HTTP/1.1 on one connection: hyper between the client's bytes and the exchanges, and what is learned on the way. When
//! a head begins, when an answer has been handed over, when the client left: hyper keeps all of that to itself.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::accept::{Accepted, AcceptedStream, Admission};
use super::buffers::FREE;
use super::connection::{Connection, linger};
use super::drain::{ConnectionEvent, Duty, Timeouts};
use super::frames::PREFACE;
use super::framing::{Bad, Framing, MessagePart, Violation};
use super::outbox::Turn;
use super::outcome::{Outcome, Verdict};
use super::peer::Peer;
use super::server::{Listed, Server};
use super::timer::{Beat, Timer};
use super::transport::{Side, Transport, poll_write_together};
use super::websocket::{Bare, Parting};
use crate::os::listener::{Entrance, Security};
use crate::tls::credentials::Protocol;
use crate::worker::Phase;
use crate::worker::requests::log_of;

/// Header fields that hyper reads unless it is told otherwise.
const HYPER_HEADERS: usize = 100;
/// How often it is looked whether the client is there, where its leaving would not be noticed.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a client that is to come again may take to ask.
const REFUSAL: Duration = Duration::from_secs(1);
/// How much earlier than it may a connection retires, at most.
const RETIRES_WITHIN: f64 = 0.2;
/// Bytes of a request line that are logged when it is refused.
const MAX_QUOTED: usize = 128;

/// Why a client is sent away before there is a request to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
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

impl Server {
    /// Serves a connection to its end. `alive` is held as long as anything of it lives.
    pub(crate) async fn serve(self: Rc<Self>, connection: Accepted, alive: mpsc::Sender<()>) {
        let (Entrance { security, takes_proxy }, admission) = (connection.entrance, connection.admission);
        let mut client = connection.client;
        let _refused = (admission == Admission::Refuse).then(|| self.gate.refusing());
        let stream = match connection.into_stream() {
            Ok(stream) => stream,
            // The client reset it while it was queued.
            Err(error) => return tracing::debug!("a connection was lost: {error}"),
        };
        // Boxed, so that other connections do not carry its size; and so with TLS.
        if takes_proxy {
            match Box::pin(self.introduced(&stream, security, client, admission)).await {
                Some(introduced) => client = introduced,
                None => return,
            }
        }
        let peer = Peer::new(security, client, self.trusted_proxies.clone());
        match stream {
            AcceptedStream::Tcp(stream) => {
                self.clone().serve_stream(stream, Protocol::Http1, peer, admission, alive).await
            }
            AcceptedStream::Unix(stream) => {
                self.clone().serve_stream(stream, Protocol::Http1, peer, admission, alive).await
            }
            AcceptedStream::Tls(stream) => match &self.handshakes {
                Some(handshakes) => Box::pin(self.clone().serve_tls(stream, peer, handshakes, admission, alive)).await,
                None => tracing::error!("a worker without a certificate has an https listener: a bug in wasmcluster"),
            },
        }
    }

    pub(super) async fn serve_stream<S>(
        self: Rc<Self>,
        stream: S,
        protocol: Protocol,
        peer: Peer,
        admission: Admission,
        alive: mpsc::Sender<()>,
    ) where
        S: Transport,
    {
        // So that connections that came together do not go together.
        let part = 1.0 - RETIRES_WITHIN * fastrand::f64();
        let timeouts = Timeouts { age: self.timeouts.age.mul_f64(part), ..self.timeouts };
        let timeouts = match admission {
            Admission::Serve => timeouts,
            // It has been queued for long: its request is there, or it has none.
            Admission::Refuse => Timeouts { keep_alive: REFUSAL, header: REFUSAL, ..timeouts },
        };
        let max_requests = (self.limits.max_connection_requests as f64 * part).ceil() as u64;
        let connection = Rc::new(Connection::new(self.started, timeouts, max_requests, self.buffers.clone(), peer));
        let _listed = match admission {
            Admission::Serve => Some(Listed::new(&self, connection.clone())),
            // It goes soon, and makes room for nobody.
            Admission::Refuse => None,
        };
        self.make_room();
        let http2 = match protocol {
            Protocol::Http1 => self.serve_http1(stream, connection.clone(), admission, alive.clone()).await,
            Protocol::Http2 => {
                connection.speaks_http2();
                Some((stream, Vec::new()))
            }
        };
        if let Some((stream, ahead)) = http2 {
            self.serve_http2(stream, ahead, connection, admission, alive).await;
        }
    }

    /// Serves a connection to its end, unless its client begins with the preface of HTTP/2: then its stream comes back, with
    /// what was read of it.
    async fn serve_http1<S>(
        self: &Rc<Self>,
        stream: S,
        connection: Rc<Connection>,
        admission: Admission,
        alive: mpsc::Sender<()>,
    ) -> Option<(S, Vec<u8>)>
    where
        S: Transport,
    {
        let mut phases = self.phases.clone();
        let service = service_fn(|request| {
            let (server, connection, alive) = (self.clone(), connection.clone(), alive.clone());
            async move {
                let mut answer = match admission {
                    Admission::Serve => server.answer(request, connection.clone(), alive).await,
                    Admission::Refuse => server.refuse(request, connection.clone(), alive),
                };
                if let Some(conversation) = answer.body_mut().take_conversation() {
                    connection.becomes(conversation);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut http = http1::Builder::new();
        http.max_buf_size(self.limits.max_header_bytes).half_close(false);
        // Fewer are bounded before hyper sees them, and it allocates for each request what is not its own default.
        if self.limits.max_headers > HYPER_HEADERS {
            http.max_headers(self.limits.max_headers);
        }
        let framing = Framing::new(self.limits.max_header_bytes, self.limits.max_headers);
        let mut hyper = http.serve_connection(
            TokioIo::new(Io::new(stream, connection.clone(), framing, Turn::new(self.outbox.clone()))),
            service,
        );
        // The sender lives as long as the process, so waiting cannot fail.
        let mut drain_begins = pin!(phases.wait_for(|&phase| phase == Phase::Draining));
        let (mut timer, mut stall, mut look) = (Timer::default(), Timer::default(), Beat::default());
        poll_fn(|context| {
            connection.polled(context);
            if !connection.is_draining() && drain_begins.as_mut().poll(context).is_ready() {
                connection.step(ConnectionEvent::DrainBegan);
            }
            if let Poll::Ready(ended) = Pin::new(&mut hyper).poll(context) {
                if ended.is_ok() && connection.becomes_websocket() {
                    return Poll::Ready(());
                }
                connection.step(self.how_it_ended(ended, &connection));
                return Poll::Ready(());
            }
            if connection.is_http2() {
                return Poll::Ready(());
            }
            if connection.is_spare() {
                self.make_room();
            }
            self.free_buffers();
            if connection.duty() != Duty::Serve {
                return Poll::Ready(());
            }
            if let Some(exchange) = connection.current()
                && let Some(at) = exchange.stalls_at()
                && stall.poll(at, context).is_ready()
            {
                exchange.stalled();
                connection.step(ConnectionEvent::ClientLeft);
                return Poll::Ready(());
            }
            if connection.is_deaf() {
                // The stream looks when hyper flushes it, as it does each time.
                let _ = look.poll(LOOK_EVERY, context);
            } else {
                look.rest();
            }
            while let Some(deadline) = connection.next_deadline() {
                ready!(timer.poll(deadline, context));
                connection.step(ConnectionEvent::DeadlinePassed);
                if connection.duty() != Duty::Serve {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
        let Parts { io, read_buf, .. } = hyper.into_parts();
        // A head that was not whole may be in it: it must not be kept while the connection lingers.
        let has_read_ahead = !read_buf.is_empty();
        drop(read_buf);
        let mut io = io.into_inner();
        if connection.is_http2() {
            return Some(io.into_parts());
        }
        if let Some(conversation) = connection.take_conversation() {
            let (mut stream, ahead) = io.into_parts();
            // A client that does not wait for the answer breaks the protocol, or is none of this protocol.
            if !has_read_ahead && ahead.is_empty() {
                let parting = conversation.run(Bare::new(&mut stream), self).await;
                connection.step(match parting {
                    Parting::Orderly => ConnectionEvent::Shut,
                    Parting::Lost => ConnectionEvent::ClientLeft,
                });
            } else {
                connection.step(ConnectionEvent::ClientLeft);
            }
            linger(stream, &connection).await;
            return None;
        }
        match connection.duty() {
            Duty::Refuse => {
                self.refused(io.refuse().await);
                if connection.keeps_a_place() {
                    // To linger would keep it for a second more.
                    connection.step(ConnectionEvent::ClientLeft);
                }
            }
            Duty::Close => self.left(&connection, io.unseen()),
            Duty::Serve | Duty::Linger => {}
        }
        // Until the client is gone, nothing more is kept for it.
        let (stream, _) = io.into_parts();
        connection.has_given_back();
        linger(stream, &connection).await;
        None
    }

    /// Counts a client that was refused before it had a request.
    fn refused(&self, refusal: Refusal) {
        match refusal {
            Refusal::Late => Outcome::of_no_request(Verdict::Late).count(self.stats),
            Refusal::TooLarge | Refusal::Malformed => Outcome::of_no_request(Verdict::Refused).count(self.stats),
            // Its request has an outcome of its own.
            Refusal::Failed => {}
        }
    }

    /// Counts requests that came whole, and are dropped because their client left before they were begun. What was
    /// begun counts itself.
    fn left(&self, connection: &Connection, unseen: u64) {
        if let Some(exchange) = connection.current() {
            log_of!(debug, &exchange, "its client disconnected before the answer was sent");
        }
        if unseen > 0 && connection.has_client_left() {
            tracing::debug!("a client disconnected before {unseen} of its requests were started");
            (0..unseen).for_each(|_| Outcome::UNSEEN.count(self.stats));
        }
    }

    fn how_it_ended(&self, ended: hyper::Result<()>, connection: &Connection) -> ConnectionEvent {
        match ended {
            Ok(()) if connection.has_client_left() => ConnectionEvent::ClientLeft,
            Ok(()) if connection.is_draining() || connection.may_have_unread() => ConnectionEvent::Shut,
            // It was the client's wish, and nothing can be on its way.
            Ok(()) => ConnectionEvent::ClientLeft,
            // The client is told so instead.
            Err(_) if connection.can_answer_anew() => ConnectionEvent::Malformed,
            Err(error) if error.is_parse() => {
                tracing::debug!("refused a request: {error}");
                Outcome::of_no_request(Verdict::Refused).count(self.stats);
                // It was answered, and that is not to be destroyed by a reset.
                if connection.has_client_left() { ConnectionEvent::ClientLeft } else { ConnectionEvent::Shut }
            }
            Err(error) => {
                tracing::debug!("a connection ended early: {error}");
                ConnectionEvent::ClientLeft
            }
        }
    }
}

/// The stream.
pub(super) struct Io<S> {
    stream: S,
    connection: Rc<Connection>,
    framing: Framing,
    /// What of the client's bytes hyper had no room for, because some were escaped. All of it is judged.
    ahead: Vec<u8>,
    /// What the client began with, while that may become the preface of HTTP/2. Over TLS that is agreed on beforehand (RFC 9113,
    /// section 3.3).
    preface: Option<Vec<u8>>,
    /// The most that hyper's buffer had room for. It keeps what it got.
    largest: usize,
    /// What follows cannot be read.
    refusal: Option<Refusal>,
    /// It has waited a turn for others to give back memory.
    has_waited: bool,
    turn: Turn,
}

impl<S: Transport> Io<S> {
    pub(super) fn new(stream: S, connection: Rc<Connection>, framing: Framing, turn: Turn) -> Self {
        let (ahead, preface) = (Vec::new(), (connection.peer().security == Security::Clear).then(Vec::new));
        Self { stream, connection, framing, ahead, preface, largest: 0, refusal: None, has_waited: false, turn }
    }

    /// Tells the client why there will be no answer, or none but this.
    pub(super) async fn refuse(&mut self) -> Refusal {
        let refusal = match self.refusal {
            _ if self.connection.is_cut() => Refusal::Failed,
            refusal => refusal.unwrap_or(Refusal::Late),
        };
        let mut answer = refusal.answer().to_vec();
        if refusal == Refusal::Failed {
            let name = self.connection.current().map(|exchange| exchange.name()).unwrap_or_default();
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
        self.connection.step(ConnectionEvent::Shut);
        refusal
    }

    /// Requests whose head was whole, and that hyper has not handed over: it reads no further when the client is gone.
    pub(super) fn unseen(&self) -> u64 {
        self.framing.heads().saturating_sub(self.connection.requests())
    }

    /// The stream, and what was read of it for HTTP/2.
    fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.ahead)
    }
}

impl<S: Transport> Io<S> {
    /// The client has closed its side. Hyper would drop what it is working on, if it knew: so it does not learn that
    /// before everything is answered that came whole.
    fn ended(&self) -> Poll<io::Result<()>> {
        let is_owed = self.unseen() > 0 || self.connection.is_busy();
        if is_owed && self.framing.inside().is_none() && self.stream.side() != Side::Gone {
            self.connection.client_shut();
            return Poll::Pending;
        }
        self.connection.client_left();
        Poll::Ready(Ok(()))
    }

    /// Reads the first bytes of the connection, of which `begun` is there. Those of HTTP/1 go to `buffer`; those of HTTP/2 are
    /// kept, and hyper, which learns nothing of them, is asked no more.
    fn poll_first(
        &mut self,
        mut begun: Vec<u8>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            // All of it must fit, if it is HTTP/1 after all.
            let mut further = buffer.take(buffer.remaining() - begun.len());
            let polled = Pin::new(&mut self.stream).poll_read(context, &mut further);
            let read = further.filled();
            let may_go_on = polled.is_pending() || (matches!(polled, Poll::Ready(Ok(()))) && !read.is_empty());
            begun.extend_from_slice(read);
            if !may_go_on || !is_preface(&begun) {
                buffer.put_slice(&begun);
                return polled;
            }
            if begun.len() >= PREFACE.len() {
                self.ahead = begun;
                self.connection.speaks_http2();
                return Poll::Pending;
            }
            if polled.is_pending() {
                if !begun.is_empty() {
                    self.connection.step(ConnectionEvent::HeadBegan);
                }
                self.preface = Some(begun);
                return Poll::Pending;
            }
        }
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(written) => self.connection.wrote(*written.as_ref().unwrap_or(&0)),
            Poll::Pending => self.connection.waits_for_client(),
        }
        written
    }
}

impl<S> Io<S> {
    /// Escapes what `framing` found in the bytes behind the first `before`. What `buffer` has no room for then, comes
    /// with the next read.
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

/// Whether this begins with the preface of HTTP/2, as far as it goes.
fn is_preface(bytes: &[u8]) -> bool {
    let length = bytes.len().min(PREFACE.len());
    bytes[..length] == PREFACE[..length]
}

/// The beginning of a line that is refused, for the log.
fn quoted(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty()).unwrap_or_default();
    format!("({})", line[..line.len().min(MAX_QUOTED)].escape_ascii())
}

impl<S: Transport> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            self.hand_over(buffer);
            return Poll::Ready(Ok(()));
        }
        if self.refusal.is_some() {
            // The connection ends without hyper, which is asked no more.
            return Poll::Pending;
        }
        if !self.has_waited && self.connection.should_wait_a_turn() {
            self.has_waited = true;
            self.connection.listens(false);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_waited = false;
        let before = buffer.filled().len();
        let read = match self.preface.take() {
            Some(begun) => self.poll_first(begun, context, buffer),
            None => Pin::new(&mut self.stream).poll_read(context, buffer),
        };
        self.connection.listens(read.is_pending());
        ready!(read)?;
        let Self { connection, framing, refusal, largest, .. } = &mut *self;
        let bytes = &buffer.filled()[before..];
        if bytes.is_empty() {
            return self.ended();
        }
        connection.moved();
        // Of a head that is not whole, hyper has all that was read before.
        *largest = (*largest).max(framing.begun() + buffer.capacity());
        match framing.follow(bytes) {
            Ok(()) => {
                connection.holds((framing.held() + *largest).saturating_sub(FREE));
                match framing.inside() {
                    Some(MessagePart::Head) => connection.step(ConnectionEvent::HeadBegan),
                    Some(MessagePart::Body) => connection.step(ConnectionEvent::BodyCame),
                    // Hyper has a whole request, and hands it over.
                    None => {}
                }
                if !framing.odd().is_empty() {
                    self.escape(buffer, before);
                }
                Poll::Ready(Ok(()))
            }
            Err(Bad { good, part, violation }) => {
                let line = if part == MessagePart::Head { quoted(&bytes[good..]) } else { String::new() };
                tracing::debug!("refused a request: {violation} {line}");
                *refusal = Some(match violation {
                    Violation::HeadTooLarge => Refusal::TooLarge,
                    _ => Refusal::Malformed,
                });
                // Of a body, the head has been counted.
                connection.malformed(framing.heads() - u64::from(part == MessagePart::Body));
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

impl<S: Transport> AsyncWrite for Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Hyper does not wait for the last answer before a WebSocket.
        if !self.connection.becomes_websocket() {
            ready!(self.turn.poll(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.connection.becomes_websocket() {
            ready!(self.turn.poll(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = poll_write_together(Pin::new(&mut self.stream), context, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Hyper flushes the stream when it has written all that it had.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_deaf() {
            self.connection.looked(self.stream.side());
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.connection.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
