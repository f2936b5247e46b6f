//! HTTP/1.1 on one connection: each request becomes a guest's call, each call an answer.
//!
//! The guest is polled in the connection's own task: first while its head is awaited, then, inside the answer's body,
//! whenever the connection can take more. So a client that reads slowly slows its guest down, and one that leaves
//! cancels it. Only a guest that outlives its last frame gets a task of its own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytesize::ByteSize;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Sleep, sleep_until};
use wasmtime_wasi_http::Error;

use super::accept::{Admission, Connection, Gate, SAID_EVERY, Stream};
use super::buffers::Buffers;
use super::connection::{Answering, ClientStream, Io, Refusal, Watch};
use super::drain::{Awaited, Duty, Event, Timeouts};
use super::framing::Framing;
use super::outbox::Outbox;
use super::upload::{Progress, Upload, UploadState};
use crate::logging::{one_line, several_lines};
use crate::settings::Limits;
use crate::wire::stats::Stats;
use crate::wire::worker_settings::WorkerSettings;
use crate::worker::Phase;
use crate::worker::guest::call::{Call, Failure, Head, said};
use crate::worker::guest::instance::Instances;
use crate::worker::guest::outbound::{MAX_LOOPS, Origin, loops};
use crate::worker::guest::trap::describe;
use crate::worker::requests::{InFlight, REQUEST_ID, Requests, log_of};

/// What a request of HTTP/1.0 is addressed to if it does not say.
const NO_HOST: &str = "localhost";

/// Header fields that hyper reads unless it is told otherwise.
const HYPER_HEADERS: usize = 100;
/// Bytes of an answer that are taken before its head is sent, if the guest has written them by then.
const MAX_GATHERED: usize = 64 * 1024;
/// How often it is looked whether the client is there, where its leaving would not be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a client that is to come again may take to ask.
const REFUSAL: Duration = Duration::from_secs(1);

/// What connections share.
pub(crate) struct Server {
    instances: Rc<Instances>,
    requests: Rc<Requests>,
    phases: watch::Receiver<Phase>,
    timeouts: Timeouts,
    limits: Limits,
    /// One for each request that may be at work.
    places: Arc<Semaphore>,
    /// Requests that wait for a place.
    waiting: Cell<usize>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) outbox: Rc<Outbox>,
    buffers: Rc<Buffers>,
    /// When it was said last that connections make room.
    said_at: Cell<Option<Instant>>,
    /// By the order in which they came.
    connections: RefCell<BTreeMap<u64, Rc<Watch>>>,
    last_connection: Cell<u64>,
    started: Instant,
    stats: &'static Stats,
}

type Answer = Response<Body>;

