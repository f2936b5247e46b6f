//! An HTTP client for tests: hyper, one connection at a time.

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

/// What comes of `waiting`, unless it takes for ever.
pub(crate) async fn soon<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, waiting).await.expect("the server answers")
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }
}

/// One connection.
pub(crate) struct Connection<B>(SendRequest<B>);

impl<B> Connection<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::over(soon(TcpStream::connect(address)).await.expect("a connection")).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request; the answer's body is still to come.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: B) -> hyper::Result<Response<Incoming>> {
        self.send_request(Request::builder().method(method).uri(path).body(body).expect("a request")).await
    }

    /// Sends a request with headers of its own; the answer's body is still to come.
    pub(crate) async fn send_request(&mut self, mut request: Request<B>) -> hyper::Result<Response<Incoming>> {
        request.headers_mut().entry("host").or_insert(HeaderValue::from_static("test"));
        soon(self.0.ready()).await?;
        soon(self.0.send_request(request)).await
    }
}

impl Connection<Full<Bytes>> {
    pub(crate) async fn get(&mut self, path: &str) -> hyper::Result<Answer> {
        self.request(Method::GET, path, "").await
    }

    /// Gets `path`; the answer's body is still to come.
    pub(crate) async fn begin(&mut self, path: &str) -> Incoming {
        self.send(Method::GET, path, Full::default()).await.expect("an answer").into_body()
    }

    pub(crate) async fn request(&mut self, method: Method, path: &str, body: &'static str) -> hyper::Result<Answer> {
        whole(self.send(method, path, Full::from(body)).await?).await
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> hyper::Result<Answer> {
    let (head, body) = response.into_parts();
    let body = soon(body.collect()).await?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}

/// Gets `path` over a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> hyper::Result<Answer> {
    Connection::open(address).await.get(path).await
}

/// An upload in progress: what is sent, and what comes back.
pub(crate) struct Upload {
    pub(crate) body: Sender<Bytes>,
    pub(crate) answer: tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>,
}

impl Upload {
    pub(crate) async fn start(address: SocketAddr, path: &str) -> Self {
        let path = path.to_owned();
        let mut connection = Connection::open(address).await;
        let (body, channel) = Channel::<Bytes>::new(4);
        let answer = tokio::spawn(async move { connection.send(Method::POST, &path, channel).await });
        Self { body, answer }
    }
}
