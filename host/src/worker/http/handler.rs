//! From a request to an answer: what is not for a guest is answered here, all else becomes a guest's call.
//!
//! The guest is polled in the connection's own task: first while its head is awaited, then, inside the answer's body,
//! whenever the connection can take more. So a client that reads slowly slows its guest down, and one that leaves
//! cancels it. Only a guest that outlives its last frame gets a task of its own.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::{mpsc, oneshot};
use wasmtime_wasi_http::Error;

use super::answers::{Answer, busy, closing, internal_error, late, plain, too_large};
use super::body::Body;
use super::connection::Connection;
use super::exchange::Exchange;
use super::head::{has_no_body, repair};
use super::outcome::Verdict;
use super::peer::Peer;
use super::server::Server;
use super::upload::{Upload, UploadProgress};
use super::websocket::{BadHandshake, Handshake, Offer};
use crate::logging::one_line;
use crate::os::listener::Security;
use crate::worker::clock;
use crate::worker::guest::call::{Call, Failure, Head};
use crate::worker::guest::outbound::{MAX_LOOPS, Origin, loops, remove_hop_by_hop};
use crate::worker::requests::{REQUEST_ID, log_of};

/// How long what took (W3C, Server Timing).
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// What a request of HTTP/1.0 is addressed to if it does not say.
const NO_HOST: &str = "localhost";

/// The body of a request, whichever protocol brings it.
pub(super) trait Incoming: HttpBody<Data = Bytes> + Send + Unpin + 'static {}

impl<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> Incoming for B {}

impl Server {
    /// Answers a request, with the help of a guest if it is one for a guest.
    pub(super) async fn answer<B: Incoming>(
        &self,
        mut request: Request<B>,
        connection: Rc<Connection>,
        alive: mpsc::Sender<()>,
    ) -> Answer {
        let exchange = self.begin(&mut request, &connection, alive);
        let security = connection.peer().security;
        let answer = match self.admit(&mut request, connection.peer(), &exchange) {
            Ok((authority, None)) => self.serve_request(request, security, authority, None, &exchange).await,
            Ok((authority, Some(handshake))) => {
                self.serve_websocket(request, security, authority, handshake, &exchange).await
            }
            Err(answer) => *answer,
        };
        self.finish(answer, exchange, connection)
    }

    /// Tells the client to come again, and to go.
    pub(super) fn refuse<B: Incoming>(
        &self,
        mut request: Request<B>,
        connection: Rc<Connection>,
        alive: mpsc::Sender<()>,
    ) -> Answer {
        let exchange = self.begin(&mut request, &connection, alive);
        self.finish(closing(busy(&exchange, self)), exchange, connection)
    }

    fn begin<B: Incoming>(
        &self,
        request: &mut Request<B>,
        connection: &Connection,
        alive: mpsc::Sender<()>,
    ) -> Rc<Exchange> {
        let (reports, peer) = (&self.reports, connection.peer());
        let exchange = Exchange::begin(&self.requests, request, &self.limits, self.stats, alive, reports, peer);
        connection.begin(exchange.clone(), !request.body().is_end_stream());
        exchange
    }

