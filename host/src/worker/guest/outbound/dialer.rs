//! Connections to servers that the operator has named himself: to any address.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::resolver::{NotFound, Resolver};
use super::tls::Tls;
use crate::grants::Host;

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
        let mut failure = "the name has no address".to_owned();
        for address in addresses.iter() {
            match TcpStream::connect(SocketAddr::new(*address, port)).await {
                Ok(stream) => {
                    // What is asked is small, and waited for.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => failure = error.to_string(),
            }
        }
        Err(failure)
    }

    /// Proves that the other side is `host`, and encrypts.
    pub(crate) async fn encrypt(&self, host: &Host, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        self.tls.handshake(host, stream, &[]).await.map_err(|error| error.to_string())
    }
}
