//! Ways out: sockets by WASI 0.2, and what an outbound request asks for. The requests themselves are the guests' own.

use core::mem;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wasip2::io::streams::{InputStream, OutputStream};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::OutgoingDatagram;
use wasip2::sockets::udp_create_socket::create_udp_socket;

use crate::query::encode;
use crate::{Outcome, Query, debug};

type Connection = (InputStream, OutputStream, TcpSocket);

pub(crate) fn tcp(address: String) -> Outcome {
    connect(address.parse().map_err(debug)?).map(|_| "connected".into())
}

fn connect(address: SocketAddr) -> Result<Connection, String> {
    let socket = create_tcp_socket(family(address)).map_err(debug)?;
    socket.start_connect(&instance_network(), to_wasi(address)).map_err(debug)?;
    socket.subscribe().block();
    let (input, output) = socket.finish_connect().map_err(debug)?;
    Ok((input, output, socket))
}

/// Connects `n` times and keeps all of the connections for ever: how many there are, and why there are no more.
pub(crate) fn many_tcp(address: String, n: u64) -> Outcome {
    let address: SocketAddr = address.parse().map_err(debug)?;
    for connected in 0..n {
        match connect(address) {
            Ok(connection) => mem::forget(connection),
            Err(error) => return Ok(format!("{connected} connected, then {error}")),
        }
    }
    Ok(format!("{n} connected"))
}

/// Looks up `name` and, if there is one, `then`, whatever comes of that; and connects to the address `at`, on `port`.
pub(crate) fn reach(query: &Query) -> Outcome {
    let found = resolve(query.text("name").unwrap_or_default());
    let then = query.text("then").map(resolve);
    let at: IpAddr = query.text("at").unwrap_or_default().parse().map_err(debug)?;
    let port = u16::try_from(query.number("port", 0)).map_err(debug)?;
    let connected = connect(SocketAddr::new(at, port)).map(|_| "connected");
    Ok(format!("{found:?} {then:?} {connected:?}"))
}

/// What each step to a listening socket comes to.
pub(crate) fn listen(address: String) -> Outcome {
    let address: SocketAddr = address.parse().map_err(debug)?;
    let socket = create_tcp_socket(family(address)).map_err(debug)?;
    let bound = socket.start_bind(&instance_network(), to_wasi(address)).and_then(|()| socket.finish_bind());
    let listens = socket.start_listen().and_then(|()| socket.finish_listen());
    Ok(format!("bind: {bound:?}, listen: {listens:?}, accept: {:?}", socket.accept().map(drop)))
}

/// Sends one datagram.
pub(crate) fn udp(address: String) -> Outcome {
    let address: SocketAddr = address.parse().map_err(debug)?;
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = create_udp_socket(family(address)).map_err(debug)?;
    socket.start_bind(&instance_network(), to_wasi(SocketAddr::new(any, 0))).map_err(debug)?;
    socket.subscribe().block();
    socket.finish_bind().map_err(debug)?;
    let (_, outgoing) = socket.stream(None).map_err(debug)?;
    outgoing.subscribe().block();
    outgoing.check_send().map_err(debug)?;
    let datagram = OutgoingDatagram { data: b"hello".to_vec(), remote_address: Some(to_wasi(address)) };
    let sent = outgoing.send(&[datagram]).map_err(debug)?;
    Ok(format!("{sent} sent"))
}

pub(crate) fn resolve(name: String) -> Outcome {
    let addresses = resolve_addresses(&instance_network(), &name).map_err(debug)?;
    let mut lines = String::new();
    loop {
        match addresses.resolve_next_address() {
            Ok(Some(address)) => lines += &format!("{}\n", from_wasi(address)),
            Ok(None) => return Ok(lines),
            Err(ErrorCode::WouldBlock) => addresses.subscribe().block(),
            Err(error) => return Err(debug(error)),
        }
    }
}

fn family(address: SocketAddr) -> IpAddressFamily {
    if address.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 }
}

fn to_wasi(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: v4.ip().octets().into() })
        }
        SocketAddr::V6(v6) => IpSocketAddress::Ipv6(Ipv6SocketAddress {
            port: v6.port(),
            flow_info: v6.flowinfo(),
            address: v6.ip().segments().into(),
            scope_id: v6.scope_id(),
        }),
    }
}

fn from_wasi(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4(octets) => <[u8; 4]>::from(octets).into(),
        IpAddress::Ipv6(segments) => <[u16; 8]>::from(segments).into(),
    }
}

/// `SCHEME://AUTHORITY/PATH`, of which nothing is checked.
#[derive(Clone, Debug)]
pub struct Url {
    /// `http` when it is not said.
    pub scheme: String,
    /// Host and port, perhaps odd ones.
    pub authority: String,
    /// From the slash on.
    pub path_with_query: String,
}

impl Url {
    fn parse(text: &str) -> Self {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path_with_query = if path.is_empty() { "/".into() } else { path.into() };
        Self { scheme: scheme.into(), authority: authority.into(), path_with_query }
    }
}

/// An outbound request. Times are in nanoseconds.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Any text.
    pub method: String,
    /// With the authority replaced by `host=`, and path and query by `target=`, if those are given.
    pub url: Url,
    /// For the connection to stand.
    pub connect_timeout: Option<u64>,
    /// For the head to begin.
    pub first_byte_timeout: Option<u64>,
    /// Between two pieces of the body.
    pub between_bytes_timeout: Option<u64>,
}

impl Fetch {
    /// What the query asks for.
    pub fn from_query(query: &Query) -> Self {
        let mut url = Url::parse(&query.text("url").unwrap_or_default());
        url.authority = query.text("host").unwrap_or(url.authority);
        url.path_with_query = query.text("target").unwrap_or(url.path_with_query);
        Self {
            method: query.text("method").unwrap_or("GET".into()),
            url,
            connect_timeout: query.nanoseconds("connect-ms"),
            first_byte_timeout: query.nanoseconds("first-byte-ms"),
            between_bytes_timeout: query.nanoseconds("between-ms"),
        }
    }

    /// The next of `times` calls that `/relay` makes to `url`, which is to be a `/relay` too; none when it has arrived.
    pub fn relay(query: &Query) -> Option<Self> {
        let left = query.number("times", 1).checked_sub(1)?;
        let mut next = Self::from_query(query);
        let url = encode(&query.text("url").unwrap_or_default());
        next.url.path_with_query += &format!("?url={url}&times={left}");
        Some(next)
    }
}

/// How `/fetch-many` sums up.
pub fn summary<T>(results: &[Result<T, String>]) -> String {
    let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let first = failed.first().map_or("none", |error| error.as_str());
    format!("{} succeeded, {} failed, first error: {first}", results.len() - failed.len(), failed.len())
}
