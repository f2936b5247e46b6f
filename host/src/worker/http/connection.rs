//! A connection, whichever protocol it speaks: what is known of it, shared by its stream, its exchanges and its task.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::buffers::{Buffers, Share};
use super::drain::{self, Awaited, ConnectionEvent, Duty, Lifecycle};
use super::exchange::Exchange;
use super::peer::Peer;
use super::transport::{Side, Transport};
use super::websocket::Conversation;
use crate::worker::clock;

/// Bytes of a client that nobody wants any more, read at a time.
const DISCARDED: usize = 4 * 1024;
/// How long a connection may be silent in the beginning, when others want its place.
const CHANCE: Duration = Duration::from_secs(1);

/// What is known of a connection, shared by its stream, its answers and its task.
#[derive(Debug)]
pub(super) struct Connection {
    /// Who is at the other end.
    peer: Peer,
    /// Where the machine's time begins.
    epoch: Instant,
    machine: RefCell<Lifecycle>,
    /// What is being answered, until the answer has been handed over.
    current: RefCell<Option<Rc<Exchange>>>,
    /// Exchanges whose answers are whole and wait to be flushed: those before it, or any of HTTP/2.
    earlier: RefCell<Vec<Rc<Exchange>>>,
    /// Streams of HTTP/2 that are open; `None` while HTTP/1 is spoken.
    streams: Cell<Option<usize>>,
    /// Parts of answers that were handed over to be sent (HTTP/2), and not yet asked for.
    parts: Cell<u32>,
    /// The client has begun a frame, or a head, and has yet to send the rest (HTTP/2).
    owes: Cell<bool>,
    /// After so many requests it is closed as if its worker drained.
    max_requests: u64,
    /// Requests that hyper has handed over.
    requests: Cell<u64>,
    /// Requests to be answered before the client is told that what follows makes no sense.
    good: Cell<Option<u64>>,
    /// The last request had a body, which may not have been read to its end.
    has_upload: Cell<bool>,
    client_left: Cell<bool>,
    /// The last read found nothing, so that whatever comes next wakes the connection's task.
    listens: Cell<bool>,
    /// Answers whose head hyper has, and that were not flushed since.
    unsent: Cell<u32>,
    /// Bytes were written that were not flushed.
    has_written: Cell<bool>,
    /// Of another client, once it was evicted.
    keeps_a_place: Cell<bool>,
    /// Bytes of memory for what its client sends, beyond what every connection may have.
    held: Cell<usize>,
    /// As much of it as counts.
    share: Share,
    /// Of the connection's task.
    waker: RefCell<Option<Waker>>,
    /// The WebSocket that it becomes (HTTP/1.1).
    conversation: RefCell<Option<Box<Conversation>>>,
}

