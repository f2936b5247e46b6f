//! One request and its answer, from the request's head until nobody works on it any more, whichever tasks that happens
//! in.
//!
//! It is shared by the connection, until the answer has been handed over, by the answer's body, and by the task in
//! which a guest goes on behind its answer. A connection has one at a time (HTTP/1), or many.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, StatusCode, Version};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::access::{AccessFacts, AccessLog};
use super::outcome::{End, Outcome, Verdict};
use super::pace::Pace;
use super::peer::Peer;
use super::span::tell_span;
use super::text::TextBuffer;
use super::upload::{UploadProgress, UploadState};
use crate::logging::several_lines;
use crate::settings::Limits;
use crate::wire::messages::Identity;
use crate::wire::stats::Stats;
use crate::worker::clock;
use crate::worker::cost::MemoryLimit;
use crate::worker::guest::trap::{TrapKind, describe};
use crate::worker::requests::{Asked, InFlight, Requests, log_of};
use crate::worker::traces::RequestTrace;

/// Who is told of requests that are over.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(super) access_log: Option<AccessLog>,
    pub(super) identity: Identity,
}

impl Reports {
    fn tell(&self, asked: &Asked, facts: &AccessFacts, outcome: &Outcome, bytes: u64, in_guest: Option<Duration>) {
        if let Some(log) = &self.access_log {
            log.write(asked, facts, outcome, bytes, in_guest);
        }
        if let Some(begun) = asked.trace().and_then(RequestTrace::own) {
            tell_span(begun, asked, facts, outcome, bytes, &self.identity);
        }
    }
}

#[derive(Debug)]
pub(super) struct Exchange {
    /// Its number, and its entry in the stats page.
    in_flight: InFlight,
    stats: &'static Stats,
    /// How long its guest may take for the answer's head, and again behind its last frame.
    pub(super) limit: Duration,
    pub(super) max_body: u64,
    /// The end of its answer may be that of the connection, as in HTTP/1.0.
    ends_with_connection: bool,
    upload: OnceCell<UploadState>,
    /// Where it works, until its guest is done.
    place: RefCell<Option<OwnedSemaphorePermit>>,
    _alive: mpsc::Sender<()>,
    /// When a byte last moved, while the answer's body is under way.
    moved_at: Cell<Option<Instant>>,
    /// How long nothing may move.
    stream_limit: Duration,
    /// Of the client, as it takes the answer.
    pace: Pace,
    /// All of the answer has been given to hyper.
    is_whole: Cell<bool>,
    is_cut: Cell<bool>,
    /// Parts of the answer that wait for the connection, and whether one of them was thrown away (HTTP/2).
    queued: Cell<usize>,
    is_lost: Cell<bool>,
    status: Cell<Option<StatusCode>>,
    verdict: Cell<Verdict>,
    /// Its guest's failure is counted.
    is_blamed: Cell<bool>,
    /// Its outcome is counted.
    is_over: Cell<bool>,
    /// What was known at its head, if somebody is told of it in the end.
    facts: Option<AccessFacts>,
    reports: Rc<Reports>,
    /// Bytes of the answer's body that were handed over.
    sent: Cell<u64>,
    /// When a guest was asked, and how long it took for the head of its answer.
    asked_at: Cell<Option<Instant>>,
    in_guest: Cell<Option<Duration>>,
}

/// Its log lines name it.
impl Deref for Exchange {
    type Target = Asked;

    fn deref(&self) -> &Asked {
        &self.in_flight
    }
}

