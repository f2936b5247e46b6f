//! Outbound requests: where a guest may send them, how many, and for how long.
//!
//! A request goes to a host that was granted, and to an address of it that was checked after the name was resolved, each
//! time anew. Connections are kept for the next request that goes there.

pub(super) mod dialer;
mod pool;
mod resolver;
mod tls;
mod upload;
mod upstream;

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Sleep, sleep, timeout};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::notices::Notices;
use super::websocket::SocketLink;
use super::world::World;
use crate::grants::{Destination, Grants, Host, Scheme, special};
use crate::settings::{
    LARGE_BODIES, Limits, MAX_BODY_CHUNK, MAX_CONNECT_TIME, MAX_FURTHER_BODY_CHUNK, MAX_OUTBOUND,
    MAX_OUTBOUND_PER_REQUEST,
};
use crate::wire::trace::{AttributeValue, Attributes, SpanKind};
use crate::worker::cost::InstanceUse;
use crate::worker::requests::{Asked, short_method};
use crate::worker::traces::BegunSpan;
use pool::{IDLE, KeptConnection, Key, MAX_IDLE, Pool};
pub(super) use resolver::NotFound;
use resolver::Resolver;
use tls::Tls;
use upload::Begun;
use upstream::{PROTOCOLS, Upstream, Wire, is_unprocessed};

/// Tells a chain of servers that it is a circle (RFC 8586): each adds its name.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const CDN_ID: &str = "wasmcluster";
/// How often a request may have come through servers like this one.
pub(crate) const MAX_LOOPS: usize = 8;
/// How long a request waits, once there is a connection, for what tells whether its body is empty.
const MAX_HELD_BACK: Duration = Duration::from_millis(10);
/// How often a request is sent that no upstream has begun with.
const MAX_TRIES: usize = 4;
/// Bytes of an answer that its guest leaves, and that are read so that its connection can be used again; and for how long.
const MAX_DISCARDED: u64 = 64 * 1024;
/// Characters of a URL that are told in a span.
const MAX_URL: usize = 512;
const DISCARDED_WITHIN: Duration = Duration::from_secs(1);

/// What a field lists, with commas between, in one line or several (RFC 9110, section 5.6.1).
pub(crate) fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// How often a request with this head has come through a server like this one.
pub(crate) fn loops(headers: &HeaderMap) -> usize {
    let names = listed(headers, &CDN_LOOP).map(|entry| entry.split(';').next().unwrap_or_default());
    names.filter(|name| name.trim().eq_ignore_ascii_case(CDN_ID)).count()
}

