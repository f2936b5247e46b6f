//! Who is at the other end of a connection, as far as TLS proves it, and how a guest is told.

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::os::listener::Security;
use crate::tls::rfc4514;

/// The client's certificate in DER, between colons in base64 (RFC 9440).
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// Its subject, as RFC 4514 writes it.
const SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
/// The SHA-256 of its DER, in hexadecimal digits.
const SHA256: HeaderName = HeaderName::from_static("x-client-cert-sha256");
/// What guests believe because nobody but the server can say it. RFC 9440 has a header for the chain as well, which is not
/// sent.
const OURS: [&str; 4] = ["client-cert", "client-cert-chain", "x-client-cert-subject", "x-client-cert-sha256"];

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) security: Security,
    /// What is said of its certificate, if it has shown one that was verified.
    certificate: Vec<(HeaderName, HeaderValue)>,
}

impl Peer {
    /// Nothing is known of it.
    pub(super) const CLEAR: Self = Self { security: Security::Clear, certificate: Vec::new() };

    /// At the end of a handshake, with the certificates that the client was verified by.
    pub(super) fn verified(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let certificate = chain.and_then(|chain| Some(described(chain.first()?))).unwrap_or_default();
        Self { security: Security::Tls, certificate }
    }

    /// Takes what only we may say from a request, and says it.
    pub(super) fn introduce(&self, headers: &mut HeaderMap) {
        remove_forged(headers);
        for (name, value) in &self.certificate {
            headers.insert(name, value.clone());
        }
    }
}

/// Takes what only we may say from fields that a client sent: a request's head, or its trailers.
pub(super) fn remove_forged(fields: &mut HeaderMap) {
    // None of them is there as a rule.
    let forged: Vec<HeaderName> = fields.keys().filter(|name| is_ours(name.as_str())).cloned().collect();
    for name in forged {
        fields.remove(name);
    }
}

/// Also if it has underscores: what runs inside a guest may not tell them from hyphens, as CGI does not.
fn is_ours(name: &str) -> bool {
    let as_hyphen = |byte: u8| if byte == b'_' { b'-' } else { byte };
    OURS.iter().any(|ours| ours.len() == name.len() && name.bytes().map(as_hyphen).eq(ours.bytes()))
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
        let sent =
            [&OURS[..], &["client_cert", "Client_Cert-Chain", "x_client_cert_sha256", "client-certs", "cert"]].concat();
        let mut request = headers(&sent);
        request.append(CLIENT_CERT, HeaderValue::from_static("again"));
        let mut proven = request.clone();
        Peer::CLEAR.introduce(&mut request);
        assert_eq!(request, headers(&["client-certs", "cert"]));

        let pair = rcgen::generate_simple_self_signed(["a.test".into()]).unwrap();
        Peer::verified(Some(&[pair.cert.der().clone()])).introduce(&mut proven);
        assert!(
            proven.values().all(|value| !value.as_bytes().starts_with(b"again")) && proven.len() == 5,
            "{proven:?}"
        );
        let value = |name| proven[name].to_str().unwrap();
        let encoded = value(CLIENT_CERT).trim_matches(':').as_bytes();
        assert_eq!(data_encoding::BASE64.decode(encoded).unwrap(), pair.cert.der().as_ref());
        assert_eq!(value(SUBJECT), "CN=rcgen self signed cert");
        assert_eq!(value(SHA256).len(), 64);

        let mut anonymous = headers(&OURS);
        Peer::verified(None).introduce(&mut anonymous);
        assert!(anonymous.is_empty());
    }
}
