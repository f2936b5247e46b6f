//! One stream of HTTP/2: a request, the guest that answers it, and the answer on its way, in a task of their own. A client
//! that resets the stream, or leaves, ends all three.

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::SystemTime;

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, DATE, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, response};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::mpsc;

use super::accept::Admission;
use super::answers::Answer;
use super::body::Body;
use super::connection::Connection;
use super::drain::ConnectionEvent;
use super::exchange::Exchange;
use super::head::{content_length, has_no_body};
use super::server::Server;
use super::timer::Timer;
use super::websocket::{Conversation, Parting, SocketInflow, SocketWire};

/// A stream that is being answered.
pub(super) struct Stream {
    server: Rc<Server>,
    connection: Rc<Connection>,
    respond: SendResponse<Piece>,
    admission: Admission,
    /// Its answer is on its way to the end.
    is_whole: bool,
}

/// How the sending of an answer ended.
enum Delivery {
    Whole,
    /// The client does not want it any more, or is gone.
    Reset,
    /// It cannot become whole.
    Cut,
    /// Nothing of it has moved for too long.
    Stalled,
}

impl Stream {
    /// The stream of a request whose head is there.
    pub(super) fn begin(
        server: Rc<Server>,
        connection: Rc<Connection>,
        respond: SendResponse<Piece>,
        admission: Admission,
    ) -> Self {
        connection.opened();
        Self { server, connection, respond, admission, is_whole: false }
    }

    /// Answers the request.
    pub(super) async fn answer(mut self, mut request: Request<RecvStream>, alive: mpsc::Sender<()>) {
        let asked = request.headers().get(EXPECT);
        let expects = asked.is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        join_cookies(request.headers_mut());
        let method = request.method().clone();
        let inflow = Arc::new(Inflow::default());
        let request = Arriving::wrap(request, inflow.clone());
        let Some(answer) = self.made(request, &inflow, expects, alive).await else { return };
        let (mut head, mut body) = answer.into_parts();
        let Some(exchange) = body.exchange() else { return };
        if let Some(conversation) = body.take_conversation() {
            drop(body);
            return self.converse(head, conversation, exchange).await;
        }
        complete(&mut head, &body, &method);
        let is_over = has_no_body(&method, head.status) || body.is_sent();
        // A guest may answer while it reads.
        if expects && !is_over && inflow.is_asked_for() {
            let _ = self.respond.send_informational(informational(StatusCode::CONTINUE));
        }
        let mut send = match self.respond.send_response(Response::from_parts(head, ()), is_over) {
            Ok(send) => send,
            Err(error) => return tracing::debug!("an answer was not sent: {error}"),
        };
        let sent = if is_over { Delivery::Whole } else { self.send(body, &mut send, &exchange, &inflow).await };
        match sent {
            Delivery::Whole => {
                self.is_whole = true;
                self.connection.finish(exchange);
            }
            Delivery::Cut => send.send_reset(Reason::INTERNAL_ERROR),
            Delivery::Stalled => {
                send.send_reset(Reason::INTERNAL_ERROR);
                if exchange.waits() {
                    // In the middle of a frame, behind which no other can leave: the client takes nothing at all.
                    self.connection.step(ConnectionEvent::ClientLeft);
                    self.connection.wake();
                }
            }
            Delivery::Reset => {}
        }
    }

    /// The stream becomes a WebSocket (RFC 8441).
    async fn converse(
        mut self,
        mut head: response::Parts,
        mut conversation: Box<Conversation>,
        exchange: Rc<Exchange>,
    ) {
        remove_connection_fields(&mut head.headers);
        add_date(&mut head.headers);
        let (Some(inflow), Ok(send)) =
            (conversation.take_inflow(), self.respond.send_response(Response::from_parts(head, ()), false))
        else {
            return;
        };
        // As soon as it leaves, which is now; what follows has no end that is known.
        exchange.rests();
        exchange.handed_over();
        let mut wire = StreamWire { send, inflow, exchange: exchange.clone() };
        let parting = conversation.run(&mut wire, &self.server).await;
        if parting == Parting::Lost {
            wire.send.send_reset(Reason::CANCEL);
            if exchange.waits() {
                // In the middle of a frame, behind which no other can leave: the client takes nothing at all.
                self.connection.step(ConnectionEvent::ClientLeft);
                self.connection.wake();
            }
            return;
        }
        let end = Piece::new(Bytes::new(), exchange.clone());
        if wire.send.send_data(end, true).is_ok() {
            self.is_whole = true;
            // The client has as long for the end as for that of any answer.
            exchange.resumes();
            self.connection.finish(exchange);
        }
    }

