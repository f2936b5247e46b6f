//! What guests may reach outside: the grammar of the grants, and whether they permit a request. Nothing is permitted
//! until it is granted.
//!
//! Pure: names are resolved and connections made elsewhere, which asks twice. Before resolving, whether the destination
//! is granted; then for each address that the name has, whether that may be connected to: a granted name that suddenly
//! leads to the machine's own network (DNS rebinding) is refused. The connection must go to an address that was asked
//! about. Redirects are requests of their own.

mod address;
mod connect;
mod dir;
#[cfg(test)]
mod fuzz;
mod store;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub(crate) use address::special;
pub(crate) use connect::{AllowConnect, ConnectGrants, connect_flag};
pub(crate) use dir::{Access, DirGrant, check_dirs};
pub(crate) use store::{RedisPlace, RedisServer, StoreGrant, StorePlace};

/// Longest name and label that the DNS can carry, in bytes (RFC 1035).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

const NO_SCHEME: &str =
    "expected a URL with http:// or https://; write https://api.example.com or http://127.0.0.1:3000";
const NOT_A_PATH: &str = "a path or query cannot be granted; only the prefix length of a network may follow host and \
                          port: write https://api.example.com, or http://10.0.0.0:8080/8 for a network";
const WILDCARD: &str = "* must be the whole first label, with at least two labels after it, as in *.example.com";

/// The schemes of outbound requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn named(text: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| scheme.as_str().eq_ignore_ascii_case(text))
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where a request wants to go. One host has one spelling, whatever the guest wrote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Host {
    /// Lower case, without the dot at the end, never an address in disguise; at most 253 bytes.
    Name(String),
    /// Never an IPv4-mapped IPv6 address: those count as the IPv4 address.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Host {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        match parse_literal(text)? {
            Some(address) => Ok(Self::Address(address.to_canonical())),
            None => parse_name(text).map(Self::Name),
        }
    }
}

/// One `--allow-host`: `SCHEME://HOST[:PORT][/LENGTH]`.
///
/// HOST is a name, `*.` and a name for all that is below it, or an address. PORT is the scheme's own unless given, `*`
/// for any. LENGTH makes a network of an address. It stands at the end, where a URL has its path: what is before stays
/// a URL with its port in the usual place, and no grant has a path to confuse it with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct AllowHost {
    scheme: Scheme,
    hosts: Hosts,
    ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Name(String),
    /// All names that end in a dot and this one.
    Below(String),
    /// A single address is a network of full length.
    Network(IpNet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    Any,
    Only(u16),
}

impl AllowHost {
    fn covers(&self, destination: &Destination) -> bool {
        self.ports.cover(destination.port) && self.hosts.cover(&destination.host) && self.scheme == destination.scheme
    }
}

impl Hosts {
    fn cover(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Name(granted), Host::Name(name)) => granted == name,
            (Self::Below(parent), Host::Name(name)) => {
                name.strip_suffix(parent.as_str()).is_some_and(|label| label.ends_with('.'))
            }
            (Self::Network(network), Host::Address(address)) => network.contains(address),
            _ => false,
        }
    }

    /// The length of a network of more than one address.
    fn length(&self) -> Option<u8> {
        match self {
            Self::Network(network) if network.prefix_len() < network.max_prefix_len() => Some(network.prefix_len()),
            _ => None,
        }
    }
}

/// As an authority says it, of a network the first address.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Network(IpNet::V4(network)) => write!(f, "{}", network.addr()),
            Self::Network(IpNet::V6(network)) => write!(f, "[{}]", network.addr()),
        }
    }
}

impl Ports {
    fn cover(self, port: u16) -> bool {
        self == Self::Any || self == Self::Only(port)
    }
}

impl FromStr for AllowHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(NO_SCHEME)?;
        let scheme = Scheme::named(scheme).ok_or(NO_SCHEME)?;
        if rest.contains(['?', '#']) {
            return Err(NOT_A_PATH.into());
        }
        let (authority, tail) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_port(authority)?;
        let ports = match port {
            None => Ports::Only(scheme.default_port()),
            Some("*") => Ports::Any,
            Some(port) => Ports::Only(parse_port(port)?),
        };
        let hosts = if tail.is_empty() { parse_hosts(host)? } else { Hosts::Network(parse_network(host, tail)?) };
        Ok(Self { scheme, hosts, ports })
    }
}

