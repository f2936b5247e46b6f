//! Responses out. The head goes first, then the body: in as few calls as the host permits where it is known in full,
//! chunk by chunk and no faster than the client takes it where it streams.

use std::future::poll_fn;
use std::pin::pin;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use wasip2::http::types::{Fields, HeaderError, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::{OutputStream, StreamError};

use crate::error::report;
use crate::reactor::Waiter;
use crate::response::{failure, forbids_body};
use crate::{Body, Error, Response, Result};

/// Sends the response to a request of this method. What goes wrong after the head is reported on stderr and cuts the
/// body short, visibly to the client.
pub(crate) async fn send(method: &Method, mut response: Response, out: ResponseOutparam) {
    set_content_length(&mut response);
    let outgoing = match head(&response) {
        Ok(outgoing) => outgoing,
        Err(error) => {
            // A response of our own, whose head is known to be good.
            response = failure("response refused", &format!("the host does not take its headers: {error:?}").into());
            set_content_length(&mut response);
            head(&response).expect("the host takes two plain headers")
        }
    };
    let head_only = method == Method::HEAD || forbids_body(response.status());
    if head_only && response.headers().contains_key(header::CONTENT_LENGTH) {
        // The length is that of a body which is not sent. Opened, the body would count as cut short.
        return ResponseOutparam::set(out, Ok(outgoing));
    }
    let body = outgoing.body().expect("the body is opened once");
    ResponseOutparam::set(out, Ok(outgoing));
    let source = if head_only { Body::empty() } else { response.into_body() };
    match source.known() {
        Ok(bytes) if bytes.is_empty() => finish(body, Ok(None)),
        Ok(bytes) => write_known(body, &bytes).await,
        Err(source) => write_stream(body, source).await,
    }
}

/// Says how long the body is, if that is known, the handler did not, and the status has a body. Announced trailers need
/// a body of unsaid length: HTTP/1.1 sends them after chunks only.
fn set_content_length(response: &mut Response) {
    if let Some(length) = response.body().size_hint().exact()
        && !forbids_body(response.status())
        && !response.headers().contains_key(header::TRAILER)
    {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

fn head(response: &Response) -> Result<OutgoingResponse, HeaderError> {
    let outgoing = OutgoingResponse::new(fields(response.headers())?);
    if response.status() != StatusCode::OK {
        outgoing.set_status_code(response.status().as_u16()).expect("the status is one of HTTP");
    }
    Ok(outgoing)
}

fn fields(headers: &HeaderMap) -> Result<Fields, HeaderError> {
    let entries: Vec<_> = headers.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())).collect();
    Fields::from_list(&entries)
}

async fn write_known(body: OutgoingBody, bytes: &[u8]) {
    let mut sink = Sink::new(&body);
    let written = sink.write(bytes).await;
    drop(sink);
    finish(body, written.map(|()| None));
}

async fn write_stream(body: OutgoingBody, source: Body) {
    let mut sink = Sink::new(&body);
    let sent = pump(&mut sink, source).await;
    drop(sink);
    finish(body, sent);
}

/// Moves the frames of the body to the host; its trailers are what is left to send.
async fn pump(sink: &mut Sink, source: Body) -> Result<Option<HeaderMap>, Broken> {
    let mut source = pin!(source);
    let mut trailers: Option<HeaderMap> = None;
    while let Some(frame) = poll_fn(|context| source.as_mut().poll_frame(context)).await {
        match frame.map_err(Broken::Source)?.into_data() {
            Ok(chunk) => sink.write(&chunk).await?,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(trailers)
}

/// Ends the body, or drops it unfinished, which tells the host that it is incomplete.
fn finish(body: OutgoingBody, sent: Result<Option<HeaderMap>, Broken>) {
    let result = match sent {
        Ok(trailers) => trailers
            .map(|trailers| fields(&trailers))
            .transpose()
            .map_err(|error| format!("trailers refused: {error:?}"))
            .and_then(|trailers| OutgoingBody::finish(body, trailers).map_err(|code| format!("{code:?}"))),
        // The client left. That is its right.
        Err(Broken::Gone) => Ok(()),
        Err(Broken::Source(error)) => Err(error.to_string()),
        Err(Broken::Sink(error)) => Err(error),
    };
    if let Err(error) = result {
        report("response body cut short", error);
    }
}

/// Why a body was not sent to its end.
enum Broken {
    /// Nobody reads it any more.
    Gone,
    /// Its own stream failed.
    Source(Error),
    /// The host did not take it.
    Sink(String),
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Closed => Self::Gone,
            StreamError::LastOperationFailed(error) => Self::Sink(error.to_debug_string()),
        }
    }
}

/// The host's end of a body. Fields drop in order: the waiter before its stream.
struct Sink {
    waiter: Option<Waiter>,
    stream: OutputStream,
}

impl Sink {
    fn new(body: &OutgoingBody) -> Self {
        Self { waiter: None, stream: body.write().expect("the stream is opened once") }
    }

    /// Writes all of it, waiting whenever the host permits no more.
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let permit = self.stream.check_write()?;
            if permit == 0 {
                let waiter = self.waiter.get_or_insert_with(|| Waiter::new(self.stream.subscribe()));
                poll_fn(|context| waiter.poll(context)).await;
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(permit).unwrap_or(usize::MAX)));
            self.stream.write(now)?;
            bytes = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mut response: Response, expected: Option<&str>) {
        set_content_length(&mut response);
        let length = response.headers().get(header::CONTENT_LENGTH).map(|value| value.to_str().expect("digits"));
        assert_eq!(length, expected);
    }

    fn with_status(status: u16, body: impl Into<Body>) -> Response {
        http::Response::builder().status(status).body(body.into()).expect("a valid head")
    }

    #[test]
    fn a_known_length_is_said_where_a_body_may_be() {
        check(with_status(200, "abc"), Some("3"));
        check(with_status(404, ()), Some("0"));
        check(with_status(204, ()), None);
        check(with_status(304, ()), None);
    }

    #[test]
    fn announced_trailers_keep_the_length_unsaid() {
        let response = http::Response::builder().header(header::TRAILER, "x-sum").body("abc".into());
        check(response.expect("a valid head"), None);
    }

    #[test]
    fn the_handler_s_own_length_stays() {
        let response = http::Response::builder().header(header::CONTENT_LENGTH, 9).body("".into());
        check(response.expect("a valid head"), Some("9"));
    }
}
