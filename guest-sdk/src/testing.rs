//! Calling handlers in tests: natively, with `cargo test`, and with a stand-in for the host.
//!
//! ```
//! use wasmcluster_guest::Request;
//! use wasmcluster_guest::testing;
//!
//! async fn handle(request: Request) -> String {
//!     format!("Hello, {}!\n", request.uri().path())
//! }
//!
//! let answer = testing::call(handle, Request::get("/me").body(().into()).unwrap());
//! assert_eq!(answer.status(), 200);
//! assert_eq!(answer.text(), "Hello, /me!\n");
//! ```
//!
//! Time is virtual: a handler that sleeps for an hour answers at once. Requests that it sends go to the function given to
//! [`Host::on_fetch`], and fail without one. What it logs goes to stderr. [`websocket`](fn@websocket) is the client of a
//! WebSocket.

mod answer;
mod websocket;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

pub use answer::Answer;
pub use websocket::WebSocket;

use crate::head::as_served;
use crate::host::stores::Pairs;
use crate::metrics::Update;
use crate::worker::Worker;
use crate::{IntoResponse, Request, Response, host};

/// Calls a handler, or an application, in a host that answers no requests. See [`Host::call`].
///
/// ```
/// use wasmcluster_guest::{Request, testing};
/// let answer = testing::call(async |_| "hi", Request::default());
/// assert_eq!(answer.text(), "hi");
/// ```
pub fn call<K>(app: impl App<K>, request: Request) -> Answer {
    Host::new().call(app, request)
}

/// Asks a handler, or an application, for a WebSocket, in a host that answers no requests. See [`Host::websocket`].
///
/// ```
/// use wasmcluster_guest::{Request, testing, websocket};
///
/// let shout = async |request| {
///     websocket::upgrade(request, async |mut socket| {
///         while let Some(message) = socket.receive().await {
///             socket.send(message.as_text().unwrap_or_default().to_uppercase()).await.unwrap();
///         }
///     })
/// };
/// let mut client = testing::websocket(shout, Request::get("/shout").body(().into()).unwrap());
/// client.send("hi");
/// assert_eq!(client.receive(), Some("HI".into()));
/// ```
pub fn websocket<K>(app: impl App<K>, request: Request) -> WebSocket {
    Host::new().websocket(app, request)
}

/// Runs a future to its end.
///
/// ```
/// use wasmcluster_guest::{Body, testing};
/// assert_eq!(testing::block_on(Body::from("text").text(64)).unwrap(), "text");
/// ```
///
/// # Panics
///
/// If it waits for something that can never happen.
pub fn block_on<F: Future>(future: F) -> F::Output {
    Host::new().block_on(future)
}

/// What stands in for the host.
///
/// ```
/// use wasmcluster_guest::testing::Host;
/// use wasmcluster_guest::worker::{self, Worker};
/// use wasmcluster_guest::{Request, Response, Result, fetch};
///
/// async fn handle(_: Request) -> Result<String> {
///     let upstream = fetch::get("http://upstream.example/").await?.into_body().text(64).await?;
///     Ok(format!("{}: {upstream}", worker::current().slot))
/// }
///
/// let worker = Worker { id: 3, slot: 2, pid: 1, generation: 1, digest: "sha256:0".into(), workers: 4 };
/// let host = Host::new().with_worker(worker).on_fetch(|request| async move { request.uri().to_string() });
/// assert_eq!(host.call(handle, Request::default()).text(), "2: http://upstream.example/");
/// ```
#[derive(Clone, Default)]
pub struct Host {
    fetch: Option<Rc<dyn Fn(Request) -> Answering>>,
    worker: Option<Worker>,
    config: BTreeMap<String, String>,
    stores: Stores,
}

/// Key-value stores by name. What is written is there for all that is called with the same host, or with a clone of it.
#[derive(Clone)]
struct Stores(BTreeMap<String, Pairs>);

impl Default for Stores {
    fn default() -> Self {
        Self(BTreeMap::from([("default".to_owned(), Pairs::default())]))
    }
}

type Answering = Pin<Box<dyn Future<Output = Response>>>;

impl Host {
    /// A host that answers no requests, and is the only worker of its cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the function that answers the requests of guests.
    #[must_use]
    pub fn on_fetch<A, F>(mut self, answer: A) -> Self
    where
        A: Fn(Request) -> F + 'static,
        F: Future<Output: IntoResponse> + 'static,
    {
        self.fetch = Some(Rc::new(move |request| {
            let answering = answer(request);
            Box::pin(async { answering.await.into_response() })
        }));
        self
    }

    /// Sets the worker that guests see.
    #[must_use]
    pub fn with_worker(mut self, worker: Worker) -> Self {
        self.worker = Some(worker);
        self
    }

    /// Sets a value that guests find with [`config::get`](crate::config::get).
    #[must_use]
    pub fn with_config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Adds an empty key-value store, which guests open with [`kv::open`](crate::kv::open). The store `default` is always there.
    /// What guests write stays for those that are called later with this host.
    #[must_use]
    pub fn with_store(mut self, name: impl Into<String>) -> Self {
        self.stores.0.insert(name.into(), Pairs::default());
        self
    }

