//! Who sent a request, as the server knows it.
//!
//! A server of wasmcluster removes what clients say of themselves in these header fields, and sets them by what it knows: by
//! the connection, or by what a proxy says that it was told to trust (`--trust-proxy`). Another host may pass on what
//! clients send.

use std::net::IpAddr;

use http::uri::{Authority, Scheme};
use http::{HeaderMap, Request};

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address, which is not that of a proxy on the way; `None` over a Unix socket, or if the host does not say.
    pub address: Option<IpAddr>,
    /// What it speaks: [`Scheme::HTTP`], or [`Scheme::HTTPS`] with this server or with the proxy in front.
    pub scheme: Scheme,
    /// Whom it asked, by name and port, before a proxy may have changed that.
    pub host: Option<Authority>,
    /// The certificate that it has proven to have, if clients are asked for one (`--tls-client-ca`).
    pub certificate: Option<Certificate>,
}

/// The certificate of a client that the server has verified. All of it is in the header `client-cert` (RFC 9440).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject as RFC 4514 writes it: `CN=till 7,O=Shop`.
    pub subject: String,
    /// The SHA-256 of its DER, as 64 hexadecimal digits.
    pub sha256: String,
}

/// Who sent `request`.
///
/// ```
/// use wasmcluster_guest::{Request, client, testing};
///
/// async fn handle(request: Request) -> String {
///     match client(&request).address {
///         Some(address) => format!("you are {address}\n"),
///         None => "who are you?\n".into(),
///     }
/// }
///
/// let request = Request::get("/").header("x-real-ip", "192.0.2.1").body("".into()).unwrap();
/// assert_eq!(testing::call(handle, request).text(), "you are 192.0.2.1\n");
/// ```
pub fn client<B>(request: &Request<B>) -> Client {
    Client::of(request.headers())
}

impl Client {
    /// The client that these fields of a request's head tell of.
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name)?.to_str().ok();
        let scheme = match text("x-forwarded-proto") {
            Some("https") => Scheme::HTTPS,
            _ => Scheme::HTTP,
        };
        let host = text("x-forwarded-host").or_else(|| text("host"));
        let certificate = || {
            let (subject, sha256) = (text("x-client-cert-subject")?.into(), text("x-client-cert-sha256")?.into());
            Some(Certificate { subject, sha256 })
        };
        Self {
            address: text("x-real-ip").and_then(|address| address.parse().ok()),
            scheme,
            host: host.and_then(|host| host.parse().ok()),
            certificate: certificate(),
        }
    }
}

/// A handler of axum may take it as an argument.
#[cfg(feature = "axum")]
impl<S: Sync> axum::extract::FromRequestParts<S> for Client {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> Client {
        let request = fields.iter().fold(Request::get("/"), |request, (name, value)| request.header(*name, *value));
        client(&request.body(()).unwrap())
    }

    #[test]
    fn a_client_is_what_the_server_says() {
        let known = of(&[
            ("host", "10.0.0.1"),
            ("x-forwarded-for", "198.51.100.9, 2001:db8::7"),
            ("x-forwarded-host", "shop.example:8443"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "2001:db8::7"),
            ("x-client-cert-subject", "CN=till-7"),
            ("x-client-cert-sha256", "00ff"),
        ]);
        let expected = Client {
            address: "2001:db8::7".parse().ok(),
            scheme: Scheme::HTTPS,
            host: Some(Authority::from_static("shop.example:8443")),
            certificate: Some(Certificate { subject: "CN=till-7".into(), sha256: "00ff".into() }),
        };
        assert_eq!(known, expected);
        let unknown = of(&[("host", "a.test"), ("x-real-ip", "me"), ("x-client-cert-subject", "CN=me")]);
        let expected = Client {
            address: None,
            scheme: Scheme::HTTP,
            host: Some(Authority::from_static("a.test")),
            certificate: None,
        };
        assert_eq!(unknown, expected);
    }
}
