//! Outbound requests: where a guest may send them, how many, and for how long.
//!
//! A request goes to a host that was granted, and to an address of it that was checked after the name was resolved, each
//! time anew. Each has a connection of its own.

use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::guest::World;
use super::tls::Tls;
use crate::config::{
    LARGE_BODIES, Limits, MAX_BODY_CHUNK, MAX_CONNECT_TIME, MAX_FURTHER_BODY_CHUNK, MAX_OUTBOUND,
    MAX_OUTBOUND_PER_REQUEST,
};
use crate::grants::{Destination, Grants, Host, Scheme, special};
use crate::ids::RequestId;

/// Tells a chain of servers that it is a circle (RFC 8586): each adds its name.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const CDN_ID: &str = "wasmcluster";
/// How often a request may have come through servers like this one.
pub(super) const MAX_LOOPS: usize = 8;
/// Denials that are logged: each destination once, and no more than so many.
const MAX_DENIALS: usize = 64;
/// Names that are looked up at the same time: guests' files need threads too.
const MAX_LOOKUPS: usize = 8;
/// Addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// How often a request with this head has come through a server like this one.
pub(super) fn loops(headers: &HeaderMap) -> usize {
    let values = headers.get_all(CDN_LOOP).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(|entry| entry.split(';').next().unwrap_or_default());
    names.filter(|name| name.trim().eq_ignore_ascii_case(CDN_ID)).count()
}

/// What was denied, and was said.
#[derive(Debug, Default)]
struct Denials(Mutex<BTreeSet<String>>);

impl Denials {
    /// Logs that `what` was denied, and how it could be had, unless it was logged before.
    fn say(&self, request: Option<RequestId>, what: impl fmt::Display, remedy: impl fmt::Display) {
        let message = format!("denied to the guest: {what}; {remedy}");
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MAX_DENIALS && said.insert(message.clone()) {
            let request = request.map(|request| request.to_string());
            tracing::warn!(request, "{message}");
        }
    }
}

/// What all instances of a worker have in common.
pub(super) struct Outbound {
    grants: Grants,
    /// One for each request that may be under way.
    places: Arc<Semaphore>,
    /// One for each name that may be looked up at the same time.
    lookups: Arc<Semaphore>,
    /// What a guest's own timeouts are bounded by.
    first_byte: Duration,
    between_bytes: Duration,
    max_head: usize,
    tls: Tls,
    denials: Denials,
}

impl Outbound {
    pub(super) fn new(grants: Grants, limits: &Limits) -> Self {
        Self {
            grants,
            places: Arc::new(Semaphore::new(MAX_OUTBOUND)),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            first_byte: limits.request_timeout,
            between_bytes: limits.stream_timeout,
            max_head: limits.max_header_bytes,
            tls: Tls::default(),
            denials: Denials::default(),
        }
    }
}

/// Which request a guest works on.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// None of a health check.
    pub(super) request: Option<RequestId>,
    /// The servers that the request came through.
    pub(super) loops: Vec<HeaderValue>,
}

impl Origin {
    pub(super) fn new(request: RequestId, headers: &HeaderMap) -> Self {
        Self { request: Some(request), loops: headers.get_all(CDN_LOOP).iter().cloned().collect() }
    }
}

/// One instance's.
pub(super) struct Hooks {
    world: Arc<World>,
    origin: Origin,
    /// Requests that the guest has worked on since it last had none.
    requests: usize,
    /// Made for the first outbound request.
    places: Option<Arc<Semaphore>>,
    /// Bodies that the guest has made for the request it works on.
    bodies: usize,
}

type Sent = Result<(), Error>;
type Pending<T> = Box<dyn Future<Output = T> + Send>;