    /// Calls what `#[wasmcluster_guest::main]` takes: a handler, or a function that returns an application. Reads the
    /// response to its end.
    ///
    /// The request has the same shape as when it is served: the authority of its URI becomes the header `host` (`localhost`
    /// without one), and the length of its body is declared.
    ///
    /// # Panics
    ///
    /// If the handler does, or if it waits for something that can never happen.
    pub fn call<K>(&self, app: impl App<K>, request: Request) -> Answer {
        let request = as_served(request);
        self.block_on(async { Answer::read(app.answer(request).await).await })
    }

    /// Calls a handler or an application with a request that asks for a WebSocket. What is returned is the client's end, or,
    /// if the handler did not open one, just its answer.
    ///
    /// # Panics
    ///
    /// If the handler does, or if it waits for something that can never happen.
    pub fn websocket<K>(&self, app: impl App<K>, request: Request) -> WebSocket {
        WebSocket::open(self, app, as_served(request))
    }

    /// Runs a future to its end.
    ///
    /// # Panics
    ///
    /// If it waits for something that can never happen.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        host::block_on(self, future)
    }

    pub(crate) fn fetch(&self, request: Request) -> Option<Answering> {
        self.fetch.as_ref().map(|fetch| fetch(request))
    }

    pub(crate) fn config(&self, key: &str) -> Option<String> {
        self.config.get(key).cloned()
    }

    pub(crate) fn store(&self, name: &str) -> Option<Pairs> {
        self.stores.0.get(name).cloned()
    }

    pub(crate) fn all_config(&self) -> Vec<(String, String)> {
        self.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub(crate) fn current_worker(&self) -> Worker {
        self.worker.clone().unwrap_or_else(|| Worker {
            id: 1,
            slot: 0,
            pid: std::process::id(),
            generation: 1,
            digest: format!("sha256:{:064}", 0),
            workers: 1,
        })
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("fetch", &self.fetch.is_some()).field("worker", &self.worker).finish()
    }
}

/// What can be called: `async fn(Request) -> impl IntoResponse`, and with the feature `axum` `fn() -> Router`. `K` only
/// tells these apart.
///
/// ```
/// # use wasmcluster_guest::testing::{self, App};
/// # use wasmcluster_guest::Request;
/// fn is_well<K>(app: impl App<K>) -> bool {
///     testing::call(app, Request::get("/health").body(().into()).unwrap()).status().is_success()
/// }
/// assert!(is_well(async |_| "well"));
/// ```
pub trait App<K> {
    /// The response to a request.
    fn answer(&self, request: Request) -> impl Future<Output = Response>;
}

impl<H, F> App<fn(Request) -> F> for H
where
    H: Fn(Request) -> F,
    F: Future<Output: IntoResponse>,
{
    async fn answer(&self, request: Request) -> Response {
        self(request).await.into_response()
    }
}

impl<M, A> App<fn() -> A> for M
where
    M: Fn() -> A,
    A: crate::__private::Application,
{
    async fn answer(&self, request: Request) -> Response {
        self().answer(request).await
    }
}

/// Takes the updates of this thread's [`metrics`](mod@crate::metrics) since the last call, up to 100,000.
///
/// ```
/// use wasmcluster_guest::metrics::{self, Update};
/// use wasmcluster_guest::{Request, testing};
///
/// async fn order(_: Request) {
///     metrics::counter("orders_total").with("kind", "book").add(2);
/// }
/// testing::call(order, Request::default());
/// let [told] = &testing::metrics()[..] else { panic!("one update") };
/// assert_eq!((told.name.as_str(), told.update), ("orders_total", Update::Count(2)));
/// ```
pub fn metrics() -> Vec<Metric> {
    host::take_metrics()
}

/// An update of a metric: see [`metrics`].
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Of the metric.
    pub name: String,
    /// In the order in which they were given.
    pub labels: Vec<(String, String)>,
    /// The update.
    pub update: Update,
}

/// Takes the spans of this thread's guests that have ended since the last call, in the order of their ends, up to 100,000: see
/// [`trace`](crate::trace). In tests, every trace is recorded.
///
/// ```
/// use wasmcluster_guest::{Request, testing, trace};
///
/// async fn handle(_: Request) {
///     trace::init();
///     tracing::info_span!("work", pages = 3).in_scope(|| tracing::error!("out of paper"));
/// }
/// testing::call(handle, Request::default());
/// let [span] = &testing::spans()[..] else { panic!("one span") };
/// assert_eq!((span.name.as_str(), span.attribute("pages"), span.error.as_deref()), ("work", Some("3"), Some("out of paper")));
/// ```
#[cfg(feature = "tracing")]
pub fn spans() -> Vec<Span> {
    host::take_spans()
}

/// A span that has ended: see [`spans`].
#[cfg(feature = "tracing")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its id: 16 hexadecimal digits.
    pub id: String,
    /// That of the span around it, or of the request's.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Fields in the order in which they were recorded. Values are JSON.
    pub attributes: Vec<(String, String)>,
    /// What was said in it.
    pub events: Vec<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

#[cfg(feature = "tracing")]
impl Span {
    /// The value of a field, as JSON.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}
