//! The HTTP client for registries. It goes where it is told and follows no redirect by itself; nothing is sent in clear text but
//! to hosts that may be spoken to so; whatever is read has a bound.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use reqwest::header::LOCATION;
use reqwest::{Client, Response, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::words::{self, host_of};
use crate::settings::Registries;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a registry may send nothing.
const READ_PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer may take that is no blob.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("wasmcluster/", env!("CARGO_PKG_VERSION"));

/// An error if something would be sent in clear text that must not be.
pub(super) fn permit(url: &Url, registries: &Registries) -> anyhow::Result<()> {
    let host = host_of(url);
    match url.scheme() {
        "https" => Ok(()),
        "http" if registries.is_plain(&host) => Ok(()),
        "http" => bail!(
            "{host} is to be spoken to in clear text, which is not done; allow it with --registry-plain-http {host} if the \
             network is yours"
        ),
        other => bail!("{host} is to be spoken to by {other:?}, which is not done"),
    }
}

/// Where an answer sends us.
pub(super) fn location(answer: &Response) -> anyhow::Result<Url> {
    let place = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok());
    let url = place.and_then(|place| answer.url().join(place).ok());
    url.with_context(|| format!("{} sends us on, and does not say where to", host_of(answer.url())))
}

/// What is in an answer, if it is not too long.
pub(super) async fn read(mut answer: Response, limit: usize) -> anyhow::Result<Vec<u8>> {
    let host = host_of(answer.url());
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| words::broken(&error))? {
        ensure!(bytes.len() + piece.len() <= limit, "{host} sends more than {limit} bytes where that is too much");
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Trusts whom the machine trusts, and the authorities in the file. Goes nowhere else by itself, and to a proxy if the
/// environment names one.
pub(super) fn client(ca: Option<&Path>) -> anyhow::Result<Client> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca {
        for authority in authorities(file)? {
            roots.add(authority).with_context(|| format!("--registry-ca {}", file.display()))?;
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let tls = ClientConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions()?;
    let client = Client::builder()
        .tls_backend_preconfigured(tls.with_root_certificates(roots).with_no_client_auth())
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_PATIENCE)
        .read_timeout(READ_PATIENCE)
        .user_agent(USER_AGENT);
    client.build().map_err(|error| anyhow!("cannot speak to registries: {}", words::causes(&error)))
}

/// The certificates in a file, which has some.
fn authorities(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let of = || format!("--registry-ca {}", file.display());
    let pem = fs::read(file).with_context(of)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().with_context(of)?;
    ensure!(!found.is_empty(), "{}: there is no certificate in it; expected PEM", of());
    Ok(found)
}