impl Server {
    pub(crate) fn new(
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
            buffers: Rc::new(Buffers::new(&limits)),
            said_at: Cell::new(None),
            connections: RefCell::default(),
            last_connection: Cell::new(0),
            started: Instant::now(),
            stats,
        }
    }

    /// Serves a connection to its end. `alive` is held as long as anything of it lives.
    pub(crate) async fn serve(self: Rc<Self>, connection: Connection, alive: mpsc::Sender<()>) {
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

    /// Has one closed, if there are too many.
    fn make_room(&self) {
        if self.connections.borrow().len() >= self.limits.max_connections {
            self.evict();
        }
    }

    /// Closes the connection that has been idle for longest, or else the one whose head has taken longest.
    pub(crate) fn evict(&self) {
        let Some(((awaited, _), evicted)) = self.evict_first(Watch::spare_since) else { return };
        evicted.is_in_the_way();
        if awaited == Awaited::RestOfHead {
            let max = self.limits.max_connections;
            self.say(format_args!(
                "there are {max} connections and none is idle, so clients are answered 408 whose heads have taken longest; see \
                 --max-connections and --header-timeout"
            ));
        }
    }

    /// Ends connections whose clients have been waited for longest, until the others hold no more than they may.
    fn free_buffers(&self) {
        while self.buffers.is_exceeded() && self.evict_first(Watch::holding_since).is_some() {
            let max = ByteSize::b(self.buffers.max() as u64);
            self.say(format_args!(
                "connections held more than {max} for requests that have not come whole, so those are ended that have taken \
                 longest; see --header-timeout and --max-header-bytes"
            ));
        }
    }

    /// Ends the connection that comes first by `key`.
    fn evict_first<K: Ord>(&self, key: impl Fn(&Watch) -> Option<K>) -> Option<(K, Rc<Watch>)> {
        let mut connections = self.connections.borrow_mut();
        let (key, number) = connections.iter().filter_map(|(&number, watch)| Some((key(watch)?, number))).min()?;
        let evicted = connections.remove(&number)?;
        evicted.evict();
        Some((key, evicted))
    }

    /// Logs what many clients may be the cause of.
    fn say(&self, what: fmt::Arguments<'_>) {
        if self.said_at.get().is_none_or(|at| at.elapsed() >= SAID_EVERY) {
            self.said_at.set(Some(Instant::now()));
            tracing::warn!("{what}");
        }
    }

    async fn serve_stream<S>(self: Rc<Self>, stream: S, admission: Admission, alive: mpsc::Sender<()>)
    where
        S: ClientStream,
    {
        let timeouts = match admission {
            Admission::Serve => self.timeouts,
            // It has been queued for long: its request is there, or it has none.
            Admission::Refuse => Timeouts { keep_alive: REFUSAL, header: REFUSAL, ..self.timeouts },
        };
        let watch = Rc::new(Watch::new(self.started, timeouts, self.buffers.clone()));
        let mut phases = self.phases.clone();
        let service = service_fn(|request| {
            let (server, watch, alive) = (self.clone(), watch.clone(), alive.clone());
            async move {
                Ok::<_, Infallible>(match admission {
                    Admission::Serve => server.answer(request, watch, alive).await,
                    Admission::Refuse => server.refuse(request, watch),
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
        let (mut timer, mut stall, mut look) = (Timer::default(), Timer::default(), Timer::default());
        let mut look_at = None;
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
                watch.step(self.how_it_ended(ended, &watch));
                return Poll::Ready(());
            }
            if watch.is_spare() {
                self.make_room();
            }
            self.free_buffers();
            if watch.duty() != Duty::Serve {
                return Poll::Ready(());
            }
            if let Some(moved_at) = watch.moved_at()
                && stall.poll(moved_at + self.limits.stream_timeout, context).is_ready()
            {
                self.stats.timeouts.increment();
                if let Some(in_flight) = watch.in_flight() {
                    let limit = self.limits.stream_timeout;
                    log_of!(warn, &in_flight, "an answer was cut: nothing moved for {limit:?}; see --stream-timeout");
                }
                watch.step(Event::ClientLeft);
                return Poll::Ready(());
            }
            if watch.is_deaf() {
                let at = *look_at.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
                if look.poll(at, context).is_ready() {
                    // The stream looks when hyper flushes it, as it does each time.
                    look_at = None;
                    context.waker().wake_by_ref();
                }
            } else {
                look_at = None;
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
        match watch.duty() {
            Duty::Refuse => {
                self.refused(io.refuse().await);
                if watch.keeps_a_place() {
                    // To linger would keep it for a second more.
                    watch.step(Event::ClientLeft);
                }
            }
            Duty::Close => self.left(&watch, io.unseen()),
            Duty::Serve | Duty::Linger => {}
        }
        io.linger().await;
    }

    /// Counts a client that was refused before it had a request.
    fn refused(&self, refusal: Refusal) {
        match refusal {
            Refusal::Late => self.stats.timeouts.increment(),
            Refusal::TooLarge | Refusal::Malformed => self.stats.refused.increment(),
            Refusal::Failed => {}
        }
    }

    /// Counts requests that came whole, and are dropped because their client left before they were begun. What was begun
    /// counts itself.
    fn left(&self, watch: &Watch, unseen: u64) {
        if let Some(in_flight) = watch.in_flight() {
            log_of!(debug, &in_flight, "its client left before the answer was handed over");
        }
        if unseen > 0 && watch.has_client_left() {
            tracing::debug!("a client left before {unseen} of its requests were begun");
            (0..unseen).for_each(|_| self.stats.aborted.increment());
        }
    }

    fn how_it_ended(&self, ended: hyper::Result<()>, watch: &Watch) -> Event {
        match ended {
            Ok(()) if watch.has_client_left() => Event::ClientLeft,
            Ok(()) if watch.is_draining() || watch.may_have_unread() => Event::Shut,
            // It was the client's wish, and nothing can be on its way.
            Ok(()) => Event::ClientLeft,
            // The client is told so instead.
            Err(_) if watch.can_answer_anew() => Event::Malformed,
            Err(error) if error.is_parse() => {
                tracing::debug!("a client is refused: {error}");
                self.stats.refused.increment();
                // It was answered, and that is not to be destroyed by a reset.
                if watch.has_client_left() { Event::ClientLeft } else { Event::Shut }
            }
            Err(error) => {
                tracing::debug!("a connection ended early: {error}");
                Event::ClientLeft
            }
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, watch: Rc<Watch>, alive: mpsc::Sender<()>) -> Answer {
        let in_flight = Rc::new(self.requests.begin(&mut request));
        let answering = watch.clone().answering(in_flight.clone(), &request);
        let answer = match self.admit(&mut request, &in_flight) {
            Ok(authority) => self.serve_request(request, authority, &in_flight, alive).await,
            Err(answer) => *answer,
        };
        self.finish(answer, &in_flight, &watch, answering)
    }

    /// Whom the request is addressed to; or what it is answered without a guest.
    fn admit(&self, request: &mut Request<Incoming>, in_flight: &InFlight) -> Result<Authority, Box<Answer>> {
        let refused = |status, text: &str, why: &str| {
            self.stats.refused.increment();
            log_of!(debug, in_flight, "refused: {why}");
            Err(Box::new(plain(status, text, in_flight)))
        };
        let Some(authority) = authority(request) else {
            let text = "the request needs exactly one valid Host header";
            return refused(StatusCode::BAD_REQUEST, text, text);
        };
        if request.method() == Method::CONNECT {
            return refused(StatusCode::NOT_IMPLEMENTED, "this is no proxy", "this is no proxy");
        }
        if asks_for_websocket(request.headers()) {
            return refused(StatusCode::NOT_IMPLEMENTED, "WebSocket is not served here", "a WebSocket");
        }
        if loops(request.headers()) > MAX_LOOPS {
            self.stats.refused.increment();
            log_of!(warn, in_flight, "refused: it came through servers like this {MAX_LOOPS} times");
            return Err(Box::new(plain(StatusCode::LOOP_DETECTED, "the request goes round in circles", in_flight)));
        }
        if request.body().size_hint().lower() > self.limits.max_body {
            return Err(Box::new(too_large(self.stats, in_flight, self.limits.max_body)));
        }
        // A target in absolute form overrides the Host. HTTP/1.0 may have none; guests get their authority from it.
        let named = request.uri().authority().map(Authority::as_str);
        if named.is_some() || !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(named.unwrap_or(NO_HOST));
            request.headers_mut().insert(HOST, host.unwrap_or(HeaderValue::from_static(NO_HOST)));
        }
        Ok(authority)
    }

    async fn serve_request(
        &self,
        request: Request<Incoming>,
        authority: Authority,
        in_flight: &Rc<InFlight>,
        alive: mpsc::Sender<()>,
    ) -> Answer {
        let limits = &self.limits;
        let deadline = in_flight.began() + limits.request_timeout;
        let Some(place) = self.place(deadline).await else {
            return busy(self.stats, in_flight);
        };
        let method = request.method().clone();
        let (request, upload) = Upload::wrap(request, limits.max_body);
        let origin = Origin::new(in_flight.asked(), request.headers());
        let (head, call) = self.instances.call(request, authority, origin);
        let (limit, max_body, in_flight) = (limits.request_timeout, limits.max_body, in_flight.clone());
        let tail = Tail { stats: self.stats, in_flight, limit, max_body, upload, _place: place, _alive: alive };
        self.weigh(drive(head, call, deadline, tail, &method).await)
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
    fn refuse(&self, mut request: Request<Incoming>, watch: Rc<Watch>) -> Answer {
        let in_flight = Rc::new(self.requests.begin(&mut request));
        let answer = closing(busy(self.stats, &in_flight));
        let answering = watch.clone().answering(in_flight.clone(), &request);
        self.finish(answer, &in_flight, &watch, answering)
    }

    /// What every answer has, whoever made it.
    fn finish(&self, answer: Answer, in_flight: &InFlight, watch: &Watch, answering: Answering) -> Answer {
        if answer.status().is_server_error() {
            self.stats.errors.increment();
        }
        let mut answer = if watch.is_draining() { closing(answer) } else { answer };
        if let Some(id) = in_flight.echo() {
            answer.headers_mut().entry(REQUEST_ID).or_insert_with(|| id.clone());
        }
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
    method: &Method,
) -> Answer {
    let mut head = pin!(head);
    let (mut ended, mut has_waited) = (None, false);
    let upload = &tail.upload;
    let head = poll_fn(|context| {
        // A guest that has waited is not polled behind its deadline: the timeouts of what it waits for, which are as long,
        // end about then, and it must not depend on chance which of them is told.
        if mem::replace(&mut has_waited, true) && Instant::now() >= deadline {
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
        return tail.timed_out();
    };
    match (ended, head) {
        (_, None) => too_large(tail.stats, &tail.in_flight, tail.max_body),
        (Some(Err(Failure::Full)), _) => {
            let mut answer = busy(tail.stats, &tail.in_flight);
            answer.extensions_mut().insert(Overloaded);
            answer
        }
        (Some(Err(Failure::Trap(error))), head) => {
            tail.trapped(&error);
            match head {
                // A head alone is the whole answer.
                Some(Ok(Ok(head))) if has_no_body(method, head.status()) => answer(head, None, tail, method).await,
                // Nothing was sent yet, so even a guest that trapped behind its head gets a clean answer.
                _ => internal_error(&tail.in_flight),
            }
        }
        (ended, Some(Ok(Ok(head)))) => {
            let call = if ended.is_some() { None } else { Some(call) };
            answer(head, call, tail, method).await
        }
        (_, Some(Ok(Err(said)))) => {
            log_of!(warn, &tail.in_flight, "the guest answered with an error: {}", one_line(&said));
            internal_error(&tail.in_flight)
        }
        (_, Some(Err(_))) => {
            log_of!(warn, &tail.in_flight, "the guest gave up its chance to answer without setting a response");
            internal_error(&tail.in_flight)
        }
    }
}

/// A guest's answer, unless it cannot be sent.
async fn answer(
    head: Response<UnsyncBoxBody<Bytes, Error>>,
    call: Option<Call>,
    tail: Tail,
    method: &Method,
) -> Answer {
    let (mut head, frames) = head.into_parts();
    if let Err(fault) = repair(&mut head, frames.is_end_stream() && method != Method::HEAD) {
        log_of!(warn, &tail.in_flight, "the guest's answer cannot be sent: {fault}");
        return internal_error(&tail.in_flight);
    }
    let in_flight = tail.in_flight.clone();
    let mut body = Body::of_guest(&head, frames, call, tail, method);
    match poll_fn(|context| Poll::Ready(body.gather(context))).await {
        Ok(()) => Response::from_parts(head, body),
        Err(fault) => {
            let hint = body.hint();
            log_of!(warn, &in_flight, "an answer failed before it was sent: {fault}{hint}");
            internal_error(&in_flight)
        }
    }
}

/// Whether such an answer ends with its head, whatever that says (RFC 9112, section 6.3).
fn has_no_body(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Mends what is wrong with the head of a guest's answer and harmless. An error is what would change where the answer ends.
fn repair(head: &mut http::response::Parts, is_empty: bool) -> Result<(), &'static str> {
    if head.status.is_informational() {
        return Err("its status is informational, and says that another follows");
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let (Some(first), is_one) = (lengths.next(), lengths.next().is_none()) else { return Ok(()) };
    // RFC 9110, section 8.6: it must not be sent, and says nothing.
    if head.status == StatusCode::NO_CONTENT {
        head.headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let is_number = is_one && !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    let length = match content_length(&head.headers)? {
        length if is_number => length,
        length => {
            head.headers.insert(CONTENT_LENGTH, length.into());
            length
        }
    };
    if length > 0 && is_empty && head.status != StatusCode::NOT_MODIFIED {
        return Err("its body is empty, and its content-length says otherwise");
    }
    Ok(())
}

/// As RFC 9110, section 8.6, has it: digits and nothing else. What is said more than once must be the same.
fn content_length(headers: &HeaderMap) -> Result<u64, &'static str> {
    let values = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut lengths = values.map(|digits| {
        let digits = str::from_utf8(digits.trim_ascii()).ok()?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
    });
    let first = lengths.next().flatten().ok_or("its content-length is no number")?;
    let is_same = lengths.all(|length| length == Some(first));
    if is_same { Ok(first) } else { Err("it has more than one content-length, and they differ") }
}

fn busy(stats: &Stats, in_flight: &InFlight) -> Answer {
    stats.rejected.increment();
    log_of!(debug, in_flight, "rejected: the worker is busy; see --max-in-flight and --max-worker-memory");
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "the server is busy", in_flight);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// The rest of the body is not read.
fn too_large(stats: &Stats, in_flight: &InFlight, max: u64) -> Answer {
    stats.refused.increment();
    log_of!(info, in_flight, "refused: its body is larger than {max} bytes; see --max-body");
    closing(plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", in_flight))
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn internal_error(in_flight: &InFlight) -> Answer {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error", in_flight)
}

/// An answer of our own. All that it tells of what happened inside is what the request is called.
fn plain(status: StatusCode, text: &str, in_flight: &InFlight) -> Answer {
    let name = in_flight.name();
    let mut answer = Response::new(Body::text(format!("{text} (request {name})\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Ok(name) = HeaderValue::try_from(name) {
        answer.headers_mut().insert(REQUEST_ID, name);
    }
    answer
}

/// What belongs to a request until its guest is done, whichever task that happens in.
struct Tail {
    stats: &'static Stats,
    in_flight: Rc<InFlight>,
    /// How long its guest may take for the answer's head, and again behind its last frame.
    limit: Duration,
    max_body: u64,
    upload: UploadState,
    _place: OwnedSemaphorePermit,
    _alive: mpsc::Sender<()>,
}

impl Tail {
    fn trapped(&self, error: &wasmtime::Error) {
        self.stats.traps.increment();
        let (hint, ended) = (self.hint(), describe(error));
        // Behind the word, before the cause.
        let ended = ended.replacen("trapped", &format!("trapped{hint}"), 1);
        log_of!(error, &self.in_flight, "the guest {}", several_lines(&ended));
    }

    /// What may be behind a guest's failure, and is not its fault.
    fn hint(&self) -> String {
        if self.upload.is(Progress::TooLarge) {
            format!(", as its request's body is larger than {} bytes (see --max-body)", self.max_body)
        } else {
            String::new()
        }
    }

    /// The guest is dropped, which cancels it.
    fn timed_out(&self) -> Answer {
        self.stats.timeouts.increment();
        let limit = self.limit;
        if self.upload.is(Progress::Awaited) {
            let why = "the guest waits for the rest of the request's body, which its client owes";
            log_of!(warn, &self.in_flight, "no answer within {limit:?}: {why}; see --request-timeout");
            return closing(plain(StatusCode::REQUEST_TIMEOUT, "the request took too long", &self.in_flight));
        }
        log_of!(warn, &self.in_flight, "no answer within {limit:?}; see --request-timeout");
        plain(StatusCode::GATEWAY_TIMEOUT, "the answer took too long", &self.in_flight)
    }
}

/// Why an answer cannot become whole.
#[derive(Debug, thiserror::Error)]
enum Fault {
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

impl Fault {
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
struct Body {
    gathered: Gathered,
    /// Its length, if that is all and the head does not say it.
    length: Option<u64>,
    /// What the guest writes; `None` after its end.
    frames: Option<UnsyncBoxBody<Bytes, Error>>,
    call: Option<Call>,
    tail: Option<Tail>,
    /// How much of the declared content-length is still to come from the guest.
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
        Self { gathered: Gathered::default(), length: None, frames, call, tail, remaining, answering: None }
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
        let remaining = if has_no_body(method, head.status) { Some(0) } else { content_length(&head.headers).ok() };
        Self::new(Some(frames), call, Some(tail), remaining)
    }

    /// Takes what the guest has written by now, so that a short answer is sent with its length, and what is wrong with it is
    /// known while it can be another. After an error, nothing of it was sent.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
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
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let mut polled = self.poll_written(context);
        if polled.is_pending() {
            self.poll_guest(context)?;
            polled = self.poll_written(context);
        }
        let frame = match ready!(polled) {
            Some(frame) => frame.map_err(|error| Fault::of(error, self.remaining))?,
            None => {
                if let Some(rest @ 1..) = self.remaining {
                    return Poll::Ready(Some(Err(Fault::TooShort(rest))));
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
            let rest = remaining.checked_sub(length).ok_or(Fault::TooLong)?;
            self.remaining = Some(rest);
            if rest == 0 {
                self.took_all(context);
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    /// Lets the guest work.
    fn poll_guest(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let Poll::Ready(ended) = Pin::new(call).poll(context) else {
            return Ok(());
        };
        self.call = None;
        match ended {
            Ok(()) => Ok(()),
            Err(Failure::Full) => Err(Fault::Full),
            Err(Failure::Trap(error)) => {
                if let Some(tail) = &self.tail {
                    tail.trapped(&error);
                }
                Err(Fault::Trapped)
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

    /// Whether nothing more of it is to be sent.
    fn is_complete(&self) -> bool {
        self.gathered.is_empty() && (self.frames.is_none() || self.remaining == Some(0))
    }

    fn hint(&self) -> String {
        self.tail.as_ref().map(Tail::hint).unwrap_or_default()
    }

    /// Gives up: hyper closes the connection without a well-formed end.
    fn cut(&mut self, fault: Fault) -> Fault {
        let can_be_replaced = self.answering.take().is_some_and(Answering::cut);
        if let Some(tail) = &self.tail {
            tail.stats.errors.increment();
            tail.stats.guest_errors.increment();
            let (what, hint) = (if can_be_replaced { "failed before it was sent" } else { "was cut" }, tail.hint());
            log_of!(warn, &tail.in_flight, "an answer {what}: {fault}{hint}");
        }
        (self.frames, self.call) = (None, None);
        fault
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        // The guest works only when nothing is left of what it wrote before.
        if let Some(frame) = self.gathered.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        self.poll_more(context).map(|polled| polled.map(|frame| frame.map_err(|fault| self.cut(fault))))
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
                    log_of!(warn, &tail.in_flight, "the guest was ended {:?} after its answer", tail.limit);
                }
            }
        });
    }
}

/// Any other protocol that is offered may be ignored, and is (RFC 9110, 7.8). A client of this one waits for a handshake, and
/// would take a page for an answer; guests do not see the header.
fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let offered = headers.get_all(UPGRADE).iter().filter_map(|value| value.to_str().ok());
    offered.flat_map(|value| value.split(',')).any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent of a head with these lengths; `None` if it cannot be.
    fn repaired(status: u16, lengths: &[&str], is_empty: bool) -> Option<Vec<String>> {
        let mut answer = Response::builder().status(status);
        for length in lengths {
            answer = answer.header(CONTENT_LENGTH, *length);
        }
        let mut head = answer.body(()).unwrap().into_parts().0;
        repair(&mut head, is_empty).ok()?;
        Some(head.headers.get_all(CONTENT_LENGTH).iter().map(|length| length.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn what_is_harmless_in_a_head_is_repaired() {
        let check = |status, lengths: &[&str], is_empty, expected: Option<&[&str]>| {
            let expected = expected.map(|lengths| lengths.iter().map(ToString::to_string).collect());
            assert_eq!(repaired(status, lengths, is_empty), expected, "{status} {lengths:?}");
        };
        check(200, &[], true, Some(&[]));
        check(200, &["5"], false, Some(&["5"]));
        check(200, &["5", "5"], false, Some(&["5"]));
        check(200, &["5, 5"], false, Some(&["5"]));
        check(204, &["0"], true, Some(&[]));
        check(204, &["5", "x"], true, Some(&[]));
        check(304, &["5"], true, Some(&["5"]));
        check(200, &["0"], true, Some(&["0"]));
        for lengths in [&["5", "6"][..], &["5, 6"], &["abc"], &["+5"], &[""], &["5,"], &["-1"], &["5 5"]] {
            check(200, lengths, false, None);
        }
        check(200, &["5"], true, None);
        check(100, &[], true, None);
    }
}