impl Exchange {
    /// Counts and lists a request whose head is there.
    pub(super) fn begin<B>(
        requests: &Rc<Requests>,
        request: &mut Request<B>,
        limits: &Limits,
        stats: &'static Stats,
        alive: mpsc::Sender<()>,
        reports: &Rc<Reports>,
        peer: &Peer,
    ) -> Rc<Self> {
        let in_flight = requests.begin(request);
        let is_told = reports.access_log.is_some() || in_flight.trace().is_some_and(|trace| trace.context.is_sampled);
        let facts = || AccessFacts::new(request, peer.client(request.headers()), peer.security);
        Rc::new(Self {
            facts: is_told.then(facts),
            reports: reports.clone(),
            pace: Pace::new(in_flight.began(), limits.min_rate, limits.stream_timeout),
            in_flight,
            stats,
            limit: limits.request_timeout,
            max_body: limits.max_body,
            ends_with_connection: request.version() == Version::HTTP_10,
            upload: OnceCell::new(),
            place: RefCell::new(None),
            _alive: alive,
            moved_at: Cell::new(None),
            stream_limit: limits.stream_timeout,
            is_whole: Cell::new(false),
            is_cut: Cell::new(false),
            queued: Cell::new(0),
            is_lost: Cell::new(false),
            status: Cell::new(None),
            verdict: Cell::new(Verdict::Answered),
            is_blamed: Cell::new(false),
            is_over: Cell::new(false),
            sent: Cell::new(0),
            asked_at: Cell::new(None),
            in_guest: Cell::new(None),
        })
    }

    /// So much of its answer's body is on its way.
    pub(super) fn sends(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// For those who may outlive it.
    pub(super) fn asked(&self) -> Arc<Asked> {
        self.in_flight.asked()
    }

    /// By when the head of its answer must be there.
    pub(super) fn deadline(&self) -> Instant {
        self.in_flight.began() + self.limit
    }

    /// A guest begins to work on it.
    pub(super) fn takes(&self, place: OwnedSemaphorePermit, upload: UploadState) {
        self.place.replace(Some(place));
        self.asked_at.set(Some(clock::now()));
        let is_first = self.upload.set(upload).is_ok();
        debug_assert!(is_first, "a request has one guest");
    }

    /// Its guest works on it no more.
    pub(super) fn guest_is_done(&self) {
        self.place.take();
    }

    pub(super) fn upload_is(&self, progress: UploadProgress) -> bool {
        self.upload.get().is_some_and(|upload| upload.is(progress))
    }

    /// It has become a WebSocket: it is not in flight any more, and needs no place to work at.
    pub(super) fn upgraded(&self) {
        self.guest_is_done();
        self.in_flight.upgraded();
    }

    /// What becomes of it, unless the first word about it stands already.
    pub(super) fn judge(&self, verdict: Verdict) {
        if self.is_over.get() {
            // The client has its answer; what its guest does behind that counts by itself.
            Outcome::of_no_request(verdict).count(self.stats);
        } else if self.verdict.get() == Verdict::Answered {
            self.verdict.set(verdict);
        }
    }

    /// The head of its answer is made.
    pub(super) fn has_head(&self, status: StatusCode) {
        self.status.set(Some(status));
        let now = clock::now();
        self.in_guest.set(self.asked_at.get().map(|at| now.saturating_duration_since(at)));
        self.moved_at.set(Some(now));
        if let Some(upload) = self.upload.get() {
            upload.counts();
        }
    }

    /// How long it waited for a place, and what its guest did until the head of its answer: the value of a `server-timing`
    /// field, in milliseconds. None if no guest was asked.
    pub(super) fn timing(&self) -> Option<HeaderValue> {
        let (asked_at, in_guest) = (self.asked_at.get()?, self.in_guest.get()?);
        let waited = asked_at.saturating_duration_since(self.in_flight.began());
        let instance = self.cost().instance()?;
        let mut timing = TextBuffer::for_field();
        timing.text("queue;dur=").milliseconds(waited).text(", guest;dur=").milliseconds(in_guest);
        timing.text(";desc=").text(instance.name()).text(", cpu;dur=").milliseconds(self.cost().cpu());
        timing.into_field()
    }

    /// A guest was asked, and this is the status of what it answered, or of what was answered in its stead. A version
    /// is judged by that, at the head already: the answer's end may be hours away.
    pub(super) fn weigh(&self, status: StatusCode) {
        self.stats.guest_answers.increment();
        if status.is_server_error() {
            self.blame();
        }
    }

    /// Its guest has failed. Counts once.
    pub(super) fn blame(&self) {
        if !self.is_blamed.replace(true) {
            self.stats.guest_errors.increment();
        }
    }

    /// When a byte last moved, while the answer's body is under way.
    pub(super) fn moved_at(&self) -> Option<Instant> {
        self.moved_at.get()
    }

    pub(super) fn moved(&self) {
        if self.moved_at.get().is_some() {
            self.moved_at.set(Some(clock::now()));
        }
    }

    /// How fast the client must send.
    pub(super) fn pace_of_upload(&self) -> Pace {
        self.pace.of_other_direction()
    }

    /// The client is waited for, which has yet to take what was written.
    pub(super) fn waits_for_client(&self) {
        self.pace.waits();
    }

    /// The client has taken so many bytes.
    pub(super) fn took(&self, bytes: usize) {
        self.pace.came(bytes);
        self.moved();
    }

    /// When it is cut, if nothing moves until then.
    pub(super) fn stalls_at(&self) -> Option<Instant> {
        let silent = self.moved_at.get()? + self.stream_limit;
        let slow = self.pace.deadline().into_iter().chain(self.upload.get().and_then(UploadState::deadline));
        Some(slow.fold(silent, Instant::min))
    }

    /// Nothing of it is to move any more.
    pub(super) fn rests(&self) {
        self.moved_at.set(None);
    }

    /// The rest of it is to move.
    pub(super) fn resumes(&self) {
        self.moved_at.set(Some(clock::now()));
    }

    pub(super) fn ends_with_connection(&self) -> bool {
        self.ends_with_connection
    }

    /// Hyper has all of the answer.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole.get()
    }

