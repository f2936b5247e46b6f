//! The control socket: how commands talk to a running primary, as HTTP/1.1 with JSON over a Unix socket.
//!
//! Whoever connects must be the same user, or root. How the socket is bound, and stays in place, is in `name.rs`.

#[cfg(test)]
mod fuzz;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::name::Name;
use crate::control::client::{PATIENCE, is_permitted};
use crate::control::protocol::{Empty, ReloadRequest, Scale, Scaled, Status, Stop};
use crate::control::query::{EventsRequest, KEPT, LogForm, LogsRequest};
use crate::primary::fleet::kept_log::KeptLog;
use crate::settings::Changes;

/// Commands that may be connected at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// How long a command may take to ask once it is connected: those that say nothing keep the others waiting.
const ASKS_WITHIN: Duration = Duration::from_secs(1);
/// How long a change may take before its command is told that it goes on without it.
const DONE_WITHIN: Duration = Duration::from_secs(4);
/// How long what is overdue may still take.
const SOON: Duration = Duration::from_secs(1);
/// How long commands may take to read their answers when the primary ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Largest body of a command, in bytes.
const MAX_QUESTION: usize = 64 * 1024;

/// What a command wants of the driver, with the way back.
#[derive(Debug)]
pub(crate) enum Query {
    Status(oneshot::Sender<Status>),
    Config(oneshot::Sender<BTreeMap<String, String>>),
    /// The answer is lines of JSON as they come, or why not; so in what follows.
    Events(EventsRequest, oneshot::Sender<Refusable<mpsc::Receiver<Bytes>>>),
    Reload(ReloadRequest, oneshot::Sender<Refusable<mpsc::Receiver<Bytes>>>),
    Rollback(ReloadRequest, oneshot::Sender<Refusable<mpsc::Receiver<Bytes>>>),
    Scale(Scale, oneshot::Sender<Refusable<Scaled>>),
    Stop(Stop, oneshot::Sender<Refusable<()>>),
    Configure(Changes, oneshot::Sender<Refusable<()>>),
    ReadCertificates(Empty, oneshot::Sender<Refusable<()>>),
}

/// Who knows the answers.
#[derive(Clone, Debug)]
struct Answerers {
    queries: mpsc::Sender<Query>,
    log: KeptLog,
}

/// What the driver answers to a command that it may refuse.
pub(crate) type Refusable<T> = Result<T, Refused>;

/// Why something is not done.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The cluster is starting, or another change is in progress.
    Busy(String),
    /// The request is wrong, whatever the cluster does.
    Wrong(String),
    /// The cluster cannot do it as it is now.
    Impossible(String),
}

impl Refused {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Busy(reason) | Self::Wrong(reason) | Self::Impossible(reason) => reason,
        }
    }
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self::Impossible(reason)
    }
}

/// The bound control socket of a running primary.
#[derive(Debug)]
pub(crate) struct Control {
    name: Name,
    /// One for each command that may be connected.
    places: Arc<Semaphore>,
    accepting: Option<AbortHandle>,
}

impl Control {
    /// Takes the name, or says who has it.
    pub(crate) fn bind(name: &str, path: &Path, state: Option<&Path>) -> anyhow::Result<Self> {
        let name = Name::take(name, path, state)?;
        Ok(Self { name, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), accepting: None })
    }

    /// Answers commands for as long as the primary lives; to be spawned on the executor.
    pub(crate) fn serve(&mut self, queries: mpsc::Sender<Query>, log: KeptLog) -> io::Result<()> {
        let mut listeners = self.name.listener();
        let listener = register(&mut listeners)?;
        let accepting = tokio::spawn(accept(listener, listeners, self.places.clone(), Answerers { queries, log }));
        self.accepting = Some(accepting.abort_handle());
        Ok(())
    }

    /// Lets commands that are connected have their answers, for a moment. The driver must be gone.
    pub(crate) async fn finish(self) {
        if let Some(accepting) = &self.accepting {
            // It holds a place for the next.
            accepting.abort();
        }
        let all = self.places.acquire_many(MAX_CONNECTIONS as u32);
        // Whoever does not read its answer has none.
        let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
    }
}

