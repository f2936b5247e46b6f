//! TLS of outbound requests: rustls, with the certificates that the machine trusts.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
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
        self.handshake(host, stream, &PROTOCOLS).await.map_err(|error| {
            match error.get_ref().and_then(|it| it.downcast_ref()) {
                Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
                _ => Error::TlsProtocolError,
            }
        })
    }

    /// The same, and agrees on one of these protocols, if there are any.
    pub(super) async fn handshake<S>(&self, host: &Host, stream: S, protocols: &[&[u8]]) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = self.connector().await?;
        let name = match host {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| {
                io::Error::other(rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForName))
            })?,
        };
        let protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        connector.with_alpn(protocols).connect(name, stream).await
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
    let config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
