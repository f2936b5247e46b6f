//! What guests are told of where a request came from: `x-real-ip` is the client; `x-forwarded-for`, `x-forwarded-proto`,
//! `x-forwarded-host` and `forwarded` (RFC 7239) are what each proxy on the way knows, this server last.
//!
//! Whoever connects could say any of that, so none of it is kept but from a proxy that is trusted. The client is then the
//! last address of `x-forwarded-for` that is no such proxy's. What a proxy did not write itself, its client may have written:
//! nothing of that makes a client a proxy, or keeps what follows it from being understood.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::os::listener::Security;
use crate::settings::TrustedProxies;

const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What all others that proxies send begin with.
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// A client, as guests are told of it: that of this server, or of the proxy that introduced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// `None` over a Unix socket, or if its proxy does not know.
    pub(super) address: Option<IpAddr>,
    pub(super) security: Security,
    /// Nobody may believe what it says of others, whatever its address is.
    pub(super) is_stranger: bool,
}

/// The last part of a request's way, of which this server knows by itself. The same for all requests of a connection.
#[derive(Clone, Debug)]
pub(super) struct LastHop {
    scheme: HeaderValue,
    /// `None` over a Unix socket.
    address: Option<(IpAddr, HeaderValue)>,
    /// How `forwarded` begins that says so.
    forwarded: String,
    /// Whether what it says of others is believed.
    is_trusted: bool,
    /// The host that was asked for last, and what is said of that.
    last_host: RefCell<Option<SaidHost>>,
}

/// Header fields that are the same while a client asks for the same host.
#[derive(Clone, Debug)]
struct SaidHost {
    host: Authority,
    forwarded_host: HeaderValue,
    forwarded: HeaderValue,
}

impl LastHop {
    pub(super) fn new(client: Remote, trusted: &TrustedProxies) -> Self {
        let Remote { address, security, is_stranger } = client;
        let scheme = match security {
            Security::Clear => "http",
            Security::Tls => "https",
        };
        let is_trusted = !is_stranger && trusted.trusts(address);
        let address = address.map(|address| address.to_canonical());
        let node = match address {
            Some(IpAddr::V4(address)) => address.to_string(),
            Some(IpAddr::V6(address)) => format!("\"[{address}]\""),
            None => "unknown".into(),
        };
        Self {
            scheme: HeaderValue::from_static(scheme),
            address: address.map(|address| (address, text(address.to_string()))),
            forwarded: format!("for={node};proto={scheme};host="),
            is_trusted,
            last_host: RefCell::new(None),
        }
    }

