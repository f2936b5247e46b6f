//! TLS in the benchmark: a certificate that all servers show, and a client that does nothing but open connections.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, StreamOwned};

use crate::{http, target};

/// Clients that open connections at the same time.
const CLIENTS: usize = 16;
/// What all certificates are for.
const NAME: &str = "localhost";

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    Full,
    /// With a ticket of an earlier connection.
    Resumed,
}

/// The files of the certificate, which is made once: an ECDSA key on P-256, as most sites have now.
pub(crate) fn certificate() -> Result<[PathBuf; 2]> {
    let folder = target().join("bench/tls");
    let files = [folder.join("cert.pem"), folder.join("key.pem")];
    if files.iter().all(|file| file.is_file()) {
        return Ok(files);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let pair = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    for (file, text) in files.iter().zip([pair.cert.pem(), pair.signing_key.serialize_pem()]) {
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(files)
}

/// What a server of hyper alone speaks TLS with: tickets, and HTTP/1.1 and 2.
pub(crate) fn server() -> Result<Arc<ServerConfig>> {
    let [certificate, key] = certificate()?;
    let config =
        ServerConfig::builder_with_provider(default_provider().into()).with_safe_default_protocol_versions()?;
    let chain = vec![CertificateDer::from_pem_file(certificate)?];
    let mut config = config.with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(config.into())
}

fn client(handshake: Handshake) -> Result<Arc<ClientConfig>> {
    let [certificate, _] = certificate()?;
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_file(certificate)?)?;
    let config =
        ClientConfig::builder_with_provider(default_provider().into()).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(trusted).with_no_client_auth();
    config.resumption = match handshake {
        Handshake::Full => Resumption::disabled(),
        Handshake::Resumed => Resumption::in_memory_sessions(64),
    };
    Ok(config.into())
}

/// The answer to a GET over TLS.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<http::Answer> {
    http::exchange(&mut connect(&client(Handshake::Full)?, address)?, &http::request(address, path))
}

fn connect(config: &Arc<ClientConfig>, address: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let session = ClientConnection::new(config.clone(), ServerName::try_from(NAME)?)?;
    let stream = http::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(StreamOwned::new(session, stream))
}

/// Connections per second, each with one request.
pub(crate) fn connections(address: SocketAddr, handshake: Handshake, time: Duration) -> Result<f64> {
    let config = client(handshake)?;
    let (done, resumed, ends) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let work = || -> Result<()> {
        while !ends.load(Ordering::Relaxed) {
            let kind = one(&config, address)?;
            done.fetch_add(1, Ordering::Relaxed);
            resumed.fetch_add(u64::from(kind == HandshakeKind::Resumed), Ordering::Relaxed);
        }
        Ok(())
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        std::thread::sleep(time);
        ends.store(true, Ordering::Relaxed);
        let rate = done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        for client in clients {
            match client.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client panicked"),
            }
        }
        // Tickets are for one use each, and the first connections have none.
        let part = resumed.load(Ordering::Relaxed) as f64 / done.load(Ordering::Relaxed).max(1) as f64;
        let expected = if handshake == Handshake::Resumed { 0.9..=1.0 } else { 0.0..=0.0 };
        ensure!(expected.contains(&part), "{:.0} % of the handshakes were resumed", part * 100.0);
        Ok(rate)
    })
}

fn one(config: &Arc<ClientConfig>, address: SocketAddr) -> Result<HandshakeKind> {
    let mut stream = connect(config, address)?;
    let answer = http::exchange(&mut stream, &http::request(address, "/"))?;
    ensure!(answer.status == 200, "it answers with {}", answer.summary());
    stream.conn.handshake_kind().context("there was no handshake")
}
