//! WebSocket on hosts of WASI 0.2, where functions do not wait: the reactor waits for their pollables.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::bindings::wasmcluster::worker::websocket;
use super::reactor::Waiter;
use crate::websocket::{CloseCode, Closed, Message, TrySendError};

/// The WebSocket of a ticket, unless it is gone or was accepted before.
pub(crate) fn accept(ticket: &str) -> Option<Connection> {
    websocket::accept(ticket).map(|socket| Connection(Rc::new(socket)))
}

/// A handle to a socket. The socket is closed when the last one drops.
#[derive(Clone)]
pub(crate) struct Connection(Rc<websocket::Socket>);

impl Connection {
    pub(crate) async fn send(&self, message: Message) -> Result<(), Closed> {
        let message = message.into();
        let mut waiter = None;
        while !self.0.send(&message)? {
            let waiter = waiter.get_or_insert_with(|| Waiter::new(self.0.subscribe_send()));
            poll_fn(|context| waiter.poll(context)).await;
        }
        Ok(())
    }

    pub(crate) fn try_send(&self, message: Message) -> Result<(), TrySendError> {
        match self.0.send(&message.into()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TrySendError::Full),
            Err(closed) => Err(TrySendError::Closed(closed.into())),
        }
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code.0, reason);
    }

    pub(crate) fn is_last(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

/// Receives from a socket. Fields drop in order: the waiter before its socket.
pub(crate) struct Receiving {
    waiter: Option<Waiter>,
    connection: Connection,
}

impl Receiving {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { waiter: None, connection }
    }

    /// Not called again after an error.
    pub(crate) fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Message, Closed>> {
        let socket = &self.connection.0;
        loop {
            match socket.receive() {
                Ok(Some(message)) => return Poll::Ready(Ok(message.into())),
                Ok(None) => {
                    ready!(self.waiter.get_or_insert_with(|| Waiter::new(socket.subscribe_receive())).poll(context));
                }
                Err(closed) => return Poll::Ready(Err(closed.into())),
            }
        }
    }
}
