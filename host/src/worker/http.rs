//! HTTP/1.1 on one connection: each request becomes a guest's call, each call an answer.
//!
//! The guest is polled in the connection's own task: first while its head is awaited, then, inside the answer's body,
//! whenever the connection can take more. So a client that reads slowly slows its guest down, and one that leaves
//! cancels it. Only a guest that outlives its last frame gets a task of its own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Sleep, sleep_until};
use wasmtime_wasi_http::Error;

use super::Phase;
use super::accept::{Admission, Connection, Gate, Stream};
use super::drain::{Duty, Event, Timeouts};
use super::framing::Framing;
use super::instance::{Call, Failure, Head, Instances};
use super::io::{Answering, Io, Refusal, Watch};
use super::outbound::{MAX_LOOPS, Origin, loops};
use super::outbox::Outbox;
use super::requests::{InFlight, Requests};
use super::upload::{Progress, Upload, UploadState};
use crate::config::{Limits, WorkerSettings};
use crate::ids::RequestId;
use crate::ipc::bounded;
use crate::stats::Stats;

/// What a request of HTTP/1.0 is addressed to if it does not say.
const NO_HOST: &str = "localhost";

/// Header fields that hyper reads unless it is told otherwise.
const HYPER_HEADERS: usize = 100;
/// What names a request in the log and to its client.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a guest's own error that are logged.
const MAX_SAID: usize = 1024;
/// Bytes of an answer that are taken before its head is sent, if the guest has written them by then.
const MAX_GATHERED: usize = 64 * 1024;
/// How long a client that is to come again may take to ask.
const REFUSAL: Duration = Duration::from_secs(1);

/// What connections share.
pub(super) struct Server {
    instances: Rc<Instances>,
    requests: Rc<Requests>,
    phases: watch::Receiver<Phase>,
    timeouts: Timeouts,
    limits: Limits,
    /// One for each request that may be at work.
    places: Arc<Semaphore>,
    /// Requests that wait for a place.
    waiting: Cell<usize>,
    pub(super) gate: Arc<Gate>,
    pub(super) outbox: Rc<Outbox>,
    /// By the order in which they came.
    connections: RefCell<BTreeMap<u64, Rc<Watch>>>,
    last_connection: Cell<u64>,
    started: Instant,
    stats: &'static Stats,
}

type Answer = Response<Body>;

impl Server {
    pub(super) fn new(
        instances: Rc<Instances>,
        requests: Rc<Requests>,
        phases: watch::Receiver<Phase>,
        settings: &WorkerSettings,
        gate: Arc<Gate>,
        stats: &'static Stats,
    ) -> Self {
        let limits = settings.limits;
        let (keep_alive, header) = (limits.keep_alive_timeout, limits.header_timeout);
        let timeouts = Timeouts { keep_alive, grace: settings.drain_idle_grace, header };
        let (places, waiting) = (Arc::new(Semaphore::new(limits.max_in_flight)), Cell::new(0));
        Self {
            instances,
            requests,
            phases,
            timeouts,
            limits,
            places,
            waiting,
            gate,
            outbox: Rc::default(),
            connections: RefCell::default(),
            last_connection: Cell::new(0),
            started: Instant::now(),
            stats,
        }
    }

    /// Serves a connection to its end. `alive` is held as long as anything of it lives.
    pub(super) async fn serve(self: Rc<Self>, connection: Connection, alive: mpsc::Sender<()>) {
        let held = self.stats.connections.hold();
        let admission = connection.admission;
        let _refused = (admission == Admission::Refuse).then(|| self.gate.refusing());
        match connection.into_stream() {
            Ok(Stream::Tcp(stream)) => self.clone().serve_stream(stream, admission, alive).await,
            Ok(Stream::Unix(stream)) => self.clone().serve_stream(stream, admission, alive).await,
            // The client reset it while it was queued.
            Err(error) => tracing::debug!("a connection was lost: {error}"),
        }
        drop(held);
    }

