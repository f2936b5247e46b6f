//! Requests in. The head is fetched at once, each part with one call of the host; the body is not opened before it is
//! polled.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::{self, Authority, PathAndQuery, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body::{Frame, SizeHint};
use wasip2::http::types::{self, FutureTrailers, IncomingBody, IncomingRequest, Scheme};
use wasip2::io::streams::{InputStream, StreamError};

use crate::reactor::Waiter;
use crate::{Body, Error, Request, Result};

/// The largest chunk asked of the host; what comes is what has arrived.
const CHUNK_BYTES: u64 = 64 * 1024;

/// The request, or `None` if its head is not HTTP.
pub(crate) fn request(incoming: IncomingRequest) -> Option<Request> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method(incoming.method())?;
    *request.uri_mut() = uri(&incoming)?;
    *request.headers_mut() = header_map(incoming.headers().entries())?;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    *request.body_mut() = Body::incoming(Incoming { state: State::Unopened(incoming), left: length });
    Some(request)
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

/// The absolute URI where the host tells scheme and authority, as WASI 0.2 hosts do.
fn uri(incoming: &IncomingRequest) -> Option<Uri> {
    let mut parts = uri::Parts::default();
    if let Some(path) = incoming.path_with_query() {
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?);
    }
    if let Some(authority) = incoming.authority() {
        parts.authority = Some(Authority::from_maybe_shared(Bytes::from(authority)).ok()?);
    }
    // `Uri` has a scheme with authority and path, and only then.
    if parts.authority.is_some() && parts.path_and_query.is_some() {
        parts.scheme = Some(match incoming.scheme() {
            None | Some(Scheme::Http) => uri::Scheme::HTTP,
            Some(Scheme::Https) => uri::Scheme::HTTPS,
            Some(Scheme::Other(name)) => name.parse().ok()?,
        });
    }
    Uri::from_parts(parts).ok()
}

fn header_map(entries: Vec<(String, Vec<u8>)>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(entries.len());
    for (name, value) in entries {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?;
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

/// The body of a request, read as it is polled.
pub(crate) struct Incoming {
    state: State,
    /// Bytes still to come, where the request says how many.
    left: Option<u64>,
}

/// Fields drop in order: a waiter before what it waits for, a stream before its body.
enum State {
    Unopened(IncomingRequest),
    Data { waiter: Option<Waiter>, stream: InputStream, body: IncomingBody },
    Trailers { waiter: Option<Waiter>, trailers: FutureTrailers },
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
        loop {
            let step = match &mut self.state {
                State::Unopened(request) => open(request),
                State::Data { waiter, stream, .. } => ready!(poll_data(waiter, stream, context)),
                State::Trailers { waiter, trailers } => ready!(poll_trailers(waiter, trailers, context)),
                State::End => return Poll::Ready(None),
            };
            match step {
                Ok(Step::Chunk(chunk)) => {
                    self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
                Ok(Step::Opened(state)) => self.state = state,
                Ok(Step::Data) => self.finish(),
                Ok(Step::Trailers(trailers)) => {
                    self.state = State::End;
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Err(error) => {
                    self.state = State::End;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// From the end of the data to the trailers.
    fn finish(&mut self) {
        if let State::Data { waiter, stream, body } = std::mem::replace(&mut self.state, State::End) {
            drop(waiter);
            drop(stream);
            self.state = State::Trailers { waiter: None, trailers: IncomingBody::finish(body) };
        }
    }
}

/// What one look at the host brought.
enum Step {
    Opened(State),
    Chunk(Bytes),
    /// The end of the data.
    Data,
    Trailers(Option<HeaderMap>),
}

fn open(request: &IncomingRequest) -> Result<Step> {
    let body = request.consume().map_err(|()| "the request's body was taken already")?;
    let stream = body.stream().map_err(|()| "the request's body was opened already")?;
    Ok(Step::Opened(State::Data { waiter: None, stream, body }))
}

fn poll_data(waiter: &mut Option<Waiter>, stream: &InputStream, context: &Context<'_>) -> Poll<Result<Step>> {
    loop {
        match stream.read(CHUNK_BYTES) {
            Ok(chunk) if chunk.is_empty() => {
                ready!(waiter.get_or_insert_with(|| Waiter::new(stream.subscribe())).poll(context));
            }
            Ok(chunk) => return Poll::Ready(Ok(Step::Chunk(chunk.into()))),
            Err(StreamError::Closed) => return Poll::Ready(Ok(Step::Data)),
            Err(StreamError::LastOperationFailed(error)) => {
                return Poll::Ready(Err(format!("reading the request's body: {}", error.to_debug_string()).into()));
            }
        }
    }
}

fn poll_trailers(waiter: &mut Option<Waiter>, trailers: &FutureTrailers, context: &Context<'_>) -> Poll<Result<Step>> {
    loop {
        let Some(result) = trailers.get() else {
            ready!(waiter.get_or_insert_with(|| Waiter::new(trailers.subscribe())).poll(context));
            continue;
        };
        return Poll::Ready(match result {
            Ok(Ok(None)) | Err(()) => Ok(Step::Trailers(None)),
            Ok(Ok(Some(fields))) => header_map(fields.entries())
                .map(|trailers| Step::Trailers(Some(trailers)))
                .ok_or_else(|| Error::from("the request's trailers are not HTTP")),
            Ok(Err(code)) => Err(format!("reading the request's trailers: {code:?}").into()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_order_and_repetition() {
        let entries = [("accept", "a"), ("x-one", "1"), ("accept", "b")];
        let headers = header_map(entries.map(|(name, value)| (name.into(), value.into())).into()).expect("HTTP");
        assert_eq!(headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers["x-one"], "1");
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(header_map(vec![("a b".into(), "1".into())]).is_none());
        assert!(header_map(vec![("a".into(), "1\n".into())]).is_none());
        assert!(method(types::Method::Other("A B".into())).is_none());
        assert_eq!(method(types::Method::Other("PURGE".into())).expect("a method"), "PURGE");
    }
}
