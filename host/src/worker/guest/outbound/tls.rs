//! TLS of outbound requests: rustls, with the certificates that the machine trusts.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

use super::upstream::{PROTOCOLS, Wire};
use crate::grants::Host;

/// Made for the first request that needs it.
#[derive(Default)]
pub(crate) struct Tls(Arc<OnceCell<TlsConnector>>);

impl Tls {
    /// Proves that the other side is `host`, and encrypts.
    pub(crate) async fn connect(&self, host: &Host, stream: Wire) -> Result<TlsStream<Wire>, Error> {
        let connector = self.connector().await.map_err(|_| Error::TlsProtocolError)?;
        let name = match host {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| Error::TlsCertificateError)?,
        };
        connector.connect(name, stream).await.map_err(|error| match error.get_ref().and_then(|it| it.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
            _ => Error::TlsProtocolError,
        })
    }
}

impl Tls {
    async fn connector(&self) -> io::Result<TlsConnector> {
        if let Some(connector) = self.0.get() {
            return Ok(connector.clone());
        }
        let cell = self.0.clone();
        // To its end, though nobody may wait for it by then: it would begin anew each time.
        tokio::spawn(async move { cell.get_or_try_init(connector).await.cloned() }).await?
    }
}

async fn connector() -> io::Result<TlsConnector> {
    // Some hundred files, on most machines.
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await?;
    for error in &found.errors {
        tracing::debug!("cannot read a trusted certificate: {error}");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            "this machine has no trusted certificates, so guests cannot send https requests; install ca-certificates \
             or set SSL_CERT_FILE"
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(TlsConnector::from(Arc::new(config)))
}