    /// Closes the connection that has been idle for longest, if there are too many.
    fn make_room(&self) {
        let mut connections = self.connections.borrow_mut();
        if connections.len() < self.limits.max_connections {
            return;
        }
        let idle = connections.iter().filter_map(|(&number, watch)| Some((watch.spare_since()?, number)));
        if let Some((_, number)) = idle.min()
            && let Some(longest) = connections.remove(&number)
        {
            longest.evict();
        }
    }

    async fn serve_stream<S>(self: Rc<Self>, stream: S, admission: Admission, alive: mpsc::Sender<()>)
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + 'static,
    {
        let timeouts = match admission {
            Admission::Serve => self.timeouts,
            // It has been queued for long: its request is there, or it has none.
            Admission::Refuse => Timeouts { keep_alive: REFUSAL, header: REFUSAL, ..self.timeouts },
        };
        let watch = Rc::new(Watch::new(self.started, timeouts));
        let mut phases = self.phases.clone();
        let service = service_fn(|request| {
            let (server, watch, alive) = (self.clone(), watch.clone(), alive.clone());
            async move {
                Ok::<_, Infallible>(match admission {
                    Admission::Serve => server.answer(request, watch, alive).await,
                    Admission::Refuse => server.refuse(&request, watch),
                })
            }
        });
        let mut http = http1::Builder::new();
        http.max_buf_size(self.limits.max_header_bytes).half_close(false);
        // Fewer are bounded before hyper sees them, and it allocates for each request what is not its own default.
        if self.limits.max_headers > HYPER_HEADERS {
            http.max_headers(self.limits.max_headers);
        }
        let framing = Framing::new(self.limits.max_header_bytes, self.limits.max_headers);
        let mut connection =
            http.serve_connection(TokioIo::new(Io::new(stream, watch.clone(), framing, self.outbox.clone())), service);
        // The sender lives as long as the process, so waiting cannot fail.
        let mut drain_begins = pin!(phases.wait_for(|&phase| phase == Phase::Draining));
        let (mut timer, mut stall) = (Timer::default(), Timer::default());
        let _listed = match admission {
            Admission::Serve => Some(Listed::new(&self, watch.clone())),
            // It goes soon, and makes room for nobody.
            Admission::Refuse => None,
        };
        self.make_room();
        poll_fn(|context| {
            watch.polled(context);
            if !watch.is_draining() && drain_begins.as_mut().poll(context).is_ready() {
                watch.step(Event::DrainBegan);
            }
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(context) {
                watch.step(how_it_ended(ended, &watch));
                return Poll::Ready(());
            }
            if watch.spare_since().is_some() {
                self.make_room();
            }
            if watch.duty() != Duty::Serve {
                return Poll::Ready(());
            }
            if let Some(moved_at) = watch.moved_at()
                && stall.poll(moved_at + self.limits.stream_timeout, context).is_ready()
            {
                self.stats.timeouts.increment();
                let request = watch.request();
                tracing::warn!(request, "an answer was cut: nothing moved for {:?}", self.limits.stream_timeout);
                watch.step(Event::ClientLeft);
                return Poll::Ready(());
            }
            while let Some(deadline) = watch.next_deadline() {
                ready!(timer.poll(deadline, context));
                watch.step(Event::DeadlinePassed);
                if watch.duty() != Duty::Serve {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
        let mut io = connection.into_parts().io.into_inner();
        if watch.duty() == Duty::Refuse && io.refuse().await == Refusal::Late {
            self.stats.timeouts.increment();
        }
        io.linger().await;
    }

    async fn answer(&self, mut request: Request<Incoming>, watch: Rc<Watch>, alive: mpsc::Sender<()>) -> Answer {
        let in_flight = Rc::new(self.requests.begin());
        let (id, began) = (in_flight.id, in_flight.began());
        let answering = watch.clone().answering(in_flight.clone(), &request);
        let answer = match authority(&request) {
            _ if request.method() == Method::CONNECT => plain(StatusCode::NOT_IMPLEMENTED, "this is no proxy", id),
            Some(_) if loops(request.headers()) > MAX_LOOPS => {
                tracing::warn!(
                    request = id.to_string(),
                    "refused: it came through servers like this {MAX_LOOPS} times"
                );
                plain(StatusCode::LOOP_DETECTED, "the request goes round in circles", id)
            }
            Some(_) if request.body().size_hint().lower() > self.limits.max_body => too_large(id),
            Some(authority) => {
                let method = request.method().clone();
                // Where HTTP/1.0 has none: guests get their authority from it.
                if !request.headers().contains_key(HOST) {
                    request.headers_mut().insert(HOST, HeaderValue::from_static(NO_HOST));
                }
                let deadline = began + self.limits.request_timeout;
                let Some(place) = self.place(deadline).await else {
                    self.stats.rejected.increment();
                    return self.finish(busy(id), &watch, answering);
                };
                let (request, upload) = Upload::wrap(request, self.limits.max_body);
                let origin = Origin::new(id, request.headers());
                let (head, call) = self.instances.call(request, authority, origin);
                let limit = self.limits.request_timeout;
                let tail = Tail { stats: self.stats, in_flight, limit, _place: place, _alive: alive };
                self.weigh(drive(head, call, deadline, tail, &upload, &method).await)
            }
            None => plain(StatusCode::BAD_REQUEST, "the request needs exactly one valid Host header", id),
        };
        self.finish(answer, &watch, answering)
    }

    /// Counts what a version is judged by: what became of the requests that its guests got.
    fn weigh(&self, answer: Answer) -> Answer {
        if answer.extensions().get::<Overloaded>().is_none() {
            self.stats.guest_answers.increment();
            if answer.status().is_server_error() {
                self.stats.guest_errors.increment();
            }
        }
        answer
    }

    /// Tells the client to come again, and to go.
    fn refuse(&self, request: &Request<Incoming>, watch: Rc<Watch>) -> Answer {
        self.stats.rejected.increment();
        let in_flight = Rc::new(self.requests.begin());
        let answer = closing(busy(in_flight.id));
        let answering = watch.clone().answering(in_flight, request);
        self.finish(answer, &watch, answering)
    }

    /// What every answer has, whoever made it.
    fn finish(&self, answer: Answer, watch: &Watch, answering: Answering) -> Answer {
        if answer.status().is_server_error() {
            self.stats.errors.increment();
        }
        let mut answer = if watch.is_draining() { closing(answer) } else { answer };
        answer.body_mut().answering = Some(answering);
        watch.streams();
        answer
    }

    /// A place to work at. Some may wait for one until `deadline`; `None` if those are too many, or there is none by then.
    async fn place(&self, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        if self.waiting.get() >= self.limits.max_in_flight {
            return None;
        }
        let _waits = Waits::begin(&self.waiting);
        let place = self.places.clone().acquire_owned();
        tokio::time::timeout_at(deadline.into(), place).await.ok()?.ok()
    }
}

/// A connection in its server's list.
struct Listed<'a> {
    server: &'a Server,
    number: u64,
}

impl<'a> Listed<'a> {
    fn new(server: &'a Server, watch: Rc<Watch>) -> Self {
        let number = server.last_connection.get() + 1;
        server.last_connection.set(number);
        server.connections.borrow_mut().insert(number, watch);
        Self { server, number }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.server.connections.borrow_mut().remove(&self.number);
    }
}

/// Counts one that waits.
struct Waits<'a>(&'a Cell<usize>);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn how_it_ended(ended: hyper::Result<()>, watch: &Watch) -> Event {
    match ended {
        Ok(()) if watch.has_client_left() => Event::ClientLeft,
        Ok(()) if watch.is_draining() || watch.may_have_unread() => Event::Shut,
        // It was the client's wish, and nothing can be on its way.
        Ok(()) => Event::ClientLeft,
        Err(error) => {
            tracing::debug!("a connection ended early: {error}");
            // What could not be understood was answered, and that is not to be destroyed by a reset.
            if error.is_parse() && !watch.has_client_left() { Event::Shut } else { Event::ClientLeft }
        }
    }
}

/// A timer that costs little: deadlines that move away, as they do with every request, do not touch it.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        let deadline = deadline.into();
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// Whom the request is addressed to (RFC 9112, section 3.2): HTTP/1.1 requires exactly one Host, and a target in
/// absolute form overrides it. HTTP/1.0 knows neither.
fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok()?.parse().ok()?,
        (None, None) if request.version() == Version::HTTP_10 => Authority::from_static(NO_HOST),
        _ => return None,
    };
    Some(request.uri().authority().cloned().unwrap_or(host))
}

