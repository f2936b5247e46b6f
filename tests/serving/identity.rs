//! Who a client is: what guests are told of it, what no client can say of itself, and what trusted proxies can: in headers, and
//! by the PROXY protocol.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use harness::client::{Connection, soon, whole};
use harness::http2::Client;
use harness::tls::{Authority, TlsClient};
use harness::tools::{Tool, address_of_its_own};
use harness::{Cluster, Follower, Setup, guest, until};

/// What clients try that want to be somebody else.
const FORGED: [(&str, &str); 9] = [
    // What a connection names is taken out of a request.
    ("connection", "x-real-ip, x-forwarded-for, x-forwarded-proto, x-forwarded-host, forwarded, client-cert"),
    ("x-forwarded-for", "198.51.100.9"),
    ("X_Forwarded_For", "198.51.100.9"),
    ("x-forwarded-proto", "gopher"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-port", "99"),
    ("forwarded", "for=198.51.100.9"),
    ("x-real-ip", "198.51.100.9"),
    ("x_real_ip", "198.51.100.9"),
];

fn forged() -> Request<Full<Bytes>> {
    let request = Request::get("/headers").header("host", "shop.test:81");
    FORGED.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(Full::default()).unwrap()
}

/// The lines of a guest that shows its headers, those about the client. One guest escapes quotes.
fn told(text: &str) -> Vec<String> {
    let is_told = |line: &&str| {
        let name = line.to_lowercase().replace('_', "-");
        name.starts_with("x-forwarded") || name.starts_with("forwarded:") || name.starts_with("x-real-ip")
    };
    let mut lines: Vec<String> = text.lines().filter(is_told).map(|line| line.replace("\\\"", "\"")).collect();
    lines.sort();
    lines
}

fn of_client(address: &str, scheme: &str) -> [String; 5] {
    let node = if address.contains(':') { format!("\"[{address}]\"") } else { address.into() };
    [
        format!("forwarded: for={node};proto={scheme};host=\"shop.test:81\""),
        format!("x-forwarded-for: {address}"),
        "x-forwarded-host: shop.test:81".into(),
        format!("x-forwarded-proto: {scheme}"),
        format!("x-real-ip: {address}"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_say_that_it_is_another() {
    let authority = Authority::new("tests");
    for name in ["scenarios", "hostile_p2", "hostile_p3"] {
        let setup = Setup::new(&guest(name)).workers(1);
        let [cert, key] = authority.issue(&["shop.test"]).write(setup.folder.path(), "pair");
        let mut setup = setup.args(&["--listen", "https://127.0.0.1:0", "--listen", "unix:socket"]);
        setup.command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
        let has_v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        if has_v6 {
            setup = setup.args(&["--listen", "[::]:0"]);
        }
        // Who is trusted is somebody else.
        let cluster = setup.args(&["--trust-proxy", "10.0.0.0/8"]).start();

        let mut clear = Connection::open(cluster.address()).await;
        for _ in 0..2 {
            let answer = whole(clear.send_request(forged()).await.unwrap()).await.unwrap();
            assert_eq!(told(answer.text()), of_client("127.0.0.1", "http"), "{name}");
        }
        let mut http2 = Client::open(cluster.address()).await;
        let answer = http2.ask(over_http2(forged())).await.unwrap().whole().await.unwrap();
        assert_eq!(told(answer.text()), of_client("127.0.0.1", "http"), "{name} over HTTP/2");

        let stream = TlsClient::new(&authority).connect(cluster.address_of(1), "shop.test").await.unwrap();
        let answer = Connection::over(stream).await.send_request(forged()).await.unwrap();
        assert_eq!(told(whole(answer).await.unwrap().text()), of_client("127.0.0.1", "https"), "{name} over TLS");

        let stream = UnixStream::connect(cluster.folder.path().join("socket")).await.unwrap();
        let answer = Connection::over(stream).await.send_request(forged()).await.unwrap();
        let expected = [
            "forwarded: for=unknown;proto=http;host=\"shop.test:81\"",
            "x-forwarded-host: shop.test:81",
            "x-forwarded-proto: http",
        ];
        assert_eq!(told(whole(answer).await.unwrap().text()), expected, "{name} over a Unix socket");

        if !has_v6 {
            println!("skipped in part: there is no IPv6 here");
            continue;
        }
        let port = cluster.address_of(3).port();
        for (to, from) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            let mut connection = Connection::open(SocketAddr::new(to.parse().unwrap(), port)).await;
            let answer = whole(connection.send_request(forged()).await.unwrap()).await.unwrap();
            assert_eq!(told(answer.text()), of_client(from, "http"), "{name} to {to}");
        }
    }
}

fn over_http2(request: Request<Full<Bytes>>) -> Request<()> {
    let (mut head, _) = request.into_parts();
    head.headers.remove("host");
    head.headers.remove("connection");
    head.uri = "http://shop.test:81/headers".parse().unwrap();
    Request::from_parts(head, ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_is_believed() {
    let setup = Setup::new(&guest("scenarios")).workers(1).args(&["--listen", "unix:socket"]);
    let cluster = setup.args(&["--trust-proxy", "127.0.0.0/8", "--trust-proxy", "unix"]).start();
    let request = || {
        Request::get("/headers")
            .header("host", "shop.test:81")
            .header("x-forwarded-for", "198.51.100.9, 203.0.113.5")
            .header("x-forwarded-for", "127.0.0.7")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "shop.example")
            .header("x-forwarded-port", "443")
            .header("forwarded", "for=203.0.113.5")
            .header("x-real-ip", "198.51.100.9")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let expected = |node: &str, last: &str| {
        [
            format!("forwarded: for=203.0.113.5, for={node};proto=http;host=\"shop.test:81\""),
            format!("x-forwarded-for: 198.51.100.9, 203.0.113.5, 127.0.0.7{last}"),
            "x-forwarded-host: shop.example".into(),
            "x-forwarded-proto: https".into(),
            "x-real-ip: 203.0.113.5".into(),
        ]
    };
    let answer = Connection::open(cluster.address()).await.send_request(request()).await.unwrap();
    assert_eq!(told(whole(answer).await.unwrap().text()), expected("127.0.0.1", ", 127.0.0.1"));
    let stream = UnixStream::connect(cluster.folder.path().join("socket")).await.unwrap();
    let answer = Connection::over(stream).await.send_request(request()).await.unwrap();
    assert_eq!(told(whole(answer).await.unwrap().text()), expected("unknown", ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_tells_who_the_client_is() {
    for name in ["sdk", "sdk_p3"] {
        let cluster = Setup::new(&guest(name)).workers(1).args(&["--trust-proxy", "127.0.0.1"]).start();
        let mut connection = Connection::open(cluster.address()).await;
        let mut ask = async |headers: &[(&str, &str)]| {
            let request =
                headers.iter().fold(Request::get("/client"), |request, (name, value)| request.header(*name, *value));
            let answer = connection.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            whole(answer).await.unwrap().text().to_owned()
        };
        let itself = "Client { address: Some(127.0.0.1), scheme: \"http\", host: Some(test), certificate: None }";
        assert_eq!(ask(&[]).await, itself, "{name}");
        let through = [
            ("x-forwarded-for", "203.0.113.5"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example:8443"),
            ("x-client-cert-subject", "CN=forged"),
            ("x-client-cert-sha256", "00"),
        ];
        let behind = "Client { address: Some(203.0.113.5), scheme: \"https\", host: Some(shop.example:8443), certificate: None }";
        assert_eq!(ask(&through).await, behind, "{name}");
    }
}

#[test]
fn whom_to_trust_must_be_said_for_the_proxy_protocol() {
    let ended = Setup::new(&guest("scenarios")).args(&["--listen", "127.0.0.1:0?proxy-protocol"]).run();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let said = "--listen 127.0.0.1:0?proxy-protocol takes connections from trusted proxies alone; name them with \
                --trust-proxy NETWORK";
    assert!(ended.stderr.contains(said), "{ended:?}");
    for (network, said) in [("10.0.0.1/8", "write 10.0.0.0/8 or 10.0.0.1"), ("proxy.test", "is not a network")] {
        let ended = Setup::new(&guest("scenarios")).args(&["--trust-proxy", network]).run();
        assert!(ended.code == Some(2) && ended.stderr.contains(said), "{ended:?}");
    }
}

/// Clear text, https, a Unix socket, and one whose peers are trusted but their clients are not.
fn behind_proxies(authority: &Authority) -> Cluster {
    let setup = Setup::new(&guest("scenarios")).workers(1);
    let [cert, key] = authority.issue(&["shop.test"]).write(setup.folder.path(), "pair");
    let mut setup =
        setup.args(&["--listen", "127.0.0.1:0?proxy-protocol", "--listen", "https://127.0.0.1:0?proxy-protocol"]);
    setup = setup.args(&["--listen", "unix:socket?proxy-protocol", "--header-timeout", "2s"]);
    setup.command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
    setup.args(&["--trust-proxy", "127.0.0.1", "--trust-proxy", "unix"]).start()
}

const HEADER: &[u8] = b"PROXY TCP4 203.0.113.5 127.0.0.1 5000 80\r\n";
/// The same client, by version 2; behind it a length with nothing that is known.
const HEADER_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xcb\0\x71\x05\x7f\0\0\x01\x13\x88\0\x50\xea\0\x04abcd";
/// The proxy looks whether we are well.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_says_who_its_client_is() {
    let authority = Authority::new("tests");
    let cluster = behind_proxies(&authority);
    for (header, client) in [(HEADER, "203.0.113.5"), (HEADER_2, "203.0.113.5"), (LOCAL, "127.0.0.1")] {
        let introduced = async |to: usize| {
            let mut stream = TcpStream::connect(cluster.address_of(to)).await.unwrap();
            stream.write_all(header).await.unwrap();
            stream
        };
        let mut connection = Connection::over(introduced(1).await).await;
        for _ in 0..2 {
            let answer = whole(connection.send_request(forged()).await.unwrap()).await.unwrap();
            assert_eq!(told(answer.text()), of_client(client, "http"));
        }
        let mut http2 = Client::over(introduced(1).await).await;
        let answer = http2.ask(over_http2(forged())).await.unwrap().whole().await.unwrap();
        assert!(answer.text().contains("x-real-ip: "), "{}", answer.text());
        let stream = TlsClient::new(&authority).over(introduced(2).await, "shop.test").await.unwrap();
        let answer = Connection::over(stream).await.send_request(forged()).await.unwrap();
        assert_eq!(told(whole(answer).await.unwrap().text()), of_client(client, "https"));
        let mut stream = UnixStream::connect(cluster.folder.path().join("socket")).await.unwrap();
        stream.write_all(header).await.unwrap();
        let answer = Connection::over(stream).await.send_request(forged()).await.unwrap();
        if header != LOCAL {
            assert_eq!(told(whole(answer).await.unwrap().text()), of_client(client, "http"));
        }
    }
}

/// A proxy that does not know who its client is vouches for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_an_address_is_not_its_proxy() {
    let cluster = behind_proxies(&Authority::new("tests"));
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"] {
        let mut stream = TcpStream::connect(cluster.address_of(1)).await.unwrap();
        stream.write_all(header).await.unwrap();
        let answer = Connection::over(stream).await.send_request(forged()).await.unwrap();
        let expected = [
            "forwarded: for=unknown;proto=http;host=\"shop.test:81\"",
            "x-forwarded-host: shop.test:81",
            "x-forwarded-proto: http",
        ];
        assert_eq!(told(whole(answer).await.unwrap().text()), expected);
    }
}

/// What a server says to these bytes, until it closes the connection.
async fn said(to: SocketAddr, from: &str, parts: &[&[u8]]) -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    for part in parts {
        // It may be closed already.
        let _ = stream.write_all(part).await;
    }
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_introduced_gets_no_connection() {
    const REQUEST: &[u8] = b"GET /headers HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let cluster = behind_proxies(&Authority::new("tests"));
    let to = cluster.address_of(1);
    assert!(said(to, "127.0.0.1", &[HEADER, REQUEST]).await.starts_with("HTTP/1.1 200"));
    // A peer that nobody trusts, none at all, half of one, nothing.
    assert_eq!(said(to, "127.0.0.2", &[HEADER, REQUEST]).await, "");
    assert_eq!(said(to, "127.0.0.1", &[REQUEST]).await, "");
    assert_eq!(said(to, "127.0.0.1", &[b"PROXY TCP4 203.0.113.5 127.0.0.1 5000 99999\r\n", REQUEST]).await, "");
    assert_eq!(said(to, "127.0.0.1", &[&HEADER[..20]]).await, "");
    assert_eq!(said(to, "127.0.0.1", &[&HEADER_2[..20]]).await, "");
    assert_eq!(said(to, "127.0.0.1", &[]).await, "");
    // A client cannot introduce itself behind its proxy.
    for second in [HEADER, HEADER_2] {
        let answer = said(to, "127.0.0.1", &[HEADER, second, REQUEST]).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    // Where nobody asked for one, it is no request.
    assert!(said(cluster.address(), "127.0.0.1", &[HEADER, REQUEST]).await.starts_with("HTTP/1.1 400"));
    cluster
        .stderr
        .find("closed a connection from 127.0.0.2 to a proxy-protocol listener: its peer is not in --trust-proxy");
    // They hold nothing up, and none stays.
    let silent: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(to).unwrap()).collect();
    assert!(said(to, "127.0.0.1", &[HEADER, REQUEST]).await.starts_with("HTTP/1.1 200"));
    until("they are closed", || (cluster.status()["workers"][0]["connections"] == 0).then_some(()));
    drop(silent);
}

#[test]
fn curl_and_haproxy_introduce_their_clients() {
    let cluster = behind_proxies(&Authority::new("tests"));
    match Tool::find("curl").filter(|curl| curl.run(["--help", "all"]).stdout.contains("--haproxy-clientip")) {
        Some(curl) => {
            let url = format!("http://{}/headers", cluster.address_of(1));
            let shown = curl.run(["-q", "--noproxy", "*", "-sS", "--haproxy-clientip", "203.0.113.5", &url]).stdout;
            assert!(
                shown.contains("x-real-ip: 203.0.113.5\n") && shown.contains("x-forwarded-for: 203.0.113.5\n"),
                "{shown}"
            );
            let shown = curl.run(["-q", "--noproxy", "*", "-sS", "--haproxy-protocol", &url]).stdout;
            assert!(shown.contains("x-real-ip: 127.0.0.1\n"), "{shown}");
        }
        None => println!("skipped: there is no curl with --haproxy-clientip"),
    }
    let (Some(haproxy), Some(curl)) = (Tool::find("haproxy"), Tool::find("curl")) else {
        return println!("skipped: there is no haproxy, or no curl");
    };
    for protocol in ["send-proxy", "send-proxy-v2"] {
        let address = address_of_its_own();
        let configuration = format!(
            "defaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
             listen front\n bind {address}\n server cluster {} {protocol}\n",
            cluster.address_of(1)
        );
        let file = cluster.folder.path().join("haproxy.cfg");
        std::fs::write(&file, configuration).unwrap();
        let _process = Follower::start(haproxy.command().args(["-q", "-db", "-f"]).arg(&file)).unwrap();
        until("haproxy", || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok());
        let url = format!("http://{address}/headers");
        let ask =
            ["-q", "--noproxy", "*", "-sS", "--interface", "127.0.0.9", "-H", "x-forwarded-for: 198.51.100.9", &url];
        let shown = curl.run(ask).stdout;
        assert!(shown.contains("x-real-ip: 127.0.0.9\n") && shown.contains("x-forwarded-for: 127.0.0.9\n"), "{shown}");
    }
}
