//! The guest's end of a WebSocket.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use send_wrapper::SendWrapper;

use super::{CloseCode, Closed, Message, Outcome};
use crate::error::report;
use crate::host::websocket::{Connection, Receiving};

/// A WebSocket, in the function that [`upgrade`](super::upgrade) runs.
///
/// It is closed with code 1000 when the function ends, or before that when it and all its [`Sender`]s have been dropped.
pub struct Socket {
    receiving: SendWrapper<Receiving>,
    sender: Sender,
    protocol: Option<String>,
    closed: Option<Closed>,
}

impl Socket {
    pub(super) fn new(connection: Connection, protocol: Option<String>) -> Self {
        let receiving = SendWrapper::new(Receiving::new(connection.clone()));
        Self { receiving, sender: Sender(SendWrapper::new(connection)), protocol, closed: None }
    }

    /// The next message. `None` if no more will come, and then [`closed`](Self::closed) tells why: the client closed the
    /// socket, the connection was lost, or this worker shuts down.
    ///
    /// A worker that shuts down gives guests a moment to say goodbye: after code 1001, `send` still works for a short
    /// time. Then return soon: the worker does not wait for long.
    ///
    /// The future may be dropped before it is ready, as `select` and [`time::timeout`](crate::time::timeout) do: no message
    /// is lost.
    ///
    /// ```
    /// use wasmcluster_guest::websocket::{Closed, CloseCode, Socket};
    ///
    /// async fn serve(mut socket: Socket) -> Result<(), Closed> {
    ///     while let Some(message) = socket.receive().await {
    ///         socket.send(message).await?;
    ///     }
    ///     if socket.closed().is_some_and(|closed| closed.code == CloseCode::GOING_AWAY) {
    ///         socket.send("see you soon").await?;
    ///     }
    ///     Ok(())
    /// }
    /// # use wasmcluster_guest::{Request, testing, websocket};
    /// # let mut client = testing::websocket(async |request| websocket::upgrade(request, serve), Request::default());
    /// # client.shut_down();
    /// # assert_eq!(client.receive(), Some("see you soon".into()));
    /// ```
    pub async fn receive(&mut self) -> Option<Message> {
        poll_fn(|context| self.poll_receive(context)).await
    }

    /// What [`receive`](Self::receive) waits for.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        if self.closed.is_some() {
            return Poll::Ready(None);
        }
        self.receiving.poll(context).map(|received| match received {
            Ok(message) => Some(message),
            Err(closed) => {
                self.closed = Some(closed);
                None
            }
        })
    }

    /// How the socket was closed, once [`receive`](Self::receive) has returned `None`.
    pub fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// Sends a message: see [`Sender::send`].
    ///
    /// # Errors
    ///
    /// If the socket is closed, by the client or with [`close`](Self::close).
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), Closed> {
        self.sender.send(message).await
    }

    /// Closes the socket, behind all that was sent: see [`Sender::close`].
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.sender.close(code, reason);
    }

    /// A handle that sends while the socket is being received from.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The protocol that was agreed on: see [`Upgrade::protocols`](super::Upgrade::protocols).
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, closed, .. } = self;
        f.debug_struct("Socket").field("protocol", protocol).field("closed", closed).finish_non_exhaustive()
    }
}

/// Sends while the [`Socket`] is being received from, also from another request that the same instance serves. It must be
/// used on the thread that it comes from, or it panics; guests have only one.
///
/// ```
/// use std::cell::RefCell;
/// use wasmcluster_guest::websocket::{self, Sender};
/// use wasmcluster_guest::{Request, testing};
///
/// thread_local! {
///     static MEMBERS: RefCell<Vec<Sender>> = RefCell::default();
/// }
///
/// async fn join(request: Request) -> websocket::Upgrade {
///     websocket::upgrade(request, async |mut socket| {
///         MEMBERS.with_borrow_mut(|members| members.push(socket.sender()));
///         while let Some(message) = socket.receive().await {
///             // Whoever has left, or is too slow, is no longer a member.
///             MEMBERS.with_borrow_mut(|members| members.retain(|member| member.try_send(message.clone()).is_ok()));
///         }
///     })
/// }
///
/// let mut ada = testing::websocket(join, Request::default());
/// let mut eve = testing::websocket(join, Request::default());
/// ada.send("hi");
/// assert_eq!(eve.receive(), Some("hi".into()));
/// ```
#[derive(Clone)]
pub struct Sender(SendWrapper<Connection>);

impl Sender {
    /// Sends a message. Waits while the client has yet to take what was sent before, so a slow client never fills the
    /// memory.
    ///
    /// # Errors
    ///
    /// If the socket is closed, by the client or with [`close`](Self::close).
    pub fn send(&self, message: impl Into<Message>) -> impl Future<Output = Result<(), Closed>> + Send {
        SendWrapper::new(self.0.send(message.into()))
    }

    /// Sends a message if that is possible at once.
    ///
    /// # Errors
    ///
    /// If the client has yet to take what was sent before, or if the socket is closed.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
        self.0.try_send(message.into())
    }

    /// Closes the socket, behind all that was sent. Only the first call counts. What the client sent before it learned of
    /// it may still be received.
    ///
    /// The code is 1000 to 1014 but for 1004, 1005 and 1006, or 3000 to 4999; another one is sent as 1000. Of the reason,
    /// 123 bytes are sent.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrySendError {
    /// The client has yet to take what was sent before.
    Full,
    /// The socket is closed.
    Closed(Closed),
}

impl fmt::Display for TrySendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the client has yet to take earlier messages"),
            Self::Closed(closed) => closed.fmt(f),
        }
    }
}

impl std::error::Error for TrySendError {}

/// Runs the guest's function with its socket. After an error, the socket is closed with code 1011.
pub(super) async fn run<F, R>(socket: Socket, function: F)
where
    F: AsyncFnOnce(Socket) -> R,
    R: Outcome,
{
    // The function drops its own handles before it returns an error. Without this one, that would close the socket with
    // code 1000.
    let mut kept = Some(socket.sender());
    let mut running = pin!(function(socket));
    let outcome = poll_fn(|context| {
        let poll = running.as_mut().poll(context);
        // The function may drop the socket, to close it, and go on.
        if poll.is_pending() && kept.as_ref().is_some_and(|sender| sender.0.is_last()) {
            kept = None;
        }
        poll
    });
    let failure = outcome.await.into_result().err().filter(|error| error.downcast_ref::<Closed>().is_none());
    if let Some(error) = &failure {
        report("WebSocket failed", error);
    }
    match kept {
        Some(sender) if failure.is_some() => sender.close(CloseCode::INTERNAL_ERROR, ""),
        // A sender that was kept elsewhere must not keep the socket open. Otherwise dropping it is enough.
        Some(sender) if !sender.0.is_last() => sender.close(CloseCode::NORMAL, ""),
        _ => {}
    }
}