impl fmt::Display for AllowHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.hosts)?;
        match self.ports {
            Ports::Any => f.write_str(":*")?,
            Ports::Only(port) if port == self.scheme.default_port() => {}
            Ports::Only(port) => write!(f, ":{port}")?,
        }
        self.hosts.length().map_or(Ok(()), |length| write!(f, "/{length}"))
    }
}

impl TryFrom<String> for AllowHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AllowHost> for String {
    fn from(grant: AllowHost) -> Self {
        grant.to_string()
    }
}

/// Where an outbound request of a guest goes. Who connects takes scheme, host and port from here, so that nobody reads
/// the guest's text a second time, and otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    scheme: Scheme,
    host: Host,
    port: u16,
}

impl Destination {
    /// Reads a request's URI, of which path and query do not matter. The error says what is wrong with it, without
    /// anything that the guest wrote.
    pub(crate) fn of(uri: &http::Uri) -> Result<Self, &'static str> {
        let scheme = uri.scheme_str().and_then(Scheme::named).ok_or("the scheme is neither http nor https")?;
        let (host, port) = split_port(uri.authority().ok_or("the host is missing")?.as_str())?;
        let port = port.map_or(Ok(scheme.default_port()), parse_port)?;
        Ok(Self { scheme, host: Host::parse(host)?, port })
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Never 0.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// As a Host field says it (RFC 9110, section 7.2).
    pub(crate) fn authority(&self) -> String {
        let host = match &self.host {
            Host::Name(name) => name.clone(),
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        };
        if self.port == self.scheme.default_port() { host } else { format!("{host}:{}", self.port) }
    }

    /// The same service at an address: what must be granted too when a granted name leads to a special address.
    pub(crate) fn at(&self, address: IpAddr) -> Self {
        Self { host: Host::Address(address.to_canonical()), ..*self }
    }

    /// The flag that would grant exactly this: `--allow-host http://10.0.0.5:8080`.
    pub(crate) fn flag(&self) -> String {
        let hosts = match &self.host {
            Host::Name(name) => Hosts::Name(name.clone()),
            Host::Address(address) => Hosts::Network((*address).into()),
        };
        format!("--allow-host {}", AllowHost { scheme: self.scheme, hosts, ports: Ports::Only(self.port) })
    }
}

/// All outbound hosts that guests may reach; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Grants(Vec<AllowHost>);

impl From<Vec<AllowHost>> for Grants {
    fn from(grants: Vec<AllowHost>) -> Self {
        Self(grants)
    }
}

impl Grants {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether the name may be resolved, or the literal address connected to.
    pub(crate) fn permits(&self, destination: &Destination) -> bool {
        self.first_that_permits(destination).is_some()
    }

    /// The number of the first grant that permits it.
    pub(crate) fn first_that_permits(&self, destination: &Destination) -> Option<usize> {
        self.0.iter().position(|grant| grant.covers(destination))
    }

    /// Whether a connection may go to `address`, one of those that the destination resolved to; implies
    /// [`Self::permits`]. A name's grant is good for the public internet only. A special address needs a grant of its
    /// own beside the name's, unless it is this machine's and the name says so.
    pub(crate) fn permits_address(&self, destination: &Destination, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let leads_there = match &destination.host {
            Host::Address(literal) => *literal == address,
            Host::Name(name) => leads_by_itself(name, address) || self.permits(&destination.at(address)),
        };
        leads_there && self.permits(destination)
    }
}

/// Whether a grant of `name` is good for `address` without another: for the public internet, and for this machine if the
/// name means that (RFC 6761, section 6.3).
fn leads_by_itself(name: &str, address: IpAddr) -> bool {
    let is_localhost = name == "localhost" || name.ends_with(".localhost");
    special(address).is_none() || (is_localhost && address.is_loopback())
}