/// A guest's time is over.
struct Late;

/// Marks an answer that no guest had a part in: there was no room for one.
#[derive(Clone, Copy)]
struct Overloaded;

/// Polls the guest until its head is there, or it is clear that none will come.
async fn drive(
    head: oneshot::Receiver<Head>,
    mut call: Call,
    deadline: Instant,
    tail: Tail,
    upload: &UploadState,
    method: &Method,
) -> Answer {
    let mut head = pin!(head);
    let (mut ended, mut has_waited) = (None, false);
    let head = poll_fn(|context| {
        // A guest that has waited is not polled behind its deadline: the timeouts of what it waits for, which are as long,
        // end about then, and it must not depend on chance which of them is told.
        if std::mem::replace(&mut has_waited, true) && Instant::now() >= deadline {
            return Poll::Ready(Err(Late));
        }
        if ended.is_none()
            && let Poll::Ready(end) = Pin::new(&mut call).poll(context)
        {
            ended = Some(end);
        }
        if upload.is(Progress::TooLarge) {
            return Poll::Ready(Ok(None));
        }
        // The sender lives inside the call: when that has ended, the head is there or never comes.
        head.as_mut().poll(context).map(|head| Ok(Some(head)))
    });
    let Ok(Ok(head)) = tokio::time::timeout_at(deadline.into(), head).await else {
        return tail.timed_out(upload);
    };
    match (ended, head) {
        (_, None) => too_large(tail.id()),
        (Some(Err(Failure::Full)), _) => {
            tail.stats.rejected.increment();
            let mut answer = busy(tail.id());
            answer.extensions_mut().insert(Overloaded);
            answer
        }
        // Nothing was sent yet, so even a guest that trapped behind its head gets a clean answer.
        (Some(Err(Failure::Trap(error))), _) => {
            tail.trapped(&error);
            internal_error(tail.id())
        }
        (ended, Some(Ok(Ok(head)))) => {
            let call = if ended.is_some() { None } else { Some(call) };
            let (head, frames) = head.into_parts();
            if let Some(fault) = fault(&head, frames.is_end_stream() && method != Method::HEAD) {
                tracing::warn!(request = tail.request(), "the guest's answer cannot be sent: {fault}");
                return internal_error(tail.id());
            }
            let id = tail.id();
            let mut body = Body::of_guest(&head, frames, call, tail, method);
            match poll_fn(|context| Poll::Ready(body.gather(context))).await {
                Ok(()) => Response::from_parts(head, body),
                Err(error) => {
                    tracing::warn!(request = id.to_string(), "an answer failed before it was sent: {error}");
                    internal_error(id)
                }
            }
        }
        (_, Some(Ok(Err(code)))) => {
            tracing::warn!(request = tail.request(), "the guest answered with an error: {}", shortened(&code));
            internal_error(tail.id())
        }
        (_, Some(Err(_))) => {
            let request = tail.request();
            tracing::warn!(request, "the guest gave up its chance to answer without setting a response");
            internal_error(tail.id())
        }
    }
}

