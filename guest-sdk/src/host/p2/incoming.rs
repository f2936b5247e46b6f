//! Requests and responses in. The head is fetched at once, each part with one call of the host; the body is not opened
//! before it is polled.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Frame, SizeHint};
use wasip2::http::types::{self, FutureTrailers, IncomingBody, IncomingRequest, IncomingResponse};
use wasip2::io::streams::{InputStream, StreamError};

use super::reactor::Waiter;
use crate::head::{self, content_length, header_map};
use crate::host::code;
use crate::{Body, Error, Request, Response, Result};

/// The largest chunk asked of the host; what comes is what has arrived.
const CHUNK_BYTES: u64 = 64 * 1024;

/// The request, or `None` if its head is not HTTP.
pub(super) fn request(incoming: IncomingRequest) -> Option<Request> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method(incoming.method())?;
    *request.headers_mut() = header_map(incoming.headers().entries())?;
    head::set_target(&mut request, incoming.authority(), incoming.path_with_query())?;
    let left = content_length(request.headers());
    *request.body_mut() = Body::incoming(Incoming { state: State::Unopened(Message::Request(incoming)), left });
    Some(request)
}

/// The response to a request of ours, or `None` if its head is not HTTP.
pub(super) fn response(incoming: IncomingResponse, head_only: bool) -> Option<Response> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = incoming.status().try_into().ok()?;
    *response.headers_mut() = header_map(incoming.headers().entries())?;
    let left = if head_only { Some(0) } else { content_length(response.headers()) };
    *response.body_mut() =
        Body::incoming(Incoming { state: State::Unopened(Message::Response(Box::new(incoming))), left });
    Some(response)
}

fn method(method: types::Method) -> Option<Method> {
    Some(match method {
        types::Method::Get => Method::GET,
        types::Method::Head => Method::HEAD,
        types::Method::Post => Method::POST,
        types::Method::Put => Method::PUT,
        types::Method::Delete => Method::DELETE,
        types::Method::Connect => Method::CONNECT,
        types::Method::Options => Method::OPTIONS,
        types::Method::Trace => Method::TRACE,
        types::Method::Patch => Method::PATCH,
        types::Method::Other(name) => Method::from_bytes(name.as_bytes()).ok()?,
    })
}

/// What has a body.
enum Message {
    Request(IncomingRequest),
    /// Behind a pointer, so that a component which fetches nothing imports nothing of responses: each import costs every
    /// fresh instance.
    Response(Box<dyn Consume>),
}

trait Consume: Send {
    fn consume(&self) -> Result<IncomingBody, ()>;
}

impl Consume for IncomingResponse {
    fn consume(&self) -> Result<IncomingBody, ()> {
        Self::consume(self)
    }
}

/// The body of what comes in, read as it is polled.
pub(crate) struct Incoming {
    state: State,
    /// Bytes still to come, where the head says how many.
    left: Option<u64>,
}

enum State {
    Unopened(Message),
    /// Behind a pointer, so that a component which reads no body imports nothing for it.
    Open(Box<dyn Read>),
    End,
}

impl Incoming {
    pub(crate) const fn is_end(&self) -> bool {
        matches!(self.state, State::End)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match (&self.state, self.left) {
            (State::End, _) => SizeHint::with_exact(0),
            (_, Some(left)) => SizeHint::with_exact(left),
            (_, None) => SizeHint::default(),
        }
    }

    pub(crate) fn poll_frame(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let frame = match &mut self.state {
            State::Unopened(message) => match open(message) {
                Ok(mut reading) => {
                    let frame = reading.poll_frame(context);
                    self.state = State::Open(Box::new(reading));
                    ready!(frame)
                }
                Err(error) => Some(Err(error)),
            },
            State::Open(reading) => ready!(reading.poll_frame(context)),
            State::End => None,
        };
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.left = self.left.map(|left| left.saturating_sub(length));
            }
            _ => self.state = State::End,
        }
        Poll::Ready(frame)
    }
}

trait Read: Send {
    /// Not called again after trailers, an error or the end.
    fn poll_frame(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>>;
}

/// An open body. Fields drop in order: a waiter before what it waits for, a stream before its body.
enum Reading {
    Data { waiter: Option<Waiter>, stream: InputStream, body: IncomingBody },
    Trailers { waiter: Option<Waiter>, trailers: FutureTrailers },
    End,
}

fn open(message: &Message) -> Result<Reading> {
    let body = match message {
        Message::Request(request) => request.consume(),
        Message::Response(response) => response.consume(),
    };
    let body = body.map_err(|()| "the body was taken already")?;
    let stream = body.stream().map_err(|()| "the body was opened already")?;
    Ok(Reading::Data { waiter: None, stream, body })
}

impl Read for Reading {
    fn poll_frame(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        loop {
            match self {
                Self::Data { waiter, stream, .. } => match ready!(poll_data(waiter, stream, context)) {
                    Ok(Some(chunk)) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                    Ok(None) => self.finish(),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                Self::Trailers { waiter, trailers } => {
                    let trailers = ready!(poll_trailers(waiter, trailers, context));
                    return Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose());
                }
                Self::End => return Poll::Ready(None),
            }
        }
    }
}

impl Reading {
    /// From the end of the data to the trailers.
    fn finish(&mut self) {
        if let Self::Data { waiter, stream, body } = std::mem::replace(self, Self::End) {
            drop(waiter);
            drop(stream);
            *self = Self::Trailers { waiter: None, trailers: IncomingBody::finish(body) };
        }
    }
}

/// The next chunk; `None` at the end of the data.
fn poll_data(waiter: &mut Option<Waiter>, stream: &InputStream, context: &Context<'_>) -> Poll<Result<Option<Bytes>>> {
    loop {
        match stream.read(CHUNK_BYTES) {
            Ok(chunk) if chunk.is_empty() => {
                ready!(waiter.get_or_insert_with(|| Waiter::new(stream.subscribe())).poll(context));
            }
            Ok(chunk) => return Poll::Ready(Ok(Some(chunk.into()))),
            Err(StreamError::Closed) => return Poll::Ready(Ok(None)),
            Err(StreamError::LastOperationFailed(error)) => {
                return Poll::Ready(Err(format!("reading the body: {}", error.to_debug_string()).into()));
            }
        }
    }
}

fn poll_trailers(
    waiter: &mut Option<Waiter>,
    trailers: &FutureTrailers,
    context: &Context<'_>,
) -> Poll<Result<Option<HeaderMap>>> {
    loop {
        let Some(result) = trailers.get() else {
            ready!(waiter.get_or_insert_with(|| Waiter::new(trailers.subscribe())).poll(context));
            continue;
        };
        return Poll::Ready(match result {
            Ok(Ok(None)) | Err(()) => Ok(None),
            Ok(Ok(Some(fields))) => {
                header_map(fields.entries()).map(Some).ok_or_else(|| Error::from("the trailers are not valid HTTP"))
            }
            Ok(Err(code)) => Err(format!("reading the trailers: {}", code::name(code)).into()),
        });
    }
}
