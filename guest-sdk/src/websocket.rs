//! WebSocket (RFC 6455): messages both ways on one connection, through the interface `wasmcluster:worker/websocket`, which
//! is not part of a standard.
//!
//! ```
//! use wasmcluster_guest::{Request, Result, testing, websocket};
//!
//! #[wasmcluster_guest::main]
//! async fn echo(request: Request) -> websocket::Upgrade {
//!     websocket::upgrade(request, async |mut socket| -> Result<()> {
//!         while let Some(message) = socket.receive().await {
//!             socket.send(message).await?;
//!         }
//!         Ok(())
//!     })
//! }
//!
//! let mut client = testing::websocket(echo, Request::default());
//! client.send("hello");
//! assert_eq!(client.receive(), Some("hello".into()));
//! ```
//!
//! The server answers pings, joins fragments and closes connections that break the protocol; a guest sees whole messages.
//!
//! The function of [`upgrade`] may `fetch`, `sleep` and keep metrics like any handler, and wait for several things at once with
//! `select` of the crate `futures-util`. The socket is closed when the function returns.
//!
//! Under WASI 0.2 each socket has an instance to itself. Under 0.3 one instance may serve many, which can find each other
//! through a `thread_local`. Reach another socket through its [`Sender`], not through a channel: sockets are separate tasks
//! of the component, and a task that wakes another one's future panics.
//!
//! A guest that calls [`upgrade`] runs only on wasmcluster. The component of any other guest has no trace of the interface. In
//! native tests, [`testing::websocket`](crate::testing::websocket) is the client.
//!
//! Files: `message` is what is sent, `socket` sends and receives it, `origin` tells which pages may connect.

mod message;
mod origin;
mod socket;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use http::{HeaderMap, HeaderValue, StatusCode};
use send_wrapper::SendWrapper;

pub use message::{CloseCode, Closed, Message};
pub use socket::{Sender, Socket, TrySendError};

use crate::error::report;
use crate::host::websocket::accept;
use crate::{Body, Error, IntoResponse, Response, Result};
use origin::Origins;

/// The header by which the server says that a request asks for a WebSocket. Its value names the socket.
pub(crate) const TICKET: &str = "wasmcluster-websocket";
const PROTOCOL: &str = "sec-websocket-protocol";

/// The function of [`upgrade`] at work, until it ends.
pub(crate) type Running = Pin<Box<dyn Future<Output = ()>>>;

/// Answers a request that asks for a WebSocket, and then runs a function with the socket.
///
/// The socket is closed when the function ends: with code 1000, or with 1011 after an error, which is logged like a
/// handler's error. A [`Closed`] that the function returns is not logged: clients may leave.
///
/// A request that does not ask for a WebSocket is answered 426, and one from a web page of another site 403: see
/// [`Upgrade::allow_origin`].
///
/// ```
/// use std::time::Duration;
/// use wasmcluster_guest::websocket::{self, CloseCode};
/// use wasmcluster_guest::{Request, Result, testing, time};
///
/// async fn count_down(request: Request) -> websocket::Upgrade {
///     websocket::upgrade(request, async |socket| -> Result<()> {
///         for left in (1..=3).rev() {
///             socket.send(left.to_string()).await?;
///             time::sleep(Duration::from_secs(1)).await;
///         }
///         socket.close(CloseCode::NORMAL, "lift-off");
///         Ok(())
///     })
/// }
///
/// let mut client = testing::websocket(count_down, Request::default());
/// let said: Vec<_> = std::iter::from_fn(|| client.receive()).collect();
/// assert_eq!(said, ["3".into(), "2".into(), "1".into()]);
/// assert_eq!(client.closed().unwrap().reason, "lift-off");
/// ```
pub fn upgrade<B, F, R>(request: http::Request<B>, run: F) -> Upgrade
where
    F: AsyncFnOnce(Socket) -> R + 'static,
    R: Outcome + 'static,
{
    let headers = request.headers();
    Upgrade {
        ticket: headers.get(TICKET).and_then(|ticket| ticket.to_str().ok()).map(Into::into),
        origins: Origins::of(&request),
        offered: offered(headers),
        protocol: None,
        run: SendWrapper::new(Box::new(|socket| Box::pin(socket::run(socket, run)))),
    }
}

/// The protocols that the client can speak.
fn offered(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(PROTOCOL).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|name| name.trim().to_owned()).collect()
}

/// What the function of [`upgrade`] may return: `()`, or a `Result<(), E>` of any error.
#[diagnostic::on_unimplemented(
    message = "the function of a WebSocket cannot return `{Self}`",
    note = "it returns `()`, or a `Result<(), E>` where the error `E` converts into `wasmcluster_guest::Error`"
)]
pub trait Outcome {
    /// The error, if it is one.
    #[doc(hidden)]
    fn into_result(self) -> Result<()>;
}

