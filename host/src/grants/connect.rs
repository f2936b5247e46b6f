//! `--allow-connect`: where guests may open TCP connections of their own, by `wasi:sockets`.
//!
//! That interface separates look-up and connection: a guest asks for a name's addresses, and later connects to an address.
//! So who connects is asked about both: whether the name may be looked up, and whether an address may be connected to on a
//! port, as itself or as one that a look-up of a granted name gave. Who looked up what is kept elsewhere.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    Host, Hosts, Ports, leads_by_itself, parse_digits, parse_hosts, parse_literal, parse_network, parse_port,
    split_port,
};

const NO_PORT: &str = "expected a host and a port; write db.example.com:5432, or db.example.com:* for any port";
const SCHEME: &str = "a connection has no scheme; write db.example.com:5432";
const NO_LENGTH: &str = "only the prefix length of a network may follow host and port; write 10.0.0.0:5432/8";

/// One `--allow-connect`: `HOST:PORT[/LENGTH]`, each of them as `--allow-host` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct AllowConnect {
    hosts: Hosts,
    ports: Ports,
}

impl AllowConnect {
    fn covers(&self, host: &Host, port: u16) -> bool {
        self.ports.cover(port) && self.hosts.cover(host)
    }
}

impl FromStr for AllowConnect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err(SCHEME.into());
        }
        let (authority, length) = text.split_once('/').map_or((text, None), |(before, after)| (before, Some(after)));
        let (host, port) = split_port(authority)?;
        let ports = match port.ok_or(NO_PORT)? {
            "*" => Ports::Any,
            port => Ports::Only(parse_port(port)?),
        };
        let hosts = match length {
            None => parse_hosts(host)?,
            Some(length) if parse_literal(host)?.is_none() || parse_digits::<u8>(length).is_none() => {
                return Err(NO_LENGTH.into());
            }
            Some(length) => Hosts::Network(parse_network(host, length)?),
        };
        Ok(Self { hosts, ports })
    }
}

impl fmt::Display for AllowConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            Ports::Any => write!(f, "{}:*", self.hosts)?,
            Ports::Only(port) => write!(f, "{}:{port}", self.hosts)?,
        }
        self.hosts.length().map_or(Ok(()), |length| write!(f, "/{length}"))
    }
}

impl TryFrom<String> for AllowConnect {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AllowConnect> for String {
    fn from(grant: AllowConnect) -> Self {
        grant.to_string()
    }
}

/// All that guests may connect to; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ConnectGrants(Vec<AllowConnect>);

impl From<Vec<AllowConnect>> for ConnectGrants {
    fn from(grants: Vec<AllowConnect>) -> Self {
        Self(grants)
    }
}

impl ConnectGrants {
    pub(crate) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of the first grant by which `name` may be looked up.
    pub(crate) fn first_for_name(&self, name: &str) -> Option<usize> {
        let host = Host::Name(name.to_owned());
        self.0.iter().position(|grant| grant.hosts.cover(&host))
    }

    /// Whether a connection may go to the address as such, whoever has it.
    pub(crate) fn permit(&self, address: IpAddr, port: u16) -> bool {
        let host = Host::Address(address.to_canonical());
        self.0.iter().any(|grant| grant.covers(&host, port))
    }

    /// Whether a connection may go to `address` on `port`, as an address that a look-up of `name` gave. The name must be
    /// granted with this port; a special address needs a grant of its own beside that, unless it is this machine's and the
    /// name says so.
    pub(crate) fn permit_by_name(&self, name: &str, address: IpAddr, port: u16) -> bool {
        let host = Host::Name(name.to_owned());
        let is_granted = self.0.iter().any(|grant| grant.covers(&host, port));
        is_granted && (leads_by_itself(name, address.to_canonical()) || self.permit(address, port))
    }

