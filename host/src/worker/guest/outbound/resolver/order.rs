//! In which order the addresses of a name are tried: those first that this machine has a route to, and IPv6 before IPv4 where
//! both do (RFC 6724, section 6).
//!
//! The rules that need more than an address and its source are left out, and so is the longest common prefix, which would
//! undo that name servers rotate their answers. What is equal stays as it came.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Addresses of one family that are looked at: each takes a socket for a moment.
const MAX_OF_A_FAMILY: usize = 8;

/// The addresses in the order in which they are tried.
pub(super) fn sorted(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (four, six): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    let mut addresses: Vec<_> =
        [six, four].into_iter().flat_map(|family| family.into_iter().take(MAX_OF_A_FAMILY)).collect();
    // There is nothing to choose, or the kernel says at once which of them this machine has.
    if addresses.len() > 1 && !addresses.iter().all(IpAddr::is_loopback) {
        addresses.sort_by_cached_key(|&address| rank(address, source_for(address)));
    }
    addresses
}

/// The address that this machine would send from. To connect a UDP socket looks up the route, and sends nothing.
fn source_for(address: IpAddr) -> Option<IpAddr> {
    let any = if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Which port does not matter. Zero is none.
    socket.connect((address, 9)).ok()?;
    socket.local_addr().ok().map(|source| source.ip())
}

/// What comes first is less: rules 1, 2, 5 and 6.
fn rank(address: IpAddr, source: Option<IpAddr>) -> (bool, bool, bool, Reverse<u8>) {
    let (precedence, label) = policy(address);
    let differs = |of: fn(IpAddr) -> u8| source.is_some_and(|source| of(source) != of(address));
    (source.is_none(), differs(scope), source.is_some_and(|source| policy(source).1 != label), Reverse(precedence))
}

/// Precedence and label (section 2.1).
fn policy(address: IpAddr) -> (u8, u8) {
    let IpAddr::V6(address) = address else { return (35, 4) };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => (50, 0),
        [0, 0, 0, 0, 0, 0xffff, ..] => (35, 4),
        [0, 0, 0, 0, 0, 0, ..] => (1, 3),
        [0x2002, ..] => (30, 2),
        [0x2001, 0, ..] => (5, 5),
        [0x3ffe, ..] => (1, 12),
        [first, ..] if first & 0xfe00 == 0xfc00 => (3, 13),
        [first, ..] if first & 0xffc0 == 0xfec0 => (1, 11),
        _ => (40, 1),
    }
}

/// How far an address reaches: a link, a site, or the internet, to which private IPv4 addresses belong (section 3.2).
fn scope(address: IpAddr) -> u8 {
    const LINK: u8 = 2;
    const SITE: u8 = 5;
    const GLOBAL: u8 = 14;
    match address {
        IpAddr::V4(address) if address.is_loopback() || address.is_link_local() => LINK,
        IpAddr::V6(address) if address.is_loopback() || address.is_unicast_link_local() => LINK,
        IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfec0 => SITE,
        _ => GLOBAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of section 10, as far as they are about these rules, and what happens in containers.
    #[test]
    fn addresses_are_tried_as_the_rfc_has_it() {
        let order = |sources: &[(&'static str, Option<&'static str>)]| {
            let parsed = |text: &str| text.parse::<IpAddr>().unwrap();
            let mut sources = sources.to_vec();
            sources.sort_by_key(|(address, source)| rank(parsed(address), source.map(parsed)));
            sources.into_iter().map(|(address, _)| address).collect::<Vec<_>>()
        };
        let (six, four) = ("2001:db8:1::1", "198.51.100.121");
        assert_eq!(order(&[(four, Some("198.51.100.117")), (six, Some("2001:db8:1::2"))]), [six, four]);
        assert_eq!(order(&[(six, Some("fe80::1")), (four, Some("198.51.100.117"))]), [four, six], "of another scope");
        assert_eq!(order(&[(six, None), (four, Some("10.1.2.4"))]), [four, six], "there is no route");
        assert_eq!(order(&[(six, Some("fd00::2")), (four, Some("172.17.0.2"))]), [four, six], "of another label");
        assert_eq!(order(&[("fd00::1", Some("fd00::2")), (four, Some("10.1.2.4"))]), [four, "fd00::1"]);
        assert_eq!(order(&[("192.0.2.2", None), ("192.0.2.1", None)]), ["192.0.2.2", "192.0.2.1"], "as it came");
    }

    #[test]
    fn many_addresses_do_not_take_many_sockets() {
        let many = (0..10_000_u32).map(|n| IpAddr::from(Ipv4Addr::from(0x7f00_0001 + n)));
        assert_eq!(sorted(many.chain([Ipv6Addr::LOCALHOST.into()])).len(), MAX_OF_A_FAMILY + 1);
    }
}