fn register(listeners: &mut Listeners) -> io::Result<UnixListener> {
    UnixListener::from_std(listeners.borrow_and_update().try_clone()?)
}

type Listeners = watch::Receiver<Arc<std::os::unix::net::UnixListener>>;

/// Accepts at the socket, and at the one that takes its place when its file was removed.
async fn accept(mut listener: UnixListener, mut listeners: Listeners, places: Arc<Semaphore>, answerers: Answerers) {
    while let Ok(place) = places.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(()) = listeners.changed() => {
                match register(&mut listeners) {
                    Ok(new) => listener = new,
                    Err(error) => tracing::warn!("control socket: {error}"),
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) if is_permitted(&stream) => {
                let answerers = answerers.clone();
                tokio::spawn(async move {
                    converse(stream, &answerers).await;
                    drop(place);
                });
            }
            Ok(_) => tracing::warn!("refused another user's process at the control socket"),
            Err(error) => {
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One command's connection. One that hangs up, or dawdles, is its own affair.
async fn converse(stream: UnixStream, answerers: &Answerers) {
    let streams = AtomicBool::new(false);
    let service = service_fn(|request| answer(request, answerers, &streams));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(ASKS_WITHIN);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::time::timeout(PATIENCE, connection.as_mut()).await;
    if ended.is_err() && streams.load(Ordering::Relaxed) {
        let _ = connection.await;
    }
}

type CommandAnswer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// `streams` is set when the answer's body lasts.
async fn answer(
    request: Request<Incoming>,
    Answerers { queries, log }: &Answerers,
    streams: &AtomicBool,
) -> Result<CommandAnswer, Infallible> {
    let (head, body) = request.into_parts();
    let answered = match (&head.method, head.uri.path()) {
        (&Method::GET, "/status") => ask(queries, Query::Status).await.map(|status| json!(status)),
        (&Method::GET, "/config") => ask(queries, Query::Config).await.map(|config| json!(config)),
        (&Method::POST, "/scale") => change(body, queries, Query::Scale).await.map(|scaled| json!(scaled)),
        (&Method::POST, "/stop") => change(body, queries, Query::Stop).await.map(|()| json!({})),
        (&Method::POST, "/config") => change(body, queries, Query::Configure).await.map(|()| json!({})),
        (&Method::POST, "/certificates") => change(body, queries, Query::ReadCertificates).await.map(|()| json!({})),
        (&Method::GET, "/events") | (&Method::POST, "/reload" | "/rollback") => {
            let lines = match head.uri.path() {
                "/events" => events(head.uri.query(), queries).await,
                "/reload" => change(body, queries, Query::Reload).await,
                _ => change(body, queries, Query::Rollback).await,
            };
            match lines {
                Ok(lines) => {
                    streams.store(true, Ordering::Relaxed);
                    return Ok(respond(StatusCode::OK, "application/x-ndjson", LineBody(lines)));
                }
                Err(refusal) => Err(refusal),
            }
        }
        (&Method::GET, "/logs") => match logs(head.uri.query(), log) {
            Ok((kind, pieces)) => {
                streams.store(true, Ordering::Relaxed);
                return Ok(respond(StatusCode::OK, kind, LineBody(pieces)));
            }
            Err(refusal) => Err(refusal),
        },
        (_, "/config") => Err(CommandRefusal::method("use GET or POST")),
        (_, "/status" | "/events" | "/logs") => Err(CommandRefusal::method("use GET")),
        (_, "/scale" | "/stop" | "/reload" | "/rollback" | "/certificates") => Err(CommandRefusal::method("use POST")),
        _ => Err(CommandRefusal::new(StatusCode::NOT_FOUND, format!("no such path; there are {PATHS}"))),
    };
    let (status, body) = match answered {
        Ok(body) => (StatusCode::OK, body),
        Err(CommandRefusal { status, error, busy }) => (status, json!({ "error": error, "busy": busy })),
    };
    Ok(respond(status, "application/json", Full::new(Bytes::from(format!("{body}\n")))))
}

const PATHS: &str = "GET /status, /events, /logs and /config, POST /reload, /rollback, /certificates, /scale, /stop and \
                     /config";

fn respond(
    status: StatusCode,
    kind: &'static str,
    body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> CommandAnswer {
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    // So that a command knows whether what it asked for was understood.
    response.headers_mut().insert(KEPT, http::HeaderValue::from_static("events"));
    response
}

/// A body of lines that come one by one.
struct LineBody(mpsc::Receiver<Bytes>);

impl Body for LineBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// An answer that is none.
#[derive(Debug)]
struct CommandRefusal {
    status: StatusCode,
    error: String,
    busy: bool,
}

impl CommandRefusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), busy: false }
    }

    fn method(error: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, error)
    }
}