    /// Who the client is of a request with these headers; none if nobody knows.
    pub(super) fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
        let own = self.address.as_ref().map(|(address, _)| *address);
        let said = if self.is_trusted { nodes(headers) } else { Vec::new() };
        if said.is_empty() { own } else { client(&said, own, trusted) }
    }

    /// What is said of the host that is asked for. As a rule a client asks for one only.
    fn of_host(&self, host: &Authority) -> SaidHost {
        let mut last = self.last_host.borrow_mut();
        if let Some(said) = last.as_ref().filter(|said| said.host.as_str() == host.as_str()) {
            return said.clone();
        }
        let mut forwarded = self.forwarded.clone();
        quote(host.as_str(), &mut forwarded);
        let (forwarded_host, forwarded) = (text(host.as_str().into()), text(forwarded));
        last.insert(SaidHost { host: host.clone(), forwarded_host, forwarded }).clone()
    }

    /// Whether a field is one that the server sets, and no client may.
    pub(super) fn forbids(&self, name: &str) -> bool {
        is_forwarded(name) && !(self.is_trusted && is_kept(name))
    }

    /// Tells where a request to `host` came from, by fields that this hop does not forbid.
    pub(super) fn tell(&self, headers: &mut HeaderMap, host: &Authority, trusted: &TrustedProxies) {
        let own = self.address.as_ref();
        let said = if self.is_trusted { nodes(headers) } else { Vec::new() };
        if said.is_empty() {
            if let Some((_, value)) = own {
                headers.insert(REAL_IP, value.clone());
                headers.insert(FORWARDED_FOR, value.clone());
            } else {
                headers.remove(FORWARDED_FOR);
            }
        } else {
            if let Some(client) = client(&said, own.map(|(address, _)| *address), trusted) {
                headers.insert(REAL_IP, text(client.to_string()));
            }
            let own = own.map(|(address, _)| address.to_string());
            headers.insert(FORWARDED_FOR, text(said.into_iter().chain(own).collect::<Vec<_>>().join(", ")));
        }
        let SaidHost { forwarded_host, mut forwarded, .. } = self.of_host(host);
        if self.is_trusted {
            if let Some(said) = well_formed(headers) {
                forwarded = text(format!("{said}, {}", forwarded.to_str().unwrap_or_default()));
            }
            keep(headers, FORWARDED_PROTO, &self.scheme, |said| {
                ["http", "https"].into_iter().find(|scheme| said.eq_ignore_ascii_case(scheme)).map(str::to_owned)
            });
            keep(headers, FORWARDED_HOST, &forwarded_host, |said| {
                said.parse::<Authority>().ok().map(|it| it.to_string())
            });
        } else {
            headers.insert(FORWARDED_PROTO, self.scheme.clone());
            headers.insert(FORWARDED_HOST, forwarded_host);
        }
        headers.insert(FORWARDED, forwarded);
    }
}

/// Whether it says where a request came from. Also if it has underscores: what runs inside a guest may not tell them from hyphens, as CGI does not.
pub(super) fn is_forwarded(name: &str) -> bool {
    let begins = |with: &str| name.len() >= with.len() && same(&name[..with.len()], with);
    same(name, REAL_IP.as_str()) || same(name, FORWARDED.as_str()) || begins(FORWARDED_PREFIX)
}

/// Whether a trusted proxy may set it. Of the others that begin in the same way, most proxies pass on what clients send.
fn is_kept(name: &str) -> bool {
    [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED].iter().any(|kept| kept.as_str() == name)
}

/// Whether a field has this name, with underscores or hyphens.
pub(super) fn same(name: &str, ours: &str) -> bool {
    let as_hyphen = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() == ours.len() && name.bytes().map(as_hyphen).eq(ours.bytes())
}

/// What `x-forwarded-for` lists, without what is no text: the last is what the proxy has written.
fn nodes(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(FORWARDED_FOR).iter();
    let nodes = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let nodes = nodes.filter(|node| !node.is_empty());
    nodes
        .map(|node| match std::str::from_utf8(node) {
            Ok(node) if node.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') => node.to_owned(),
            _ => "unknown".into(),
        })
        .collect()
}

/// What `forwarded` says so far, if one more element can be appended to it.
fn well_formed(headers: &HeaderMap) -> Option<String> {
    let values: Vec<&str> =
        headers.get_all(FORWARDED).iter().map(HeaderValue::to_str).collect::<Result<_, _>>().ok()?;
    let said = values.join(", ");
    let (mut is_quoted, mut is_escaped) = (false, false);
    for byte in said.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
    }
    let said = said.trim_matches([' ', '\t', ',']);
    (!is_quoted && !said.is_empty()).then(|| said.to_owned())
}

/// Leaves what was said once and makes sense, and says `own` otherwise.
fn keep(headers: &mut HeaderMap, name: HeaderName, own: &HeaderValue, sense: impl Fn(&str) -> Option<String>) {
    let mut said = headers.get_all(&name).iter();
    let kept = match (said.next(), said.next()) {
        (Some(said), None) => said.to_str().ok().and_then(sense).map(text),
        _ => None,
    };
    headers.insert(name, kept.unwrap_or_else(|| own.clone()));
}

