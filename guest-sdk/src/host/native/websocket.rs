//! Both ends of a WebSocket, in memory. The client's is for `testing::WebSocket`.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::websocket::{CloseCode, Closed, Message, TrySendError};

/// Messages to the client that it has yet to take, before a send waits.
const MAX_UNTAKEN: usize = 16;

thread_local! {
    /// Sockets that requests ask for and nobody has accepted yet, by their tickets.
    static ASKED_FOR: RefCell<BTreeMap<String, Client>> = RefCell::default();
}

/// A socket that a request with this ticket asks for.
pub(crate) fn ask_for(ticket: &str) -> Client {
    let client = Client::default();
    ASKED_FOR.with_borrow_mut(|asked| asked.insert(ticket.into(), client.clone()));
    client
}

/// What was not accepted can no longer be.
pub(crate) fn give_up(ticket: &str) {
    ASKED_FOR.with_borrow_mut(|asked| asked.remove(ticket));
}

/// The WebSocket of a ticket, unless it is gone or was accepted before.
pub(crate) fn accept(ticket: &str) -> Option<Connection> {
    let client = ASKED_FOR.with_borrow_mut(|asked| asked.remove(ticket))?;
    Some(Connection(Rc::new(Guest(client))))
}

/// What is between the two ends.
#[derive(Default)]
struct Wire {
    to_guest: VecDeque<Message>,
    to_client: VecDeque<Message>,
    /// What the guest receives behind the last message.
    end: Option<Closed>,
    /// How it was closed, and nothing is sent any more.
    closed: Option<Closed>,
    /// Who waits, on either end, for anything to change.
    waiting: Vec<Waker>,
}

impl Wire {
    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        self.waiting.push(context.waker().clone());
        Poll::Pending
    }

    /// Only the first time counts.
    fn close(&mut self, code: CloseCode, reason: &str) {
        let closed = self.closed.get_or_insert_with(|| Closed { code, reason: reason.into() });
        self.end.get_or_insert_with(|| closed.clone());
    }
}

/// The client's end.
#[derive(Clone, Default)]
pub(crate) struct Client(Rc<RefCell<Wire>>);

impl Client {
    /// Changes what is between the ends, and wakes all who wait for that.
    fn change<T>(&self, change: impl FnOnce(&mut Wire) -> T) -> T {
        let changed = change(&mut self.0.borrow_mut());
        let waiting = std::mem::take(&mut self.0.borrow_mut().waiting);
        // Outside the borrow: a waker is foreign code.
        waiting.into_iter().for_each(Waker::wake);
        changed
    }

    pub(crate) fn send(&self, message: Message) {
        self.change(|wire| wire.to_guest.push_back(message));
    }

    pub(crate) fn poll_receive(&self, context: &Context<'_>) -> Poll<Result<Message, Closed>> {
        let received = self.change(|wire| wire.to_client.pop_front());
        let wire = &mut *self.0.borrow_mut();
        match (received, &wire.closed) {
            (Some(message), _) => Poll::Ready(Ok(message)),
            (None, Some(closed)) => Poll::Ready(Err(closed.clone())),
            (None, None) => wire.wait(context),
        }
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.change(|wire| wire.close(code, reason));
    }

    /// As when the worker shuts down: the guest receives no more, and may still send.
    pub(crate) fn shut_down(&self) {
        self.change(|wire| {
            wire.end.get_or_insert_with(|| Closed { code: CloseCode::GOING_AWAY, reason: String::new() });
        });
    }
}

/// The guest's end, which all its handles share.
struct Guest(Client);

impl Drop for Guest {
    fn drop(&mut self) {
        let code = if std::thread::panicking() { CloseCode::INTERNAL_ERROR } else { CloseCode::NORMAL };
        self.0.close(code, "");
    }
}

/// A handle to a socket. The socket is closed when the last one drops.
#[derive(Clone)]
pub(crate) struct Connection(Rc<Guest>);

impl Connection {
    pub(crate) async fn send(&self, message: Message) -> Result<(), Closed> {
        let mut message = Some(message);
        poll_fn(|context| match self.0.0.try_send(&mut message) {
            Err(TrySendError::Full) => self.0.0.0.borrow_mut().wait(context),
            Err(TrySendError::Closed(closed)) => Poll::Ready(Err(closed)),
            Ok(()) => Poll::Ready(Ok(())),
        })
        .await
    }

    pub(crate) fn try_send(&self, message: Message) -> Result<(), TrySendError> {
        self.0.0.try_send(&mut Some(message))
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.0.0.close(code, reason);
    }

    pub(crate) fn is_last(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

impl Client {
    /// Takes the message if there is room.
    fn try_send(&self, message: &mut Option<Message>) -> Result<(), TrySendError> {
        let is_full = self.0.borrow().to_client.len() >= MAX_UNTAKEN;
        match self.0.borrow().closed.clone() {
            Some(closed) => return Err(TrySendError::Closed(closed)),
            None if is_full => return Err(TrySendError::Full),
            None => {}
        }
        self.change(|wire| wire.to_client.extend(message.take()));
        Ok(())
    }
}

/// Receives from a socket.
pub(crate) struct Receiving(Connection);

impl Receiving {
    pub(crate) fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// Not called again after an error.
    pub(crate) fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Message, Closed>> {
        let wire = &mut *self.0.0.0.0.borrow_mut();
        match (wire.to_guest.pop_front(), &wire.end) {
            (Some(message), _) => Poll::Ready(Ok(message)),
            (None, Some(end)) => Poll::Ready(Err(end.clone())),
            (None, None) => wire.wait(context),
        }
    }
}