/// Removes the fields that `Connection` names, beside itself: they are for one connection, and who passes a message on
/// must not pass them on (RFC 9110, section 7.6.1). The guest never sees `Connection`, so it could not know.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = listed(headers, &CONNECTION)
        // What nearly all say, and no field that a guest sees.
        .filter(|option| !option.eq_ignore_ascii_case("keep-alive") && !option.eq_ignore_ascii_case("close"))
        .filter_map(|option| HeaderName::try_from(option).ok())
        // They say to whom a message goes, where it ends and which way it came, whatever anybody says of them.
        .filter(|name| ![HOST, CONTENT_LENGTH, CDN_LOOP].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// What all instances of a worker have in common.
pub(crate) struct Outbound {
    grants: Grants,
    /// One for each request that may be under way.
    places: Arc<Semaphore>,
    resolver: Resolver,
    /// What a guest's own timeouts are bounded by.
    first_byte: Duration,
    between_bytes: Duration,
    max_head: usize,
    tls: Tls,
    pool: Arc<Pool>,
    pub(super) notices: Notices,
}

impl Outbound {
    pub(crate) fn new(grants: Grants, limits: &Limits) -> Self {
        Self {
            grants,
            places: Arc::new(Semaphore::new(MAX_OUTBOUND)),
            resolver: Resolver::default(),
            first_byte: limits.request_timeout,
            between_bytes: limits.stream_timeout,
            max_head: limits.max_header_bytes,
            tls: Tls::default(),
            pool: Arc::default(),
            notices: Notices::default(),
        }
    }

    /// Logs, once in a while, that a request of a guest got no answer.
    fn fails(&self, asked: Option<&Asked>, to: &Destination, error: Option<&Error>) {
        let Some(error) = error else {
            let to = format_args!("{}://{}", to.scheme().as_str(), to.authority());
            return self.notices.tell(asked, format!("an outbound request to {to} had no answer when its guest ended"));
        };
        let why = match error {
            // That is told where it comes up.
            Error::DestinationIpProhibited | Error::ConnectionLimitReached => return,
            Error::ConnectionRefused => "the connection was refused".into(),
            Error::ConnectionTimeout => "no connection came about in time".into(),
            Error::ConnectionTerminated => "the connection was closed".into(),
            Error::ConnectionReadTimeout | Error::HttpResponseTimeout => "no answer came in time".into(),
            Error::DnsTimeout => "no name server answered in time".into(),
            Error::DnsError { .. } | Error::DestinationNotFound => "the name is not known, or has no address".into(),
            other => in_words(&format!("{other:?}")),
        };
        let to = format_args!("{}://{}", to.scheme().as_str(), to.authority());
        self.notices.tell(asked, format!("an outbound request to {to} failed: {why}"));
    }

    /// The addresses of a name that guests may connect to themselves, which the grant of that number covers: no grant of
    /// requests has the same.
    pub(super) async fn look_up(&self, name: &str, connect_grant: usize) -> Result<Arc<[IpAddr]>, NotFound> {
        self.resolver.look_up(name, self.grants.count() + connect_grant).await
    }
}

/// The name of an error as words, without what is in it: `TlsProtocolError` is `tls protocol error`.
fn in_words(error: &str) -> String {
    let mut words = String::new();
    for c in error.chars().take_while(|c| c.is_ascii_alphanumeric()) {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

/// Which request a guest works on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// None of a health check, nor while the guest works on several.
    pub(crate) request: Option<Arc<Asked>>,
    /// The servers that the request came through.
    pub(crate) loops: Vec<HeaderValue>,
    /// The WebSockets that it, or they, ask for.
    pub(crate) sockets: Vec<Arc<SocketLink>>,
}

impl Origin {
    pub(crate) fn new(request: Arc<Asked>, headers: &HeaderMap) -> Self {
        let loops = headers.get_all(CDN_LOOP).iter().cloned().collect();
        Self { request: Some(request), loops, sockets: Vec::new() }
    }

    /// It is worked on in such an instance.
    pub(super) fn got(&self, instance: InstanceUse) {
        if let Some(asked) = &self.request {
            asked.cost().got(instance);
        }
    }
}

/// One instance's.
pub(crate) struct Hooks {
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
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Pending<Sent>,
    ) -> Pending<Result<(Response<WasiBody>, Pending<Sent>), Error>> {
        let (stats, began) = (self.world.stats, Instant::now());
        if let Some(asked) = &self.origin.request {
            asked.cost().sends();
        }
        match self.permit(&request) {
            Ok((destination, grant, places)) => {
                let exchange = OutboundExchange {
                    world: self.world.clone(),
                    asked: self.origin.request.clone(),
                    destination,
                    grant,
                    options: options.unwrap_or_default(),
                    places,
                };
                let loops = self.origin.loops.clone();
                let asked = self.origin.request.as_deref();
                let begun = asked.and_then(Asked::trace).and_then(|trace| trace.leave(request.headers_mut()));
                let mut report = OutboundReport {
                    world: self.world.clone(),
                    asked: self.origin.request.clone(),
                    to: exchange.destination.clone(),
                    began,
                    span: begun.map(|begun| (begun, SystemTime::now(), attributes(&request, &exchange.destination))),
                    is_told: false,
                };
                Box::new(async move {
                    let answer = exchange.run(request, loops).await;
                    report.tell(answer.as_ref().map(|(answer, _)| answer.status()).map_err(Some));
                    answer
                })
            }
            Err(error) => {
                stats.outbound_failed.increment();
                Box::new(async { Err(error) })
            }
        }
    }
}

/// Tells what came of a request that a guest sends; also if that is nothing, as its guest ended before.
struct OutboundReport {
    world: Arc<World>,
    asked: Option<Arc<Asked>>,
    to: Destination,
    began: Instant,
    span: Option<(BegunSpan, SystemTime, Attributes)>,
    is_told: bool,
}

impl OutboundReport {
    /// The answer's status, or why there is none, if that is known.
    fn tell(&mut self, answer: Result<StatusCode, Option<&Error>>) {
        self.is_told = true;
        let stats = self.world.stats;
        stats.outbound.record(self.began.elapsed().as_micros() as u64);
        if let Err(error) = answer {
            stats.outbound_failed.increment();
            self.world.outbound.fails(self.asked.as_deref(), &self.to, error);
        }
        if let Some((begun, from, attributes)) = self.span.take() {
            tell_span(begun, from, attributes, answer);
        }
    }
}

impl Drop for OutboundReport {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(Err(None));
        }
    }
}

