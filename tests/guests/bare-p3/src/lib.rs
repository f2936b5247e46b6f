//! A guest of WASI 0.3 on the bare bindings: the plain answer, a stream in both directions, and both ways to trap.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use wasip3::exports::http::handler::Guest;
use wasip3::http::types;
use wasip3::http::types::ErrorCode;
use wasip3::http_compat::{IncomingRequestBody, http_from_wasi_request, http_into_wasi_response};

struct Component;

impl Guest for Component {
    async fn handle(request: types::Request) -> Result<types::Response, ErrorCode> {
        let request = http_from_wasi_request(request)?;
        http_into_wasi_response(answer(request))
    }
}

wasip3::http::service::export!(Component);

fn answer(request: Request<IncomingRequestBody>) -> Response<Answer> {
    match (request.method(), request.uri().path()) {
        (_, "/") => plain(StatusCode::OK, "Hello from WASI 0.3!\n"),
        (&Method::POST, "/echo") => Response::new(Answer::Echo(request.into_body())),
        (_, "/trap") => panic!("asked to trap"),
        (_, "/trap-after-head") => Response::new(Answer::Trap { sent: false, told: request.into_body() }),
        _ => plain(StatusCode::NOT_FOUND, "404 Not Found\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Answer> {
    Response::builder()
        .status(status)
        .header("content-type", "text/plain; charset=utf-8")
        .header("content-length", text.len())
        .body(Answer::Text(Bytes::from_static(text.as_bytes())))
        .expect("two plain headers")
}

/// What a response's body is made of.
enum Answer {
    /// What is left of it.
    Text(Bytes),
    Echo(IncomingRequestBody),
    /// One chunk, and a panic as soon as the request's body goes on or ends.
    Trap {
        sent: bool,
        told: IncomingRequestBody,
    },
}

impl Body for Answer {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        match &mut *self {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Echo(body) => Pin::new(body).poll_frame(context),
            Self::Trap { sent: true, told } => {
                ready!(Pin::new(told).poll_frame(context));
                panic!("asked to trap after the head")
            }
            Self::Trap { sent, .. } => {
                *sent = true;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"tick\n")))))
            }
        }
    }
}
