//! Which web pages may open a WebSocket. Browsers say with `origin` which site a page is of (RFC 6454), and do not ask
//! beforehand, as they do for other requests to a foreign site.

use http::uri::{Authority, Scheme, Uri};

use crate::client;

/// The site that a request comes from, and those that may ask.
pub(super) struct Origins {
    /// `None` if the client is not a browser.
    of_page: Option<String>,
    /// Whom the client asked.
    host: Option<Authority>,
    allowed: Allowed,
}

enum Allowed {
    These(Vec<String>),
    Any,
}

impl Origins {
    pub(super) fn of<B>(request: &http::Request<B>) -> Self {
        let of_page = request.headers().get("origin").map(|origin| String::from_utf8_lossy(origin.as_bytes()).into());
        Self { of_page, host: client(request).host, allowed: Allowed::These(Vec::new()) }
    }

    pub(super) fn allow(&mut self, origin: String) {
        if let Allowed::These(origins) = &mut self.allowed {
            origins.push(origin);
        }
    }

    pub(super) fn allow_any(&mut self) {
        self.allowed = Allowed::Any;
    }

    /// Fails with the origin that may not ask.
    pub(super) fn check(self) -> Result<(), String> {
        let (Some(page), Allowed::These(others)) = (self.of_page, self.allowed) else { return Ok(()) };
        let Some((scheme, place)) = parts(&page) else { return Err(page) };
        let is_own = self.host.is_some_and(|host| at_port(&scheme, &host) == place);
        let is_other =
            others.iter().filter_map(|other| parts(other)).any(|other| other == (scheme.clone(), place.clone()));
        if is_own || is_other { Ok(()) } else { Err(page) }
    }
}

/// Host and port.
type Place = (String, Option<u16>);

/// `None` for what is not an origin, such as the `null` of a page from a file.
fn parts(origin: &str) -> Option<(Scheme, Place)> {
    let uri = origin.parse::<Uri>().ok()?;
    let scheme = uri.scheme()?.clone();
    let place = at_port(&scheme, uri.authority()?);
    Some((scheme, place))
}

/// With the port that the scheme has by default, which may be written or not.
fn at_port(scheme: &Scheme, authority: &Authority) -> Place {
    let usual = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    (authority.host().to_ascii_lowercase(), authority.port_u16().or(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, origin: &str, allowed: &[&str], expected: bool) {
        let request =
            http::Request::get("/").header("host", host).header("origin", origin).body(()).expect("a request");
        let mut origins = Origins::of(&request);
        allowed.iter().for_each(|&other| origins.allow(other.into()));
        assert_eq!(origins.check().is_ok(), expected, "{origin} at {host}");
    }

    #[test]
    fn pages_of_the_host_itself_may_connect() {
        check("example.com", "https://example.com", &[], true);
        check("Example.com", "http://example.COM", &[], true);
        check("example.com:443", "https://example.com", &[], true);
        check("example.com", "http://example.com:80", &[], true);
        check("localhost:8080", "http://localhost:8080", &[], true);
        check("[::1]:8080", "http://[::1]:8080", &[], true);
    }

    #[test]
    fn pages_of_others_may_not() {
        check("example.com", "https://evil.example", &[], false);
        check("example.com", "https://example.com.evil.example", &[], false);
        check("example.com", "https://example.com:8443", &[], false);
        check("example.com", "https://sub.example.com", &[], false);
        check("localhost:8080", "http://localhost:8081", &[], false);
        check("example.com", "null", &[], false);
        check("null", "null", &["null"], false);
        check("example.com", "", &[], false);
    }

    #[test]
    fn others_may_be_allowed() {
        let others = ["https://one.example", "http://localhost:3000"];
        check("example.com", "https://one.example", &others, true);
        check("example.com", "http://localhost:3000", &others, true);
        check("example.com", "http://one.example", &others, false);
        check("example.com", "http://localhost:3001", &others, false);
        check("example.com", "https://example.com", &others, true);
    }

    #[test]
    fn clients_that_are_not_browsers_have_no_origin() {
        assert!(Origins::of(&http::Request::new(())).check().is_ok());
    }

    /// The proxy asks for another host than its client does.
    #[test]
    fn behind_a_proxy_the_host_is_the_one_that_the_client_asked_for() {
        let request = http::Request::get("/").header("host", "10.0.0.1").header("x-forwarded-host", "example.com");
        let request = request.header("origin", "https://example.com").body(()).expect("a request");
        assert!(Origins::of(&request).check().is_ok());
    }
}
