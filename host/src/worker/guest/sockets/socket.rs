//! A socket as a guest has it: fresh, while it connects, connected, closed.
//!
//! ```text
//!   Fresh ──connect──▶ Connecting ──▶ Connected
//!                          └────────▶ Closed
//! ```
//!
//! It is never bound to an address that the guest chooses and never listens, so there are no other states.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use nix::sys::socket::sockopt::{
    Ipv4Ttl, Ipv6Ttl, KeepAlive, RcvBuf, SndBuf, TcpKeepCount, TcpKeepIdle, TcpKeepInterval,
};
use nix::sys::socket::{GetSockOpt, SetSockOpt, getsockopt, setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use wasmtime_wasi::sockets::ErrorCode;
use wasmtime_wasi_io::poll::Pollable;

use super::SocketPlaces;
use super::streams::{SocketOutput, SocketStream};
use crate::settings::MAX_CONNECT_TIME;

/// As Linux has them at most, in seconds and probes.
const MAX_KEEP_ALIVE_TIME: u64 = 32767;
const MAX_KEEP_ALIVE_COUNT: u32 = 127;
const NANOSECONDS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketFamily {
    V4,
    V6,
}

type Connecting = Pin<Box<dyn Future<Output = Result<TcpStream, ErrorCode>> + Send>>;

enum SocketState {
    Fresh(TcpSocket),
    Connecting(Connecting),
    Connected(SharedSocket),
    Closed(ErrorCode),
}

struct SharedSocket {
    stream: Arc<SocketStream>,
    /// Each side is handed out once.
    is_received: bool,
    is_sent: bool,
    /// Where the guest writes to, by WASI 0.2.
    output: Option<SocketOutput>,
}

pub(crate) struct GuestSocket {
    state: SocketState,
    family: SocketFamily,
    /// By WASI 0.2 what is started is to be finished, also if it has ended.
    is_started: bool,
    places: SocketPlaces,
}

impl GuestSocket {
    pub(super) fn new(family: SocketFamily, places: SocketPlaces) -> Result<Self, ErrorCode> {
        let socket = match family {
            SocketFamily::V4 => TcpSocket::new_v4()?,
            SocketFamily::V6 => {
                let socket = TcpSocket::new_v6()?;
                // No IPv4 address in another form.
                setsockopt(&socket.as_fd(), sockopt::Ipv6V6Only, &true).map_err(failed)?;
                socket
            }
        };
        // The interface has no option for this, and a protocol of questions and answers stalls without.
        socket.set_nodelay(true)?;
        Ok(Self { state: SocketState::Fresh(socket), family, is_started: false, places })
    }

    pub(super) fn family(&self) -> SocketFamily {
        self.family
    }

    /// Whether such a socket can connect there at all.
    pub(super) fn fits(&self, to: SocketAddr) -> Result<(), ErrorCode> {
        if !matches!(self.state, SocketState::Fresh(_)) {
            return Err(ErrorCode::InvalidState);
        }
        let is_of_family = match (self.family, to.ip()) {
            (SocketFamily::V4, IpAddr::V4(address)) => !address.is_broadcast(),
            // An IPv4-mapped address would be one of the other family.
            (SocketFamily::V6, IpAddr::V6(address)) => address.to_ipv4_mapped().is_none(),
            _ => false,
        };
        let is_host = !to.ip().is_multicast() && !to.ip().is_unspecified() && to.port() != 0;
        if is_of_family && is_host { Ok(()) } else { Err(ErrorCode::InvalidArgument) }
    }

    /// Begins to connect to an address that [fits](Self::fits) and is permitted.
    pub(super) fn connect(&mut self, to: SocketAddr) -> Result<(), ErrorCode> {
        self.fits(to)?;
        // Without the zone and flow that the guest may have said: nobody is asked about those.
        let to = SocketAddr::new(to.ip(), to.port());
        let socket = match std::mem::replace(&mut self.state, SocketState::Closed(ErrorCode::InvalidState)) {
            SocketState::Fresh(socket) => socket,
            other => {
                self.state = other;
                return Err(ErrorCode::InvalidState);
            }
        };
        self.state = SocketState::Connecting(Box::pin(async move {
            let connected = timeout(MAX_CONNECT_TIME, socket.connect(to)).await;
            Ok(connected.map_err(|_| ErrorCode::Timeout)??)
        }));
        // On its way while the guest does something else.
        let _ = self.poll_connected(&mut Context::from_waker(Waker::noop()));
        Ok(())
    }

    pub(super) fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ErrorCode>> {
        if let SocketState::Connecting(connecting) = &mut self.state {
            self.state = match ready!(connecting.as_mut().poll(context)) {
                Ok(stream) => {
                    let stream = Arc::new(SocketStream::new(stream, self.places.clone()));
                    SocketState::Connected(SharedSocket { stream, is_received: false, is_sent: false, output: None })
                }
                Err(error) => SocketState::Closed(error),
            };
        }
        Poll::Ready(match &self.state {
            SocketState::Connected(_) => Ok(()),
            SocketState::Closed(error) => Err(*error),
            SocketState::Fresh(_) | SocketState::Connecting(_) => Err(ErrorCode::InvalidState),
        })
    }

    /// What was started, by WASI 0.2.
    pub(super) fn is_started(&mut self) -> &mut bool {
        &mut self.is_started
    }

    fn connected(&mut self) -> Result<&mut SharedSocket, ErrorCode> {
        match &mut self.state {
            SocketState::Connected(connected) => Ok(connected),
            SocketState::Closed(error) => Err(*error),
            SocketState::Fresh(_) | SocketState::Connecting(_) => Err(ErrorCode::InvalidState),
        }
    }

    /// What the other side sends; once.
    pub(super) fn receive(&mut self) -> Result<Arc<SocketStream>, ErrorCode> {
        let connected = self.connected()?;
        if std::mem::replace(&mut connected.is_received, true) {
            return Err(ErrorCode::InvalidState);
        }
        Ok(connected.stream.clone())
    }

    /// Where to send; once.
    pub(super) fn send(&mut self) -> Result<Arc<SocketStream>, ErrorCode> {
        let connected = self.connected()?;
        if std::mem::replace(&mut connected.is_sent, true) {
            return Err(ErrorCode::InvalidState);
        }
        Ok(connected.stream.clone())
    }

    /// The same, by WASI 0.2.
    pub(super) fn output(&mut self) -> Result<SocketOutput, ErrorCode> {
        let output = SocketOutput::new(self.send()?);
        self.connected()?.output = Some(output.clone());
        Ok(output)
    }

    /// Ends one side, or both.
    pub(super) fn shut_down(&mut self, receive: bool, send: bool) -> Result<(), ErrorCode> {
        let connected = self.connected()?;
        if receive {
            connected.stream.end_receiving();
        }
        if let (true, Some(output)) = (send, &connected.output) {
            output.end();
        }
        Ok(())
    }

    pub(super) fn local_address(&mut self) -> Result<SocketAddr, ErrorCode> {
        Ok(self.connected()?.stream.local_addr()?)
    }

    pub(super) fn remote_address(&mut self) -> Result<SocketAddr, ErrorCode> {
        Ok(self.connected()?.stream.peer_addr()?)
    }

    fn descriptor(&self) -> Result<BorrowedFd<'_>, ErrorCode> {
        match &self.state {
            SocketState::Fresh(socket) => Ok(socket.as_fd()),
            SocketState::Connected(connected) => Ok(connected.stream.as_fd()),
            SocketState::Closed(error) => Err(*error),
            SocketState::Connecting(_) => Err(ErrorCode::InvalidState),
        }
    }

    fn option<O: GetSockOpt>(&self, option: O) -> Result<O::Val, ErrorCode> {
        getsockopt(&self.descriptor()?, option).map_err(failed)
    }

    fn set<O: SetSockOpt>(&self, option: O, value: &O::Val) -> Result<(), ErrorCode> {
        setsockopt(&self.descriptor()?, option, value).map_err(failed)
    }

    pub(super) fn keep_alive(&mut self) -> Result<bool, ErrorCode> {
        self.option(KeepAlive)
    }

    pub(super) fn set_keep_alive(&mut self, value: bool) -> Result<(), ErrorCode> {
        self.set(KeepAlive, &value)
    }

    pub(super) fn keep_alive_idle(&mut self) -> Result<u64, ErrorCode> {
        Ok(u64::from(self.option(TcpKeepIdle)?) * NANOSECONDS)
    }

    pub(super) fn set_keep_alive_idle(&mut self, nanoseconds: u64) -> Result<(), ErrorCode> {
        self.set(TcpKeepIdle, &keep_alive_seconds(nanoseconds)?)
    }

    pub(super) fn keep_alive_interval(&mut self) -> Result<u64, ErrorCode> {
        Ok(u64::from(self.option(TcpKeepInterval)?) * NANOSECONDS)
    }

    pub(super) fn set_keep_alive_interval(&mut self, nanoseconds: u64) -> Result<(), ErrorCode> {
        self.set(TcpKeepInterval, &keep_alive_seconds(nanoseconds)?)
    }

    pub(super) fn keep_alive_count(&mut self) -> Result<u32, ErrorCode> {
        self.option(TcpKeepCount)
    }

    pub(super) fn set_keep_alive_count(&mut self, value: u32) -> Result<(), ErrorCode> {
        self.set(TcpKeepCount, &non_zero(value)?.min(MAX_KEEP_ALIVE_COUNT))
    }

    pub(super) fn hop_limit(&mut self) -> Result<u8, ErrorCode> {
        let limit = match self.family {
            SocketFamily::V4 => self.option(Ipv4Ttl),
            SocketFamily::V6 => self.option(Ipv6Ttl),
        };
        limit?.try_into().map_err(|_| ErrorCode::NotSupported)
    }

    pub(super) fn set_hop_limit(&mut self, value: u8) -> Result<(), ErrorCode> {
        let value = non_zero(value)?.into();
        match self.family {
            SocketFamily::V4 => self.set(Ipv4Ttl, &value),
            SocketFamily::V6 => self.set(Ipv6Ttl, &value),
        }
    }

    /// Linux says twice what was set.
    pub(super) fn receive_buffer(&mut self) -> Result<u64, ErrorCode> {
        Ok(self.option(RcvBuf)? as u64 / 2)
    }

    /// The kernel has a limit of its own.
    pub(super) fn set_receive_buffer(&mut self, bytes: u64) -> Result<(), ErrorCode> {
        self.set(RcvBuf, &(non_zero(bytes)?.min(i32::MAX as u64) as usize))
    }

    pub(super) fn send_buffer(&mut self) -> Result<u64, ErrorCode> {
        Ok(self.option(SndBuf)? as u64 / 2)
    }

    pub(super) fn set_send_buffer(&mut self, bytes: u64) -> Result<(), ErrorCode> {
        self.set(SndBuf, &(non_zero(bytes)?.min(i32::MAX as u64) as usize))
    }
}

/// Of a socket that does not connect there is nothing to wait for.
#[async_trait]
impl Pollable for GuestSocket {
    async fn ready(&mut self) {
        if matches!(self.state, SocketState::Connecting(_)) {
            let _ = std::future::poll_fn(|context| self.poll_connected(context)).await;
        }
    }
}

fn failed(error: nix::errno::Errno) -> ErrorCode {
    std::io::Error::from(error).into()
}

/// The interface refuses 0 wherever it makes no sense.
fn non_zero<N: Default + PartialEq>(value: N) -> Result<N, ErrorCode> {
    if value == N::default() { Err(ErrorCode::InvalidArgument) } else { Ok(value) }
}

fn keep_alive_seconds(nanoseconds: u64) -> Result<u32, ErrorCode> {
    Ok((non_zero(nanoseconds)? / NANOSECONDS).clamp(1, MAX_KEEP_ALIVE_TIME) as u32)
}