impl WasiHttpHooks for Hooks {
    /// As by default, without an allocation for each header.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        self.bodies += 1;
        if self.bodies <= LARGE_BODIES { MAX_BODY_CHUNK } else { MAX_FURTHER_BODY_CHUNK }
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_BODY_CHUNK
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Pending<Sent>,
    ) -> Pending<Result<(Response<WasiBody>, Pending<Sent>), Error>> {
        match self.permit(&request) {
            Ok((destination, places)) => {
                let exchange = Exchange {
                    world: self.world.clone(),
                    request_id: self.origin.request,
                    destination,
                    options: options.unwrap_or_default(),
                    places,
                };
                let loops = self.origin.loops.clone();
                Box::new(exchange.run(request, loops))
            }
            Err(error) => Box::new(async { Err(error) }),
        }
    }
}

/// One that is held for a worker, and one for a guest.
type Places = [OwnedSemaphorePermit; 2];

impl Hooks {
    pub(super) fn new(world: Arc<World>, origin: Origin) -> Self {
        Self { world, origin, requests: 1, places: None, bodies: 0 }
    }

    /// What another request may, beside the first: nobody can tell which of them the guest works on.
    pub(super) fn join(&mut self, other: Self) {
        if let Some(places) = &self.places {
            places.add_permits(MAX_OUTBOUND_PER_REQUEST);
        }
        self.requests += 1;
        self.bodies = 0;
        self.origin.request = other.origin.request;
        if other.origin.loops.len() > self.origin.loops.len() {
            self.origin.loops = other.origin.loops;
        }
    }

    fn permit(&mut self, request: &Request<WasiBody>) -> Result<(Destination, Places), Error> {
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let destination = Destination::of(request.uri()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let Outbound { grants, denials, places, .. } = &self.world.outbound;
        if !grants.permits(&destination) {
            let remedy = format!("grant it with {}", destination.flag());
            denials.say(self.origin.request, "a request to a host that is not granted", remedy);
            return Err(Error::HttpRequestDenied);
        }
        let of_request =
            self.places.get_or_insert_with(|| Arc::new(Semaphore::new(MAX_OUTBOUND_PER_REQUEST * self.requests)));
        match (of_request.clone().try_acquire_owned(), places.clone().try_acquire_owned()) {
            (Ok(of_request), Ok(of_worker)) => Ok((destination, [of_request, of_worker])),
            (Err(_), _) => {
                let what = format!("more than {MAX_OUTBOUND_PER_REQUEST} outbound requests at a time for one request");
                denials.say(self.origin.request, what, "no flag grants that");
                Err(Error::ConnectionLimitReached)
            }
            (_, Err(_)) => {
                let what = format!("more than {MAX_OUTBOUND} outbound requests at a time in one worker");
                denials.say(self.origin.request, what, "more workers can have more");
                Err(Error::ConnectionLimitReached)
            }
        }
    }
}

/// One outbound request that may be sent.
struct Exchange {
    world: Arc<World>,
    request_id: Option<RequestId>,
    destination: Destination,
    options: RequestOptions,
    places: Places,
}

impl Exchange {
    async fn run(
        self,
        mut request: Request<WasiBody>,
        loops: Vec<HeaderValue>,
    ) -> Result<(Response<WasiBody>, Pending<Sent>), Error> {
        self.address(&mut request, loops)?;
        let at_most = |asked: Option<Duration>, most: Duration| asked.unwrap_or(most).min(most);
        let connecting = timeout(at_most(self.options.connect_timeout, MAX_CONNECT_TIME), self.connect());
        let stream = connecting.await.map_err(|_| Error::ConnectionTimeout)??;
        let mut http = http1::Builder::new();
        http.max_buf_size(self.world.outbound.max_head);
        let handshake = http.handshake::<_, WasiBody>(TokioIo::new(stream)).await;
        let (mut sender, mut connection) = handshake.map_err(failure)?;
        let (answer, is_open) = {
            let mut answer = pin!(sender.send_request(request));
            let mut is_open = true;
            let both = poll_fn(|context| {
                // The connection first: it is what makes the answer come.
                if is_open && let Poll::Ready(ended) = Pin::new(&mut connection).poll(context) {
                    is_open = false;
                    if let Err(error) = ended {
                        return Poll::Ready(Err(error));
                    }
                }
                answer.as_mut().poll(context)
            });
            let answer = timeout(at_most(self.options.first_byte_timeout, self.world.outbound.first_byte), both).await;
            (answer.map_err(|_| Error::ConnectionReadTimeout)?.map_err(failure)?, is_open)
        };
        let silence = at_most(self.options.between_bytes_timeout, self.world.outbound.between_bytes);
        let answer = answer.map(|body| Answer { body, silence, timer: None, _places: self.places }.boxed_unsync());
        let rest = async move { if is_open { connection.await.map_err(failure) } else { Ok(()) } };
        Ok((answer, Box::new(rest)))
    }

