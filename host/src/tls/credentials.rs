//! What a worker speaks TLS with. It is replaced as a whole when the primary sends something new: connections that are
//! there already go on with what they began with.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, anyhow};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use super::PROVIDER;
use super::material::Material;
use super::names::Names;
use super::pair::{self, Pair};
use super::tickets::Ticketer;
use crate::settings::ClientAuth;

/// What is spoken on an encrypted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// What clients may choose by ALPN (RFC 7301), the best first. One that chooses nothing gets [`Protocol::Http1`].
pub(crate) const PROTOCOLS: [(&[u8], Protocol); 3] =
    [(b"h2", Protocol::Http2), (b"http/1.1", Protocol::Http1), (b"http/1.0", Protocol::Http1)];

/// What a worker speaks TLS with, shared by the thread that hears of something new and the connections.
#[derive(Debug)]
pub(crate) struct Credentials(RwLock<Configs>);

impl Credentials {
    pub(crate) fn new(material: &Material) -> anyhow::Result<Self> {
        Ok(Self(RwLock::new(Configs::new(material)?)))
    }

    /// From the next connection on.
    pub(crate) fn replace(&self, material: &Material) -> anyhow::Result<()> {
        let configs = Configs::new(material)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = configs;
        Ok(())
    }

    /// For a connection to one of this machine's addresses.
    pub(crate) fn config(&self, address: IpAddr) -> Arc<ServerConfig> {
        let configs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        configs.by_address.get(&address).unwrap_or(&configs.usual).clone()
    }
}

struct Configs {
    usual: Arc<ServerConfig>,
    /// For addresses that a certificate names: clients that ask for one send no name.
    by_address: HashMap<IpAddr, Arc<ServerConfig>>,
}

impl fmt::Debug for Configs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configs").field("by_address", &self.by_address.keys()).finish_non_exhaustive()
    }
}

impl Configs {
    fn new(material: &Material) -> anyhow::Result<Self> {
        let (usual, resolver) = server_config(material)?;
        let for_address = |(address, number)| {
            let mut config = usual.clone();
            config.cert_resolver = Arc::new(CertificateResolver { unnamed: number, ..resolver.clone() });
            (address, Arc::new(config))
        };
        let by_address = resolver.names.addresses().map(for_address).collect();
        Ok(Self { usual: Arc::new(usual), by_address })
    }
}

/// The certificate that a client gets.
#[derive(Clone, Debug)]
pub(super) struct CertificateResolver {
    keys: Arc<[Arc<CertifiedKey>]>,
    names: Arc<Names>,
    /// For clients that name nothing. Those that name what no certificate has get the first: it tells them that they are
    /// wrong here.
    unnamed: usize,
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = match hello.server_name() {
            Some(name) => self.names.find(name),
            None => &[self.unnamed],
        };
        let keys = || found.iter().filter_map(|&number| self.keys.get(number));
        // A name may have a certificate for each kind of key.
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        keys().find(fits).or_else(|| keys().next()).or_else(|| self.keys.first()).cloned()
    }
}

/// What rustls is to do, and how it finds certificates.
pub(super) fn server_config(material: &Material) -> anyhow::Result<(ServerConfig, CertificateResolver)> {
    let pairs =
        material.pairs.iter().map(|(cert, key)| Pair::new(pair::chain(cert.as_bytes())?, pair::key(key.as_bytes())?));
    let pairs = pairs.collect::<anyhow::Result<Vec<_>>>()?;
    let names = Arc::new(Names::new(pairs.iter().map(|pair| &pair.names[..])));
    let resolver =
        CertificateResolver { keys: pairs.into_iter().map(|pair| pair.certified).collect(), names, unnamed: 0 };
    let config = ServerConfig::builder_with_provider(PROVIDER.clone()).with_safe_default_protocol_versions()?;
    let config = match &material.client {
        None => config.with_no_client_auth(),
        Some((ca, auth)) => {
            let mut roots = RootCertStore::empty();
            for certificate in pair::chain(ca.as_bytes())? {
                roots.add(certificate).map_err(|error| anyhow!("a certificate in it cannot be used: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone());
            let verifier = if *auth == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier };
            config.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = config.with_cert_resolver(Arc::new(resolver.clone()));
    config.alpn_protocols = PROTOCOLS.iter().map(|(name, _)| name.to_vec()).collect();
    // Sessions are in tickets alone, which every worker opens. Early data stays off: it can be replayed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if material.tickets.is_empty() {
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = Arc::new(Ticketer::new(&material.tickets).ok().context("a ticket key cannot be used")?);
    }
    Ok((config, resolver))
}