/// What a span says of a request that a guest sends, in the words of OpenTelemetry's semantic conventions for HTTP. Of its
/// target, not the query, in which there may be secrets.
fn attributes(request: &Request<WasiBody>, to: &Destination) -> Attributes {
    let url = format!("{}://{}{}", to.scheme().as_str(), to.authority(), request.uri().path());
    [
        ("http.request.method", short_method(request.method()).into()),
        ("server.address", to.host().to_string().into()),
        ("server.port", u64::from(to.port()).into()),
        ("url.full", url.chars().take(MAX_URL).collect::<String>().into()),
    ]
    .map(|(key, value): (&str, AttributeValue)| (key.to_owned(), value))
    .into()
}

/// Tells of a request that a guest has sent, when the head of its answer is there, or none will be.
fn tell_span(
    begun: BegunSpan,
    from: SystemTime,
    mut attributes: Attributes,
    answer: Result<StatusCode, Option<&Error>>,
) {
    let error = match answer {
        Ok(status) => {
            attributes.push(("http.response.status_code".into(), u64::from(status.as_u16()).into()));
            (status.as_u16() >= 400).then(|| status.as_str().to_owned())
        }
        Err(Some(error)) => Some(in_words(&format!("{error:?}"))),
        Err(None) => Some("cancelled".into()),
    };
    if let Some(error) = &error {
        attributes.push(("error.type".into(), error.clone().into()));
    }
    let name = match &attributes.first() {
        Some((_, AttributeValue::Text(method))) => method.clone(),
        _ => "HTTP".into(),
    };
    begun.tell(SpanKind::Client, name, from.into()..SystemTime::now().into(), attributes, error);
}

/// One that is held for a guest, and one for a worker.
type Places = [OwnedSemaphorePermit; 2];

impl Hooks {
    pub(crate) fn new(world: Arc<World>, origin: Origin) -> Self {
        Self { world, origin, requests: 1, places: None, bodies: 0 }
    }

    /// The request is worked on in such an instance.
    pub(super) fn got(&self, instance: InstanceUse) {
        self.origin.got(instance);
    }

    /// Which request the guest works on, if that can be told.
    pub(crate) fn asked(&self) -> Option<&Arc<Asked>> {
        self.origin.request.as_ref()
    }

    pub(super) fn sockets(&self) -> &[Arc<SocketLink>] {
        &self.origin.sockets
    }

    /// What another request may, beside the first: nobody can tell which of them the guest works on.
    pub(crate) fn join(&mut self, other: Self) {
        if let Some(places) = &self.places {
            places.add_permits(MAX_OUTBOUND_PER_REQUEST);
        }
        self.requests += 1;
        self.bodies = 0;
        self.origin.request = None;
        self.origin.sockets.retain(|socket| !socket.is_settled());
        self.origin.sockets.extend(other.origin.sockets);
        if other.origin.loops.len() > self.origin.loops.len() {
            self.origin.loops = other.origin.loops;
        }
    }