impl Connection {
    pub(super) fn new(
        epoch: Instant,
        timeouts: drain::Timeouts,
        max_requests: u64,
        buffers: Rc<Buffers>,
        peer: Peer,
    ) -> Self {
        let machine = RefCell::new(Lifecycle::new(epoch.elapsed(), timeouts));
        Self {
            peer,
            epoch,
            machine,
            current: RefCell::new(None),
            earlier: RefCell::default(),
            streams: Cell::new(None),
            parts: Cell::new(0),
            owes: Cell::new(false),
            max_requests,
            requests: Cell::new(0),
            good: Cell::new(None),
            has_upload: Cell::new(false),
            client_left: Cell::new(false),
            listens: Cell::new(false),
            unsent: Cell::new(0),
            has_written: Cell::new(false),
            keeps_a_place: Cell::new(false),
            held: Cell::new(0),
            share: Share::of(buffers),
            waker: RefCell::new(None),
            conversation: RefCell::new(None),
        }
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Since the worker began.
    pub(super) fn now(&self) -> drain::Time {
        clock::now().saturating_duration_since(self.epoch)
    }

    pub(super) fn step(&self, event: ConnectionEvent) {
        self.machine.borrow_mut().step(self.now(), event);
        self.settle();
    }

    /// The stream and hyper hold so many bytes of memory for what the client sends.
    pub(super) fn holds(&self, bytes: usize) {
        self.held.set(bytes);
        self.settle();
    }

    /// Nothing of what it held is left.
    pub(super) fn has_given_back(&self) {
        self.holds(0);
        self.share.leaves(0);
    }

    /// Whether others are about to give back memory of which it would take more.
    pub(super) fn should_wait_a_turn(&self) -> bool {
        self.share.is_about_to_shrink()
    }

    /// Counts what is held, while nobody is answered.
    fn settle(&self) {
        let is_awaited = self.machine.borrow().awaited().is_some();
        self.share.set(if is_awaited { self.held.get() } else { 0 });
    }

    /// Since when its client is waited for, if it holds memory meanwhile.
    pub(super) fn holding_since(&self) -> Option<drain::Time> {
        let (_, since) = self.machine.borrow().awaited()?;
        (!self.share.is_empty()).then_some(since)
    }

    pub(super) fn duty(&self) -> Duty {
        self.machine.borrow().duty()
    }

    /// What its client is waited for, and since when, if it may make room for another. One that has just come may not.
    pub(super) fn spare_since(&self) -> Option<(Awaited, drain::Time)> {
        let (awaited, since) = self.machine.borrow().awaited()?;
        let was_answered = awaited == Awaited::Request && self.requests.get() > 0;
        (was_answered || self.now() > since + CHANCE).then_some((awaited, since))
    }

    /// Whether it is idle, and may make room for another.
    pub(super) fn is_spare(&self) -> bool {
        self.spare_since().is_some_and(|(awaited, _)| awaited == Awaited::Request)
    }

    /// Ends the connection, unless a request is being answered, to make room for another.
    pub(super) fn evict(&self) {
        self.share.leaves(self.held.get());
        self.step(ConnectionEvent::Evicted);
        self.wake();
    }

    /// Another client waits for its place.
    pub(super) fn is_in_the_way(&self) {
        self.keeps_a_place.set(true);
    }

    pub(super) fn keeps_a_place(&self) -> bool {
        self.keeps_a_place.get()
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// The connection's task is polled.
    pub(super) fn polled(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.machine.borrow().is_busy()
    }

    fn is_client_shut(&self) -> bool {
        self.machine.borrow().is_client_shut()
    }

    /// Its client is gone.
    pub(super) fn client_left(&self) {
        self.client_left.set(true);
    }

    /// The last read found nothing, or did not.
    pub(super) fn listens(&self, listens: bool) {
        self.listens.set(listens);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.machine.borrow().is_draining()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.machine.borrow().next_deadline().map(|time| self.epoch + time)
    }

    pub(super) fn has_client_left(&self) -> bool {
        self.client_left.get()
    }

    /// Whether the client may be sending what nobody reads any more.
    pub(super) fn may_have_unread(&self) -> bool {
        self.has_upload.get()
    }

    /// A request is there.
    pub(super) fn begin(&self, exchange: Rc<Exchange>, has_upload: bool) {
        self.has_upload.set(has_upload);
        self.requests.set(self.requests.get() + 1);
        if self.requests.get() >= self.max_requests {
            self.step(ConnectionEvent::DrainBegan);
        }
        if self.is_http2() {
            if self.is_draining() {
                // Its task tells the client so.
                self.wake();
            }
            return;
        }
        if let Some(last) = self.current.replace(Some(exchange)) {
            // It may have been read together with the one before, and the kernel has yet to take that one's answer.
            if last.is_whole() {
                self.earlier.borrow_mut().push(last);
            }
        }
        self.step(ConnectionEvent::RequestBegan);
    }

    /// From now on HTTP/2 is spoken. The client has begun with it, and owes its settings.
    pub(super) fn speaks_http2(&self) {
        self.streams.set(Some(0));
        self.owes(true);
    }

    pub(super) fn is_http2(&self) -> bool {
        self.streams.get().is_some()
    }

    /// The client owes the rest of a frame or a head, or not.
    pub(super) fn owes(&self, owes: bool) {
        if self.owes.replace(owes) != owes && !self.is_busy() {
            self.step(if owes { ConnectionEvent::HeadBegan } else { ConnectionEvent::HeadEnded });
        }
    }

    /// A stream was opened.
    pub(super) fn opened(&self) {
        self.streams.set(Some(self.streams.get().unwrap_or_default() + 1));
        self.step(ConnectionEvent::RequestBegan);
    }

    /// The answer of a stream is whole, and waits to be flushed.
    pub(super) fn finish(&self, exchange: Rc<Exchange>) {
        exchange.waits_for_client();
        self.earlier.borrow_mut().push(exchange);
    }

    /// A stream has ended.
    pub(super) fn closed(&self) {
        let left = self.streams.get().unwrap_or_default().saturating_sub(1);
        self.streams.set(Some(left));
        if left == 0 {
            self.step(ConnectionEvent::Answered);
            if self.owes.get() {
                self.step(ConnectionEvent::HeadBegan);
            }
        }
    }

    /// Answers have gone out, or were thrown away.
    fn flushed_streams(&self) {
        let gone: Vec<_> = self.earlier.borrow_mut().extract_if(.., |exchange| !exchange.waits()).collect();
        for exchange in gone {
            exchange.rests();
            if !exchange.is_lost() {
                exchange.handed_over();
            }
            self.closed();
        }
    }

    /// It becomes a WebSocket when the answer to the current request has been sent.
    pub(super) fn becomes(&self, conversation: Box<Conversation>) {
        self.conversation.replace(Some(conversation));
    }

    pub(super) fn becomes_websocket(&self) -> bool {
        self.conversation.borrow().is_some()
    }

    /// The WebSocket that it has become, if its client was told so, and sent nothing too early.
    pub(super) fn take_conversation(&self) -> Option<Box<Conversation>> {
        let conversation = self.conversation.take()?;
        let is_ready = self.unsent.get() == 0 && self.good.get().is_none() && !self.has_client_left();
        // From now on it is busy, as with one long request.
        self.step(if is_ready { ConnectionEvent::RequestBegan } else { ConnectionEvent::ClientLeft });
        is_ready.then_some(conversation)
    }

    /// The head of an answer is there; its body may take longer.
    pub(super) fn has_head(&self) {
        self.unsent.set(self.unsent.get() + 1);
    }

    /// What is being answered.
    pub(super) fn current(&self) -> Option<Rc<Exchange>> {
        self.current.borrow().clone()
    }

    /// Requests that hyper has handed over.
    pub(super) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Whether the answer under way has failed, and can be replaced by another.
    pub(super) fn can_answer_anew(&self) -> bool {
        // Not behind another that hyper has yet to write.
        self.is_cut() && self.unsent.get() == 1 && !self.has_written.get()
    }

    /// Whether the answer under way will never be whole.
    pub(super) fn is_cut(&self) -> bool {
        self.current.borrow().as_ref().is_some_and(|it| it.is_cut())
    }

    /// Whether a request is being answered, and nobody would be told that its client leaves: hyper does not read while
    /// it has bytes of the next request, or while the guest does not take those of this one.
    pub(super) fn is_deaf(&self) -> bool {
        !self.listens.get() && self.is_busy()
    }

    /// The client has closed its side while it waits for an answer.
    pub(super) fn client_shut(&self) {
        // What it does next, only a look tells.
        self.listens.set(false);
        if !self.is_client_shut() {
            self.step(ConnectionEvent::ClientShut);
        }
    }

    /// Somebody has looked whether the client is there.
    pub(super) fn looked(&self, side: Side) {
        match side {
            Side::Open => {}
            Side::Shut => self.client_shut(),
            Side::Gone => self.step(ConnectionEvent::ClientLeft),
        }
    }

    /// When a byte last moved, while an answer's body is under way.
    pub(super) fn moved_at(&self) -> Option<Instant> {
        self.current.borrow().as_ref()?.moved_at()
    }

    pub(super) fn moved(&self) {
        if let Some(exchange) = &*self.current.borrow() {
            exchange.moved();
        }
    }

    /// The client has yet to take what was written before.
    pub(super) fn waits_for_client(&self) {
        if let Some(exchange) = &*self.current.borrow() {
            exchange.waits_for_client();
        }
    }

    /// A part of an answer is about to be sent (HTTP/2).
    pub(super) fn sends_part(&self) {
        self.parts.set(self.parts.get().saturating_add(1));
    }

    /// How many there were since this was last asked.
    pub(super) fn take_parts(&self) -> u32 {
        self.parts.take()
    }

    pub(super) fn wrote(&self, bytes: usize) {
        if let Some(exchange) = &*self.current.borrow() {
            exchange.took(bytes);
        }
        if bytes > 0 {
            self.has_written.set(true);
        }
        if self.is_client_shut() {
            self.step(ConnectionEvent::AnswerMoved);
        }
    }

    /// Whether the connection ends in the middle of an answer, and its end could be taken for the answer's.
    pub(super) fn ends_too_early(&self) -> bool {
        self.current.borrow().as_ref().is_some_and(|it| it.ends_with_connection() && it.moved_at().is_some())
    }

    /// What follows the first `good` requests makes no sense.
    pub(super) fn malformed(&self, good: u64) {
        self.good.set(Some(good));
        self.refuse_in_turn();
    }

    fn refuse_in_turn(&self) {
        let Some(good) = self.good.get() else { return };
        let begun = self.requests.get();
        let is_busy = self.is_busy();
        let is_turn = if is_busy { begun > good } else { begun >= good };
        if is_turn {
            // Of a request whose body turned out bad, an answer may be under way, or have come to its end.
            let is_answered = self.moved_at().is_some() || (!is_busy && begun > good);
            self.step(if is_answered { ConnectionEvent::ClientLeft } else { ConnectionEvent::Malformed });
        }
    }

    /// When answers are given up that are whole, and that the client has yet to take (HTTP/2); one of them.
    pub(super) fn stalls_at(&self) -> Option<(Rc<Exchange>, Instant)> {
        let earlier = self.earlier.borrow();
        let stalls = earlier.iter().filter_map(|exchange| Some((exchange, exchange.stalls_at()?)));
        stalls.max_by_key(|(_, at)| *at).map(|(exchange, at)| (exchange.clone(), at))
    }

    /// All that hyper had was written.
    pub(super) fn flushed(&self) {
        if self.is_http2() {
            return self.flushed_streams();
        }
        self.unsent.set(0);
        self.has_written.set(false);
        for exchange in self.earlier.take() {
            exchange.handed_over();
        }
        if self.current.borrow().as_ref().is_some_and(|it| it.is_whole()) {
            self.handed_over();
        }
    }

    fn handed_over(&self) {
        let exchange = self.current();
        if let Some(exchange) = &exchange {
            exchange.rests();
        }
        self.step(ConnectionEvent::Answered);
        self.refuse_in_turn();
        if self.is_client_shut() {
            // Now hyper may learn that nothing follows.
            self.wake();
        }
        self.current.take();
        if let Some(exchange) = exchange {
            exchange.handed_over();
        }
    }
}

/// Shuts our side, if that was not done, and reads what still comes for as long as that is the connection's duty. One that
/// is closed with bytes unread is reset, which can destroy an answer that the client has not read.
pub(super) async fn linger<S: Transport>(mut stream: S, connection: &Connection) {
    if connection.ends_too_early() {
        stream.reset_at_close();
        return;
    }
    let Some(until) = connection.next_deadline().filter(|_| connection.duty() == Duty::Linger) else { return };
    // Over TLS it waits for the client to take the end of the session.
    if !matches!(tokio::time::timeout_at(until.into(), stream.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let mut discarded = vec![0; DISCARDED];
    while let Some(deadline) = connection.next_deadline() {
        let event = tokio::select! {
            read = stream.read(&mut discarded) => match read {
                Ok(0) | Err(_) => ConnectionEvent::ClientLeft,
                Ok(_) => continue,
            },
            () = tokio::time::sleep_until(deadline.into()) => ConnectionEvent::DeadlinePassed,
        };
        connection.step(event);
    }
}
