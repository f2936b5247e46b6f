//! What a guest and the connection of its WebSocket tell each other, through a [`SocketLink`]. The guest's end is a [`Socket`], which
//! `websocket/interface.rs` gives it; the connection speaks the protocol (`worker/http/websocket.rs`).
//!
//! A link begins as an offer: the request of its client names it by a ticket, and the guest may accept it. Each direction
//! has a queue. What is in one is at most [`MAX_QUEUED`] bytes and one message: a client that does not take what its guest
//! sends makes that wait, and a guest that does not receive makes its client wait.

mod interface;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use http::HeaderName;
use tokio::sync::Notify;

/// Names the WebSocket that a request asks for, to its guest.
pub(crate) const TICKET: HeaderName = HeaderName::from_static("wasmcluster-websocket");

/// Bytes that wait for the other side before it is waited for.
const MAX_QUEUED: usize = 64 * 1024;
/// What a message takes up beside its bytes.
const OVERHEAD: usize = 64;
/// Bytes of a reason (RFC 6455, section 5.5).
const MAX_REASON: usize = 123;

/// The codes that are used, of those that RFC 6455 defines (section 7.4.1).
pub(crate) mod code {
    pub(crate) const NORMAL: u16 = 1000;
    pub(crate) const GOING_AWAY: u16 = 1001;
    pub(crate) const PROTOCOL: u16 = 1002;
    pub(crate) const NONE: u16 = 1005;
    pub(crate) const LOST: u16 = 1006;
    pub(crate) const NOT_UTF8: u16 = 1007;
    pub(crate) const POLICY: u16 = 1008;
    pub(crate) const TOO_BIG: u16 = 1009;
    pub(crate) const INTERNAL: u16 = 1011;
    pub(crate) const TRY_AGAIN: u16 = 1013;
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketMessage {
    Text(String),
    Binary(Vec<u8>),
}

/// How a WebSocket was closed (RFC 6455, section 7.1.5 and 7.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl Closed {
    pub(crate) fn new(code: u16, reason: &str) -> Self {
        Self { code, reason: reason.to_owned() }
    }
}

impl SocketMessage {
    pub(super) fn cost(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Text(text) => text.len(),
                Self::Binary(bytes) => bytes.len(),
            }
    }
}

/// Messages on their way.
#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<SocketMessage>,
    bytes: usize,
}

impl Queue {
    fn has_room(&self) -> bool {
        self.bytes < MAX_QUEUED
    }

    fn push(&mut self, message: SocketMessage) {
        self.bytes += message.cost();
        self.messages.push_back(message);
    }

    fn pop(&mut self) -> Option<SocketMessage> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.cost();
        Some(message)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Somebody has it, or had it.
    is_accepted: bool,
    /// The guest has it no more.
    is_released: bool,
    inbound: Queue,
    /// Nothing more comes in behind that.
    end: Option<Closed>,
    outbound: Queue,
    /// How the guest closes it, behind that.
    close: Option<Closed>,
    /// Nothing more goes out.
    over: Option<Closed>,
    /// Of the connection's task.
    connection: Option<Waker>,
    /// That polls the guest whenever it is woken.
    is_attended: bool,
    /// Bytes of messages that wait for their turn to go out.
    waiting: usize,
}

/// What a guest and its client's connection tell each other.
#[derive(Debug)]
pub(crate) struct SocketLink {
    ticket: u64,
    state: Mutex<State>,
    /// Something came in, or nothing will.
    came: Notify,
    /// Something went out, or nothing will.
    went: Notify,
    /// The guest has it no more.
    released: Notify,
    /// Whose message is next to go out.
    turn: tokio::sync::Mutex<()>,
}

impl SocketLink {
    /// The offer that `ticket` names.
    pub(crate) fn new(ticket: u64) -> Arc<Self> {
        let (came, went, released) = (Notify::new(), Notify::new(), Notify::new());
        Arc::new(Self { ticket, state: Mutex::default(), came, went, released, turn: tokio::sync::Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.lock().is_accepted
    }

    /// From now on its connection's task polls the guest whenever it is woken.
    pub(crate) fn attend(&self) {
        self.lock().is_attended = true;
    }

    pub(super) fn is_attended(&self) -> bool {
        self.lock().is_attended
    }

    /// Bytes that are kept for the guest, in both directions.
    pub(super) fn held(&self) -> usize {
        let state = self.lock();
        state.inbound.bytes + state.outbound.bytes + state.waiting
    }

    /// Whether nobody can accept it any more.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.lock();
        state.is_accepted || state.over.is_some()
    }

    /// What the guest does from now on wakes the connection's task.
    pub(crate) fn wakes(&self, waker: &Waker) {
        let mut state = self.lock();
        if !state.connection.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.connection = Some(waker.clone());
        }
    }

