//! A server that guests send requests to: `/head` answers with what it was sent, `/moved` leads there, `/missing` is 404, `/echo` with the
//! body and its trailers, `/silent` begins a body and goes no further. Other paths are never answered.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Starts it; it lives as long as the test's runtime.
pub async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it accepts");
            // A client that left is no matter.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    address
}

/// A port that nobody listens to.
pub async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound")
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let whole = |text: String| Response::new(Full::from(text).map_err(|never| match never {}).boxed());
    Ok(match request.uri().path() {
        "/head" => {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text += &format!("{name}: {}\n", value.as_bytes().escape_ascii());
            }
            let mut response = whole(text);
            response.headers_mut().insert("x-upstream", "yes".parse().expect("a value"));
            response
        }
        "/moved" => {
            let mut response = whole("moved".into());
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "head?moved".parse().expect("a value"));
            response
        }
        "/missing" => {
            let mut response = whole("nothing here".into());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
        "/echo" => {
            let trailer = request.headers().get("trailer").cloned();
            let mut response = Response::new(request.into_body().boxed());
            if let Some(trailer) = trailer {
                response.headers_mut().insert("trailer", trailer);
            }
            response
        }
        // A head, a piece, and then nothing.
        "/silent" => {
            let (mut sender, body) = Channel::new(1);
            tokio::spawn(async move {
                let _ = sender.send_data(Bytes::from_static(b"begun")).await;
                pending::<()>().await;
            });
            Response::new(body.map_err(|never: Infallible| match never {}).boxed())
        }
        _ => pending().await,
    })
}