    /// Whom the request is addressed to, and how it asks for a WebSocket; or what it is answered without a guest.
    fn admit<B: Incoming>(
        &self,
        request: &mut Request<B>,
        peer: &Peer,
        exchange: &Exchange,
    ) -> Result<(Authority, Option<Handshake>), Box<Answer>> {
        let refused = |status, text: &str, why: &str| {
            exchange.judge(Verdict::Refused);
            log_of!(debug, exchange, "refused: {why}");
            Err(Box::new(plain(status, text, exchange)))
        };
        let Some(authority) = authority(request) else {
            let text = "the request needs exactly one valid Host header";
            return refused(StatusCode::BAD_REQUEST, text, text);
        };
        if request.version() == Version::HTTP_2
            && let Err((status, text)) = check_http2(request, self.limits.max_headers)
        {
            return refused(status, text, text);
        }
        // Of a guest that does not know them, it is an ordinary request.
        let handshake = if self.instances.speaks_websocket() { Handshake::of(request) } else { None };
        let handshake = match handshake.transpose() {
            Ok(handshake) => handshake,
            Err(BadHandshake::Malformed(text)) => return refused(StatusCode::BAD_REQUEST, text, text),
            Err(BadHandshake::Version) => {
                let text = "this server speaks version 13 of WebSocket";
                return refused(StatusCode::UPGRADE_REQUIRED, text, text).map_err(of_our_version);
            }
        };
        if request.method() == Method::CONNECT && handshake.is_none() {
            return refused(StatusCode::NOT_IMPLEMENTED, "this server is not a proxy", "this server is not a proxy");
        }
        if loops(request.headers()) > MAX_LOOPS {
            exchange.judge(Verdict::Refused);
            log_of!(warn, exchange, "refused: a loop, it has passed through wasmcluster more than {MAX_LOOPS} times");
            return Err(Box::new(plain(StatusCode::LOOP_DETECTED, "the request is in a loop", exchange)));
        }
        if request.body().size_hint().lower() > self.limits.max_body {
            return Err(Box::new(too_large(exchange)));
        }
        // A target in absolute form overrides the Host. HTTP/1.0 may have none; guests get their authority from it.
        let named = request.uri().authority().map(Authority::as_str);
        if named.is_some() || !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(named.unwrap_or(NO_HOST));
            request.headers_mut().insert(HOST, host.unwrap_or(HeaderValue::from_static(NO_HOST)));
        }
        // In this order: no client may have what is said of it taken out again.
        remove_hop_by_hop(request.headers_mut());
        peer.introduce(request.headers_mut(), &authority);
        if let Some(trace) = exchange.trace() {
            trace.enter(request.headers_mut());
        }
        Ok((authority, handshake))
    }

    /// Asks the guest whether it accepts a WebSocket.
    async fn serve_websocket<B: Incoming>(
        &self,
        request: Request<B>,
        security: Security,
        authority: Authority,
        handshake: Handshake,
        exchange: &Rc<Exchange>,
    ) -> Answer {
        let Ok(place) = self.websockets.clone().try_acquire_owned() else {
            self.say(format_args!("too many WebSockets are open, so others are rejected; see --max-websockets"));
            return busy(exchange, self);
        };
        let (request, offer) = Offer::of(handshake, request, exchange, place);
        self.serve_request(request, security, authority, Some(offer), exchange).await
    }

    async fn serve_request<B: Incoming>(
        &self,
        request: Request<B>,
        security: Security,
        authority: Authority,
        offer: Option<Offer>,
        exchange: &Rc<Exchange>,
    ) -> Answer {
        let Some(place) = self.place(exchange.deadline()).await else {
            return busy(exchange, self);
        };
        let method = request.method().clone();
        let (request, upload) = Upload::wrap(request, exchange.max_body, exchange.pace_of_upload());
        exchange.takes(place, upload);
        let sockets = offer.iter().map(Offer::link).collect();
        let origin = Origin { sockets, ..Origin::new(exchange.asked(), request.headers()) };
        let (head, call) = self.instances.call(request, security, authority, origin);
        drive(self, head, call, offer, exchange, &method).await
    }

    /// What every answer has, whoever made it.
    fn finish(&self, answer: Answer, exchange: Rc<Exchange>, connection: Rc<Connection>) -> Answer {
        // A WebSocket is told in its own words.
        let is_last = connection.is_draining() && answer.status() != StatusCode::SWITCHING_PROTOCOLS;
        let mut answer = if is_last { closing(answer) } else { answer };
        if let Some(id) = exchange.echo() {
            answer.headers_mut().entry(REQUEST_ID).or_insert_with(|| id.clone());
        }
        exchange.has_head(answer.status());
        connection.has_head();
        if self.server_timing
            && let Some(timing) = exchange.timing()
        {
            answer.headers_mut().append(SERVER_TIMING, timing);
        }
        answer.body_mut().send_on(connection, exchange);
        answer
    }
}

/// Whom the request is addressed to (RFC 9112, section 3.2): HTTP/1.1 requires exactly one Host, and a target in
/// absolute form overrides it. HTTP/1.0 knows neither.
fn authority<B>(request: &Request<B>) -> Option<Authority> {
    if request.version() == Version::HTTP_2 {
        return authority_http2(request);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok()?.parse().ok()?,
        (None, None) if request.version() == Version::HTTP_10 => Authority::from_static(NO_HOST),
        _ => return None,
    };
    Some(request.uri().authority().cloned().unwrap_or(host))
}

/// Over HTTP/2 it is a pseudo-header. A Host beside it must say the same (RFC 9113, section 8.3.1).
fn authority_http2<B>(request: &Request<B>) -> Option<Authority> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().ok()?.parse::<Authority>().ok()?),
        (None, _) => None,
        (Some(_), Some(_)) => return None,
    };
    // Without user and password, which are for nobody here, and with a port that is one.
    let is_plain = |named: &&Authority| !named.as_str().contains('@') && named.port_u16().is_some() == has_port(named);
    let named = request.uri().authority().filter(is_plain);
    match (named, host) {
        (Some(named), Some(host)) if *named != host => None,
        (Some(named), _) => Some(named.clone()),
        (None, host) => host.filter(|_| request.uri().authority().is_none()),
    }
}

/// Whether anything stands behind the host.
fn has_port(authority: &Authority) -> bool {
    authority.as_str().len() > authority.host().len()
}

