//! Heads of requests and responses, between the parts that hosts tell and the types of the [`http`] crate.

use bytes::Bytes;
use http::uri::{self, Authority, PathAndQuery, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Body as _;

use crate::response::forbids_body;
use crate::{Body, Response};

/// The absolute URI where the host tells scheme and authority, as hosts of WASI do; `None` if it is not HTTP's.
pub(crate) fn uri(scheme: Option<uri::Scheme>, authority: Option<String>, path: Option<String>) -> Option<Uri> {
    let mut parts = uri::Parts::default();
    if let Some(path) = path {
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?);
    }
    if let Some(authority) = authority {
        parts.authority = Some(Authority::from_maybe_shared(Bytes::from(authority)).ok()?);
    }
    // `Uri` has a scheme with authority and path, and only then.
    if parts.authority.is_some() && parts.path_and_query.is_some() {
        parts.scheme = Some(scheme.unwrap_or(uri::Scheme::HTTP));
    }
    Uri::from_parts(parts).ok()
}

/// Fields as the host tells them; `None` if they are not HTTP's.
pub(crate) fn header_map(entries: Vec<(String, Vec<u8>)>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(entries.len());
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
        assert!(uri(None, Some("a b".into()), Some("/".into())).is_none());
    }

    #[test]
    fn a_uri_is_absolute_where_the_host_tells_enough() {
        let told = |authority: Option<&str>| uri(None, authority.map(Into::into), Some("/a?b".into()));
        assert_eq!(told(Some("h:1")).expect("HTTP"), "http://h:1/a?b");
        assert_eq!(told(None).expect("HTTP"), "/a?b");
    }
}