impl Outcome for () {
    fn into_result(self) -> Result<()> {
        Ok(())
    }
}

impl<E: Into<Error>> Outcome for Result<(), E> {
    fn into_result(self) -> Result<()> {
        self.map_err(Into::into)
    }
}

/// The answer to a request that asks for a WebSocket: see [`upgrade`].
///
/// Its response has status 101 and may be given headers such as cookies. The function starts when the response has been
/// sent. If another response is sent instead, it never runs.
///
/// ```
/// use wasmcluster_guest::http::header::SET_COOKIE;
/// use wasmcluster_guest::{IntoResponse, Request, testing, websocket};
///
/// async fn handle(request: Request) -> impl IntoResponse {
///     ([(SET_COOKIE, "seen=1")], websocket::upgrade(request, async |_socket| ()))
/// }
/// assert_eq!(testing::websocket(handle, Request::default()).answer().headers()["set-cookie"], "seen=1");
/// ```
#[must_use = "the client gets what the handler returns"]
pub struct Upgrade {
    ticket: Option<String>,
    origins: Origins,
    offered: Vec<String>,
    protocol: Option<String>,
    run: SendWrapper<Run>,
}

type Run = Box<dyn FnOnce(Socket) -> Running>;

impl Upgrade {
    /// Lets web pages of another site connect as well: `https://example.com`, with the port if it is not the usual one.
    /// May be called several times.
    ///
    /// A browser connects for any page to any site and sends the site's cookies along, so without this rule every page on
    /// the web could use the socket in the name of its visitor. By default only pages of the host that the request asks for
    /// may. Clients that are not browsers send no `origin` and are not restricted.
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        self.origins.allow(origin.into());
        self
    }

    /// Lets all web pages connect. Only for sockets that do the same for everyone, whatever the cookies say.
    pub fn allow_any_origin(mut self) -> Self {
        self.origins.allow_any();
        self
    }

    /// The protocols that the function can speak, the best first. The first that the client offers too is agreed on, and
    /// [`Socket::protocol`] returns it. If there is none in common, none is agreed on, and most clients close the socket.
    pub fn protocols<P: Into<String>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.protocol = protocols.into_iter().map(Into::into).find(|protocol| self.offered.contains(protocol));
        self
    }
}

impl IntoResponse for Upgrade {
    fn into_response(self) -> Response {
        let Some(ticket) = self.ticket else {
            // The header `upgrade` belongs here too, but `wasi:http` forbids guests to set it.
            return (StatusCode::UPGRADE_REQUIRED, "this address speaks WebSocket\n").into_response();
        };
        if let Err(origin) = self.origins.check() {
            let refusal = format!("pages of {origin} may not open this WebSocket\n");
            return (StatusCode::FORBIDDEN, refusal).into_response();
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        if let Some(protocol) = self.protocol.as_deref().and_then(|name| HeaderValue::from_str(name).ok()) {
            response.headers_mut().insert(PROTOCOL, protocol);
        }
        let (run, protocol) = (self.run.take(), self.protocol);
        let start: Start = Box::new(move || Some(run(Socket::new(accept(&ticket)?, protocol))));
        response.extensions_mut().insert(Starting(SendWrapper::new(Rc::new(Cell::new(Some(start))))));
        response
    }
}

#[cfg(feature = "axum")]
impl axum::response::IntoResponse for Upgrade {
    fn into_response(self) -> axum::response::Response {
        IntoResponse::into_response(self).map(axum::body::Body::new)
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// Accepts the socket and begins, unless the client is gone. Behind a pointer, so that only components that call
/// [`upgrade`] import its interface.
type Start = Box<dyn FnOnce() -> Option<Running>>;

/// What travels with the response of an [`Upgrade`], through whatever else the guest does with it.
#[derive(Clone)]
struct Starting(SendWrapper<Rc<Cell<Option<Start>>>>);

/// Accepts the WebSocket that the response, made of an `R`, opens. What is returned is to be run when the response has been
/// sent. If the socket cannot be accepted, the response becomes a 500.
pub(crate) fn start<R: IntoResponse>(response: &mut Response) -> Option<Running> {
    if R::IS_KNOWN {
        return None;
    }
    let starting = response.extensions_mut().remove::<Starting>();
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let running = starting.and_then(|Starting(start)| start.replace(None)).and_then(|start| start());
    if running.is_none() {
        report("WebSocket not opened", "the response is not that of an upgrade, or the client is gone");
        *response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    running
}

#[cfg(test)]
mod tests;