    pub(super) fn whole(&self) {
        self.is_whole.set(true);
    }

    /// The answer under way will never be whole.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.get()
    }

    pub(super) fn cut(&self) {
        self.is_cut.set(true);
    }

    /// A part of the answer waits for the connection.
    pub(super) fn queued(&self) {
        self.queued.set(self.queued.get() + 1);
    }

    /// It waits no more: it went out, or was thrown away.
    pub(super) fn unqueued(&self, is_sent: bool) {
        self.queued.set(self.queued.get() - 1);
        if !is_sent {
            self.is_lost.set(true);
        }
    }

    pub(super) fn waits(&self) -> bool {
        self.queued.get() > 0
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.get()
    }

    /// Nothing has moved for too long, or too little.
    pub(super) fn stalled(&self) {
        self.judge(Verdict::Late);
        let limit = self.stream_limit;
        if self.moved_at.get().is_some_and(|at| at.elapsed() >= limit) {
            log_of!(warn, self, "an answer was cut: no data moved for {limit:?}; see --stream-timeout");
        } else {
            log_of!(warn, self, "an answer was cut: its client is too slow; see --min-rate and --stream-timeout");
        }
    }

    pub(super) fn trapped(&self, error: &wasmtime::Error) {
        self.judge(Verdict::Trapped(TrapKind::of(error)));
        let (hint, ended) = (self.hint(), describe(error));
        // Behind the word, before the cause.
        let ended = ended.replacen("trapped", &format!("trapped{hint}"), 1);
        log_of!(error, self, "the guest {}", several_lines(&ended));
    }

    /// What may be behind a guest's failure, and is not its fault.
    pub(super) fn hint(&self) -> String {
        if self.upload_is(UploadProgress::TooLarge) {
            format!(", as its request's body is larger than {} bytes (see --max-body)", self.max_body)
        } else {
            match self.cost().refused() {
                Some(MemoryLimit::Instance) => ", after it was refused more memory (see --max-memory)".into(),
                Some(MemoryLimit::Worker) => ", after it was refused more memory (see --max-worker-memory)".into(),
                None => String::new(),
            }
        }
    }

    /// The client has been given all of the answer, as far as the kernel took it.
    pub(super) fn handed_over(&self) {
        self.end(End::HandedOver);
    }

    /// The one place where an outcome is made of a request.
    fn end(&self, end: End) {
        if self.is_over.replace(true) {
            return;
        }
        let outcome = Outcome {
            status: self.status.get(),
            verdict: self.verdict.get(),
            is_cut: self.is_cut.get(),
            end,
            took: Some(clock::read().saturating_duration_since(self.in_flight.began())),
        };
        outcome.count(self.stats);
        self.cost().count(self.stats);
        if let Some(facts) = &self.facts {
            self.reports.tell(self, facts, &outcome, self.sent.get(), self.in_guest.get());
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(End::Aborted);
    }
}
