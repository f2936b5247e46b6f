//! Who is at the other end of a connection, as far as the kernel and TLS prove it, and how a guest is told.

use std::net::IpAddr;
use std::rc::Rc;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::forwarded::{LastHop, Remote, is_forwarded, same};
use crate::os::listener::Security;
use crate::settings::TrustedProxies;
use crate::tls::rfc4514;
use crate::worker::guest::websocket::TICKET;

/// The client's certificate in DER, between colons in base64 (RFC 9440).
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// Its subject, as RFC 4514 writes it.
const SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
/// The SHA-256 of its DER, in hexadecimal digits.
const SHA256: HeaderName = HeaderName::from_static("x-client-cert-sha256");
/// What guests believe because nobody but the server can say it. RFC 9440 has a header for the chain as well, which is not
/// sent.
const OF_CERTIFICATES: [&str; 4] =
    ["client-cert", "client-cert-chain", "x-client-cert-subject", "x-client-cert-sha256"];

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) security: Security,
    hop: LastHop,
    proxies: Rc<TrustedProxies>,
    /// What is said of its certificate, if it has shown one that was verified.
    certificate: Vec<(HeaderName, HeaderValue)>,
}

impl Peer {
    /// One without a certificate. `security` is that of the connection, of which the client may know nothing.
    pub(super) fn new(security: Security, client: Remote, proxies: Rc<TrustedProxies>) -> Self {
        Self { security, hop: LastHop::new(client, &proxies), proxies, certificate: Vec::new() }
    }

    /// With the certificates that it was verified by in its handshake, its own first.
    pub(super) fn verified(self, chain: Option<&[CertificateDer<'_>]>) -> Self {
        let certificate = chain.and_then(|chain| Some(described(chain.first()?))).unwrap_or_default();
        Self { certificate, ..self }
    }

    /// Who the client is of a request with these headers, as its guest will be told; none if nobody knows.
    pub(super) fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        self.hop.client(headers, &self.proxies)
    }

    /// Takes what only we may say from a request, and says it.
    pub(super) fn introduce(&self, headers: &mut HeaderMap, host: &Authority) {
        remove(headers, |name| is_ours(name) || self.hop.forbids(name));
        for (name, value) in &self.certificate {
            headers.insert(name, value.clone());
        }
        self.hop.tell(headers, host, &self.proxies);
    }
}

/// Takes what only we may say from the trailers of a request: we say it in heads alone.
pub(super) fn remove_forged(trailers: &mut HeaderMap) {
    remove(trailers, |name| is_ours(name) || is_forwarded(name));
}

fn remove(fields: &mut HeaderMap, is_forged: impl Fn(&str) -> bool) {
    // None of them is there as a rule.
    let forged: Vec<HeaderName> = fields.keys().filter(|name| is_forged(name.as_str())).cloned().collect();
    for name in forged {
        fields.remove(name);
    }
}

/// What has nothing to do with the way that a request came.
fn is_ours(name: &str) -> bool {
    OF_CERTIFICATES.iter().any(|ours| same(name, ours)) || same(name, TICKET.as_str())
}

fn described(certificate: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
    let encoded = format!(":{}:", data_encoding::BASE64.encode(certificate));
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    // It was verified, so it parses.
    let subject = X509Certificate::from_der(certificate).map(|(_, parsed)| rfc4514(parsed.subject())).ok();
    let values = [
        (CLIENT_CERT, Some(encoded)),
        (SUBJECT, subject),
        (SHA256, Some(data_encoding::HEXLOWER.encode(digest.as_ref()))),
    ];
    // All of it is printable ASCII.
    values.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value?).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: &[&str]) -> HeaderMap {
        names.iter().map(|name| (HeaderName::try_from(*name).unwrap(), HeaderValue::from_static("forged"))).collect()
    }

    #[test]
    fn nobody_else_says_who_the_client_is() {
        let sent = [
            &OF_CERTIFICATES[..],
            &["client_cert", "Client_Cert-Chain", "x_client_cert_sha256", "client-certs", "cert"],
            &["wasmcluster-websocket", "wasmcluster_websocket"],
        ]
        .concat();
        let mut request = headers(&sent);
        request.append(CLIENT_CERT, HeaderValue::from_static("again"));
        let mut proven = request.clone();
        let peer =
            |security| Peer::new(security, Remote { address: None, security, is_stranger: false }, Rc::default());
        let introduce = |peer: Peer, headers: &mut HeaderMap| {
            peer.introduce(headers, &Authority::from_static("a.test"));
            // What is said of everybody, elsewhere.
            remove(headers, is_forwarded);
        };
        introduce(peer(Security::Clear), &mut request);
        assert_eq!(request, headers(&["client-certs", "cert"]));

        let pair = rcgen::generate_simple_self_signed(["a.test".into()]).unwrap();
        introduce(peer(Security::Tls).verified(Some(&[pair.cert.der().clone()])), &mut proven);
        assert!(
            proven.values().all(|value| !value.as_bytes().starts_with(b"again")) && proven.len() == 5,
            "{proven:?}"
        );
        let value = |name| proven[name].to_str().unwrap();
        let encoded = value(CLIENT_CERT).trim_matches(':').as_bytes();
        assert_eq!(data_encoding::BASE64.decode(encoded).unwrap(), pair.cert.der().as_ref());
        assert_eq!(value(SUBJECT), "CN=rcgen self signed cert");
        assert_eq!(value(SHA256).len(), 64);

        let mut anonymous = headers(&OF_CERTIFICATES);
        introduce(peer(Security::Tls).verified(None), &mut anonymous);
        assert!(anonymous.is_empty());
    }
}
