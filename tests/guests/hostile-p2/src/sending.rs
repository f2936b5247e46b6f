//! Moving bodies over the 0.2 interface.

use misdeeds::{Answer, debug};
use wasip2::http::types::{Fields, IncomingBody, OutgoingBody, OutgoingResponse, ResponseOutparam, http_error_code};
use wasip2::io::streams::{OutputStream, StreamError};

/// What is read at once.
const PIECE: u64 = 65_536;

/// Sends `answer`, or what the interface says against its head.
pub(crate) fn send(out: ResponseOutparam, answer: Answer) {
    let (response, text) = match head(&answer) {
        Ok(response) => (response, answer.body),
        Err(error) => {
            let refused = Answer::of(Err(error));
            (head(&refused).expect("a plain head"), refused.body)
        }
    };
    let body = response.body().expect("the body is opened once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the stream is opened once");
    let written = write(&stream, &text);
    drop(stream);
    if written.is_ok() {
        finish(body, None);
    }
}

fn head(answer: &Answer) -> Result<OutgoingResponse, String> {
    let response = OutgoingResponse::new(Fields::from_list(&answer.fields).map_err(debug)?);
    response.set_status_code(answer.status).map_err(debug)?;
    Ok(response)
}

/// Sends the head of an answer without a length.
pub(crate) fn start(out: ResponseOutparam) -> OutgoingBody {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("the body is opened once");
    ResponseOutparam::set(out, Ok(response));
    body
}

/// Writes all of `bytes` as fast as the other side takes them, and flushes.
pub(crate) fn write(stream: &OutputStream, mut bytes: &[u8]) -> Result<(), StreamError> {
    let pollable = stream.subscribe();
    while !bytes.is_empty() {
        pollable.block();
        let permit = bytes.len().min(usize::try_from(stream.check_write()?).unwrap_or(usize::MAX));
        let (now, later) = bytes.split_at(permit);
        stream.write(now)?;
        bytes = later;
    }
    stream.blocking_flush()
}

/// The end of a body. What the interface says against its length comes too late for the client.
pub(crate) fn finish(body: OutgoingBody, trailers: Option<Fields>) {
    let _ = OutgoingBody::finish(body, trailers);
}

/// What comes behind a body that was read to its end.
pub(crate) fn trailers_of(body: IncomingBody) -> Result<Option<Fields>, String> {
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    trailers.get().expect("they are there").expect("they are taken once").map_err(debug)
}

/// Reads a body to its end.
pub(crate) fn body_of(body: &IncomingBody, mut take: impl FnMut(&[u8])) -> Result<(), String> {
    let stream = body.stream().expect("the stream is opened once");
    loop {
        match stream.blocking_read(PIECE) {
            Ok(piece) => take(&piece),
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(http_error_code(&error).map_or_else(|| error.to_debug_string(), debug));
            }
        }
    }
}
