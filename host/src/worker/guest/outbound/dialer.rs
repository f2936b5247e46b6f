//! Connections to servers that the operator has named himself: to any address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::resolver::{NotFound, Resolver};
use super::tls::Tls;
use crate::grants::Host;

/// How long an address that is silent is waited for if there is another.
const NEXT_ADDRESS: Duration = Duration::from_millis(500);

/// A connection to the first address that answers, in their order; or why the last of them did not.
pub(super) async fn connect_to_any(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Option<io::Error>> {
    let mut last = None;
    for (index, address) in addresses.iter().enumerate() {
        let connecting = TcpStream::connect(address);
        let connected = if index + 1 == addresses.len() {
            connecting.await
        } else {
            let within = tokio::time::timeout(NEXT_ADDRESS, connecting).await;
            within.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match connected {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => last = Some(error),
        }
    }
    Err(last)
}

/// For the shares that names have of the look-ups: these have one.
const OWN_GRANT: usize = 0;

/// With names and certificates of its own.
#[derive(Default)]
pub(crate) struct Dialer {
    resolver: Resolver,
    tls: Tls,
}

impl Dialer {
    /// The first address that answers.
    pub(crate) async fn connect(&self, host: &Host, port: u16) -> Result<TcpStream, String> {
        let addresses = match host {
            Host::Address(address) => Arc::from([*address]),
            Host::Name(name) => self.resolver.look_up(name, OWN_GRANT).await.map_err(|error| match error {
                NotFound::Failed => format!("the name {name} could not be looked up"),
                NotFound::Silent => format!("no name server answered for {name}"),
            })?,
        };
        let addresses: Vec<SocketAddr> = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        match connect_to_any(&addresses).await {
            Ok((stream, _)) => {
                // What is asked is small, and waited for.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Err(None) => Err("the name has no address".into()),
            Err(Some(error)) => Err(error.to_string()),
        }
    }

    /// Proves that the other side is `host`, and encrypts.
    pub(crate) async fn encrypt(&self, host: &Host, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        self.tls.handshake(host, stream, &[]).await.map_err(|error| error.to_string())
    }
}
