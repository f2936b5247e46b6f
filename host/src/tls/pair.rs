//! A certificate with its key: parsed, known to belong together, and what it says of itself.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail, ensure};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, GeneralName, X509Certificate, X509Name};

use super::PROVIDER;

/// What RFC 4514, section 3, has short names for.
const ATTRIBUTES: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// A certificate with its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certified: Arc<CertifiedKey>,
    /// DNS names in lower case, perhaps with `*` as their first label, and addresses.
    pub(super) names: Vec<String>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Pair {
    /// Fails if the key is not that of the first certificate.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> anyhow::Result<Self> {
        for (index, certificate) in chain.iter().enumerate() {
            X509Certificate::from_der(certificate)
                .map_err(|error| anyhow!("certificate {} of the file does not parse: {error}", index + 1))?;
        }
        let first = chain.first().context("there is no certificate")?.clone();
        let (_, certificate) = X509Certificate::from_der(&first)?;
        let validity = certificate.validity();
        let certified = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                anyhow!(
                    "the key does not belong to the certificate, or the certificate does not come first in its file"
                )
            }
            error => anyhow!("{error}"),
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            names: names(&certificate),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }
}

/// The certificates of a PEM file. What else there is in it is skipped.
pub(super) fn chain(text: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| anyhow!("it is not valid PEM: {error}"))?;
    ensure!(!chain.is_empty(), "it has no certificate: expected PEM, with a line -----BEGIN CERTIFICATE-----");
    Ok(chain)
}

/// The first private key of a PEM file.
pub(super) fn key(text: &[u8]) -> anyhow::Result<PrivateKeyDer<'static>> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if text.windows(10).any(|part| part == b"ENCRYPTED ") => {
            bail!("it is encrypted with a passphrase; decrypt it with `openssl pkey`")
        }
        Err(pem::Error::NoItemsFound) => {
            bail!("it has no private key: expected PEM, with a line -----BEGIN PRIVATE KEY-----")
        }
        Err(error) => bail!("it is not valid PEM: {error}"),
    }
}

/// Those of the extension for names, or else the common name, which clients no longer go by.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    let mut names: Vec<String> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => Some(address(bytes)?.to_string()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.extend(common.map(str::to_ascii_lowercase));
    }
    names
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// A certificate may say any year.
fn time(seconds: i64) -> SystemTime {
    const LAST: u64 = 253_402_300_799;
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(LAST))
}

/// A name as RFC 4514 writes it, the most specific part first, in ASCII: every other byte is escaped as its hexadecimal
/// digits.
pub(crate) fn rfc4514(name: &X509Name<'_>) -> String {
    let sets: Vec<_> = name.iter_rdn().collect();
    let sets = sets.iter().rev().map(|set| set.iter().map(attribute).collect::<Vec<_>>().join("+"));
    sets.collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = ATTRIBUTES.iter().find(|(known, _)| *known == oid);
    match (known, attribute.as_str()) {
        (Some((_, name)), Ok(value)) => format!("{name}={}", escaped(value)),
        // Section 2.4: the encoding itself, of which the tag and the length are short forms or are made so.
        _ => format!("{oid}=#{}", data_encoding::HEXLOWER.encode(&encoded(attribute))),
    }
}

/// The value in DER.
fn encoded(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    let (value, bytes) = (attribute.attr_value(), attribute.as_slice());
    let mut encoded = vec![value.tag().0 as u8];
    match bytes.len() {
        short @ 0..0x80 => encoded.push(short as u8),
        long => {
            let digits = long.to_be_bytes();
            let digits = &digits[digits.iter().take_while(|&&digit| digit == 0).count()..];
            encoded.push(0x80 | digits.len() as u8);
            encoded.extend_from_slice(digits);
        }
    }
    encoded.extend_from_slice(bytes);
    encoded
}

fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for (at, byte) in value.bytes().enumerate() {
        let is_outermost = at == 0 || at + 1 == value.len();
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => text.extend(['\\', byte.into()]),
            b' ' if is_outermost => text.push_str("\\ "),
            b'#' if at == 0 => text.push_str("\\#"),
            b' '..=b'~' => text.push(byte.into()),
            _ => {
                // Writing to memory cannot fail.
                let _ = write!(text, "\\{byte:02x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn subjects_are_written_as_rfc_4514_has_it() {
        let check = |parts: &[(DnType, &str)], expected: &str| {
            let mut params = CertificateParams::new([]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            parts.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), *value));
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let (_, certificate) = X509Certificate::from_der(der.der()).unwrap();
            assert_eq!(rfc4514(certificate.subject()), expected);
        };
        check(&[], "");
        let example = [(DnType::CountryName, "DE"), (DnType::OrganizationName, "Shop"), (DnType::CommonName, "till 7")];
        check(&example, "CN=till 7,O=Shop,C=DE");
        check(&[(DnType::CommonName, " a,b+c=\"d\"\\ <e>; ")], "CN=\\ a\\,b\\+c=\\\"d\\\"\\\\ \\<e\\>\\;\\ ");
        check(&[(DnType::CommonName, "#1")], "CN=\\#1");
        // Nothing of it can begin another line, or end the header.
        check(&[(DnType::CommonName, "é\r\nx: y\0")], "CN=\\c3\\a9\\0d\\0ax: y\\00");
        check(&[(DnType::CustomDnType(vec![1, 2, 3]), "a")], "1.2.3=#0c0161");
    }

    #[test]
    fn files_that_are_something_else_are_told_by_what_they_lack() {
        let pair = rcgen::generate_simple_self_signed(["a.test".into()]).unwrap();
        let (cert, secret) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        assert!(chain(secret.as_bytes()).unwrap_err().to_string().starts_with("it has no certificate"));
        assert!(key(cert.as_bytes()).unwrap_err().to_string().starts_with("it has no private key"));
        let encrypted = secret.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        assert!(key(encrypted.as_bytes()).unwrap_err().to_string().contains("openssl pkey"));
        let cut = &cert.as_bytes()[..cert.len() / 2];
        assert!(chain(cut).unwrap_err().to_string().starts_with("it is not valid PEM"));
        assert!(chain(b"").is_err() && key(b"\xff").is_err());
        // Both in one file are as good as each in its own.
        let both = format!("{cert}{secret}");
        Pair::new(chain(both.as_bytes()).unwrap(), key(both.as_bytes()).unwrap()).unwrap();
    }
}
