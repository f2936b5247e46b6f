//! Connections to upstreams, which are kept for the next request that goes there.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use nix::sys::socket::{MsgFlags, send};
use tokio::net::UnixStream;

use harness::client::{Connection, get};
use harness::tls::Authority;
use harness::tools::{NGINX, Tool, address_of_its_own};
use harness::{Cluster, Follower, Setup, guest, until};

use super::calls::apart;

const HOSTILE: [&str; 2] = ["hostile_p2", "hostile_p3"];

/// What an upstream has seen.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Connections that the other side has closed.
    closed: AtomicUsize,
}

impl Seen {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Answers every request of a connection. What it does then, the path says.
fn upstream() -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let told = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, seen) = (stream.unwrap(), seen.clone());
            seen.connections.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
                    let path = text.split(' ').nth(1).unwrap();
                    let more = match path {
                        "/close" => "connection: close\r\n",
                        "/soon" => "connection: keep-alive\r\nkeep-alive: max=9, timeout=1\r\n",
                        _ => "",
                    };
                    let (length, body) = if path == "/cut" { (9, "half") } else { (5, "whole") };
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{more}\r\n{body}");
                    if ["/close", "/last", "/cut"].contains(&path) {
                        // Without a word, but in the first case. The end comes with the answer: later, the next request may
                        // have been sent, and is lost.
                        let sent = send(
                            stream.as_raw_fd(),
                            answer.as_bytes(),
                            MsgFlags::from_bits_retain(nix::libc::MSG_MORE),
                        );
                        assert_eq!(sent, Ok(answer.len()));
                        let _ = stream.shutdown(Shutdown::Both);
                        return;
                    }
                    stream.write_all(answer.as_bytes()).unwrap();
                }
                seen.closed.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_used_again() {
    for name in HOSTILE {
        let (upstream, seen) = upstream();
        let port = upstream.port();
        let grants = [format!("http://{upstream}"), format!("http://localhost:{port}")];
        let setup = Setup::new(&guest(name)).workers(1);
        let cluster = setup.args(&["--allow-host", &grants[0], "--allow-host", &grants[1]]).start();
        let ask = async |url: String| get(cluster.address(), &format!("/fetch?url={url}")).await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(format!("http://{upstream}/")).await.text(), "200\nwhole", "{name}");
        }
        assert_eq!(seen.connections(), 1, "{name}");
        // The same address, but another host and another grant.
        for _ in 0..3 {
            assert_eq!(ask(format!("http://localhost:{port}/")).await.text(), "200\nwhole", "{name}");
        }
        assert_eq!(seen.connections(), 2, "{name}");
        // As many as are needed at the same time, and no more when they are needed again.
        for _ in 0..4 {
            let said = get(cluster.address(), &format!("/fetch-many?n=16&url=http://{upstream}/")).await.unwrap();
            assert!(said.text().contains("16 succeeded, 0 failed"), "{name}: {}", said.text());
        }
        assert!(seen.connections() <= 17, "{name}: {}", seen.connections());
        // Nobody needs them any more.
        until("they are closed", || (seen.closed.load(Ordering::SeqCst) == seen.connections()).then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_may_have_ended_is_not_used_again() {
    for name in HOSTILE {
        let (upstream, seen) = upstream();
        let cluster =
            Setup::new(&guest(name)).workers(1).args(&["--allow-host", &format!("http://{upstream}")]).start();
        let mut connection = Connection::open(cluster.address()).await;
        for path in ["/close", "/last", "/soon"] {
            let before = seen.connections();
            for _ in 0..50 {
                let said = connection.get(&format!("/fetch?url=http://{upstream}{path}")).await.unwrap();
                assert_eq!(said.text(), "200\nwhole", "{name}: {path}");
            }
            assert_eq!(seen.connections() - before, 50, "{name}: {path}");
        }
        // Half an answer is told, and sent for by nobody else.
        let (requests, said) = (seen.requests.load(Ordering::SeqCst), &format!("/fetch?url=http://{upstream}/cut"));
        let said = connection.get(said).await.unwrap();
        assert!(said.text().starts_with("error: "), "{name}: {}", said.text());
        assert_eq!(seen.requests.load(Ordering::SeqCst), requests + 1, "{name}");
    }
}

/// An upstream of HTTP/2 alone, and what it has seen. What is asked for `/silent` it does not answer.
async fn upstream_http2(authority: &Authority) -> (SocketAddr, Arc<Seen>) {
    let acceptor = authority.issue(&["localhost"]).acceptor(&[b"h2"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
    let told = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            seen.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(acceptor.accept(stream).await.unwrap()).await.unwrap();
                let mut silent = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    if request.uri().path() == "/silent" {
                        silent.push(respond);
                        continue;
                    }
                    let uri = request.uri().to_string();
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    send.send_data(Bytes::from(format!("{uri} {:?}", request.headers().get("host"))), true).unwrap();
                }
            });
        }
    });
    (address, told)
}

