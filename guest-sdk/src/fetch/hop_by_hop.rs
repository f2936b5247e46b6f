//! Removes the fields of a head that must not be forwarded, so that handlers can pass requests and responses on unchanged.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

/// What is always of one connection.
static ALWAYS: [HeaderName; 10] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Takes out what concerns one connection only (RFC 9110, 7.6.1), and the host, which the URI names: so what came in can be
/// passed on as it is, requests and responses. Whoever asks for trailers gets them, so that is asked for again.
pub(super) fn hop_by_hop(headers: &mut HeaderMap) {
    // Of most heads one field, or none. To look at all names takes less than to look for each of these.
    let found: Vec<HeaderName> = headers.keys().filter(|name| ALWAYS.contains(name)).cloned().collect();
    if found.is_empty() {
        return;
    }
    let asks = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| value.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    };
    let has = |name| found.contains(&name);
    let wants_trailers = has(header::TE) && headers.get_all(header::TE).iter().any(asks);
    let connection = has(header::CONNECTION).then(|| headers.get_all(header::CONNECTION));
    let named: Vec<HeaderName> = connection
        .iter()
        .flatten()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&found) {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    #[test]
    fn a_request_that_came_in_can_go_on() {
        let request = Request::get("http://h/").header("connection", "close, te, x-hop").header("x-hop", "1");
        let mut request =
            request.header("host", "a").header("te", "gzip, Trailers").header("x-end", "1").body(()).unwrap();
        hop_by_hop(request.headers_mut());
        assert_eq!(request.headers().len(), 2);
        assert_eq!(
            (&request.headers()["x-end"], &request.headers()["te"]),
            (&"1".parse().unwrap(), &"trailers".parse().unwrap())
        );
    }
}
