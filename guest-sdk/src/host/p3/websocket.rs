//! WebSocket on hosts of WASI 0.3, whose functions wait.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use super::bindings::wasmcluster::worker::websocket;
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
        Ok(self.0.send(message.into()).await?)
    }

    /// The host takes a message when it is called, if there is room. Otherwise the call waits, and is cancelled here, and a
    /// call that is cancelled sends nothing.
    pub(crate) fn try_send(&self, message: Message) -> Result<(), TrySendError> {
        match pin!(self.send(message)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(sent) => sent.map_err(TrySendError::Closed),
            Poll::Pending => Err(TrySendError::Full),
        }
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code.0, reason);
    }

    pub(crate) fn is_last(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

type Received = Result<websocket::Message, websocket::Closed>;

/// Receives from a socket. Fields drop in order: the call that waits before its socket.
pub(crate) struct Receiving {
    /// A call of the host is kept until it has returned: if it were cancelled, its message would be lost.
    call: Option<Pin<Box<dyn Future<Output = Received>>>>,
    socket: Rc<websocket::Socket>,
}

impl Receiving {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { call: None, socket: connection.0 }
    }

    /// Not called again after an error.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Message, Closed>> {
        let call = self.call.get_or_insert_with(|| {
            let socket = self.socket.clone();
            Box::pin(async move { socket.receive().await })
        });
        let received = ready!(call.as_mut().poll(context));
        self.call = None;
        Poll::Ready(received.map(Into::into).map_err(Into::into))
    }
}