impl From<Refused> for CommandRefusal {
    fn from(refused: Refused) -> Self {
        let (status, error, busy) = match refused {
            Refused::Busy(error) => (StatusCode::CONFLICT, error, true),
            Refused::Wrong(error) => (StatusCode::BAD_REQUEST, error, false),
            Refused::Impossible(error) => (StatusCode::CONFLICT, error, false),
        };
        Self { status, error, busy }
    }
}

async fn events(query: Option<&str>, queries: &mpsc::Sender<Query>) -> Result<mpsc::Receiver<Bytes>, CommandRefusal> {
    let request = EventsRequest::read(query).map_err(|error| CommandRefusal::new(StatusCode::BAD_REQUEST, error))?;
    Ok(ask(queries, |back| Query::Events(request, back)).await??)
}

/// The log is not the driver's: its lines are told by the thread that carries them out.
fn logs(query: Option<&str>, log: &KeptLog) -> Result<(&'static str, mpsc::Receiver<Bytes>), CommandRefusal> {
    let asked = LogsRequest::read(query).map_err(|error| CommandRefusal::new(StatusCode::BAD_REQUEST, error))?;
    let kind = match asked.form {
        LogForm::Text => "text/plain; charset=utf-8",
        LogForm::Json => "application/x-ndjson",
    };
    let pieces = log.read(asked).map_err(|error| CommandRefusal::new(StatusCode::CONFLICT, error))?;
    Ok((kind, pieces))
}

/// Hands a change to the driver.
async fn change<B: DeserializeOwned, A>(
    body: Incoming,
    queries: &mpsc::Sender<Query>,
    query: impl FnOnce(B, oneshot::Sender<Refusable<A>>) -> Query,
) -> Result<A, CommandRefusal> {
    let bad = |error: String| CommandRefusal::new(StatusCode::BAD_REQUEST, error);
    let bytes = Limited::new(body, MAX_QUESTION).collect().await.map_err(|error| bad(error.to_string()))?.to_bytes();
    let body = serde_json::from_slice(&bytes).map_err(|error| bad(format!("invalid body: {}", reason(&error))))?;
    Ok(ask(queries, |back| query(body, back)).await??)
}

/// What is wrong with a body. The position is left out unless the JSON itself is broken.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).filter(|_| error.is_data()).map(str::to_owned).unwrap_or(text)
}

async fn ask<A>(
    queries: &mpsc::Sender<Query>,
    query: impl FnOnce(oneshot::Sender<A>) -> Query,
) -> Result<A, CommandRefusal> {
    let ending = || CommandRefusal::new(StatusCode::SERVICE_UNAVAILABLE, "the primary is shutting down");
    let (back, mut answer) = oneshot::channel();
    queries.send(query(back)).await.map_err(|_| ending())?;
    let mut answered = tokio::time::timeout(DONE_WITHIN, &mut answer).await;
    if answered.is_err() {
        // The primary itself may have been late, as after a pause of all processes.
        answered = tokio::time::timeout(SOON, answer).await;
    }
    match answered {
        Ok(answer) => answer.map_err(|_| ending()),
        Err(_) => {
            let error =
                format!("the change did not finish within {DONE_WITHIN:?} and goes on; see `wasmcluster status`");
            Err(CommandRefusal::new(StatusCode::GATEWAY_TIMEOUT, error))
        }
    }
}
