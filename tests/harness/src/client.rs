//! An HTTP/1.1 client for tests: hyper, one connection at a time. Nothing here follows redirects, retries, or pools connections:
//! a test sees what came over its own connection.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long an answer may take, head and each further piece: a server that is stuck fails the test that it is stuck in.
const PATIENCE: Duration = Duration::from_secs(60);

/// What comes of `waiting`. Panics after a minute, so that a server that is stuck fails the test.
pub async fn soon<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, waiting).await.expect("the server answers")
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Its headers.
    pub headers: http::HeaderMap,
    /// The body, without its framing.
    pub body: Bytes,
    /// What came behind the body, if anything did.
    pub trailers: Option<http::HeaderMap>,
}

impl Answer {
    /// The body as text. Panics if it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }
}

/// One HTTP/1.1 connection, whose requests have bodies of the type `B`.
pub struct Connection<B>(SendRequest<B>);

impl<B> Connection<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Connects to `address`.
    pub async fn open(address: SocketAddr) -> Self {
        Self::over(soon(TcpStream::connect(address)).await.expect("a connection")).await
    }

    /// Speaks HTTP over a stream that is there already, as a Unix socket's.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request; the answer's body is still to come.
    pub async fn send(&mut self, method: Method, path: &str, body: B) -> hyper::Result<Response<Incoming>> {
        self.send_request(Request::builder().method(method).uri(path).body(body).expect("a request")).await
    }

    /// Sends a request with headers of its own; the answer's body is still to come.
    pub async fn send_request(&mut self, mut request: Request<B>) -> hyper::Result<Response<Incoming>> {
        request.headers_mut().entry("host").or_insert(HeaderValue::from_static("test"));
        soon(self.0.ready()).await?;
        soon(self.0.send_request(request)).await
    }
}

impl Connection<Full<Bytes>> {
    /// Gets `path`, and reads the whole answer.
    pub async fn get(&mut self, path: &str) -> hyper::Result<Answer> {
        self.request(Method::GET, path, "").await
    }

    /// Gets `path`; the answer's body is still to come.
    pub async fn begin(&mut self, path: &str) -> Incoming {
        self.send(Method::GET, path, Full::default()).await.expect("an answer").into_body()
    }

    /// Sends a request, and reads the whole answer.
    pub async fn request(&mut self, method: Method, path: &str, body: &'static str) -> hyper::Result<Answer> {
        whole(self.send(method, path, Full::from(body)).await?).await
    }
}

/// Reads an answer to its end.
pub async fn whole(response: Response<Incoming>) -> hyper::Result<Answer> {
    let (head, body) = response.into_parts();
    let body = soon(body.collect()).await?;
    let trailers = body.trailers().cloned();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes(), trailers })
}

/// Gets `path` over a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> hyper::Result<Answer> {
    Connection::open(address).await.get(path).await
}

/// An upload in progress: what is sent, and what comes back.
pub struct Upload {
    /// Takes the pieces of the body; dropped, the upload is complete.
    pub body: Sender<Bytes>,
    /// The answer, as soon as its head is there.
    pub answer: tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>,
}

impl Upload {
    /// Begins to POST to `path`, with a body that has no length.
    pub async fn start(address: SocketAddr, path: &str) -> Self {
        let path = path.to_owned();
        let mut connection = Connection::open(address).await;
        let (body, channel) = Channel::<Bytes>::new(4);
        let answer = tokio::spawn(async move { connection.send(Method::POST, &path, channel).await });
        Self { body, answer }
    }
}
