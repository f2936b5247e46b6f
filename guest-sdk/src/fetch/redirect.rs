//! Where a redirect leads, and with what (RFC 9110, section 15.4; the Fetch standard, section 4.4).

use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE, COOKIE,
    HeaderName, LOCATION, PROXY_AUTHORIZATION,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Uri};
use iri_string::types::{UriReferenceStr, UriStr};

/// What is told to one server and not to another.
const OF_ORIGIN: [HeaderName; 3] = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION];
/// What is said of a body.
const OF_BODY: [HeaderName; 5] = [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE];

/// What becomes of the request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextBody {
    Same,
    /// The next request is a GET.
    None,
}

/// What [`redirect`] is.
pub(super) type Redirect = fn(&mut Parts, StatusCode, &HeaderMap) -> Option<NextBody>;

/// Changes a request to the one that this answer redirects to; `None` if it redirects nowhere.
pub(super) fn redirect(request: &mut Parts, status: StatusCode, headers: &HeaderMap) -> Option<NextBody> {
    let body = match (status.as_u16(), &request.method) {
        (301 | 302, &Method::POST) => NextBody::None,
        (303, method) if method != Method::GET && method != Method::HEAD => NextBody::None,
        (301 | 302 | 303 | 307 | 308, _) => NextBody::Same,
        _ => return None,
    };
    let uri = resolve(&request.uri, headers.get(LOCATION)?.to_str().ok()?)?;
    if body == NextBody::None {
        request.method = Method::GET;
        remove(&mut request.headers, &OF_BODY);
    }
    if origin(&uri) != origin(&request.uri) {
        remove(&mut request.headers, &OF_ORIGIN);
    }
    request.uri = uri;
    Some(body)
}

fn remove(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
}

/// A location, which may be relative to what was asked for (RFC 3986, section 5).
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let base = base.to_string();
    let location = UriReferenceStr::new(location).ok()?;
    let mut uri = location.resolve_against(UriStr::new(&base).ok()?.to_absolute()).to_string();
    if let Some(fragment) = uri.find('#') {
        uri.truncate(fragment);
    }
    let uri: Uri = uri.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (uri.scheme_str(), uri.host().map(str::to_ascii_lowercase), Some(uri.port_u16().unwrap_or(usual)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirected(method: Method, status: u16, location: &str) -> Option<(String, Vec<String>)> {
        let request = http::Request::builder().method(method).uri("http://a.test/x/y?z");
        let request =
            request.header("authorization", "1").header("content-type", "2").header("x-own", "3").body(()).unwrap();
        let (mut request, ()) = request.into_parts();
        let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
        let body = redirect(&mut request, status.try_into().unwrap(), &headers)?;
        let mut names: Vec<String> = request.headers.keys().map(ToString::to_string).collect();
        names.sort();
        Some((format!("{} {} {body:?}", request.method, request.uri), names))
    }

    #[track_caller]
    fn check(method: Method, status: u16, location: &str, expected: &str, headers: &[&str]) {
        let headers = headers.iter().map(ToString::to_string).collect();
        assert_eq!(redirected(method, status, location), Some((expected.to_owned(), headers)));
    }

    #[test]
    fn a_redirect_leads_where_its_location_says() {
        let all = ["authorization", "content-type", "x-own"];
        for (location, expected) in [
            ("/p?q", "GET http://a.test/p?q Same"),
            ("p", "GET http://a.test/x/p Same"),
            ("../p#f", "GET http://a.test/p Same"),
            ("?q", "GET http://a.test/x/y?q Same"),
            ("http://A.test:80/p", "GET http://A.test:80/p Same"),
        ] {
            check(Method::GET, 302, location, expected, &all);
        }
        let other = ["content-type", "x-own"];
        for (location, expected) in [
            ("//b.test/p", "GET http://b.test/p Same"),
            ("https://a.test/", "GET https://a.test/ Same"),
            ("http://a.test:81/", "GET http://a.test:81/ Same"),
        ] {
            check(Method::GET, 301, location, expected, &other);
        }
        for location in ["ftp://a.test/", "javascript:1", "http://a b/", ""] {
            let nowhere = redirected(Method::GET, 302, location);
            assert!(nowhere.is_none() || location.is_empty(), "{location}: {nowhere:?}");
        }
        assert_eq!(redirected(Method::GET, 304, "/p"), None);
        assert_eq!(redirected(Method::GET, 200, "/p"), None);
    }

    #[test]
    fn what_is_sent_on_depends_on_the_status() {
        let (same, no_body) = (["authorization", "content-type", "x-own"], ["authorization", "x-own"]);
        check(Method::POST, 301, "/p", "GET http://a.test/p None", &no_body);
        check(Method::POST, 302, "/p", "GET http://a.test/p None", &no_body);
        check(Method::PUT, 302, "/p", "PUT http://a.test/p Same", &same);
        check(Method::PUT, 303, "/p", "GET http://a.test/p None", &no_body);
        check(Method::HEAD, 303, "/p", "HEAD http://a.test/p Same", &same);
        check(Method::POST, 307, "/p", "POST http://a.test/p Same", &same);
        check(Method::POST, 308, "/p", "POST http://a.test/p Same", &same);
    }
}
