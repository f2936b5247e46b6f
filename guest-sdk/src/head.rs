//! Heads of requests and responses, between the parts that hosts tell and the types of the [`http`] crate.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Body as _;

use crate::response::forbids_body;
use crate::{Body, Request, Response};

/// Gives the request the target that the host tells in parts, in the shape of hyper's and axum's servers, for which handlers
/// and middleware are written: the URI is path and query, and the authority is the field `host`. `None` if they are not HTTP.
pub(crate) fn set_target(request: &mut Request, authority: Option<String>, path: Option<String>) -> Option<()> {
    let authority = authority.map(Bytes::from);
    *request.uri_mut() = match (path, &authority) {
        (Some(path), _) => PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?.into(),
        // Only CONNECT has no path.
        (None, Some(authority)) => Authority::from_maybe_shared(authority.clone()).ok()?.into(),
        (None, None) => Uri::default(),
    };
    if let Some(authority) = authority
        && !request.headers().contains_key(header::HOST)
    {
        let authority = HeaderValue::from_maybe_shared(authority).ok()?;
        request.headers_mut().try_append(header::HOST, authority).ok()?;
    }
    Some(())
}

/// The request as it comes out of a server, where a test wrote it as a client would: with a whole URL, without its length.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn as_served(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    let named = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let host = named.or_else(|| parts.headers.remove(header::HOST));
    parts.headers.insert(header::HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
    parts.uri = parts.uri.path_and_query().cloned().map_or(parts.uri, Uri::from);
    finish_request(&mut parts.headers, &body);
    Request::from_parts(parts, body)
}

/// Fields as the host tells them; `None` if they are not HTTP's.
pub(crate) fn header_map(entries: Vec<(String, Vec<u8>)>) -> Option<HeaderMap> {
    // One more comes from the host, and often one from the handler.
    let mut headers = HeaderMap::with_capacity(entries.len() + 2);
    for (name, value) in entries {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?;
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

/// Fields as the host takes them.
pub(crate) fn entries(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().into(), value.as_bytes().into())).collect()
}

/// How long the body is that follows this head, if it says so.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Says how long the response's body is, if that is known, the handler did not, and the status has a body.
pub(crate) fn finish_response(response: &mut Response) {
    // It says whom a request is for. Hosts refuse it here, where it comes from copying the request's headers.
    response.headers_mut().remove(header::HOST);
    if !forbids_body(response.status()) {
        let length = response.body().size_hint().exact();
        set_content_length(response.headers_mut(), length);
    } else if response.status() != StatusCode::NOT_MODIFIED {
        // RFC 9110, 8.6. Axum says how long each body is, also that which is none.
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
}

/// Says how long the request's body is, if that is known and there is one.
pub(crate) fn finish_request(headers: &mut HeaderMap, body: &Body) {
    set_content_length(headers, body.size_hint().exact().filter(|&length| length > 0));
}

/// Announced trailers need a body of unsaid length: HTTP/1.1 sends them after chunks only.
fn set_content_length(headers: &mut HeaderMap, length: Option<u64>) {
    if let Some(length) = length
        && !headers.contains_key(header::TRAILER)
    {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mut response: Response, expected: Option<&str>) {
        finish_response(&mut response);
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

    #[test]
    fn no_content_has_no_length() {
        let said = |status| http::Response::builder().status(status).header(header::CONTENT_LENGTH, 0).body("".into());
        check(said(204).expect("a valid head"), None);
        // That of the response which was not modified.
        check(said(304).expect("a valid head"), Some("0"));
    }

    #[test]
    fn a_request_without_a_body_says_nothing_of_its_length() {
        let mut headers = HeaderMap::new();
        finish_request(&mut headers, &Body::empty());
        assert!(headers.is_empty());
        finish_request(&mut headers, &Body::from("abc"));
        assert_eq!(content_length(&headers), Some(3));
    }

    #[test]
    fn headers_keep_order_and_repetition() {
        let entries = [("accept", "a"), ("x-one", "1"), ("accept", "b")];
        let headers = header_map(entries.map(|(name, value)| (name.into(), value.into())).into()).expect("HTTP");
        assert_eq!(headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers["x-one"], "1");
        assert_eq!(header_map(super::entries(&headers)), Some(headers));
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(header_map(vec![("a b".into(), "1".into())]).is_none());
        assert!(header_map(vec![("a".into(), "1\n".into())]).is_none());
        let told = |authority: &str, path: &str| {
            set_target(&mut Request::default(), Some(authority.into()), Some(path.into()))
        };
        assert!(told("h", "/a b").is_none());
        assert!(told("h\n", "/").is_none());
    }

    #[track_caller]
    fn check_target(request: &Request, uri: &str, host: Option<&str>) {
        let found = request.headers().get(header::HOST).map(|host| host.to_str().expect("text"));
        assert_eq!((request.uri().to_string().as_str(), found), (uri, host));
    }

    #[test]
    fn the_uri_is_path_and_query_and_the_host_a_header() {
        let told = |authority: Option<&str>, path: Option<&str>| {
            let mut request = Request::default();
            set_target(&mut request, authority.map(Into::into), path.map(Into::into)).expect("HTTP");
            request
        };
        check_target(&told(Some("h:1"), Some("/a?b")), "/a?b", Some("h:1"));
        check_target(&told(None, Some("/a?b")), "/a?b", None);
        check_target(&told(Some("h:1"), Some("*")), "*", Some("h:1"));
        check_target(&told(Some("h:1"), None), "h:1", Some("h:1"));
        check_target(&told(None, None), "/", None);
    }

    #[test]
    fn requests_of_tests_have_the_same_shape() {
        let written = |request: http::request::Builder| as_served(request.body("abc".into()).expect("a valid head"));
        check_target(&written(Request::get("http://h:1/a?b")), "/a?b", Some("h:1"));
        check_target(&written(Request::get("http://h:1")), "/", Some("h:1"));
        check_target(&written(Request::get("/a").header("host", "h")), "/a", Some("h"));
        check_target(&written(Request::connect("h:1")), "h:1", Some("h:1"));
        check_target(&as_served(Request::default()), "/", Some("localhost"));
        assert_eq!(content_length(written(Request::post("/")).headers()), Some(3));
    }
}
