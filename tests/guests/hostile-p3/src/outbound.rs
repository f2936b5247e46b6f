//! Outbound requests by the client of wasi:http 0.3.

use futures_util::future::join_all;
use misdeeds::{Fetch, Outcome, Query, debug};
use wasip3::http::client;
use wasip3::http::types::{Fields, Method, Request, RequestOptions, Response, Scheme};
use wasip3::wit_future;

use crate::sending::body_of;

/// The answer of another server: its status, and below it its body.
pub(crate) async fn fetch(query: &Query) -> Outcome {
    read(send(&Fetch::from_query(query)).await?).await
}

/// Begins all of them before it waits for one, and holds what it got.
pub(crate) async fn fetch_many(query: &Query) -> String {
    let fetch = Fetch::from_query(query);
    misdeeds::summary(&join_all((0..query.number("n", 10)).map(|_| send(&fetch))).await)
}

pub(crate) async fn relay(query: &Query) -> Outcome {
    match Fetch::relay(query) {
        Some(next) => read(send(&next).await?).await,
        None => Ok("relayed".into()),
    }
}

async fn send(fetch: &Fetch) -> Result<Response, String> {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(Fields::new(), None, trailers, Some(options(fetch)?));
    request.set_method(&method(&fetch.method)).map_err(refused_by("set-method"))?;
    request.set_scheme(Some(&scheme(&fetch.url.scheme))).map_err(refused_by("set-scheme"))?;
    request.set_authority(Some(&fetch.url.authority)).map_err(refused_by("set-authority"))?;
    request.set_path_with_query(Some(&fetch.url.path_with_query)).map_err(refused_by("set-path-with-query"))?;
    client::send(request).await.map_err(debug)
}

fn options(fetch: &Fetch) -> Result<RequestOptions, String> {
    let options = RequestOptions::new();
    options.set_connect_timeout(fetch.connect_timeout).map_err(refused_by("set-connect-timeout"))?;
    options.set_first_byte_timeout(fetch.first_byte_timeout).map_err(refused_by("set-first-byte-timeout"))?;
    options.set_between_bytes_timeout(fetch.between_bytes_timeout).map_err(refused_by("set-between-bytes-timeout"))?;
    Ok(options)
}

/// The error of most setters is empty: only the setter's name says something.
fn refused_by<E: std::fmt::Debug>(setter: &str) -> impl Fn(E) -> String {
    move |error| format!("{error:?} from {setter}")
}

async fn read(response: Response) -> Outcome {
    let status = response.get_status_code();
    let (_, told) = wit_future::new(|| Ok(()));
    let (contents, trailers) = Response::consume_body(response, told);
    let mut bytes = Vec::new();
    body_of(contents, trailers, |piece| bytes.extend_from_slice(piece)).await?;
    Ok(format!("{status}\n{}", String::from_utf8_lossy(&bytes)))
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
