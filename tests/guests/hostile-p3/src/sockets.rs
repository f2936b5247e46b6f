//! Sockets by WASI 0.3. Those by WASI 0.2, which this guest has too, are in `misdeeds`.

use std::mem;
use std::net::{IpAddr, SocketAddr};

use misdeeds::{Outcome, Query, debug};
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{
    IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, TcpSocket, UdpSocket,
};
use wasip3::wit_stream;

/// Sends `say`, ends that, and tells what comes back.
pub(crate) async fn tcp(query: &Query) -> Outcome {
    let socket = connect(address(query)?).await?;
    let (mut writer, data) = wit_stream::new();
    let (reader, received) = socket.receive();
    let sent = socket.send(data);
    // The connection lives on without it.
    drop(socket);
    let left = writer.write_all(query.text("say").unwrap_or_default().into_bytes()).await;
    drop(writer);
    sent.await.map_err(debug)?;
    let heard = reader.collect().await;
    received.await.map_err(debug)?;
    Ok(format!("{} not sent, heard {}", left.len(), String::from_utf8_lossy(&heard)))
}

/// Connects `n` times and keeps one side of each: how many there are, and why there are no more.
pub(crate) async fn many(query: &Query) -> Outcome {
    let n = query.number("n", 1);
    for connected in 0..n {
        match connect(address(query)?).await {
            Ok(socket) => mem::forget(socket.receive()),
            Err(error) => return Ok(format!("{connected} connected, then {error}")),
        }
    }
    Ok(format!("{n} connected"))
}

async fn connect(to: SocketAddr) -> Result<TcpSocket, String> {
    let socket = TcpSocket::create(family(to)).map_err(debug)?;
    socket.connect(to_wasi(to)).await.map_err(debug)?;
    Ok(socket)
}

pub(crate) fn listen(query: &Query) -> Outcome {
    let address = address(query)?;
    let socket = TcpSocket::create(family(address)).map_err(debug)?;
    let bound = socket.bind(to_wasi(address));
    Ok(format!("bind: {bound:?}, listen: {:?}", socket.listen().map(drop)))
}

/// Sends one datagram.
pub(crate) async fn udp(query: &Query) -> Outcome {
    let address = address(query)?;
    let socket = UdpSocket::create(family(address)).map_err(debug)?;
    socket.send(b"hello".to_vec(), Some(to_wasi(address))).await.map_err(debug)?;
    Ok("sent".into())
}

pub(crate) async fn resolve(name: String) -> Outcome {
    let addresses = resolve_addresses(name).await.map_err(debug)?;
    Ok(addresses.into_iter().map(|address| format!("{}\n", from_wasi(address))).collect())
}

fn address(query: &Query) -> Result<SocketAddr, String> {
    query.text("addr").unwrap_or_default().parse().map_err(debug)
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