    /// Whether there is a port on which [`Self::permit_by_name`] permits `address`: others are not told to the guest.
    pub(crate) fn lead_to(&self, name: &str, address: IpAddr) -> bool {
        let (name_of, at) = (Host::Name(name.to_owned()), Host::Address(address.to_canonical()));
        let of_name = || self.0.iter().filter(|grant| grant.hosts.cover(&name_of)).map(|grant| grant.ports);
        let of_address = || self.0.iter().filter(|grant| grant.hosts.cover(&at)).map(|grant| grant.ports);
        let meet = |one: Ports, other: Ports| one == Ports::Any || other == Ports::Any || one == other;
        of_name().any(|port| leads_by_itself(name, address.to_canonical()) || of_address().any(|at| meet(port, at)))
    }
}

/// The flag that would grant exactly this: `--allow-connect 10.0.0.5:5432`. Without a port, a word for one.
pub(crate) fn connect_flag(host: &Host, port: Option<u16>) -> String {
    let hosts = match host {
        Host::Name(name) => Hosts::Name(name.clone()),
        Host::Address(address) => Hosts::Network((*address).into()),
    };
    let port = port.map_or("PORT".to_owned(), |port| port.to_string());
    format!("--allow-connect {hosts}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grants(texts: &str) -> ConnectGrants {
        texts.split(' ').filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).collect::<Vec<_>>().into()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_have_a_canonical_form() {
        let check = |text: &str, canonical: &str| {
            let grant: AllowConnect = text.parse().unwrap();
            assert_eq!(grant.to_string(), canonical, "{text}");
            let json = serde_json::to_string(&grants(text)).unwrap();
            assert_eq!(json, format!("[\"{canonical}\"]"));
            assert_eq!(serde_json::from_str::<ConnectGrants>(&json).unwrap(), ConnectGrants(vec![grant]));
        };
        check("DB.Example.com.:05432", "db.example.com:5432");
        check("*.example.com:5432", "*.example.com:5432");
        check("db.example.com:*", "db.example.com:*");
        check("localhost:6379", "localhost:6379");
        check("10.0.0.5:5432", "10.0.0.5:5432");
        check("10.0.0.5:5432/32", "10.0.0.5:5432");
        check("10.0.0.0:5432/8", "10.0.0.0:5432/8");
        check("0.0.0.0:*/0", "0.0.0.0:*/0");
        check("[0::1]:5432", "[::1]:5432");
        check("[fd00::]:*/8", "[fd00::]:*/8");
        check("[::ffff:10.0.0.5]:5432", "10.0.0.5:5432");
    }

    #[test]
    fn what_is_no_connection_says_why() {
        let check = |texts: &str, message: &str| {
            for text in texts.split(' ') {
                let error = text.parse::<AllowConnect>().unwrap_err();
                assert!(error.contains(message), "{text}: {error}");
            }
        };
        check("db.example.com 10.0.0.5 [::1] 10.0.0.0/8 db", "write db.example.com:5432");
        check("tcp://db.example.com:5432 postgres://u:p@db:5432/x http://a:80", "no scheme");
        check("u@db:5432 u:p@db:5432", "a user or password");
        check("db: db:0 db:65536 db:+1 db:postgres db:5432* 10.0.0.0:/8", "1 to 65535");
        check("::1:5432 fd00::5:5432 a:1:2", "as in [::1]:3000");
        check("db:5432/ db:5432/8 db:5432/x 10.0.0.0:5432/ 10.0.0.0:5432/a 10.0.0.0:5432/+8", "only the prefix length");
        check("10.0.0.1:5432/8", "write 10.0.0.0 for the network");
        check("10.0.0.0:5432/33", "is longer than");
        check("*:5432 *.com:5432 a*.example.com:1 *.*.example:1", "as in *.example.com");
        check(":5432 .:5432", "the host is missing");
        check("127.1:5432 0x7f.1:1 2130706433:1", "like 127.0.0.1");
        check("a%2eb:1 a,b:1", "letters");
    }

    #[test]
    fn an_address_is_permitted_as_itself_on_its_port() {
        let check = |texts: &str, permitted: &str, denied: &str| {
            let ask = |text: &str| {
                let at: std::net::SocketAddr = text.parse().unwrap();
                grants(texts).permit(at.ip(), at.port())
            };
            permitted.split_whitespace().for_each(|at| assert!(ask(at), "{texts}: {at}"));
            denied.split_whitespace().for_each(|at| assert!(!ask(at), "{texts}: {at}"));
        };
        check("", "", "1.1.1.1:5432 127.0.0.1:5432");
        check("10.0.0.5:5432", "10.0.0.5:5432 [::ffff:10.0.0.5]:5432", "10.0.0.5:5433 10.0.0.6:5432 [::a00:5]:5432");
        check("10.0.0.0:5432/8", "10.255.0.1:5432", "11.0.0.0:5432 10.0.0.1:80");
        check("127.0.0.1:*", "127.0.0.1:1 127.0.0.1:65535", "127.0.0.2:1 [::1]:1");
        check("[::1]:5432", "[::1]:5432", "127.0.0.1:5432 [::2]:5432");
        check("localhost:5432 db.example.com:*", "", "127.0.0.1:5432 1.1.1.1:5432");
    }

    #[test]
    fn a_name_leads_to_its_own_port_and_not_inside() {
        let check = |texts: &str, name: &str, port, permitted: &str, denied: &str| {
            let ask = |at: &str| grants(texts).permit_by_name(name, address(at), port);
            permitted.split_whitespace().for_each(|at| assert!(ask(at), "{texts}: {name} at {at}"));
            denied.split_whitespace().for_each(|at| assert!(!ask(at), "{texts}: {name} at {at}"));
        };
        let public = "1.1.1.1 ::ffff:1.1.1.1 2606:4700::1";
        let inner = "127.0.0.1 ::1 10.0.0.5 0.0.0.0 169.254.169.254 ::ffff:127.0.0.1 fd00::1 64:ff9b::7f00:1";
        check("db.test:5432", "db.test", 5432, public, inner);
        check("db.test:5432", "db.test", 5433, "", public);
        check("db.test:*", "db.test", 1, public, inner);
        check("db.test:5432", "other.test", 5432, "", public);
        check("*.db.test:5432", "a.db.test", 5432, public, inner);
        check("*.db.test:5432", "db.test", 5432, "", public);
        check("localhost:5432", "localhost", 5432, "127.0.0.1 ::1 127.9.9.9", "10.0.0.5 0.0.0.0 64:ff9b::7f00:1");
        check("localhost.test:5432", "localhost.test", 5432, "", "127.0.0.1 ::1");
        check("db.test:5432 10.0.0.0:5432/8", "db.test", 5432, "10.0.0.5 ::ffff:10.0.0.5 1.1.1.1", "127.0.0.1");
        check("db.test:5432 10.0.0.0:5433/8", "db.test", 5432, "1.1.1.1", "10.0.0.5");
        check("db.test:5432 10.0.0.0:5433/8", "db.test", 5433, "", "10.0.0.5 1.1.1.1");
        check("db.test:* 10.0.0.0:5433/8", "db.test", 5433, "10.0.0.5", "127.0.0.1");
    }

    #[test]
    fn names_are_looked_up_if_any_port_is_granted() {
        let granted = grants("db.test:5432 *.x.test:* 10.0.0.5:5432");
        assert_eq!(granted.first_for_name("db.test"), Some(0));
        assert_eq!(granted.first_for_name("a.x.test"), Some(1));
        assert_eq!(granted.first_for_name("x.test"), None);
        assert_eq!(granted.first_for_name("localhost"), None);
        assert!(granted.lead_to("db.test", address("10.0.0.5")) && granted.lead_to("db.test", address("1.1.1.1")));
        assert!(!granted.lead_to("db.test", address("10.0.0.6")) && !granted.lead_to("none.test", address("1.1.1.1")));
        assert!(!grants("db.test:5433 10.0.0.5:5432").lead_to("db.test", address("10.0.0.5")), "no port is both's");
        assert!(ConnectGrants::default().are_none() && !granted.are_none());
    }

    #[test]
    fn the_flag_says_what_would_be_granted() {
        let flag = |host: &str, port| connect_flag(&Host::parse(host).unwrap(), port);
        assert_eq!(flag("10.0.0.5", Some(5432)), "--allow-connect 10.0.0.5:5432");
        assert_eq!(flag("[::1]", Some(5432)), "--allow-connect [::1]:5432");
        assert_eq!(flag("DB.test", None), "--allow-connect db.test:PORT");
    }

    proptest! {
        #[test]
        fn what_parses_as_a_connection_comes_back(
            text in "(\\*\\.)?[a-z0-9.\\[:*x%@_-]{0,16}[\\]a-z]?(:[0-9*]{1,5})?(/[0-9]{0,3})?"
        ) {
            if let Ok(grant) = text.parse::<AllowConnect>() {
                prop_assert_eq!(grant.to_string().parse(), Ok(grant));
            }
        }

        #[test]
        fn what_is_told_to_a_guest_can_be_connected_to(at: IpAddr, port in 1_u16.., only_port: bool) {
            let port_text = if only_port { port.to_string() } else { "*".to_owned() };
            let granted = grants(&format!("db.test:{port_text} 10.0.0.0:5432/8 [::1]:{port}"));
            let ports = [port, 5432, 1];
            let reached = ports.iter().any(|port| granted.permit_by_name("db.test", at, *port));
            prop_assert_eq!(granted.lead_to("db.test", at), reached);
        }
    }
}