/// What is wrong with the head of a guest's answer, if anything: what would change where the answer ends.
fn fault(head: &http::response::Parts, is_empty: bool) -> Option<&'static str> {
    if head.status.is_informational() {
        return Some("its status is informational, and says that another follows");
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(_), Some(_)) => Some("it has more than one content-length"),
        (Some(_), None) => match content_length(&head.headers) {
            None => Some("its content-length is no number"),
            // RFC 9110, section 8.6.
            Some(_) if head.status == StatusCode::NO_CONTENT => Some("it has a content-length, and no content"),
            Some(1..) if is_empty && head.status != StatusCode::NOT_MODIFIED => {
                Some("its body is empty, and its content-length says otherwise")
            }
            Some(_) => None,
        },
        _ => None,
    }
}

/// What a guest says, for the log: one line, and not longer than one.
fn shortened(text: &str) -> std::str::EscapeDebug<'_> {
    text[..text.floor_char_boundary(MAX_SAID)].escape_debug()
}

/// As RFC 9110, section 8.6, has it: digits and nothing else.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let digits = headers.get(CONTENT_LENGTH)?.to_str().ok()?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn busy(request: RequestId) -> Answer {
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "the server is busy", request);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// The rest of the body is not read.
fn too_large(request: RequestId) -> Answer {
    closing(plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", request))
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn internal_error(request: RequestId) -> Answer {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error", request)
}

/// An answer of our own. All that it tells of what happened inside is how the log calls the request.
fn plain(status: StatusCode, text: &str, request: RequestId) -> Answer {
    let request = request.to_string();
    let mut answer = Response::new(Body::text(format!("{text} (request {request})\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Ok(request) = HeaderValue::try_from(request) {
        answer.headers_mut().insert(REQUEST_ID, request);
    }
    answer
}

/// What belongs to a request until its guest is done, whichever task that happens in.
struct Tail {
    stats: &'static Stats,
    in_flight: Rc<InFlight>,
    /// How long its guest may take for the answer's head, and again behind its last frame.
    limit: Duration,
    _place: OwnedSemaphorePermit,
    _alive: mpsc::Sender<()>,
}

impl Tail {
    fn id(&self) -> RequestId {
        self.in_flight.id
    }

    /// What the request is called.
    fn request(&self) -> String {
        self.id().to_string()
    }

    fn trapped(&self, error: &wasmtime::Error) {
        self.stats.traps.increment();
        let request = self.request();
        tracing::error!(request, "the guest trapped: {}", bounded(format!("{error:?}")));
    }

    /// The guest is dropped, which cancels it.
    fn timed_out(&self, upload: &UploadState) -> Answer {
        self.stats.timeouts.increment();
        let (request, limit) = (self.request(), self.limit);
        if upload.is(Progress::Expected) {
            tracing::warn!(request, "no answer within {limit:?}; its body had not come to its end");
            return closing(plain(StatusCode::REQUEST_TIMEOUT, "the request took too long", self.id()));
        }
        tracing::warn!(request, "no answer within {limit:?}");
        plain(StatusCode::GATEWAY_TIMEOUT, "the answer took too long", self.id())
    }
}

/// The body of an answer, with the guest that is still writing it.
struct Body {
    /// What was taken of the frames already.
    gathered: VecDeque<Frame<Bytes>>,
    /// Its length, if that is all and the head does not say it.
    length: Option<u64>,
    /// What the guest writes; `None` after its end.
    frames: Option<UnsyncBoxBody<Bytes, Error>>,
    call: Option<Call>,
    tail: Option<Tail>,
    /// How much of the declared content-length is still to come.
    remaining: Option<u64>,
    answering: Option<Answering>,
}

impl Body {
    fn new(
        frames: Option<UnsyncBoxBody<Bytes, Error>>,
        call: Option<Call>,
        tail: Option<Tail>,
        remaining: Option<u64>,
    ) -> Self {
        Self { gathered: VecDeque::new(), length: None, frames, call, tail, remaining, answering: None }
    }

    fn text(text: String) -> Self {
        let frames = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        Self::new(Some(frames), None, None, None)
    }

    fn of_guest(
        head: &http::response::Parts,
        frames: UnsyncBoxBody<Bytes, Error>,
        call: Option<Call>,
        tail: Tail,
        method: &Method,
    ) -> Self {
        let bodyless =
            method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let remaining = if bodyless { Some(0) } else { content_length(&head.headers) };
        Self::new(Some(frames), call, Some(tail), remaining)
    }

    /// Takes what the guest has written by now, so that a short answer is sent with its length. After an error, nothing of
    /// it was sent.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        let (mut bytes, mut has_worked) = (0, false);
        // Where the length is known, frames can go as they come.
        while self.remaining.is_none() && bytes < MAX_GATHERED {
            let failure = match self.poll_written(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    bytes += frame.data_ref().map_or(0, Bytes::len);
                    self.gathered.push_back(frame);
                    has_worked = false;
                    continue;
                }
                Poll::Ready(None) => {
                    let is_plain = self.gathered.iter().all(Frame::is_data);
                    self.length = is_plain.then_some(bytes as u64);
                    self.ended(context).err()
                }
                Poll::Ready(Some(Err(error))) => Some(error),
                Poll::Pending if has_worked => break,
                Poll::Pending => {
                    has_worked = true;
                    match self.poll_guest(context) {
                        Ok(()) => continue,
                        Err(error) => Some(error),
                    }
                }
            };
            return failure.map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// Lets the guest work. An error means that the answer can no longer become whole.
    fn poll_guest(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let Poll::Ready(ended) = Pin::new(call).poll(context) else {
            return Ok(());
        };
        self.call = None;
        match ended {
            Ok(()) => Ok(()),
            Err(Failure::Full) => Err(Error::InternalError(None)),
            Err(Failure::Trap(error)) => {
                if let Some(tail) = &self.tail {
                    tail.trapped(&error);
                }
                Err(Error::InternalError(None))
            }
        }
    }

    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.frames {
            Some(frames) => Pin::new(frames).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    /// There are no more frames. An error means that they came to an end too early.
    fn ended(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        // A trap ends them, also one on behalf of another request in the same instance.
        let ended = self.poll_guest(context);
        self.took_all(context);
        ended
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

    fn is_complete(&self) -> bool {
        (self.frames.is_none() && self.gathered.is_empty()) || self.remaining == Some(0)
    }

    /// Gives up: hyper closes the connection without a well-formed end.
    fn cut(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(tail) = &self.tail {
            tail.stats.errors.increment();
            tail.stats.guest_errors.increment();
            tracing::warn!(request = tail.request(), "an answer was cut: {error}");
        }
        if let Some(answering) = self.answering.take() {
            answering.cut();
        }
        (self.frames, self.call) = (None, None);
        Poll::Ready(Some(Err(error)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        // The guest works only when nothing is left of what it wrote before.
        let gathered = self.gathered.pop_front();
        let mut polled = gathered.map_or_else(|| self.poll_written(context), |frame| Poll::Ready(Some(Ok(frame))));
        if polled.is_pending() {
            if let Err(error) = self.poll_guest(context) {
                return self.cut(error);
            }
            polled = self.poll_written(context);
        }
        match ready!(polled) {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.remaining.map(|remaining| remaining.checked_sub(length)) {
                    // Hyper would drop what is over, and the client take the answer for whole.
                    Some(None) => return self.cut(Error::HttpResponseBodySize(None)),
                    Some(rest) => self.remaining = rest,
                    None => {}
                }
                if self.remaining == Some(0) {
                    self.took_all(context);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => self.cut(error),
            None if !self.has_its_length() => self.cut(Error::HttpResponseBodySize(None)),
            None => match self.ended(context) {
                Ok(()) => Poll::Ready(None),
                Err(error) => self.cut(error),
            },
        }
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
        let (Some(mut call), Some(tail)) = (self.call.take(), self.tail.take()) else {
            return;
        };
        if !self.is_complete() {
            // The client is gone: so is the guest, as soon as `call` drops.
            return;
        }
        self.frames = None;
        tokio::task::spawn_local(async move {
            match tokio::time::timeout(tail.limit, &mut call).await {
                Ok(Err(Failure::Trap(error))) => {
                    tail.stats.guest_errors.increment();
                    tail.trapped(&error);
                }
                Ok(_) => {}
                Err(_) => {
                    tail.stats.timeouts.increment();
                    let request = tail.request();
                    tracing::warn!(request, "the guest was ended {:?} after its answer", tail.limit);
                }
            }
        });
    }
}