/// Divides `HOST[:PORT]`. Does not leave that to the `http` crate, whose accessors skip a user and ignore a bad port.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), &'static str> {
    if authority.contains('@') {
        return Err("a user or password cannot be given");
    }
    let brackets = authority.rfind(']').map_or(0, |end| end + 1);
    let Some(colon) = authority[brackets..].find(':') else { return Ok((authority, None)) };
    let (host, port) = (&authority[..brackets + colon], &authority[brackets + colon + 1..]);
    if port.contains(':') {
        return Err("an IPv6 address belongs in brackets, as in [::1]:3000");
    }
    Ok((host, Some(port)))
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    parse_digits(text).filter(|&port| port != 0).ok_or("the port is not a number from 1 to 65535")
}

/// Unlike `parse` alone, takes no sign.
fn parse_digits<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An address as written, or `None` for what must then be a name.
fn parse_literal(text: &str) -> Result<Option<IpAddr>, &'static str> {
    let Some(rest) = text.strip_prefix('[') else {
        return Ok(text.parse::<Ipv4Addr>().ok().map(IpAddr::V4));
    };
    match rest.strip_suffix(']').map(|inner| (inner, inner.parse::<Ipv6Addr>())) {
        Some((_, Ok(address))) => Ok(Some(address.into())),
        Some((inner, Err(_))) if inner.contains('%') => Err("an IPv6 address with a zone is not supported"),
        _ => Err("the brackets do not hold an IPv6 address"),
    }
}

fn parse_name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let in_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() {
        Err("the host is missing")
    } else if !name.is_ascii() {
        Err("a name with letters other than a to z must be in punycode, as in xn--mnchen-3ya.example")
    } else if name.len() > MAX_NAME || name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
        Err("a name has at most 253 bytes, and 1 to 63 between its dots")
    } else if !name.bytes().all(|byte| byte == b'.' || in_label(byte)) {
        Err("a name consists of letters, digits, - and _")
    } else if ends_in_number(&name) {
        Err("an IPv4 address must be four decimal numbers without leading zeros, like 127.0.0.1")
    } else {
        Ok(name)
    }
}

/// What the URL standard of WHATWG takes for an IPv4 address, as do many resolvers: `127.1`, `0x7f.1`, `2130706433`.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || last.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_hosts(text: &str) -> Result<Hosts, &'static str> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name.contains('*') {
        return Err(WILDCARD);
    }
    if name.len() < text.len() {
        let parent = parse_name(name)?;
        return if parent.contains('.') { Ok(Hosts::Below(parent)) } else { Err(WILDCARD) };
    }
    Ok(match Host::parse(text)? {
        Host::Name(name) => Hosts::Name(name),
        Host::Address(address) => Hosts::Network(address.into()),
    })
}