    fn permit(&mut self, request: &Request<WasiBody>) -> Result<(Destination, usize, Places), Error> {
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let destination = Destination::of(request.uri()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let Outbound { grants, notices, places, .. } = &self.world.outbound;
        let Some(grant) = grants.first_that_permits(&destination) else {
            let remedy = format!("grant it with {}", destination.flag());
            notices.denied(self.origin.request.as_deref(), "a request to a host that is not granted", remedy);
            return Err(Error::HttpRequestDenied);
        };
        let of_request =
            self.places.get_or_insert_with(|| Arc::new(Semaphore::new(MAX_OUTBOUND_PER_REQUEST * self.requests)));
        match (of_request.clone().try_acquire_owned(), places.clone().try_acquire_owned()) {
            (Ok(of_request), Ok(of_worker)) => Ok((destination, grant, [of_request, of_worker])),
            (Err(_), _) => {
                let what = format!("more than {MAX_OUTBOUND_PER_REQUEST} outbound requests at a time for one request");
                notices.denied(self.origin.request.as_deref(), what, "no flag raises this limit");
                Err(Error::ConnectionLimitReached)
            }
            (_, Err(_)) => {
                let what = format!("more than {MAX_OUTBOUND} outbound requests at a time in one worker");
                notices.denied(self.origin.request.as_deref(), what, "more workers raise the total");
                Err(Error::ConnectionLimitReached)
            }
        }
    }
}

/// One outbound request that may be sent.
struct OutboundExchange {
    world: Arc<World>,
    asked: Option<Arc<Asked>>,
    destination: Destination,
    /// The number of the grant that permits it.
    grant: usize,
    options: RequestOptions,
    places: Places,
}

impl OutboundExchange {
    async fn run(
        self,
        mut request: Request<WasiBody>,
        loops: Vec<HeaderValue>,
    ) -> Result<(Response<WasiBody>, Pending<Sent>), Error> {
        if target(request.method(), request.uri()).is_none() {
            return Err(Error::HttpRequestUriInvalid);
        }
        self.sign(request.headers_mut(), loops);
        let at_most = |asked: Option<Duration>, most: Duration| asked.unwrap_or(most).min(most);
        let mut request = request.map(Begun::new);
        let ready = {
            let mut getting = pin!(self.connection(at_most(self.options.connect_timeout, MAX_CONNECT_TIME)));
            let both = poll_fn(|context| {
                let _ = request.body_mut().begin(context);
                getting.as_mut().poll(context)
            });
            both.await?
        };
        // A guest that passes on a body learns of its end a moment later. One that waits for the answer before it writes
        // waits no longer for that.
        let _ = timeout(MAX_HELD_BACK, poll_fn(|context| request.body_mut().begin(context))).await;
        say_that_it_is_empty(&mut request);
        let first_byte = at_most(self.options.first_byte_timeout, self.world.outbound.first_byte);
        let answer = timeout(first_byte, self.send(ready, request)).await;
        let (mut answer, connection, told) = answer.map_err(|_| Error::ConnectionReadTimeout)??;
        let idle_for = idle_for(answer.headers());
        remove_hop_by_hop(answer.headers_mut());
        let silence = at_most(self.options.between_bytes_timeout, self.world.outbound.between_bytes);
        let lease = idle_for.map(|idle_for| Lease { connection, idle_for, world: self.world.clone() });
        let answer = answer.map(|body| {
            let mut answer =
                OutboundAnswer { body: Some(body), silence, timer: None, lease, places: Some(self.places) };
            answer.give_back_if_over();
            answer.boxed_unsync()
        });
        Ok((answer, Box::new(rest(told))))
    }

    /// Sends the request. What was not sent, as a connection that was kept has ended meanwhile, is sent over another; so is a
    /// request without a body of which an upstream of HTTP/2 says that it has not begun with it. Beside the answer comes where
    /// it is told what becomes of the rest of the request.
    async fn send(
        &self,
        mut connection: KeptConnection,
        mut request: Request<Begun>,
    ) -> Result<(Response<Incoming>, KeptConnection, oneshot::Receiver<Error>), Error> {
        let mut tries = 1;
        loop {
            let is_http2 = connection.upstream.is_http2();
            self.address(&mut request, is_http2)?;
            let again = (is_http2 && request.body().is_end_stream()).then(|| empty_copy(&request));
            let told = connection.upstream.watch();
            let mut error = match connection.upstream.send(request).await {
                Ok(answer) => return Ok((answer, connection, told)),
                Err(error) => error,
            };
            connection.upstream.retire();
            let unsent = error.take_message().filter(|_| connection.is_used);
            let unprocessed = again.filter(|_| is_unprocessed(error.error()));
            request = match unsent.or(unprocessed) {
                Some(request) if tries < MAX_TRIES => request,
                _ => return Err(failure(error.into_error())),
            };
            tries += 1;
            connection = self.connection(MAX_CONNECT_TIME).await?;
        }
    }