    /// Writes where it goes into the request, as it was checked.
    fn address(&self, request: &mut Request<WasiBody>, loops: Vec<HeaderValue>) -> Result<(), Error> {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        let host = HeaderValue::try_from(self.destination.authority()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert(CDN_LOOP, HeaderValue::from_static(CDN_ID));
        for value in loops {
            headers.append(CDN_LOOP, value);
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Stream, Error> {
        let stream = self.connect_to_any(self.resolve().await?).await?;
        // Requests are written in one piece.
        let _ = stream.set_nodelay(true);
        Ok(match self.destination.scheme() {
            Scheme::Http => Box::new(stream),
            Scheme::Https => Box::new(self.world.outbound.tls.connect(self.destination.host(), stream).await?),
        })
    }

    async fn connect_to_any(&self, addresses: Vec<SocketAddr>) -> Result<TcpStream, Error> {
        let mut last = None;
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or(Error::DestinationNotFound, |error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Error::DestinationIpUnroutable,
            io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            _ => Error::DestinationUnavailable,
        }))
    }

    /// The addresses of a name. A lookup goes on when nobody waits for it any more, so it has its place until it is done.
    async fn look_up(&self, name: String, port: u16) -> io::Result<Vec<IpAddr>> {
        let place = self.world.outbound.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let looking = tokio::task::spawn_blocking(move || {
            let _place = place;
            let found = (name.as_str(), port).to_socket_addrs()?;
            Ok(found.map(|found| found.ip()).take(MAX_ADDRESSES).collect())
        });
        looking.await?
    }

    /// The addresses that may be connected to.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        let port = self.destination.port();
        let found: Vec<IpAddr> = match self.destination.host() {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                self.look_up(name.clone(), port).await.map_err(|_| Error::DnsError { rcode: None, info_code: None })?
            }
        };
        let (permitted, denied): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|&found| self.world.outbound.grants.permits_address(&self.destination, found));
        if permitted.is_empty() {
            let Some(&address) = denied.first() else { return Err(Error::DestinationNotFound) };
            let range = special(address).unwrap_or("other");
            let what = format!("a request to a granted host whose address {address} is special ({range})");
            let remedy = format!("grant it with {} beside the name", self.destination.at(address).flag());
            self.world.outbound.denials.say(self.request_id, what, remedy);
            return Err(Error::DestinationIpProhibited);
        }
        Ok(permitted.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }
}

/// What the guest is told. As it is, wasmtime would log it, without the request.
fn failure(error: hyper::Error) -> Error {
    if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else if error.is_parse() {
        Error::HttpProtocolError
    } else {
        Error::ConnectionTerminated
    }
}

/// What HTTP is spoken over.
type Stream = Box<dyn Duplex>;
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// The body of an answer, which may not be silent for too long.
struct Answer {
    body: Incoming,
    silence: Duration,
    /// Runs while the guest waits for the other side.
    timer: Option<Pin<Box<Sleep>>>,
    _places: Places,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(failure)));
        }
        let silence = self.silence;
        ready!(self.timer.get_or_insert_with(|| Box::pin(sleep(silence))).as_mut().poll(context));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_counted() {
        let check = |values: &[&'static str], expected| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CDN_LOOP, HeaderValue::from_static(value));
            }
            assert_eq!(loops(&headers), expected, "{values:?}");
        };
        check(&[], 0);
        check(&["wasmcluster"], 1);
        check(&["other, WasmCluster;v=1", "wasmcluster,wasmcluster2", "\"wasmcluster\""], 2);
    }
}