fn parse_network(host: &str, length: &str) -> Result<IpNet, String> {
    let address = parse_literal(host)?.ok_or(NOT_A_PATH)?;
    let length = parse_digits(length).ok_or(NOT_A_PATH)?;
    let network = IpNet::new(address, length).map_err(|_| format!("/{length} is longer than {address}"))?;
    let first = network.network();
    if first != address {
        return Err(format!(
            "{address} is not the first address of a network of length {length}: write {first} for the network, or \
             leave out /{length} for the one address"
        ));
    }
    // The prefix ::ffff:0:0/96 ends in ones, so a network that begins at a mapped address is at least that long.
    let canonical = IpNet::from(address.to_canonical());
    let dropped = network.max_prefix_len() - canonical.max_prefix_len();
    Ok(IpNet::new_assert(canonical.addr(), length - dropped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From texts with spaces between.
    fn grants(texts: &str) -> Grants {
        texts.split(' ').filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).collect::<Vec<_>>().into()
    }

    fn destination(uri: &str) -> Destination {
        Destination::of(&uri.parse().unwrap()).unwrap()
    }

    #[test]
    fn grants_have_a_canonical_form() {
        let check = |text: &str, canonical: &str| {
            let grant: AllowHost = text.parse().unwrap();
            assert_eq!(grant.to_string(), canonical, "{text}");
            let json = serde_json::to_string(&grants(text)).unwrap();
            assert_eq!(json, format!("[\"{canonical}\"]"));
            assert_eq!(serde_json::from_str::<Grants>(&json).unwrap(), Grants(vec![grant]));
        };
        check("http://api.example.com", "http://api.example.com");
        check("HTTPS://API.Example.com.:8443/", "https://api.example.com:8443");
        check("https://x.example:443", "https://x.example");
        check("https://x.example:080", "https://x.example:80");
        check("http://x.example:*", "http://x.example:*");
        check("https://*.Example.com", "https://*.example.com");
        check("http://localhost", "http://localhost");
        check("http://_srv.xn--mnchen-3ya.example", "http://_srv.xn--mnchen-3ya.example");
        check("http://1.2.3.4.example", "http://1.2.3.4.example");
        check("http://127.0.0.1:3000", "http://127.0.0.1:3000");
        check("http://[0:0::0001]:3000", "http://[::1]:3000");
        check("http://[::ffff:10.0.0.1]", "http://10.0.0.1");
        check("http://10.0.0.0/8", "http://10.0.0.0/8");
        check("http://10.1.2.0:8080/24", "http://10.1.2.0:8080/24");
        check("http://10.1.2.3/32", "http://10.1.2.3");
        check("http://0.0.0.0:*/0", "http://0.0.0.0:*/0");
        check("https://[fd00::]:8443/8", "https://[fd00::]:8443/8");
        check("http://[::ffff:10.0.0.0]/104", "http://10.0.0.0/8");
        check("http://[::ffff:0:0]/96", "http://0.0.0.0/0");
        let longest = format!("http://{}bbb", "a.".repeat(125));
        check(&longest, &longest);
    }

    #[test]
    fn what_cannot_be_granted_says_why() {
        let check_one = |text: &str, message: &str| {
            let error = text.parse::<AllowHost>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        };
        let check = |texts: &str, message: &str| texts.split(' ').for_each(|text| check_one(text, message));
        check("example.com example.com:80 //example.com http:x.example 10.0.0.0/8", "https://api.example.com");
        check(" ftp://x.example ://x.example wss://x.example *://x.example", "http:// or https://");
        check("http://u@x.example http://u:p@x.example http://@x.example", "a user or password");
        check("http://x.example/api http://x.example// http://x.example?a http://x.example/#a", "a path");
        check("http://x.example/8 http://10.0.0.0/a http://10.0.0.0/8/ http://10.0.0.0/+8", "a path");
        check("http://10.0.0.0/8:8080", "http://10.0.0.0:8080/8 for a network");
        check("http:// http:/// http://:80 http://. http://*.", "the host is missing");
        check("http://* http://*:* http://*.com http://*.localhost http://*.com.", "at least two labels");
        check("http://a*.x.example http://a.*.example http://*.*.example http://**.x.example", "first label");
        check("http://x.example: http://x.example:0 http://x.example:65536 http://x.example:+80", "1 to 65535");
        check("http://x.example:http http://x.example:-1 http://x.example:8*", "1 to 65535");
        check("http://::1 http://::1:80 http://a:1:2 http://[::1]:80:80 http://[::1", "in brackets");
        check("http://[fe80::1%25eth0] http://[fe80::1%eth0]", "zone");
        check("http://[] http://[::1]x http://[1.2.3.4] http://[v1.x]", "do not hold");
        check("http://10.0.0.1/8 http://[fd00::1]/8 http://[::ffff:0:0]/95", "is not the first address");
        check("http://10.0.0.1/8", "write 10.0.0.0 for the network, or leave out /8");
        check("http://10.0.0.0/33 http://[::]/129", "is longer than");
        check("http://münchen.example http://x。example http://ⓛocalhost http://１27.0.0.1", "punycode");
        check("http://a..b http://.a http://a..", "at most 253");
        check_one(&format!("http://{}", "a".repeat(64)), "at most 253");
        check_one(&format!("http://{}bbbb", "a.".repeat(125)), "at most 253");
        check("http://a%2eb http://a\\b http://a\0 http://a\n http://a]b http://x.example,y", "letters");
        check_one("http://a b", "letters");
        check("http://0x7f.1 http://127.1 http://2130706433 http://0177.0.0.1 http://256.1.1.1", "like 127.0.0.1");
        check("http://127.0.0.1. http://1.2.3.4.5 http://a.0X http://*.0.0.1 http://*.a.0x7f", "like 127.0.0.1");
    }

    #[test]
    fn destinations_are_read_strictly() {
        let check = |uri: &str, flag: &str| assert_eq!(destination(uri).flag(), format!("--allow-host {flag}"));
        check("http://10.0.0.5:8080/path?query", "http://10.0.0.5:8080");
        check("HTTPS://API.Example.com.:443/", "https://api.example.com");
        check("https://x.example:80", "https://x.example:80");
        check("http://[::FFFF:127.0.0.1]:1", "http://127.0.0.1:1");
        check("http://[::ffff:7f00:1]", "http://127.0.0.1");
        check("http://[::127.0.0.1]", "http://[::7f00:1]");
        check("http://[2001:DB8::0]:65535", "http://[2001:db8::]:65535");
        let at = destination("https://x.example:8443").at("::ffff:10.0.0.5".parse().unwrap());
        assert_eq!(at.flag(), "--allow-host https://10.0.0.5:8443");
        assert_eq!((at.scheme(), at.port()), (Scheme::Https, 8443));
        assert_eq!(at.host(), &Host::Address(Ipv4Addr::new(10, 0, 0, 5).into()));
        // Some the `http` crate refuses already.
        let refused = "/ * x.example x.example:80 ftp://x.example http:// http://:80 http://. http://u@x.example \
            http://u:p@x.example http://x.example@127.0.0.1 http://@x.example http://x.example: http://x.example:0 \
            http://x.example:65536 http://x.example:+1 http://x.example:80:90 http://::1 http://[::1 http://[::1]x \
            http://[::1%25lo] http://[] http://x%2eexample http://%31 http://*.x.example http://a..b http://x\\y \
            http://x.example.. http://0x7f.1 http://0X7F000001 http://127.1 http://2130706433 http://0177.0.0.1 \
            http://127.0.0.1. http://127.0.0.01 http://x.1 http://a,b http://(a) http://x.example;y";
        for uri in refused.split(' ') {
            let read = uri.parse::<http::Uri>().map(|uri| Destination::of(&uri));
            assert!(!matches!(read, Ok(Ok(_))), "{uri}: {read:?}");
        }
    }

    #[test]
    fn only_what_is_granted_is_permitted() {
        let check = |grant: &str, permitted: &str, denied: &str| {
            let permits = |uri: &str| grants(grant).permits(&destination(uri));
            permitted.split(' ').for_each(|uri| assert!(permits(uri), "{grant}: {uri}"));
            denied.split(' ').for_each(|uri| assert!(!permits(uri), "{grant}: {uri}"));
        };
        assert!(!Grants::default().permits(&destination("http://x.example")));
        check("http://x.example", "http://x.example http://X.EXAMPLE.:80/a", "https://x.example https://x.example:80");
        check("http://x.example", "http://x.example", "http://x.example:81 http://a.x.example http://x http://1.1.1.1");
        check("https://x.example:*", "https://x.example https://x.example:1", "http://x.example:443");
        check(
            "https://*.x.example",
            "https://a.x.example https://a.b.x.example",
            "https://x.example https://ax.example",
        );
        check("https://*.x.example", "https://-.x.example", "https://a.x.example:444 https://x.example.a");
        check("http://127.0.0.1", "http://127.0.0.1 http://[::ffff:127.0.0.1]", "http://localhost http://[::1]");
        check("http://10.0.0.0:8080/8", "http://10.0.0.0:8080 http://[::ffff:a00:1]:8080", "http://11.0.0.0:8080");
        check("http://10.0.0.0:8080/8", "http://10.255.255.255:8080", "http://10.0.0.1 http://[::a00:1]:8080");
        check("http://0.0.0.0/0", "http://1.2.3.4", "http://[64:ff9b::102:304] http://[::1] http://x.example");
        check("http://[::]/0", "http://[::1] http://[64:ff9b::1]", "http://1.2.3.4 http://[::ffff:1.2.3.4]");
    }

    #[test]
    fn granted_names_lead_to_the_public_internet_only() {
        let check = |texts: &str, uri: &str, permitted: &str, denied: &str| {
            let ask = |address: &str| grants(texts).permits_address(&destination(uri), address.parse().unwrap());
            permitted.split_whitespace().for_each(|address| assert!(ask(address), "{texts}: {uri} at {address}"));
            denied.split_whitespace().for_each(|address| assert!(!ask(address), "{texts}: {uri} at {address}"));
        };
        let name = "http://x.example";
        let public = "1.1.1.1 ::ffff:1.1.1.1 2606:4700::1";
        let inner =
            "127.0.0.1 ::1 10.0.0.5 ::ffff:10.0.0.5 :: 0.0.0.0 169.254.169.254 ::ffff:169.254.169.254 fd00:ec2::254";
        let tunnels = "2002:101:101::1 2001::1 ::1.1.1.1 ::ffff:0:101:101";
        check(name, name, public, inner);
        check(name, name, "", tunnels);
        check("https://x.example", name, "", public);
        check("", name, "", public);
        check("http://x.example http://10.0.0.0/8", name, "10.0.0.5 ::ffff:10.0.0.5 1.1.1.1", "127.0.0.1 ::a00:5");
        check("http://x.example https://10.0.0.0/8 http://10.0.0.0:81/8", name, public, inner);
        check("http://x.example http://[64:ff9b::]/96", name, "64:ff9b::7f00:1", tunnels);
        check("http://0.0.0.0/0 http://[::]/0", name, "", public);
        check("http://*.x.example", "http://a.x.example", public, inner);
        let loopback = "127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1";
        let beside = "10.0.0.5 0.0.0.0 :: 169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1";
        check("http://localhost", "http://LOCALHOST.", loopback, beside);
        check("http://app.localhost", "http://app.localhost", loopback, beside);
        check("http://*.a.localhost", "http://b.a.localhost", loopback, beside);
        check("http://localhost.example", "http://localhost.example", "", loopback);
        check("http://127.0.0.1", "http://localhost", "", loopback);
        check("http://10.0.0.0/8", "http://10.0.0.5", "10.0.0.5 ::ffff:10.0.0.5", "10.0.0.6 1.1.1.1 ::a00:5");
        check("http://1.1.1.1", "http://[::ffff:1.1.1.1]", "1.1.1.1", "1.1.1.2 ::101:101");
        check("", "http://1.1.1.1", "", "1.1.1.1");
    }

    proptest! {
        #[test]
        fn whatever_parses_comes_back(
            text in "https?://(\\*\\.)?[a-z0-9.\\[:*x%@_-]{0,16}[\\]a-z]?(:[0-9*]{1,5})?(/[0-9]{0,3})?"
        ) {
            if let Ok(grant) = text.parse::<AllowHost>() {
                prop_assert_eq!(grant.to_string().parse(), Ok(grant));
            }
        }

        #[test]
        fn networks_come_back(address: IpAddr, length in 0_u8..=128, port in 1_u16..) {
            let full = IpNet::from(address.to_canonical());
            let network = IpNet::new(full.addr(), length.min(full.max_prefix_len())).unwrap().trunc();
            let grant = AllowHost { scheme: Scheme::Http, hosts: Hosts::Network(network), ports: Ports::Only(port) };
            prop_assert_eq!(grant.to_string().parse(), Ok(grant));
        }

        #[test]
        fn the_flag_grants_what_it_was_made_for(
            uri in "https?://([A-Za-z0-9._-]{1,20}|[0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9a-f:.]{2,20}\\])(:[0-9]{1,5})?",
            address: IpAddr,
        ) {
            let Ok(Ok(destination)) = uri.parse::<http::Uri>().map(|uri| Destination::of(&uri)) else { return Ok(()) };
            for granted in [destination.clone(), destination.at(address)] {
                let grants = grants(granted.flag().strip_prefix("--allow-host ").unwrap());
                prop_assert!(grants.permits(&granted));
                prop_assert!(grants.permits(&destination) || !grants.permits_address(&destination, address));
            }
        }
    }
}