    /// Whether the guest is to be given another message.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.lock();
        // Whom nobody listens to any more is read from, and not heard: it may close, or answer a close.
        state.inbound.has_room() || state.end.is_some() || state.is_released
    }

    /// Gives the guest a message. One that has let go of the socket gets none.
    pub(crate) fn deliver(&self, message: SocketMessage) {
        let mut state = self.lock();
        if state.end.is_none() && !state.is_released {
            state.inbound.push(message);
            self.came.notify_waiters();
        }
    }

    /// No more messages come in. The guest may still send.
    pub(crate) fn end(&self, closed: Closed) {
        self.lock().end.get_or_insert(closed);
        self.came.notify_waiters();
    }

    /// The connection is no more, or takes nothing more.
    pub(crate) fn shut(&self, closed: Closed) {
        let mut state = self.lock();
        state.over.get_or_insert(closed.clone());
        state.end.get_or_insert(closed);
        state.outbound = Queue::default();
        state.connection = None;
        self.came.notify_waiters();
        self.went.notify_waiters();
        self.released.notify_waiters();
    }

    /// The guest is done. If it has not closed the socket, that is a normal close.
    pub(crate) fn abandon(&self) {
        self.close_with(code::NORMAL, "");
    }

    /// The next message to the client.
    pub(crate) fn take(&self) -> Option<SocketMessage> {
        let mut state = self.lock();
        let message = state.outbound.pop()?;
        if state.outbound.has_room() {
            self.went.notify_waiters();
        }
        Some(message)
    }

    /// How the guest closed it, when all that it sent has been taken.
    pub(crate) fn close(&self) -> Option<Closed> {
        let state = self.lock();
        if state.outbound.messages.is_empty() { state.close.clone() } else { None }
    }

    /// Ends when the guest has it no more, or no use for it; at once if it never had it.
    pub(crate) async fn released(&self) {
        self.wait(&self.released, Self::is_done).await;
    }

    /// Whether the guest has no use for it, or never had it.
    fn is_done(&self) -> bool {
        let state = self.lock();
        state.is_released || !state.is_accepted || state.over.is_some()
    }

    /// What `receive` says; `None` if that is to come.
    fn try_receive(&self) -> Option<Result<SocketMessage, Closed>> {
        let mut state = self.lock();
        let had_room = state.inbound.has_room();
        if let Some(message) = state.inbound.pop() {
            if !had_room && state.inbound.has_room() {
                wake(&state);
            }
            return Some(Ok(message));
        }
        state.end.clone().map(Err)
    }

    fn can_receive(&self) -> bool {
        let state = self.lock();
        !state.inbound.messages.is_empty() || state.end.is_some()
    }

    /// Takes a message to the client; gives it back if the client is to be waited for.
    fn try_send(&self, message: SocketMessage) -> Result<Option<SocketMessage>, Closed> {
        let mut state = self.lock();
        if let Some(closed) = state.over.as_ref().or(state.close.as_ref()) {
            return Err(closed.clone());
        }
        if !state.outbound.has_room() {
            return Ok(Some(message));
        }
        state.outbound.push(message);
        wake(&state);
        Ok(None)
    }

    fn can_send(&self) -> bool {
        let state = self.lock();
        state.outbound.has_room() || state.over.is_some() || state.close.is_some()
    }

    fn close_with(&self, code: u16, reason: &str) {
        let is_valid = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let code = if is_valid { code } else { code::NORMAL };
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
        let mut state = self.lock();
        state.close.get_or_insert(Closed::new(code, reason));
        self.went.notify_waiters();
        wake(&state);
    }

    /// Waits until `is_so`, of which `notify` tells.
    async fn wait(&self, notify: &Notify, is_so: impl Fn(&Self) -> bool) {
        loop {
            // Whoever is told between this line and the last is told too.
            let told = notify.notified();
            if is_so(self) {
                return;
            }
            told.await;
        }
    }

    async fn receive(&self) -> Result<SocketMessage, Closed> {
        loop {
            let came = self.came.notified();
            if let Some(received) = self.try_receive() {
                return received;
            }
            came.await;
        }
    }

    /// One after the other, in the order in which they were begun.
    async fn send(&self, mut message: SocketMessage) -> Result<(), Closed> {
        let _waits = WaitingSend::begin(self, message.cost());
        let _turn = self.turn.lock().await;
        loop {
            let went = self.went.notified();
            match self.try_send(message)? {
                None => return Ok(()),
                Some(refused) => message = refused,
            }
            went.await;
        }
    }
}