    /// Writes who has passed the request on into it.
    fn sign(&self, headers: &mut HeaderMap, loops: Vec<HeaderValue>) {
        headers.insert(CDN_LOOP, HeaderValue::from_static(CDN_ID));
        for value in loops {
            headers.append(CDN_LOOP, value);
        }
    }

    /// Writes where it goes into the request, as it was checked, and as the version of HTTP has it.
    fn address(&self, request: &mut Request<Begun>, is_http2: bool) -> Result<(), Error> {
        let target = target(request.method(), request.uri()).ok_or(Error::HttpRequestUriInvalid)?;
        let authority = self.destination.authority();
        if is_http2 {
            request.headers_mut().remove(HOST);
            let uri =
                Uri::builder().scheme(self.destination.scheme().as_str()).authority(authority).path_and_query(target);
            *request.uri_mut() = uri.build().map_err(|_| Error::HttpRequestUriInvalid)?;
        } else {
            let host = HeaderValue::try_from(authority).map_err(|_| Error::HttpRequestUriInvalid)?;
            request.headers_mut().insert(HOST, host);
            *request.uri_mut() = target.into();
        }
        Ok(())
    }

    /// One that was kept, or else a new one, which may take so long to come about.
    async fn connection(&self, within: Duration) -> Result<KeptConnection, Error> {
        let connected = timeout(within, async {
            let addresses = self.resolve().await?;
            let key = |address| Key::new(self.grant, &self.destination, address);
            let pool = &self.world.outbound.pool;
            if let Some(kept) = addresses.iter().find_map(|&address| pool.take(key(address))) {
                return Ok(kept);
            }
            // Most requests go over a connection that was kept: a handshake of TLS is no part of their futures.
            let (upstream, address) = Box::pin(self.connect(addresses)).await?;
            Ok(pool.keep(key(address), upstream))
        });
        connected.await.map_err(|_| Error::ConnectionTimeout)?
    }

    async fn connect(&self, addresses: Vec<SocketAddr>) -> Result<(Upstream, SocketAddr), Error> {
        let Outbound { tls, max_head, .. } = &self.world.outbound;
        let (stream, address) = self.connect_to_any(addresses).await?;
        // Requests are written in one piece.
        let _ = stream.set_nodelay(true);
        let wire = Wire::new(stream);
        let upstream = match self.destination.scheme() {
            Scheme::Http => Upstream::begin(wire.clone(), wire, false, *max_head).await?,
            Scheme::Https => {
                let stream = tls.connect(self.destination.host(), wire.clone()).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(PROTOCOLS[0]);
                Upstream::begin(stream, wire, is_http2, *max_head).await?
            }
        };
        Ok((upstream, address))
    }

    async fn connect_to_any(&self, addresses: Vec<SocketAddr>) -> Result<(TcpStream, SocketAddr), Error> {
        let failed =
            |error: Option<io::Error>| error.map_or(Error::DestinationNotFound, |error| self.not_connected(&error));
        dialer::connect_to_any(&addresses).await.map_err(failed)
    }