/// The last that is not trusted, of those that are listed before `own`; the first, if all are. `None` if the one that decides
/// is no address: then nobody knows.
fn client(said: &[String], own: Option<IpAddr>, trusted: &TrustedProxies) -> Option<IpAddr> {
    let mut client = own;
    for node in said.iter().rev() {
        client = Some(address_of(node)?);
        if !trusted.trusts(client) {
            break;
        }
    }
    client
}

/// With or without a port.
fn address_of(node: &str) -> Option<IpAddr> {
    let bare = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
    let address = bare.parse().ok().or_else(|| Some(node.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// As a token, or else as a quoted string (RFC 9110, section 5.6).
fn quote(value: &str, to: &mut String) {
    if value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~')) {
        to.push_str(value);
        return;
    }
    to.push('"');
    for character in value.chars() {
        if matches!(character, '"' | '\\') {
            to.push('\\');
        }
        to.push(character);
    }
    to.push('"');
}

/// Of addresses and hosts, which are printable ASCII, and of what was a value before.
fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXIES: [&str; 2] = ["10.0.0.0/8", "2001:db8::/32"];

    fn trusted(proxies: &[&str]) -> TrustedProxies {
        proxies.iter().map(|it| it.parse().unwrap()).collect::<Vec<_>>().into()
    }

    /// What a guest sees of a request, by fields and their values.
    fn told(security: Security, from: Option<&str>, sent: &[(&str, &str)], host: &str) -> Vec<(String, String)> {
        let trusted = trusted(&PROXIES);
        let address = from.map(|from| from.parse().unwrap());
        let hop = LastHop::new(Remote { address, security, is_stranger: false }, &trusted);
        let mut headers = HeaderMap::new();
        for (name, value) in sent.iter().filter(|(name, _)| !hop.forbids(name)) {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        hop.tell(&mut headers, &host.parse().unwrap(), &trusted);
        let mut told: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        told.sort();
        told
    }

    fn check(from: Option<&str>, sent: &[(&str, &str)], expected: &[(&str, &str)]) {
        let told = told(Security::Clear, from, sent, "example.com:8080");
        let expected: Vec<_> = expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        assert_eq!(told, expected, "{from:?} sent {sent:?}");
    }

    #[test]
    fn a_client_says_nothing_of_itself() {
        let told = [
            ("forwarded", "for=192.0.2.1;proto=http;host=\"example.com:8080\""),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "example.com:8080"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "192.0.2.1"),
        ];
        check(Some("192.0.2.1"), &[], &told);
        check(Some("::ffff:192.0.2.1"), &[], &told);
        let forged = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.test"),
            ("x-forwarded-prefix", "/evil"),
            ("X-Forwarded_Port", "1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("x_real_ip", "1.1.1.1"),
        ];
        check(Some("192.0.2.1"), &forged.map(|(name, value)| (&*name.to_lowercase().leak(), value)), &told);
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_appended_to() {
        let sent = [
            ("x-forwarded-for", "1.1.1.1, 192.0.2.1"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-prefix", "/shop"),
            ("forwarded", "for=192.0.2.1"),
            ("x-real-ip", "1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
        ];
        check(
            Some("10.1.2.3"),
            &sent,
            &[
                ("forwarded", "for=192.0.2.1, for=10.1.2.3;proto=http;host=\"example.com:8080\""),
                ("x-forwarded-for", "1.1.1.1, 192.0.2.1, 10.0.0.9, 10.1.2.3"),
                ("x-forwarded-host", "shop.example"),
                ("x-forwarded-proto", "https"),
                ("x-real-ip", "192.0.2.1"),
            ],
        );
        // As whatever its client sent before, and it passed on.
        let mut headers = HeaderMap::new();
        for value in [&b"\xe9, 6.6.6.6\x80"[..], b"192.0.2.1"] {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(value).unwrap());
        }
        headers.append(FORWARDED, HeaderValue::from_static("for=\"x"));
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("HTTPS"));
        let proxies = trusted(&PROXIES);
        let proxy = Remote { address: "10.1.2.3".parse().ok(), security: Security::Clear, is_stranger: false };
        LastHop::new(proxy, &proxies).tell(&mut headers, &"a.test".parse().unwrap(), &proxies);
        assert_eq!(headers[FORWARDED_FOR], "unknown, unknown, 192.0.2.1, 10.1.2.3");
        assert_eq!(
            (&headers[REAL_IP], &headers[FORWARDED_PROTO]),
            (&"192.0.2.1".parse().unwrap(), &"https".parse().unwrap())
        );
        assert_eq!(headers[FORWARDED], "for=10.1.2.3;proto=http;host=a.test");
        // One whose address its proxy does not know is nobody to be believed.
        let stranger = LastHop::new(Remote { is_stranger: true, ..proxy }, &proxies);
        assert!(stranger.forbids("x-forwarded-for") && !LastHop::new(proxy, &proxies).forbids("x-forwarded-for"));
        // What it does not say, or not in one way, we say.
        let odd = [("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a.test"), ("x-forwarded-host", "b.test")];
        check(
            Some("2001:db8::1"),
            &odd,
            &[
                ("forwarded", "for=\"[2001:db8::1]\";proto=http;host=\"example.com:8080\""),
                ("x-forwarded-for", "2001:db8::1"),
                ("x-forwarded-host", "example.com:8080"),
                ("x-forwarded-proto", "http"),
                ("x-real-ip", "2001:db8::1"),
            ],
        );
    }

    #[test]
    fn over_a_unix_socket_there_is_no_address() {
        check(
            None,
            &[("x-forwarded-for", "1.1.1.1")],
            &[
                ("forwarded", "for=unknown;proto=http;host=\"example.com:8080\""),
                ("x-forwarded-host", "example.com:8080"),
                ("x-forwarded-proto", "http"),
            ],
        );
        let everybody = trusted(&["unix"]);
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_FOR, HeaderValue::from_static("192.0.2.1"));
        let local = Remote { address: None, security: Security::Clear, is_stranger: false };
        let hop = LastHop::new(local, &everybody);
        hop.tell(&mut headers, &"a.test".parse().unwrap(), &everybody);
        let value = |name| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!((value(FORWARDED_FOR), value(REAL_IP)), ("192.0.2.1", "192.0.2.1"));
        assert_eq!(value(FORWARDED), "for=unknown;proto=http;host=a.test");
    }

    #[test]
    fn the_client_is_the_last_that_is_no_proxy() {
        let trusted = trusted(&PROXIES);
        for (said, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("1.1.1.1, 192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, 10.0.0.1,10.0.0.2", "192.0.2.1"),
            ("10.0.0.1, 10.0.0.2", "10.0.0.1"),
            ("192.0.2.1:1234, [2001:db8::2]:80", "192.0.2.1"),
            ("[2001:dead::2]", "2001:dead::2"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("", "10.9.9.9"),
            (" , ,", "10.9.9.9"),
            (" , 192.0.2.1 ,, 10.0.0.1,", "192.0.2.1"),
            ("unknown, 192.0.2.1", "192.0.2.1"),
            // Whoever that is, it is not the proxy that says so.
            ("192.0.2.1, unknown, 10.0.0.2", "nobody"),
            ("unknown", "nobody"),
            ("fe80::1%eth0", "nobody"),
        ] {
            let own = "10.9.9.9".parse().ok();
            let headers = HeaderMap::from_iter([(FORWARDED_FOR, said.parse().unwrap())]);
            assert_eq!(client(&nodes(&headers), own, &trusted), expected.parse().ok(), "{said}");
        }
    }

    #[test]
    fn behind_tls_the_scheme_is_https() {
        let told = told(Security::Tls, Some("192.0.2.1"), &[], "a.test");
        assert_eq!(told[0].1, "for=192.0.2.1;proto=https;host=a.test");
        assert_eq!(told[3], ("x-forwarded-proto".into(), "https".into()));
    }
}
