//! Answers that the server gives itself.

use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::body::Body;
use super::exchange::Exchange;
use super::outcome::Verdict;
use super::server::Server;
use super::upload::UploadProgress;
use crate::worker::requests::{Asked, REQUEST_ID, log_of};

pub(super) type Answer = Response<Body>;

/// The worker is full: the client is to come again. Which may be many, so that not each of them is told in the log.
pub(super) fn busy(exchange: &Exchange, server: &Server) -> Answer {
    exchange.judge(Verdict::Rejected);
    let why = "rejected: the worker is busy; see --max-in-flight and --max-worker-memory";
    match server.may_say_busy() {
        true => log_of!(warn, exchange, "{why}"),
        false => log_of!(debug, exchange, "{why}"),
    }
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "the server is busy", exchange);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// The rest of the body is not read.
pub(super) fn too_large(exchange: &Exchange) -> Answer {
    exchange.judge(Verdict::Refused);
    log_of!(info, exchange, "refused: its body is larger than {} bytes; see --max-body", exchange.max_body);
    closing(plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", exchange))
}

/// The head of the answer was not there in time. The guest is dropped, which cancels it.
pub(super) fn late(exchange: &Exchange) -> Answer {
    exchange.judge(Verdict::Late);
    let limit = exchange.limit;
    if exchange.upload_is(UploadProgress::Awaited) {
        let why = "the guest is waiting for the client to send the rest of the request's body";
        log_of!(warn, exchange, "no answer within {limit:?}: {why}; see --request-timeout");
        return closing(plain(StatusCode::REQUEST_TIMEOUT, "the request took too long", exchange));
    }
    log_of!(warn, exchange, "no answer within {limit:?}; see --request-timeout");
    plain(StatusCode::GATEWAY_TIMEOUT, "the answer took too long", exchange)
}

pub(super) fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

pub(super) fn internal_error(of: &Asked) -> Answer {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error", of)
}

/// An answer of our own. All that it tells of what happened inside is what the request is called.
pub(super) fn plain(status: StatusCode, text: &str, of: &Asked) -> Answer {
    let name = of.name();
    let mut answer = Response::new(Body::text(format!("{text} (request {name})\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Ok(name) = HeaderValue::try_from(name) {
        answer.headers_mut().insert(REQUEST_ID, name);
    }
    answer
}
