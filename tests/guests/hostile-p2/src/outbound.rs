//! Outbound requests by wasi:http/outgoing-handler.

use misdeeds::{Fetch, Outcome, Query, debug};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, FutureIncomingResponse, IncomingResponse, Method, OutgoingRequest, RequestOptions, Scheme,
};

use crate::sending::body_of;

/// The answer of another server: its status, and below it its body.
pub(crate) fn fetch(query: &Query) -> Outcome {
    read(finish(begin(&Fetch::from_query(query))?)?)
}

/// Begins all of them before it waits for one, and holds what it got.
pub(crate) fn fetch_many(query: &Query) -> String {
    let fetch = Fetch::from_query(query);
    let begun: Vec<_> = (0..query.number("n", 10)).map(|_| begin(&fetch)).collect();
    let answers: Vec<_> = begun.into_iter().map(|pending| finish(pending?)).collect();
    misdeeds::summary(&answers)
}

pub(crate) fn relay(query: &Query) -> Outcome {
    match Fetch::relay(query) {
        Some(next) => read(finish(begin(&next)?)?),
        None => Ok("relayed".into()),
    }
}

fn begin(fetch: &Fetch) -> Result<FutureIncomingResponse, String> {
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&method(&fetch.method)).map_err(refused_by("set-method"))?;
    request.set_scheme(Some(&scheme(&fetch.url.scheme))).map_err(refused_by("set-scheme"))?;
    request.set_authority(Some(&fetch.url.authority)).map_err(refused_by("set-authority"))?;
    request.set_path_with_query(Some(&fetch.url.path_with_query)).map_err(refused_by("set-path-with-query"))?;
    outgoing_handler::handle(request, Some(options(fetch)?)).map_err(debug)
}

fn options(fetch: &Fetch) -> Result<RequestOptions, String> {
    let options = RequestOptions::new();
    options.set_connect_timeout(fetch.connect_timeout).map_err(refused_by("set-connect-timeout"))?;
    options.set_first_byte_timeout(fetch.first_byte_timeout).map_err(refused_by("set-first-byte-timeout"))?;
    options.set_between_bytes_timeout(fetch.between_bytes_timeout).map_err(refused_by("set-between-bytes-timeout"))?;
    Ok(options)
}

/// The error of a setter is empty: only its name says something.
fn refused_by(setter: &str) -> impl Fn(()) -> String {
    move |error| format!("{error:?} from {setter}")
}

fn finish(pending: FutureIncomingResponse) -> Result<IncomingResponse, String> {
    pending.subscribe().block();
    let once = pending.get().expect("it is ready");
    once.expect("it is asked once").map_err(debug)
}

fn read(response: IncomingResponse) -> Outcome {
    let body = response.consume().expect("the body is taken once");
    let mut bytes = Vec::new();
    body_of(&body, |piece| bytes.extend_from_slice(piece))?;
    Ok(format!("{}\n{}", response.status(), String::from_utf8_lossy(&bytes)))
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        other => Method::Other(other.into()),
    }
}

fn scheme(name: &str) -> Scheme {
    match name {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    }
}
