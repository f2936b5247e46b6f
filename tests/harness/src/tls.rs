//! Certificates made for a test, and clients that trust them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
pub use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::soon;

/// Sessions that a client keeps, to resume them.
const SESSIONS: usize = 64;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate with its key, as PEM.
pub struct Issued {
    /// Without the authority's.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// The certificate in DER.
    pub der: CertificateDer<'static>,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("there is no name to be wrong");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = named(name);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        Self { der: cert.der().clone(), pem: cert.pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate that is good for a year. The first name is the subject's as well.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_for(names, 365)
    }

    /// One that ends in so many days, or has.
    pub fn issue_for(&self, names: &[&str], days: i32) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let san: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(san).expect("good names");
        params.distinguished_name = named(names[0]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that was set");
        let by = DAY * days.unsigned_abs();
        params.not_after = date_time_ymd(1970, 1, 1) + if days < 0 { now - by } else { now + by };
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

impl Issued {
    /// A server that shows it and speaks these protocols, the best first (ALPN).
    pub fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key");
        let mut config = config.with_single_cert(vec![self.der.clone()], key).expect("a certificate with its key");
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Writes `NAME.pem` and `NAME.key`, each at once, as a tool that renews certificates does.
    pub fn write(&self, folder: &Path, name: &str) -> [PathBuf; 2] {
        [("pem", &self.cert), ("key", &self.key)].map(|(ending, text)| {
            let path = folder.join(name).with_extension(ending);
            let draft = folder.join(format!(".{name}.{ending}"));
            fs::write(&draft, text).expect("the folder can be written to");
            fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
            fs::rename(&draft, &path).expect("it is in the same folder");
            path
        })
    }
}

/// A client with its sessions: all connections of one resume what there is to resume.
#[derive(Clone)]
pub struct TlsClient(Arc<ClientConfig>);

impl TlsClient {
    /// Trusts `authority`, and speaks HTTP/1.1.
    pub fn new(authority: &Authority) -> Self {
        Self::with(authority, rustls::DEFAULT_VERSIONS, None)
    }

    /// The same with other versions of TLS, or with a certificate of its own.
    pub fn with(authority: &Authority, versions: &[&'static SupportedProtocolVersion], own: Option<&Issued>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der.clone()).expect("a good certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        let config = config.with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a key");
                config.with_client_auth_cert(vec![own.der.clone()], key).expect("a certificate with its key")
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Self(Arc::new(config))
    }

    /// One that offers other protocols by ALPN.
    pub fn offering(&self, protocols: &[&str]) -> Self {
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self(Arc::new(config))
    }

    /// The first message of a handshake, to be sent by whoever does not go on with it.
    pub fn hello(&self, name: &str) -> Vec<u8> {
        let name = ServerName::try_from(name.to_owned()).expect("a good name");
        let mut session = rustls::ClientConnection::new(self.0.clone(), name).expect("a good configuration");
        let mut hello = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut hello).expect("it is written to memory");
        }
        hello
    }

    /// Connects to what must have a certificate for `name`, a DNS name or an address.
    pub async fn connect(&self, address: SocketAddr, name: &str) -> io::Result<TlsStream<TcpStream>> {
        self.over(soon(TcpStream::connect(address)).await?, name).await
    }

    /// Speaks TLS over a stream that is there already.
    pub async fn over(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).expect("a good name");
        soon(TlsConnector::from(self.0.clone()).connect(name, stream)).await
    }
}