    /// The answer; `None` if nobody waits for it any more.
    async fn made(
        &mut self,
        request: Request<Arriving>,
        inflow: &Inflow,
        expects: bool,
        alive: mpsc::Sender<()>,
    ) -> Option<Answer> {
        let Self { server, connection, respond, admission, .. } = self;
        let mut answer = pin!(async {
            match admission {
                Admission::Serve => server.answer(request, connection.clone(), alive).await,
                Admission::Refuse => server.refuse(request, connection.clone(), alive),
            }
        });
        poll_fn(|context| {
            // Before the guest is polled: it has no more to do for a client that takes its request back.
            if respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            if expects {
                inflow.wakes(context.waker());
            }
            let polled = answer.as_mut().poll(context);
            if polled.is_pending() && expects && inflow.is_asked_for() {
                let _ = respond.send_informational(informational(StatusCode::CONTINUE));
            }
            polled.map(Some)
        })
        .await
    }

    /// Sends the body as fast as the client takes it.
    async fn send(
        &self,
        mut body: Body,
        send: &mut SendStream<Piece>,
        exchange: &Rc<Exchange>,
        inflow: &Inflow,
    ) -> Delivery {
        let mut stall = Timer::default();
        let (mut waiting, mut is_last) = (Bytes::new(), false);
        poll_fn(|context| {
            let polled = poll_send(&mut body, send, exchange, &self.connection, &mut waiting, &mut is_last, context);
            if polled.is_pending() && is_stalled(exchange, inflow, &mut stall, context) {
                exchange.stalled();
                return Poll::Ready(Delivery::Stalled);
            }
            polled
        })
        .await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.is_whole {
            self.connection.closed();
            // It may be idle now, and has a deadline.
            self.connection.wake();
        }
    }
}

fn poll_send(
    body: &mut Body,
    send: &mut SendStream<Piece>,
    exchange: &Rc<Exchange>,
    connection: &Connection,
    waiting: &mut Bytes,
    is_last: &mut bool,
    context: &mut Context<'_>,
) -> Poll<Delivery> {
    loop {
        if send.poll_reset(context).is_ready() {
            return Poll::Ready(Delivery::Reset);
        }
        if !waiting.is_empty() {
            let capacity = match poll_capacity(send, context) {
                Poll::Ready(Some(capacity)) => capacity,
                Poll::Ready(None) => return Poll::Ready(Delivery::Reset),
                Poll::Pending => {
                    exchange.waits_for_client();
                    return Poll::Pending;
                }
            };
            let part = waiting.split_to(capacity.min(waiting.len()));
            let is_end = waiting.is_empty() && *is_last;
            // A message that the client's own window cuts up counts once.
            if waiting.is_empty() {
                connection.sends_part();
            }
            if !part.is_empty() && send.send_data(Piece::new(part, exchange.clone()), is_end).is_err() {
                return Poll::Ready(Delivery::Reset);
            }
            if is_end {
                return Poll::Ready(Delivery::Whole);
            }
            continue;
        }
        let frame = match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Poll::Ready(Delivery::Cut),
            None => {
                let end = Piece::new(Bytes::new(), exchange.clone());
                return Poll::Ready(if send.send_data(end, true).is_ok() { Delivery::Whole } else { Delivery::Reset });
            }
        };
        match frame.into_data() {
            // A frame without bytes would be one for nothing.
            Ok(data) => {
                (*waiting, *is_last) = (data, body.is_sent());
                send.reserve_capacity(waiting.len());
            }
            Err(frame) => {
                let Ok(mut trailers) = frame.into_trailers() else { continue };
                remove_connection_fields(&mut trailers);
                return Poll::Ready(if send.send_trailers(trailers).is_ok() { Delivery::Whole } else { Delivery::Cut });
            }
        }
    }
}

/// How many bytes the client takes now, of those that were asked for; `None` if it takes no more. H2 itself tells only of
/// capacity that is new.
fn poll_capacity(send: &mut SendStream<Piece>, context: &mut Context<'_>) -> Poll<Option<usize>> {
    match send.capacity() {
        0 => send.poll_capacity(context).map(|capacity| capacity.and_then(Result::ok)),
        capacity => Poll::Ready(Some(capacity)),
    }
}

/// Whether too little has moved for too long, either way.
fn is_stalled(exchange: &Exchange, inflow: &Inflow, timer: &mut Timer, context: &mut Context<'_>) -> bool {
    if inflow.has_moved() {
        exchange.moved();
    }
    exchange.stalls_at().is_some_and(|at| timer.poll(at, context).is_ready())
}