/// A message that waits for its turn.
struct WaitingSend<'a>(&'a SocketLink, usize);

impl<'a> WaitingSend<'a> {
    fn begin(link: &'a SocketLink, bytes: usize) -> Self {
        link.lock().waiting += bytes;
        Self(link, bytes)
    }
}

impl Drop for WaitingSend<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= self.1;
    }
}

/// A connection that is not waiting for anything is told nothing.
fn wake(state: &State) {
    if let Some(connection) = &state.connection {
        connection.wake_by_ref();
    }
}

/// A guest's end.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "wasmtime's bindings re-export it")]
pub struct Socket(Arc<SocketLink>);

impl Socket {
    /// Bytes that are kept for it.
    pub(super) fn held(&self) -> usize {
        self.0.held()
    }

    /// The guest's end of a link that nobody has yet.
    pub(super) fn accept(link: &Arc<SocketLink>) -> Option<Self> {
        let mut state = link.lock();
        let is_first = !std::mem::replace(&mut state.is_accepted, true);
        is_first.then(|| Self(link.clone()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.close_with(code::NORMAL, "");
        let mut state = self.0.lock();
        state.is_released = true;
        state.inbound = Queue::default();
        wake(&state);
        drop(state);
        self.0.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> SocketMessage {
        SocketMessage::Text(text.into())
    }

    #[test]
    fn an_offer_is_accepted_once() {
        let link = SocketLink::new(7);
        assert!(!link.is_accepted());
        let socket = Socket::accept(&link).unwrap();
        assert!(link.is_accepted() && Socket::accept(&link).is_none());
        drop(socket);
        assert_eq!(link.close().unwrap().code, code::NORMAL);
        assert!(Socket::accept(&link).is_none());
    }

    #[test]
    fn who_does_not_take_makes_the_other_wait() {
        let link = SocketLink::new(1);
        let _socket = Socket::accept(&link);
        let large = || SocketMessage::Binary(vec![0; MAX_QUEUED]);
        assert!(link.has_room());
        link.deliver(large());
        assert!(!link.has_room() && link.can_receive());
        assert!(matches!(link.try_receive(), Some(Ok(SocketMessage::Binary(_)))));
        assert!(link.has_room() && !link.can_receive());

        assert!(link.try_send(large()).unwrap().is_none() && !link.can_send());
        assert!(link.try_send(text("more")).unwrap().is_some());
        assert!(link.take().is_some() && link.can_send() && link.take().is_none());
        // Many empty ones take up memory, too.
        let sent = (0..).take_while(|_| link.try_send(text("")).unwrap().is_none()).count();
        assert_eq!(sent, MAX_QUEUED / OVERHEAD);
    }

    #[test]
    fn what_was_sent_goes_out_before_the_close() {
        let link = SocketLink::new(1);
        let socket = Socket::accept(&link).unwrap();
        link.deliver(text("in"));
        link.end(Closed::new(code::GOING_AWAY, "restart"));
        // It was there before the end.
        assert!(matches!(link.try_receive(), Some(Ok(SocketMessage::Text(_)))));
        assert!(matches!(link.try_receive(), Some(Err(Closed { code: code::GOING_AWAY, .. }))));
        assert!(link.try_send(text("bye")).unwrap().is_none());
        socket.0.close_with(4000, &"é".repeat(100));
        socket.0.close_with(4001, "again");
        assert!(link.close().is_none() && link.try_send(text("late")).is_err());
        assert!(link.take().is_some());
        let closed = link.close().unwrap();
        assert_eq!((closed.code, closed.reason.len()), (4000, 122));

        link.shut(Closed::new(code::LOST, ""));
        assert!(matches!(link.try_send(text("late")), Err(Closed { code: code::LOST, .. })));
    }

    #[test]
    fn codes_that_none_may_send_are_not_sent() {
        for wrong in [0, 999, 1004, 1005, 1006, 1015, 2000, 2999, 5000, u16::MAX] {
            let link = SocketLink::new(1);
            link.close_with(wrong, "");
            assert_eq!(link.close().unwrap().code, code::NORMAL, "{wrong}");
        }
    }
}
