//! Which addresses are not simply hosts of the public internet, and what they are instead.
//!
//! Follows RFC 6890 and the IANA special-purpose registries for IPv4 and IPv6: every range that is not globally
//! reachable. Ranges for whole protocols are taken whole, also where single addresses inside are reachable. IPv6 ranges
//! that embed IPv4 addresses are special whatever they embed, since where such packets end is up to a translator.
//! What follows from a class is decided in [`super`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The first that matches counts.
const SPECIAL_V4: &[(Ipv4Net, &str)] = &[
    // Where clouds hand credentials to whoever asks from inside the machine.
    (v4(169, 254, 169, 254, 32), "cloud metadata"),
    // A public address by number; on Azure it is the platform's own, and metadata is among what it serves.
    (v4(168, 63, 129, 16, 32), "Azure platform"),
    (v4(0, 0, 0, 0, 32), "unspecified"), // RFC 1122; Linux connects it to itself.
    (v4(0, 0, 0, 0, 8), "this network"), // RFC 791
    (v4(10, 0, 0, 0, 8), "private"),     // RFC 1918
    (v4(100, 64, 0, 0, 10), "carrier-grade NAT"), // RFC 6598
    (v4(127, 0, 0, 0, 8), "loopback"),   // RFC 1122
    (v4(169, 254, 0, 0, 16), "link-local"), // RFC 3927
    (v4(172, 16, 0, 0, 12), "private"),  // RFC 1918
    (v4(192, 0, 0, 0, 24), "IETF protocols"), // RFC 6890
    (v4(192, 0, 2, 0, 24), "documentation"), // RFC 5737
    (v4(192, 88, 99, 0, 24), "6to4 relay"), // RFC 7526
    (v4(192, 168, 0, 0, 16), "private"), // RFC 1918
    (v4(198, 18, 0, 0, 15), "benchmarking"), // RFC 2544
    (v4(198, 51, 100, 0, 24), "documentation"), // RFC 5737
    (v4(203, 0, 113, 0, 24), "documentation"), // RFC 5737
    (v4(224, 0, 0, 0, 4), "multicast"),  // RFC 5771
    (v4(255, 255, 255, 255, 32), "broadcast"), // RFC 919
    (v4(240, 0, 0, 0, 4), "reserved"),   // RFC 1112
];

/// The first that matches counts. Only those outside of [`GLOBAL_UNICAST`] that are worth a name.
const SPECIAL_V6: &[(Ipv6Net, &str)] = &[
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), "cloud metadata"), // EC2
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), "cloud metadata"),  // Google
    (v6([0; 8], 128), "unspecified"),                                   // RFC 4291
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),                    // RFC 4291
    (v6([0; 8], 96), "IPv4-compatible"),                                // RFC 4291
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "NAT64"),                // RFC 6052
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64"),          // RFC 8215
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only"),             // RFC 6666
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "dummy"),                    // RFC 9780
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),                  // RFC 4380
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), "benchmarking"),            // RFC 5180
    (v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28), "ORCHID"),               // RFC 4843
    (v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), "ORCHIDv2"),             // RFC 7343
    (v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28), "drone identifier"),     // RFC 9374
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "IETF protocols"),          // RFC 2928
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),       // RFC 3849
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4"),                    // RFC 3056
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),           // RFC 9637
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),         // RFC 9602
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),             // RFC 4193
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),              // RFC 4291
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),              // RFC 3879
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),                // RFC 4291
];

/// All that IANA assigns hosts' addresses from.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