    /// What the guest is told. What is this machine's own lack is told in the log too: nobody else would know.
    fn not_connected(&self, error: &io::Error) -> Error {
        let hint = match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            // Each connection takes a port, for a minute after its end if this side closed it.
            Errno::EADDRNOTAVAIL => "no local port is free (net.ipv4.ip_local_port_range)",
            Errno::EMFILE => "this worker has no file descriptors left (ulimit -n)",
            Errno::ENFILE => "this machine has no file descriptors left (fs.file-max)",
            Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN => "the kernel has no memory left for sockets",
            Errno::EACCES | Errno::EPERM => {
                let message = "an outbound connection was refused by this machine's own rules (firewall, sandbox)";
                self.world.outbound.notices.tell(self.asked.as_deref(), format!("{message}: {error}"));
                return Error::DestinationUnavailable;
            }
            Errno::ECONNREFUSED => return Error::ConnectionRefused,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH => return Error::DestinationIpUnroutable,
            Errno::ETIMEDOUT => return Error::ConnectionTimeout,
            _ => return Error::DestinationUnavailable,
        };
        self.world.outbound.notices.tell(self.asked.as_deref(), format!("outbound connections fail: {hint}: {error}"));
        Error::ConnectionLimitReached
    }

    async fn look_up(&self, name: &str) -> Result<Arc<[IpAddr]>, Error> {
        self.world.outbound.resolver.look_up(name, self.grant).await.map_err(|error| match error {
            NotFound::Failed => Error::DnsError { rcode: None, info_code: None },
            NotFound::Silent => Error::DnsTimeout,
        })
    }

    /// The addresses that may be connected to.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        let port = self.destination.port();
        let found = match self.destination.host() {
            Host::Address(address) => Arc::from([*address]),
            Host::Name(name) => Box::pin(self.look_up(name)).await?,
        };
        // Each time, also those that were kept from the last look-up.
        let (permitted, denied): (Vec<_>, Vec<_>) = found
            .iter()
            .copied()
            .partition(|&found| self.world.outbound.grants.permits_address(&self.destination, found));
        if permitted.is_empty() {
            let Some(&address) = denied.first() else { return Err(Error::DestinationNotFound) };
            let range = special(address).unwrap_or("other");
            let what = format!("a request to a granted host with the special address {address} ({range})");
            let remedy = format!("grant the address too, with {}", self.destination.at(address).flag());
            self.world.outbound.notices.denied(self.asked.as_deref(), what, remedy);
            return Err(Error::DestinationIpProhibited);
        }
        Ok(permitted.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }
}

/// The target of a request as it stands in its first line, if it can (RFC 9112, section 3.2): a path, or `*` for all of
/// a server. A query alone has the root for its path. `http` lets bytes pass that no URI has.
fn target(method: &Method, uri: &Uri) -> Option<PathAndQuery> {
    let text = uri.path_and_query().map_or("", PathAndQuery::as_str);
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    match text.as_bytes().first() {
        None => Some(PathAndQuery::from_static("/")),
        Some(b'/') => PathAndQuery::try_from(text).ok(),
        Some(b'?') => PathAndQuery::try_from(format!("/{text}")).ok(),
        Some(b'*') if text == "*" && method == Method::OPTIONS => Some(PathAndQuery::from_static("*")),
        Some(_) => None,
    }
}

