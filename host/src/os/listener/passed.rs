//! Sockets to listen on that the service manager passed on: `systemd` for all of them, `systemd:NAME` for those of a name.
//! They outlive the cluster, so that no client is refused while it starts again.

use std::io;
use std::os::fd::OwnedFd;

use socket2::{SockRef, Type};

use super::{ACCEPT_TIMEOUT, Entrance, Listener, MAX_UNSENT, Security, url_of};

/// Makes a listener of a socket that was passed on.
pub(super) fn adopt(name: &str, socket: OwnedFd, entrance: Entrance) -> io::Result<Listener> {
    let refused = |why: &str| Err(io::Error::other(format!("the socket {name} that was passed on {why}")));
    let known = SockRef::from(&socket);
    if !matches!(known.r#type(), Ok(Type::STREAM)) {
        return refused("is no stream socket; write ListenStream= in its unit");
    }
    if !known.is_listener()? {
        return refused("does not listen; leave out Accept=yes in its unit");
    }
    let address = known.local_addr()?;
    if address.as_socket().is_some() {
        known.set_tcp_nodelay(true)?;
        known.set_tcp_notsent_lowat(MAX_UNSENT)?;
    } else if entrance.security == Security::Tls {
        return refused("is a Unix socket, and these are in clear text");
    }
    known.set_nonblocking(false)?;
    known.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
    let url = url_of(&address, entrance);
    Ok(Listener { socket, entrance, url, socket_file: None })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_was_passed_on_must_listen() {
        let entrance = |security| Entrance { security, takes_proxy: false };
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = adopt("web", tcp.try_clone().unwrap().into(), entrance(Security::Tls)).unwrap();
        assert_eq!(listener.url(), format!("https://{address}"));
        let known = SockRef::from(&listener);
        assert!(!known.nonblocking().unwrap() && known.read_timeout().unwrap().is_some());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let listener = adopt("web", unix.try_clone().unwrap().into(), entrance(Security::Clear)).unwrap();
        assert_eq!(listener.url(), format!("unix:{}", path.display()));
        drop(listener);
        assert!(path.exists(), "it belongs to another");
        let check = |socket: OwnedFd, security, said: &str| {
            let error = adopt("web", socket, entrance(security)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        };
        check(unix.into(), Security::Tls, "is a Unix socket");
        check(UdpSocket::bind("127.0.0.1:0").unwrap().into(), Security::Clear, "is no stream socket");
        check(std::net::TcpStream::connect(address).unwrap().into(), Security::Clear, "does not listen");
        check(std::fs::File::open("/dev/null").unwrap().into(), Security::Clear, "is no stream socket");
    }
}
