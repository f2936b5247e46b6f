//! The PROXY protocol, versions 1 and 2: with it a proxy begins a connection, and says who its client is. Follows
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>. Only who is trusted may begin so, and must.

use std::io;
use std::net::IpAddr;

use nix::sys::socket::MsgFlags;
use proxy_header::{ParseConfig, Protocol, ProxyHeader};

use super::accept::{AcceptedStream, Admission};
use super::forwarded::Remote;
use super::outcome::{Outcome, Verdict};
use super::peer::Peer;
use super::server::Server;
use crate::os::listener::Security;

/// Bytes of a header: addresses, and what else a proxy may know.
const MAX_HEADER: usize = 4 * 1024;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum NoHeader {
    #[error("its peer is not in --trust-proxy")]
    Untrusted,
    #[error("it did not begin with a PROXY header")]
    Malformed,
    #[error("its PROXY header is longer than {MAX_HEADER} bytes")]
    TooLong,
    #[error("it did not send a PROXY header in time")]
    Late,
    #[error("{0}")]
    Failed(#[from] io::Error),
}

impl Server {
    /// The client that the proxy at the other end of a new connection names; `None` if the connection is to be closed.
    pub(super) async fn introduced(
        &self,
        stream: &AcceptedStream,
        security: Security,
        proxy: Remote,
        admission: Admission,
    ) -> Option<Remote> {
        match self.try_introduced(stream, security, proxy, admission).await {
            Ok(client) => return Some(client),
            // It was looked whether the port is open.
            Err(NoHeader::Failed(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(why) => {
                let from = proxy.address.map_or("a Unix socket".into(), |address| address.to_string());
                self.say(format_args!("closed a connection from {from} to a proxy-protocol listener: {why}"));
                Outcome::of_no_request(Verdict::Refused).count(self.stats);
            }
        }
        None
    }

    async fn try_introduced(
        &self,
        stream: &AcceptedStream,
        security: Security,
        proxy: Remote,
        admission: Admission,
    ) -> Result<Remote, NoHeader> {
        if !self.trusted_proxies.trusts(proxy.address) {
            return Err(NoHeader::Untrusted);
        }
        let peer = Peer::new(security, proxy, self.trusted_proxies.clone());
        let read = self.before_requests(self.limits.header_timeout, admission, peer, read(stream)).await;
        let Some((address, is_secure)) = read.ok_or(NoHeader::Late)?? else { return Ok(proxy) };
        let security = if is_secure { Security::Tls } else { proxy.security };
        Ok(Remote { address, security, is_stranger: address.is_none() })
    }
}

/// The address of the client, unless the proxy does not know it, and whether it speaks TLS with the proxy. `None` if the proxy
/// speaks for itself.
type Introduction = Option<(Option<IpAddr>, bool)>;

/// Reads a header, and no byte behind it.
async fn read(stream: &AcceptedStream) -> Result<Introduction, NoHeader> {
    let (mut header, mut bytes) = (Vec::new(), [0; 1024]);
    loop {
        let (begun, peeked) = (header.len(), stream.receive(&mut bytes, MsgFlags::MSG_PEEK).await?);
        if peeked == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        header.extend_from_slice(&bytes[..peeked]);
        let parsed = parse(&header)?;
        // All of a header that is not whole belongs to it.
        let taken = parsed.map_or(peeked, |(_, length)| length.saturating_sub(begun));
        stream.receive(&mut bytes[..taken], MsgFlags::empty()).await?;
        match parsed {
            Some((said, _)) => return Ok(said),
            None if header.len() >= MAX_HEADER => return Err(NoHeader::TooLong),
            None => {}
        }
    }
}

/// What a header says, and its length; `None` if it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(Introduction, usize)>, NoHeader> {
    match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((header, length)) => {
            let is_secure = header.ssl().is_some_and(|ssl| ssl.client_ssl());
            let said = match header.proxied_address() {
                Some(address) if address.protocol == Protocol::Datagram => return Err(NoHeader::Malformed),
                Some(address) => Some((Some(address.source.ip().to_canonical()), is_secure)),
                None if is_local(bytes) => None,
                None => Some((None, is_secure)),
            };
            Ok(Some((said, length)))
        }
        Err(proxy_header::Error::BufferTooShort) => Ok(None),
        Err(_) => Err(NoHeader::Malformed),
    }
}

/// Whether a whole header of version 2 has the command LOCAL, which the library does not tell from an unknown address.
fn is_local(header: &[u8]) -> bool {
    header.starts_with(b"\r\n") && header.get(12).is_some_and(|command| command & 0xf == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use proxy_header::{ProxiedAddress, SslInfo, Tlv};

    use super::*;

    fn header(client: &str) -> ProxyHeader<'static> {
        ProxyHeader::with_address(ProxiedAddress::stream(client.parse().unwrap(), client.parse().unwrap()))
    }

    fn v2(header: &ProxyHeader<'_>) -> Vec<u8> {
        let mut bytes = [0; 8192];
        let length = header.encode_to_slice_v2(&mut bytes).unwrap();
        bytes[..length].to_vec()
    }

    fn said(bytes: &[u8]) -> Introduction {
        let (said, length) = parse(bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        said
    }

    #[test]
    fn both_versions_say_who_the_client_is() {
        let client = |address: &str| Some((address.parse().ok(), false));
        assert_eq!(said(b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n"), client("192.0.2.1"));
        assert_eq!(said(b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"), client("2001:db8::1"));
        let unknown = Some((None, false));
        assert_eq!(said(b"PROXY UNKNOWN\r\n"), unknown);
        assert_eq!(said(b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n"), unknown);
        assert_eq!(said(b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"), unknown);
        for address in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            let mut header = header(address);
            let ip = address.parse::<std::net::SocketAddr>().unwrap().ip();
            assert_eq!(said(&v2(&header)), Some((Some(ip), false)));
            header.append_tlv(Tlv::Ssl(SslInfo::new(true, false, false, 0)));
            assert_eq!(said(&v2(&header)), Some((Some(ip), true)));
        }
        assert_eq!(said(&v2(&header("[::ffff:192.0.2.1]:1"))), client("192.0.2.1"));
        // A health check of the proxy itself.
        assert_eq!(said(&v2(&ProxyHeader::with_local())), None);
    }

    #[test]
    fn anything_else_is_no_header() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\n",
            b"\x16\x03\x01",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"proxy UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\xcb\0\x71\x05\x7f\0\0\x01\x13\x88\0\x50",
        ] {
            assert!(matches!(parse(bytes), Err(NoHeader::Malformed)), "{}", bytes.escape_ascii());
        }
    }

    fn pair() -> (AcceptedStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (AcceptedStream::Unix(ours.try_into().unwrap()), theirs)
    }

    /// Whatever it is cut into, and whatever follows.
    #[tokio::test]
    async fn a_header_is_read_and_nothing_behind_it() {
        let headers = [b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n".to_vec(), v2(&header("192.0.2.1:1"))];
        for header in headers {
            for cut in [0, 1, 5, 12, 15, 16, header.len() - 1, header.len()] {
                let (ours, mut theirs) = pair();
                let (first, second) = header.split_at(cut);
                theirs.write_all(first).unwrap();
                let reading = async { read(&ours).await.unwrap() };
                let (said, ()) = tokio::join!(biased; reading, async {
                    theirs.write_all(&[second, b"behind"].concat()).unwrap();
                });
                assert_eq!(said, Some(("192.0.2.1".parse().ok(), false)), "{cut}");
                let mut behind = [0; 16];
                let length = ours.receive(&mut behind, MsgFlags::empty()).await.unwrap();
                assert_eq!(&behind[..length], b"behind", "{cut}");
            }
        }
        let (ours, mut theirs) = pair();
        let mut long = header("192.0.2.1:1");
        (0..5).for_each(|_| long.append_tlv(Tlv::Noop(1000)));
        theirs.write_all(&v2(&long)).unwrap();
        assert!(matches!(read(&ours).await, Err(NoHeader::TooLong)));
        let (ours, theirs) = pair();
        drop(theirs);
        let left = read(&ours).await;
        assert!(matches!(left, Err(NoHeader::Failed(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
    }
}
