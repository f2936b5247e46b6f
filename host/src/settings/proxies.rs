//! Whom to believe what they say of clients: the networks of `--trust-proxy`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// Whoever connects over a Unix socket.
const UNIX: &str = "unix";

/// One `--trust-proxy`: `10.0.0.0/8`, `2001:db8::/32`, an address, or `unix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum TrustedProxy {
    Network(IpNet),
    Unix,
}

impl FromStr for TrustedProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == UNIX {
            return Ok(Self::Unix);
        }
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let network = network.ok_or_else(|| {
            format!("'{text}' is not a network; write 10.0.0.0/8, 2001:db8::/32, an address, or unix for Unix sockets")
        })?;
        if network.trunc() != network {
            return Err(format!(
                "'{text}' is an address inside of a network; write {} or {}",
                network.trunc(),
                network.addr()
            ));
        }
        Ok(Self::Network(canonical(network)))
    }
}

/// An IPv4-mapped network as the IPv4 network that it is: so addresses are compared.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(network) if network.prefix_len() >= 96 => {
            network.addr().to_ipv4_mapped().and_then(|address| Ipv4Net::new(address, network.prefix_len() - 96).ok())
        }
        _ => None,
    };
    mapped.map_or(network, IpNet::V4)
}

impl TrustedProxy {
    pub(super) fn is_everybody(self) -> bool {
        matches!(self, Self::Network(network) if network.prefix_len() == 0)
    }
}

impl TryFrom<String> for TrustedProxy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Unix => f.write_str(UNIX),
        }
    }
}

impl From<TrustedProxy> for String {
    fn from(proxy: TrustedProxy) -> Self {
        proxy.to_string()
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrustedProxies(Vec<TrustedProxy>);

impl From<Vec<TrustedProxy>> for TrustedProxies {
    fn from(proxies: Vec<TrustedProxy>) -> Self {
        Self(proxies)
    }
}

impl TrustedProxies {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether to believe what an address says of others. Over a Unix socket there is none.
    pub(crate) fn trusts(&self, address: Option<IpAddr>) -> bool {
        self.0.iter().any(|proxy| match (proxy, address) {
            (TrustedProxy::Network(network), Some(address)) => network.contains(&address.to_canonical()),
            (TrustedProxy::Unix, None) => true,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(proxies: &[&str]) -> TrustedProxies {
        proxies.iter().map(|it| it.parse().unwrap()).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_proxy_is_trusted_by_its_network() {
        let proxies = trusted(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]);
        let check = |address: &str, expected| {
            assert_eq!(proxies.trusts(Some(address.parse().unwrap())), expected, "{address}");
        };
        for (address, expected) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.0", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:1::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ] {
            check(address, expected);
        }
        assert!(!proxies.trusts(None));
        assert!(trusted(&["::ffff:192.0.2.0/120"]).trusts("192.0.2.9".parse().ok()));
        assert!(trusted(&["unix"]).trusts(None) && !trusted(&["unix"]).trusts("127.0.0.1".parse().ok()));
        assert!(trusted(&["0.0.0.0/0"]).trusts("203.0.113.1".parse().ok()));
        assert!(!TrustedProxies::default().trusts(None));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (text, said) in [
            ("10.0.0.1/8", "write 10.0.0.0/8 or 10.0.0.1"),
            ("proxy.example.com", "is not a network"),
            ("10.0.0.0/33", "is not a network"),
            ("*", "is not a network"),
            ("", "is not a network"),
        ] {
            let error = text.parse::<TrustedProxy>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        for text in ["10.0.0.0/8", "::1/128", "unix"] {
            assert_eq!(text.parse::<TrustedProxy>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<TrustedProxy>().unwrap().to_string(), "192.0.2.7/32");
    }
}
