//! The ceiling: hyper on a current-thread runtime, and no guest behind it.

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::contenders::{CONTENT_TYPE_OF_HELLO, HELLO};

/// The argument that makes this program the server.
pub(crate) const COMMAND: &str = "bare-hyper";
/// The argument behind it that makes it speak TLS.
pub(crate) const TLS: &str = "tls";

pub(crate) fn serve(is_tls: bool) -> Result<()> {
    let tls = if is_tls { Some(TlsAcceptor::from(crate::tls::server()?)) } else { None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let scheme = if is_tls { "https" } else { "http" };
    runtime.block_on(connections(scheme, |stream| match tls.clone() {
        None => drop(tokio::spawn(connection(stream))),
        Some(tls) => drop(tokio::spawn(secure(stream, tls))),
    }))
}

/// Listens on a free port, which it prints, and hands on each connection.
pub(crate) async fn connections(scheme: &str, begin: impl Fn(TcpStream)) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("Serving HTTP on {scheme}://{}/", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        begin(stream);
    }
}

/// Serves a connection, over HTTP/2 if its client begins with that. Clients that go away are not of interest.
async fn connection(stream: TcpStream) {
    let mut first = [0; 3];
    let length = stream.peek(&mut first).await.unwrap_or_default();
    speak(stream, first[..length] == *b"PRI").await;
}

async fn secure(stream: TcpStream, tls: TlsAcceptor) {
    if let Ok(stream) = tls.accept(stream).await {
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        speak(stream, is_http2).await;
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, is_http2: bool) {
    let stream = TokioIo::new(stream);
    let _ = if is_http2 {
        http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service_fn(answer)).await
    } else {
        http1::Builder::new().serve_connection(stream, service_fn(answer)).await
    };
}

/// hyper adds `content-length` and `date`.
async fn answer(request: hyper::Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
    let body = match request.uri().path() {
        "/large" => large(request.uri().query()),
        // A collector that has taken all there is in a message.
        "/v1/traces" => {
            count(request.into_body()).await?;
            Bytes::new()
        }
        "/count" => count(request.into_body()).await?,
        _ => Bytes::from_static(HELLO.as_bytes()),
    };
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_OF_HELLO));
    Ok(response)
}

/// As long as `bytes=` says, as the guests that it is compared with do it: made anew for each answer.
fn large(query: Option<&str>) -> Bytes {
    let bytes = query.and_then(|query| query.strip_prefix("bytes=")).and_then(|bytes| bytes.parse().ok());
    vec![b'x'; bytes.unwrap_or(0)].into()
}

/// How long the body of a request is.
async fn count(mut body: Incoming) -> hyper::Result<Bytes> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes.to_string().into())
}