/// The range that makes `address` special, for the log; `None` for a host of the public internet.
/// An IPv4-mapped address counts as the IPv4 address.
pub(crate) fn special(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => SPECIAL_V4.iter().find(|(range, _)| range.contains(&address)).map(|&(_, name)| name),
        IpAddr::V6(address) => match SPECIAL_V6.iter().find(|(range, _)| range.contains(&address)) {
            Some(&(_, name)) => Some(name),
            None => (!GLOBAL_UNICAST.contains(&address)).then_some("not global unicast"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// With a word for the hosts of the public internet.
    fn class(address: IpAddr) -> &'static str {
        special(address).unwrap_or("public")
    }

    fn before(address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() - 1).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() - 1).into(),
        }
    }

    /// Every range by its first address, and its class; it ends before the next one begins. So both neighbours of every
    /// boundary are looked at.
    fn check(last: IpAddr, ranges: &'static str) {
        let parse = |range: &'static str| {
            let (start, class) = range.trim().split_once(' ').unwrap();
            (start.parse().unwrap(), class)
        };
        let ranges: Vec<(IpAddr, &str)> = ranges.split(',').map(parse).collect();
        assert_eq!((class(ranges[0].0), class(last)), (ranges[0].1, ranges[ranges.len() - 1].1));
        for pair in ranges.windows(2) {
            let ((start, class_before), (end, class_after)) = (pair[0], pair[1]);
            assert_eq!(class(before(end)), class_before, "last of the range that begins at {start}");
            assert_eq!(class(end), class_after, "first of the range that begins at {end}");
        }
    }

    #[test]
    fn every_ipv4_range_ends_where_it_should() {
        check(
            Ipv4Addr::BROADCAST.into(),
            "0.0.0.0 unspecified, 0.0.0.1 this network, 1.0.0.0 public, 10.0.0.0 private, 11.0.0.0 public,
             100.64.0.0 carrier-grade NAT, 100.128.0.0 public, 127.0.0.0 loopback, 128.0.0.0 public,
             168.63.129.16 Azure platform, 168.63.129.17 public, 169.254.0.0 link-local,
             169.254.169.254 cloud metadata, 169.254.169.255 link-local, 169.255.0.0 public,
             172.16.0.0 private, 172.32.0.0 public, 192.0.0.0 IETF protocols, 192.0.1.0 public,
             192.0.2.0 documentation, 192.0.3.0 public, 192.88.99.0 6to4 relay, 192.88.100.0 public,
             192.168.0.0 private, 192.169.0.0 public, 198.18.0.0 benchmarking, 198.20.0.0 public,
             198.51.100.0 documentation, 198.51.101.0 public, 203.0.113.0 documentation, 203.0.114.0 public,
             224.0.0.0 multicast, 240.0.0.0 reserved, 255.255.255.255 broadcast",
        );
    }

    #[test]
    fn every_ipv6_range_ends_where_it_should() {
        // The IPv4-mapped addresses lie in the range from `::1:0:0`, off its boundaries, and have the classes of IPv4.
        check(
            Ipv6Addr::from_bits(u128::MAX).into(),
            ":: unspecified, ::1 loopback, ::2 IPv4-compatible, ::1:0:0 not global unicast,
             64:ff9b:: NAT64, 64:ff9b::1:0:0 not global unicast, 64:ff9b:1:: local NAT64,
             64:ff9b:2:: not global unicast, 100:: discard-only, 100:0:0:1:: dummy,
             100:0:0:2:: not global unicast, 2000:: public, 2001:: Teredo, 2001:1:: IETF protocols,
             2001:2:: benchmarking, 2001:2:1:: IETF protocols, 2001:10:: ORCHID, 2001:20:: ORCHIDv2,
             2001:30:: drone identifier, 2001:40:: IETF protocols, 2001:200:: public,
             2001:db8:: documentation, 2001:db9:: public, 2002:: 6to4, 2003:: public,
             3fff:: documentation, 3fff:1000:: public, 4000:: not global unicast, 5f00:: segment routing,
             5f01:: not global unicast, fc00:: unique local, fd00:ec2::254 cloud metadata,
             fd00:ec2::255 unique local, fd20:ce::254 cloud metadata, fd20:ce::255 unique local,
             fe00:: not global unicast, fe80:: link-local, fec0:: site-local, ff00:: multicast",
        );
        assert_eq!(class("::ffff:0:7f00:1".parse().unwrap()), "not global unicast");
        assert_eq!(class("::fffe:ffff:ffff".parse().unwrap()), "not global unicast");
    }

    proptest! {
        #[test]
        fn mapped_addresses_have_the_class_of_what_they_map(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(special(address.to_ipv6_mapped().into()), special(address.into()));
        }

        #[test]
        fn embedded_addresses_are_special_whatever_they_are(bits: u32) {
            let (low, wide) = (u128::from(bits), Ipv6Addr::from_bits(u128::from(bits) << 80).segments());
            for embedding in [low, (0x64_ff9b << 96) | low, (0x2001 << 112) | low] {
                prop_assert!(special(Ipv6Addr::from_bits(embedding).into()).is_some());
            }
            prop_assert!(special(Ipv6Addr::new(0x2002, wide[1], wide[2], 0, 0, 0, 0, 1).into()).is_some());
        }
    }
}