/// What every answer has, and none may have, over HTTP/2 (RFC 9113, section 8.2.2).
fn complete(head: &mut response::Parts, body: &Body, method: &Method) {
    remove_connection_fields(&mut head.headers);
    let has_length = head.headers.contains_key(CONTENT_LENGTH);
    if !has_length
        && !has_no_body(method, head.status)
        && let Some(length) = body.size_hint().exact()
    {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    add_date(&mut head.headers);
}

fn add_date(headers: &mut HeaderMap) {
    if !headers.contains_key(DATE) {
        headers.insert(DATE, now());
    }
}

fn remove_connection_fields(fields: &mut HeaderMap) {
    // None of them is there as a rule, and to look at all names is faster than to look each of these up.
    if fields.keys().any(is_of_connection) {
        let names: Vec<_> = fields.keys().filter(|name| is_of_connection(name)).cloned().collect();
        for name in names {
            fields.remove(name);
        }
    }
}

fn is_of_connection(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE].contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// As fields of answers say it.
fn now() -> HeaderValue {
    thread_local! {
        /// The second, and how it is said.
        static LAST: std::cell::RefCell<(u64, HeaderValue)> =
            const { std::cell::RefCell::new((0, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    LAST.with_borrow_mut(|(last, said)| {
        if mem::replace(last, second) != second
            && let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(now))
        {
            *said = value;
        }
        said.clone()
    })
}

fn informational(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

/// HTTP/2 splits them, and nobody else knows of that (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies = headers.get_all(COOKIE);
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// What is known of a request's body by those who do not read it. A guest may read on another thread's behalf.
#[derive(Debug, Default)]
struct Inflow {
    /// The guest wants to read.
    is_wanted: AtomicBool,
    /// The client was told so.
    is_told: AtomicBool,
    /// Bytes have come since this was last asked.
    has_moved: AtomicBool,
    /// Of the stream's task, which tells the client to go on.
    waker: Mutex<Option<Waker>>,
}

impl Inflow {
    fn wakes(&self, waker: &Waker) {
        let mut known = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    fn want(&self) {
        if !self.is_wanted.swap(true, Ordering::Relaxed)
            && let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner)
        {
            waker.wake_by_ref();
        }
    }

    /// Whether the client is to be told, for the first time.
    fn is_asked_for(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed) && !self.is_told.swap(true, Ordering::Relaxed)
    }

    fn has_moved(&self) -> bool {
        self.has_moved.swap(false, Ordering::Relaxed)
    }
}

/// The body of a request, as it arrives. The client may send as much more as was read.
struct Arriving {
    stream: RecvStream,
    /// As the head says.
    length: Option<u64>,
    inflow: Arc<Inflow>,
    has_data: bool,
}

impl Arriving {
    fn wrap(request: Request<RecvStream>, inflow: Arc<Inflow>) -> Request<Self> {
        let length = content_length(request.headers()).ok();
        request.map(|stream| Self { stream, length, inflow, has_data: true })
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        while self.has_data {
            let Poll::Ready(data) = self.stream.poll_data(context) else {
                self.inflow.want();
                return Poll::Pending;
            };
            match data.transpose()? {
                Some(data) => {
                    self.inflow.has_moved.store(true, Ordering::Relaxed);
                    self.stream.flow_control().release_capacity(data.len())?;
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                None => self.has_data = false,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(context)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length),
            None => SizeHint::default(),
        }
    }
}

/// A WebSocket in a stream.
struct StreamWire {
    send: SendStream<Piece>,
    inflow: SocketInflow,
    exchange: Rc<Exchange>,
}

impl SocketWire for &mut StreamWire {
    fn poll_read(&mut self, to: &mut dyn FnMut(&[u8]), context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.inflow).poll_frame(context)) else { return Poll::Ready(Ok(0)) };
            let bytes = frame.map_err(|()| broken())?.into_data().unwrap_or_default();
            if !bytes.is_empty() {
                to(&bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
        }
    }

    fn poll_write(&mut self, output: &mut BytesMut, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        while !output.is_empty() {
            self.send.reserve_capacity(output.len());
            let capacity = ready!(poll_capacity(&mut self.send, context)).ok_or_else(broken)?;
            let part = output.split_to(capacity.min(output.len())).freeze();
            if !part.is_empty() {
                self.send.send_data(Piece::new(part, self.exchange.clone()), false).map_err(|_| broken())?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(context).map(drop)
    }
}

/// A part of an answer's body, which tells its exchange when it leaves.
pub(super) struct Piece {
    bytes: Bytes,
    exchange: Rc<Exchange>,
}

impl Piece {
    fn new(bytes: Bytes, exchange: Rc<Exchange>) -> Self {
        exchange.queued();
        Self { bytes, exchange }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.exchange.took(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.exchange.unqueued(self.bytes.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_one_field() {
        let joined = |cookies: &[&str]| {
            let mut headers = HeaderMap::new();
            for cookie in cookies {
                headers.append(COOKIE, cookie.parse().unwrap());
            }
            join_cookies(&mut headers);
            headers.get_all(COOKIE).iter().map(|cookie| cookie.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(joined(&[]), [""; 0]);
        assert_eq!(joined(&["a=1"]), ["a=1"]);
        assert_eq!(joined(&["a=1", "b=2", "c=3; d=4"]), ["a=1; b=2; c=3; d=4"]);
    }
}
