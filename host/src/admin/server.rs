//! HTTP at the admin address: few connections at a time, small requests, and nothing that changes anything.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{Board, metrics};

/// Connections at a time. One more ends the one that is there longest: a probe that comes always gets in.
const MAX_CONNECTIONS: usize = 64;
/// Of these, readers of events; more get 503.
const MAX_READERS: usize = 16;
/// How long a request's head may take, and a connection wait for its next request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const MAX_HEAD: usize = 16 * 1024;
/// How old a connection may get. Whoever reads events connects again.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// What a connection that has reached that age may still take to end.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// How often a reader of events hears something.
const PING: Duration = Duration::from_secs(15);
/// Pieces of events that a reader has not taken.
const MAX_UNTAKEN: usize = 16;
/// When to accept again if that failed.
const AGAIN: Duration = Duration::from_millis(100);

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");
/// The page uses what is here, and nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const PATHS: &str = "there are /, /livez, /readyz, /metrics, /status and /events";

type AdminAnswer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Serves at a listening socket.
pub(super) fn serve(listener: OwnedFd, board: Board) -> io::Result<impl Future<Output = ()> + Send> {
    let socket = Socket::from(listener);
    socket.set_nonblocking(true)?;
    let is_unix = socket.local_addr()?.is_unix();
    let listener = if is_unix {
        AdminListener::Unix(UnixListener::from_std(socket.into())?)
    } else {
        AdminListener::Tcp(TcpListener::from_std(socket.into())?)
    };
    Ok(accept(listener, board))
}

enum AdminListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

async fn accept(listener: AdminListener, board: Board) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = match &listener {
            AdminListener::Tcp(listener) => listener.accept().await.map(|(stream, _)| spawn(stream, board.clone())),
            AdminListener::Unix(listener) => listener.accept().await.map(|(stream, _)| spawn(stream, board.clone())),
        };
        connections.retain(|connection| !connection.is_finished());
        match accepted {
            Ok(connection) => connections.push_back(connection),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
        if connections.len() > MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
    }
}

fn spawn(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, board: Board) -> AbortHandle {
    let serve = async move {
        let service = service_fn(|request| {
            let answer = answer(&request, &board);
            async { Ok::<_, Infallible>(answer) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(MAX_HEAD);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        if tokio::time::timeout(MAX_AGE, connection.as_mut()).await.is_err() {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
        }
    };
    tokio::spawn(serve).abort_handle()
}

fn answer(request: &Request<Incoming>, board: &Board) -> AdminAnswer {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "use GET; nothing can be changed here\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/livez" => match board.fresh() {
            Some(_) => text(StatusCode::OK, "the primary is at work\n"),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "nothing was heard of the primary for 5 s\n"),
        },
        "/readyz" => {
            let readiness = board.readiness();
            let status = if readiness.is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            text(status, format!("{}\n", readiness.reason))
        }
        "/metrics" => with_sample(board, |latest| {
            let accept = request.headers().get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
            let format = metrics::Format::for_accept(accept);
            whole(StatusCode::OK, format.content_type(), latest.metrics(format))
        }),
        "/status" => with_sample(board, |latest| whole(StatusCode::OK, "application/json", latest.status())),
        "/events" => events(board),
        "/" => whole(StatusCode::OK, "text/html; charset=utf-8", PAGE),
        "/page.js" => whole(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT),
        "/page.css" => whole(StatusCode::OK, "text/css; charset=utf-8", STYLE),
        _ => text(StatusCode::NOT_FOUND, format!("no such path; {PATHS}\n")),
    }
}

fn with_sample(board: &Board, answer: impl FnOnce(&super::Latest) -> AdminAnswer) -> AdminAnswer {
    match board.fresh() {
        Some(latest) => answer(&latest),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "nothing was heard of the primary for 5 s\n"),
    }
}

/// What happens from now on, as server-sent events: each has the name of its kind, and the JSON of `wasmcluster events`.
fn events(board: &Board) -> AdminAnswer {
    // Each reader has a receiver.
    if board.events.receiver_count() >= MAX_READERS {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("the events have {MAX_READERS} readers already\n"));
    }
    let mut events = board.events.subscribe();
    let (pieces, taken) = mpsc::channel(MAX_UNTAKEN);
    tokio::spawn(async move {
        loop {
            let piece = tokio::select! {
                event = events.recv() => match event {
                    Ok(line) => format!("data: {}\n\n", line.trim_end()),
                    Err(RecvError::Lagged(missed)) => format!("data: {{\"event\":\"missed\",\"events\":{missed}}}\n\n"),
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(PING) => ":\n\n".to_owned(),
                () = pieces.closed() => return,
            };
            if pieces.send(Bytes::from(piece)).await.is_err() {
                return;
            }
        }
    });
    respond(StatusCode::OK, "text/event-stream", Pieces(taken).boxed_unsync())
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> AdminAnswer {
    whole(status, "text/plain; charset=utf-8", text)
}

fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> AdminAnswer {
    respond(status, kind, Full::new(body.into()).boxed_unsync())
}

fn respond(status: StatusCode, kind: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> AdminAnswer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    response.headers_mut().extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

/// A body of pieces that come one by one.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
