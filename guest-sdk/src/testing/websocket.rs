//! The client's end of a WebSocket. The guest runs when the client waits for it, on the same thread, so tests are
//! deterministic.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;

use http::{HeaderValue, StatusCode};

use super::{Answer, App, Host};
use crate::host;
use crate::host::websocket::{Client, ask_for, give_up};
use crate::websocket::{self, CloseCode, Closed, Message};
use crate::{Request, Response};

/// The client of a guest's WebSocket: see [`testing::websocket`](super::websocket). Dropping it loses the connection.
///
/// After each call, the guest runs until it waits for something. So do the other sockets that the test has opened, so
/// several clients of one handler can be tested together. Time is virtual: while a client waits in
/// [`receive`](Self::receive), a guest that sleeps goes on at once.
///
/// ```
/// use wasmcluster_guest::websocket::{self, CloseCode};
/// use wasmcluster_guest::{Request, Result, testing};
///
/// async fn handle(request: Request) -> websocket::Upgrade {
///     websocket::upgrade(request, async |mut socket| -> Result<()> {
///         let name = socket.receive().await.ok_or("no name")?;
///         socket.send(format!("hi, {}", name.as_text().unwrap_or("you"))).await?;
///         socket.close(CloseCode(4000), "that was all");
///         Ok(())
///     })
/// }
///
/// let mut client = testing::websocket(handle, Request::default());
/// client.send("Ada");
/// assert_eq!(client.receive(), Some("hi, Ada".into()));
/// assert_eq!(client.receive(), None);
/// assert_eq!(client.closed().unwrap().code, CloseCode(4000));
///
/// let refused = testing::websocket(async |_| "text", Request::default());
/// assert_eq!(refused.answer().text(), "text");
/// ```
pub struct WebSocket {
    host: Host,
    answer: Answer,
    client: Client,
    closed: Option<Closed>,
}

thread_local! {
    static TICKETS: Cell<u64> = const { Cell::new(0) };
}

impl WebSocket {
    pub(super) fn open<K>(host: &Host, app: impl App<K>, mut request: Request) -> Self {
        let number = TICKETS.get() + 1;
        TICKETS.set(number);
        let ticket = number.to_string();
        let client = ask_for(&ticket);
        request.headers_mut().insert(websocket::TICKET, HeaderValue::from(number));
        let answer = host.block_on(async {
            let mut response = app.answer(request).await;
            let running = websocket::start::<Response>(&mut response);
            give_up(&ticket);
            let answer = Answer::read(response).await;
            running.into_iter().for_each(|running| host::spawn(host, running));
            answer
        });
        host::run_tasks();
        Self { host: host.clone(), answer, client, closed: None }
    }

    /// The answer of the handler. Its status is 101 if there is a socket.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Sends a message.
    ///
    /// # Panics
    ///
    /// If there is no socket.
    #[track_caller]
    pub fn send(&mut self, message: impl Into<Message>) {
        self.client().send(message.into());
        host::run_tasks();
    }

    /// The next message. Waits for the guest to send it. `None` when the socket is closed, and then
    /// [`closed`](Self::closed) tells how.
    ///
    /// # Panics
    ///
    /// If there is no socket, or if no message can ever come.
    #[track_caller]
    pub fn receive(&mut self) -> Option<Message> {
        let client = self.client();
        let received = self.host.block_on(poll_fn(|context| client.poll_receive(context)));
        host::run_tasks();
        received.map_err(|closed| self.closed = Some(closed)).ok()
    }

    /// How the socket was closed, once [`receive`](Self::receive) has returned `None`.
    pub fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// Closes the socket, as a client does that leaves.
    ///
    /// # Panics
    ///
    /// If there is no socket.
    #[track_caller]
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        self.client().close(code, reason);
        host::run_tasks();
    }

    /// Shuts the worker down, as far as this socket can tell: the guest receives no more messages, and may still send.
    ///
    /// # Panics
    ///
    /// If there is no socket.
    #[track_caller]
    pub fn shut_down(&mut self) {
        self.client().shut_down();
        host::run_tasks();
    }

    #[track_caller]
    fn client(&self) -> &Client {
        let status = self.answer.status();
        assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS, "the handler has opened no WebSocket");
        &self.client
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        // The guest learns of it when it runs next.
        self.client.close(CloseCode::ABNORMAL, "");
    }
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket").field("answer", &self.answer).field("closed", &self.closed).finish_non_exhaustive()
    }
}