/// A cluster that may ask an upstream over TLS, and trusts it.
fn trusting(name: &str, authority: &Authority, url: &str) -> Cluster {
    let setup = Setup::new(&guest(name)).workers(1).args(&["--allow-host", url]);
    let trusted = setup.folder.path().join("trusted.pem");
    std::fs::write(&trusted, &authority.pem).unwrap();
    setup.env("SSL_CERT_FILE", trusted.to_str().unwrap()).start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_offers_http2_is_asked_over_one_connection() {
    for name in HOSTILE {
        let authority = Authority::new("upstreams");
        let (address, seen) = upstream_http2(&authority).await;
        let url = format!("https://localhost:{}", address.port());
        let cluster = trusting(name, &authority, &url);
        let said = get(cluster.address(), &format!("/fetch?url={url}/a?b=c")).await.unwrap();
        assert_eq!(said.text(), format!("200\n{url}/a?b=c None"), "{name}");
        for _ in 0..5 {
            let said = get(cluster.address(), &format!("/fetch-many?n=31&url={url}/")).await.unwrap();
            assert!(said.text().contains("31 succeeded, 0 failed"), "{name}: {}", said.text());
        }
        assert_eq!(seen.connections(), 1, "{name}");
        // When as many requests share it as may, there is another.
        let silent = |_| {
            let (address, path) = (cluster.address(), format!("/fetch-many?n=20&url={url}/silent"));
            tokio::spawn(async move { get(address, &path).await })
        };
        let waiting: Vec<_> = (0..2).map(silent).collect();
        until("all of them wait", || (seen.requests.load(Ordering::SeqCst) == 196).then_some(()));
        let said = get(cluster.address(), &format!("/fetch?url={url}/a")).await.unwrap();
        assert_eq!(said.text(), format!("200\n{url}/a None"), "{name}");
        assert!((2..=10).contains(&seen.connections()), "{name}: {}", seen.connections());
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Behind so many requests nginx ends a connection, and does not begin with those that are on their way.
const NGINX_AS_UPSTREAM: &str = "
    BEGIN
    keepalive_requests 40;
    server {
        listen ADDRESS ssl http2;
        ssl_certificate CERT;
        ssl_certificate_key KEY;
        location / { return 200 \"$server_protocol $connection\"; }
    }
}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_ends_its_connections_loses_no_request() {
    let Some(nginx) = Tool::find("nginx") else { return println!("skipped: there is no nginx") };
    let (authority, folder, address) =
        (Authority::new("upstreams"), tempfile::tempdir().unwrap(), address_of_its_own());
    let [cert, key] = authority.issue(&["localhost", &address.ip().to_string()]).write(folder.path(), "pair");
    let configuration = NGINX_AS_UPSTREAM
        .replace("BEGIN", NGINX)
        .replace("FOLDER", folder.path().to_str().unwrap())
        .replace("ADDRESS", &address.to_string())
        .replace("CERT", cert.to_str().unwrap())
        .replace("KEY", key.to_str().unwrap());
    let file = folder.path().join("configuration");
    std::fs::write(&file, configuration).unwrap();
    let _process = Follower::start(nginx.command().args(["-e", "stderr", "-c"]).arg(file)).unwrap();
    until("nginx", || std::net::TcpStream::connect(address).ok());
    let url = format!("https://{address}");
    for name in HOSTILE {
        let cluster = trusting(name, &authority, &url);
        let said = get(cluster.address(), &format!("/fetch?url={url}/")).await.unwrap();
        assert!(said.text().starts_with("200\nHTTP/2.0 "), "{name}: {}", said.text());
        let clients = (0..4).map(|_| {
            let (at, path) = (cluster.address(), format!("/fetch-many?n=12&url={url}/"));
            tokio::spawn(async move {
                for _ in 0..25 {
                    let said = get(at, &path).await.unwrap();
                    assert!(said.text().contains("12 succeeded, 0 failed"), "{}", said.text());
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    }
}

async fn get_by(socket: &Path) -> Connection<http_body_util::Full<Bytes>> {
    Connection::over(UnixStream::connect(socket).await.unwrap()).await
}

/// Each connection of its own would hold a port for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_go_through_five_hundred_ports() {
    let script = "echo 41000 41499 > /proc/sys/net/ipv4/ip_local_port_range";
    for (name, rounds) in [(HOSTILE[0], 50), (HOSTILE[1], 15)] {
        let Some((cluster, socket)) = apart(name, script, &["--allow-host", "http://127.0.0.1:*"]) else { return };
        let url = format!("/fetch-many?n=25&url=http://{}/", cluster.address());
        let clients = (0..8).map(|_| {
            let (socket, url) = (socket.clone(), url.clone());
            tokio::spawn(async move {
                let mut connection = get_by(&socket).await;
                for _ in 0..rounds {
                    let said = connection.get(&url).await.unwrap();
                    assert!(said.text().contains("25 succeeded, 0 failed"), "{}", said.text());
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let requests = cluster.status()["totals"]["requests"].as_u64().unwrap();
        assert!(requests >= rounds * 8 * 26, "{name}: {requests}");
        assert!(!cluster.stderr.lines().iter().any(|line| line.contains("no local port")), "{name}");
    }
}