/// What h2 lets pass, and framing does not over HTTP/1.1 (RFC 9113, sections 8.2.1 and 8.3.1).
fn check_http2<B>(request: &Request<B>, max_headers: usize) -> Result<(), (StatusCode, &'static str)> {
    if request.headers().len() > max_headers {
        return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many header fields"));
    }
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let is_path = path.starts_with('/') || (path == "*" && request.method() == Method::OPTIONS);
    let has_path = request.method() != Method::CONNECT || request.extensions().get::<h2::ext::Protocol>().is_some();
    if has_path && !is_path {
        return Err((StatusCode::BAD_REQUEST, "the request needs a path"));
    }
    if request.headers().keys().any(|name| name.as_str().contains('"')) {
        return Err((StatusCode::BAD_REQUEST, "the name of a header field has a quote in it"));
    }
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let has_blanks = |value: &HeaderValue| is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last());
    if request.headers().values().any(has_blanks) {
        return Err((StatusCode::BAD_REQUEST, "the value of a header field begins or ends with a space or a tab"));
    }
    Ok(())
}

/// A guest's time is over.
struct Late;

/// Polls the guest until its head is there, or it is clear that none will come.
async fn drive(
    server: &Server,
    head: oneshot::Receiver<Head>,
    mut call: Call,
    offer: Option<Offer>,
    exchange: &Rc<Exchange>,
    method: &Method,
) -> Answer {
    let mut head = pin!(head);
    let (mut ended, mut has_waited) = (None, false);
    let deadline = exchange.deadline();
    let head = poll_fn(|context| {
        // A guest that has waited is not polled behind its deadline: the timeouts of what it waits for, which are as long,
        // end about then, and it must not depend on chance which of them is told.
        if mem::replace(&mut has_waited, true) && clock::now() >= deadline {
            return Poll::Ready(Err(Late));
        }
        if ended.is_none()
            && let Poll::Ready(end) = Pin::new(&mut call).poll(context)
        {
            ended = Some(end);
        }
        if exchange.upload_is(UploadProgress::TooLarge) {
            return Poll::Ready(Ok(None));
        }
        // The sender lives inside the call: when that has ended, the head is there or never comes.
        head.as_mut().poll(context).map(|head| Ok(Some(head)))
    });
    let Ok(Ok(head)) = tokio::time::timeout_at(deadline.into(), head).await else {
        return weighed(late(exchange), exchange);
    };
    let answer = match (ended, head) {
        (_, None) => too_large(exchange),
        // No guest had a part in it.
        (Some(Err(Failure::Full)), _) => return busy(exchange, server),
        (Some(Err(Failure::Trap(error))), head) => {
            exchange.trapped(&error);
            match head {
                // A head alone is the whole answer.
                Some(Ok(Ok(head))) if has_no_body(method, head.status()) => answer(head, None, exchange, method).await,
                // Nothing was sent yet, so even a guest that trapped behind its head gets a clean answer.
                _ => internal_error(exchange),
            }
        }
        (ended, Some(Ok(Ok(head)))) => {
            let call = if ended.is_some() { None } else { Some(call) };
            match offer {
                Some(offer) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    offer.accept(head.into_parts().0, call, exchange).unwrap_or_else(|fault| unfit(fault, exchange))
                }
                _ => answer(head, call, exchange, method).await,
            }
        }
        (_, Some(Ok(Err(said)))) => {
            log_of!(warn, exchange, "the guest answered with an error: {}", one_line(&said));
            internal_error(exchange)
        }
        (_, Some(Err(_))) => {
            log_of!(warn, exchange, "the guest dropped its response-outparam without setting a response");
            internal_error(exchange)
        }
    };
    weighed(answer, exchange)
}

fn weighed(answer: Answer, exchange: &Exchange) -> Answer {
    exchange.weigh(answer.status());
    answer
}

/// A guest's answer, unless it cannot be sent.
async fn answer(
    head: Response<UnsyncBoxBody<Bytes, Error>>,
    call: Option<Call>,
    exchange: &Rc<Exchange>,
    method: &Method,
) -> Answer {
    let (mut head, frames) = head.into_parts();
    if let Err(fault) = repair(&mut head, frames.is_end_stream() && method != Method::HEAD) {
        return unfit(fault, exchange);
    }
    let mut body = Body::of_guest(&head, frames, call, exchange.clone(), method);
    match poll_fn(|context| Poll::Ready(body.gather(context))).await {
        Ok(()) => Response::from_parts(head, body),
        Err(fault) => {
            let hint = body.hint();
            log_of!(warn, exchange, "an answer failed before it was sent: {fault}{hint}");
            internal_error(exchange)
        }
    }
}

fn unfit(fault: &str, exchange: &Exchange) -> Answer {
    log_of!(warn, exchange, "the guest's answer cannot be sent: {fault}");
    internal_error(exchange)
}

/// Says which version of WebSocket is spoken (RFC 6455, section 4.2.2; RFC 9110, section 15.5.22).
fn of_our_version(mut answer: Box<Answer>) -> Box<Answer> {
    let headers = answer.headers_mut();
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer
}