/// The same request, which has no body.
fn empty_copy(request: &Request<Begun>) -> Request<Begun> {
    let mut copy = Request::new(Begun::empty());
    (*copy.method_mut(), *copy.uri_mut()) = (request.method().clone(), request.uri().clone());
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// A request of a method that is meant to have content says that it has none (RFC 9110, section 8.6).
fn say_that_it_is_empty(request: &mut Request<Begun>) {
    let has_content = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if has_content && request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

/// What is left to do for an exchange whose answer has begun: what becomes of the request.
async fn rest(told: oneshot::Receiver<Error>) -> Sent {
    // Not at once: an error that comes with the answer would take its place.
    tokio::task::yield_now().await;
    told.await.map_or(Ok(()), Err)
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

/// How long the connection of an answer may be idle, by what its server says of it (`Keep-Alive: timeout=5`); `None` if not
/// at all. A second less, as both sides' clocks begin at different moments.
fn idle_for(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("keep-alive").iter().filter_map(|value| value.to_str().ok());
    let said = values
        .flat_map(|value| value.split(','))
        .filter_map(|parameter| parameter.trim().strip_prefix("timeout="))
        .find_map(|seconds| seconds.trim().parse().ok().map(Duration::from_secs));
    match said {
        None => Some(IDLE),
        Some(said) => {
            said.checked_sub(Duration::from_secs(1)).filter(|time| !time.is_zero()).map(|time| time.min(MAX_IDLE))
        }
    }
}

/// A connection that carries an exchange, and is to be kept behind it.
struct Lease {
    connection: KeptConnection,
    idle_for: Duration,
    world: Arc<World>,
}

/// The body of an answer, which may not be silent for too long.
struct OutboundAnswer {
    /// Until it is dropped.
    body: Option<Incoming>,
    silence: Duration,
    /// Runs while the guest waits for the other side.
    timer: Option<Pin<Box<Sleep>>>,
    /// Until the body is whole.
    lease: Option<Lease>,
    places: Option<Places>,
}

impl Lease {
    fn give_back(self) {
        self.connection.upstream.rests();
        self.world.outbound.pool.give_back(self.connection, self.idle_for);
    }
}

impl OutboundAnswer {
    fn give_back_if_over(&mut self) {
        if self.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

/// Guests that look at a status alone leave the body. A short one costs less than another connection.
impl Drop for OutboundAnswer {
    fn drop(&mut self) {
        let is_short = self.size_hint().upper().is_some_and(|rest| rest <= MAX_DISCARDED);
        if is_short
            && let (Some(lease), Some(body), Ok(runtime)) = (self.lease.take(), self.body.take(), Handle::try_current())
        {
            // To its guest it is over; of the worker's connections it is one.
            runtime.spawn(discard(body, lease, self.places.take().map(|[_, of_worker]| of_worker)));
        }
    }
}

/// Reads what is left of an answer, and gives its connection back.
async fn discard(mut body: Incoming, lease: Lease, _place: Option<OwnedSemaphorePermit>) {
    let read = async { while matches!(body.frame().await, Some(Ok(_))) {} };
    if timeout(DISCARDED_WITHIN, read).await.is_ok() && body.is_end_stream() {
        lease.give_back();
    }
}

impl Body for OutboundAnswer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            self.timer = None;
            match &frame {
                Some(Err(_)) => self.lease = None,
                Some(Ok(_)) | None => self.give_back_if_over(),
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(failure)));
        }
        let silence = self.silence;
        ready!(self.timer.get_or_insert_with(|| Box::pin(sleep(silence))).as_mut().poll(context));
        self.lease = None;
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_well_formed() {
        let check = |method: Method, uri: &str, expected: Option<&str>| {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(target(&method, &uri).as_ref().map(PathAndQuery::as_str), expected, "{method} {uri}");
        };
        check(Method::GET, "http://x", Some("/"));
        check(Method::GET, "http://x?", Some("/?"));
        check(Method::GET, "http://x?a=b", Some("/?a=b"));
        check(Method::GET, "http://x/a?b#c", Some("/a?b"));
        check(Method::GET, "http://x//y.example/a", Some("//y.example/a"));
        check(Method::OPTIONS, "*", Some("*"));
        check(Method::GET, "*", None);
        check(Method::GET, "http://x/\u{e4}", None);
        check(Method::GET, "x.example:80", Some("/"));
    }

    #[test]
    fn fields_that_a_connection_names_go_no_further() {
        let check = |connection: &[&'static str], expected: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in connection {
                headers.append(CONNECTION, HeaderValue::from_static(value));
            }
            for name in ["cdn-loop", "host", "content-length", "x-hop", "x-end"] {
                headers.append(name, HeaderValue::from_static("1"));
            }
            remove_hop_by_hop(&mut headers);
            headers.remove(CONNECTION);
            let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            left.sort_unstable();
            assert_eq!(left, expected, "{connection:?}");
        };
        check(&[], &["cdn-loop", "content-length", "host", "x-end", "x-hop"]);
        check(&["keep-alive, X-Hop"], &["cdn-loop", "content-length", "host", "x-end"]);
        let odd = "x-none,, ,x hop,x-end , host, content-length, cdn-loop";
        check(&["close", odd], &["cdn-loop", "content-length", "host", "x-hop"]);
    }

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
