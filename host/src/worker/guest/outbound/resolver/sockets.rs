//! The sockets with which hickory asks a name server.
//!
//! Its own are not connected. They take datagrams of anybody, and never hear that nobody listens: a server that is down
//! would be waited for as one that is silent.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;

/// Opens sockets to one server, whatever address hickory says: it does not know of zones.
#[derive(Clone)]
pub(super) struct Sockets {
    server: SocketAddr,
    tokio: TokioRuntimeProvider,
}

impl Sockets {
    pub(super) fn to(server: SocketAddr) -> Self {
        Self { server, tokio: TokioRuntimeProvider::default() }
    }
}

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = ConnectedSocket;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(&self, _: SocketAddr, from: Option<SocketAddr>, within: Option<Duration>) -> Opening<Self::Tcp> {
        self.tokio.connect_tcp(self.server, from, within)
    }

    fn bind_udp(&self, from: SocketAddr, _: SocketAddr) -> Opening<Self::Udp> {
        let server = self.server;
        Box::pin(async move {
            let socket = UdpSocket::bind(from).await?;
            socket.connect(server).await?;
            Ok(ConnectedSocket { socket, server })
        })
    }
}

pub(super) struct ConnectedSocket {
    socket: UdpSocket,
    server: SocketAddr,
}

#[async_trait::async_trait]
impl DnsUdpSocket for ConnectedSocket {
    type Time = TokioTime;

    fn poll_recv_from(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(context, &mut buffer))?;
        Poll::Ready(Ok((buffer.filled().len(), self.server)))
    }

    /// An error alone, as when nobody listens, does not make a socket readable to tokio.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let receive = || Ok(recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?);
        let length = self.socket.async_io(Interest::READABLE | Interest::ERROR, receive).await?;
        Ok((length, self.server))
    }

    fn poll_send_to(&self, context: &mut Context<'_>, bytes: &[u8], _: SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send(context, bytes)
    }
}
