//! HTTP over TLS: handshakes, certificates by name, sessions that every worker resumes, clients with certificates.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use nix::sys::signal::Signal;
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use harness::client::{Connection, get, soon, whole};
use harness::tls::{Authority, Issued, TlsClient, TlsStream};
use harness::{Setup, guest, until};

/// A cluster with a listener of each kind, in this order: clear text, https.
pub(super) fn serve(component: &str, pairs: &[&Issued]) -> Setup {
    let mut setup = Setup::new(&guest(component)).args(&["--listen", "https://127.0.0.1:0"]);
    for (number, issued) in pairs.iter().enumerate() {
        let [cert, key] = issued.write(setup.folder.path(), &format!("pair-{number}"));
        setup.command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
    }
    setup
}

async fn over(stream: TlsStream<TcpStream>) -> Connection<Full<Bytes>> {
    Connection::over(stream).await
}

fn shown(stream: &TlsStream<TcpStream>) -> &[u8] {
    stream.get_ref().1.peer_certificates().unwrap()[0].as_ref()
}

fn kind(stream: &TlsStream<TcpStream>) -> Option<HandshakeKind> {
    stream.get_ref().1.handshake_kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_over_both_versions_of_tls() {
    let authority = Authority::new("tests");
    let cluster = serve("scenarios", &[&authority.issue(&["shop.test"])]).start();
    let address = cluster.address_of(1);
    assert_eq!(cluster.status()["listen"][1], format!("https://{address}"));
    for version in [&TLS12, &TLS13] {
        let client = TlsClient::with(&authority, &[version], None);
        let stream = client.connect(address, "shop.test").await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let mut connection = over(stream).await;
        for bytes in [0, 1, 100_000, 3_000_000] {
            let answer = connection.get(&format!("/large?bytes={bytes}")).await.unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, bytes));
            let body = Full::from("x".repeat(bytes));
            let counted = whole(connection.send(Method::POST, "/count", body).await.unwrap()).await.unwrap();
            assert_eq!(counted.text(), format!("{bytes}\n"));
        }
        assert_eq!(connection.get("/drip?chunks=3&ms=10").await.unwrap().text(), "tick\n".repeat(3));
    }
    // HTTP/2 is agreed on in the handshake, or not spoken.
    for offered in [&["http/1.1"][..], &[]] {
        let mut stream = TlsClient::new(&authority).offering(offered).connect(address, "shop.test").await.unwrap();
        stream.write_all(harness::http2::PREFACE).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
    }
    // A client need not say what it speaks, but what it says must be something that is spoken here.
    let client = TlsClient::new(&authority);
    let silent = client.offering(&[]).connect(address, "shop.test").await.unwrap();
    assert_eq!(over(silent).await.get("/headers").await.unwrap().status, 200);
    let error = client.offering(&["spdy/3"]).connect(address, "shop.test").await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    until("the status counts it", || (cluster.status()["totals"]["handshakes_failed"] == 1).then_some(()));
    assert_eq!(cluster.status()["totals"]["handshakes"], 5);
}

/// With what TLS knows of the client, as in HTTP/1.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_prefers_http2_gets_it_over_tls() {
    let authority = Authority::new("tests");
    let server = authority.issue(&["shop.test"]);
    let setup = serve("scenarios", &[&server]).workers(1).args(&["--tls-client-auth", "optional"]);
    let ca = setup.folder.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let cluster = setup.args(&["--tls-client-ca", ca.to_str().unwrap()]).start();
    for (own, subject) in [(None, None), (Some(authority.issue(&["till-7"])), Some("x-client-cert-subject: CN=till-7"))]
    {
        let client = TlsClient::with(&authority, rustls::DEFAULT_VERSIONS, own.as_ref()).offering(&["http/1.1", "h2"]);
        let stream = client.connect(cluster.address_of(1), "shop.test").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut told = Vec::new();
        for path in ["/large?bytes=3000000", "/headers"] {
            let request = Request::get(format!("https://shop.test{path}")).header("x-client-cert-subject", "CN=forged");
            sender = sender.ready().await.unwrap();
            let (answer, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
            let mut body = soon(answer).await.unwrap().into_body();
            told.clear();
            while let Some(data) = soon(body.data()).await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                told.extend_from_slice(&data);
            }
            assert!(path == "/headers" || told.len() == 3_000_000);
        }
        let told = String::from_utf8(told).unwrap();
        let said = told.lines().find(|line| line.starts_with("x-client-cert-subject"));
        assert_eq!(said, subject, "{told}");
        drop(sender);
        soon(connection).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sees_by_which_scheme_it_was_asked() {
    let authority = Authority::new("tests");
    for (component, expected) in [("hostile_p2", "Scheme::Http"), ("hostile_p3", "Scheme::Http")] {
        let cluster = serve(component, &[&authority.issue(&["shop.test"])]).workers(1).start();
        let clear = get(cluster.address(), "/scheme").await.unwrap();
        assert_eq!(clear.text(), format!("Some({expected})"));
        let stream = TlsClient::new(&authority).connect(cluster.address_of(1), "shop.test").await.unwrap();
        let encrypted = over(stream).await.get("/scheme").await.unwrap();
        assert_eq!(encrypted.text(), format!("Some({expected}s)"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
    let authority = Authority::new("tests");
    let names: [&[&str]; 4] = [&["first.test"], &["shop.test", "pay.test"], &["*.shop.test"], &["127.0.0.1"]];
    let pairs = names.map(|names| authority.issue(names));
    let cluster = serve("hello", &pairs.each_ref()).start();
    let address = cluster.address_of(1);
    let client = TlsClient::new(&authority);
    for (name, pair) in [("first.test", 0), ("shop.test", 1), ("pay.test", 1), ("www.shop.test", 2), ("127.0.0.1", 3)] {
        let stream = client.connect(address, name).await.unwrap();
        assert!(shown(&stream) == pairs[pair].der.as_ref(), "{name}");
        assert_eq!(over(stream).await.get("/").await.unwrap().status, 200);
    }
    // The first is for all other names; a client sees that it is not that of the name.
    for name in ["other.test", "a.www.shop.test"] {
        let error = client.connect(address, name).await.unwrap_err().to_string();
        assert!(error.contains("first.test") && error.contains("not valid for name"), "{name}: {error}");
    }
}

/// Whichever worker has sealed the ticket, any opens it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed_by_every_worker() {
    let authority = Authority::new("tests");
    let cluster = serve("whoami", &[&authority.issue(&["shop.test"])]).workers(3).start();
    for version in [&TLS12, &TLS13] {
        let client = TlsClient::with(&authority, &[version], None);
        let (mut resumed_by, mut full) = (BTreeSet::new(), 0);
        for round in 0..10_000 {
            if resumed_by.len() == 3 {
                break;
            }
            let stream = client.connect(cluster.address_of(1), "shop.test").await.unwrap();
            let is_resumed = kind(&stream) == Some(HandshakeKind::Resumed);
            assert_eq!(is_resumed, round > 0, "round {round}");
            let answer = over(stream).await.get("/").await.unwrap();
            let who: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
            if is_resumed {
                resumed_by.insert(who["id"].as_u64());
            } else {
                full += 1;
            }
        }
        assert_eq!((resumed_by.len(), full), (3, 1), "{version:?}");
    }
    let totals = &cluster.status()["totals"];
    assert_eq!(totals["handshakes"].as_u64().unwrap() - totals["handshakes_resumed"].as_u64().unwrap(), 2);
}

/// The headers that a guest sees of a request with forged ones, those about the client.
async fn introduced(connection: &mut Connection<Full<Bytes>>) -> Vec<String> {
    let request = Request::get("/headers")
        .header("connection", "client-cert, x-client-cert-subject, x-client-cert-sha256")
        .header("client-cert", ":Zm9yZ2Vk:")
        .header("Client-Cert-Chain", ":Zm9yZ2Vk:")
        .header("x-client-cert-subject", "CN=forged")
        .header("x_client_cert_sha256", "forged")
        .header("x-client-cert-sha256", "forged");
    let answer = connection.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    let answer = whole(answer).await.unwrap();
    let is_of_client = |line: &&str| line.to_lowercase().replace('_', "-").contains("client-cert");
    answer.text().lines().filter(is_of_client).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_told_who_the_client_is_and_no_client_can_forge_it() {
    let (authority, others) = (Authority::new("tests"), Authority::new("others"));
    let (server, till) = (authority.issue(&["shop.test"]), authority.issue(&["till-7"]));
    let stranger = others.issue(&["till-7"]);
    for (whether, version) in [("required", &TLS12), ("required", &TLS13), ("optional", &TLS12), ("optional", &TLS13)] {
        let setup = serve("scenarios", &[&server]).workers(1).args(&["--tls-client-auth", whether]);
        let ca = setup.folder.path().join("ca.pem");
        std::fs::write(&ca, &authority.pem).unwrap();
        let cluster = setup.args(&["--tls-client-ca", ca.to_str().unwrap()]).start();
        let address = cluster.address_of(1);
        assert_eq!(introduced(&mut Connection::open(cluster.address()).await).await, [""; 0], "in clear text");

        let client = TlsClient::with(&authority, &[version], Some(&till));
        for _ in 0..3 {
            let stream = client.connect(address, "shop.test").await.unwrap();
            // Nobody is let in again by what was proven once.
            assert_eq!(kind(&stream), Some(HandshakeKind::Full));
            let mut connection = over(stream).await;
            for _ in 0..2 {
                let mut told = introduced(&mut connection).await;
                told.sort();
                let digest = ring::digest::digest(&ring::digest::SHA256, &till.der);
                let expected = [
                    format!("client-cert: :{}:", data_encoding::BASE64.encode(&till.der)),
                    format!("x-client-cert-sha256: {}", data_encoding::HEXLOWER.encode(digest.as_ref())),
                    "x-client-cert-subject: CN=till-7".to_owned(),
                ];
                assert_eq!(told, expected);
            }
        }
        // TLS 1.3 lets a client believe that all is well until it reads.
        let gets_in = async |own: Option<&Issued>| {
            let client = TlsClient::with(&authority, &[version], own);
            match client.connect(address, "shop.test").await {
                Ok(mut stream) => {
                    let sent = stream.write_all(b"GET /headers HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
                    sent.is_ok() && matches!(soon(stream.read(&mut [0; 1])).await, Ok(1))
                }
                Err(_) => false,
            }
        };
        assert!(!gets_in(Some(&stranger)).await, "{whether}: signed by somebody else");
        assert_eq!(gets_in(None).await, whether == "optional", "{whether}: no certificate");
        if whether == "optional" {
            let client = TlsClient::with(&authority, &[version], None);
            let mut connection = over(client.connect(address, "shop.test").await.unwrap()).await;
            assert_eq!(introduced(&mut connection).await, [""; 0]);
        }
        assert_eq!(cluster.status()["totals"]["handshakes_resumed"], 0);
    }
}

/// With one handshake at a time: clients that do not go on with theirs keep nobody from his.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_are_cut_and_keep_nobody_waiting() {
    let authority = Authority::new("tests");
    let limits = ["--max-handshakes", "1", "--tls-handshake-timeout", "1500ms", "--log-level", "debug"];
    let cluster = serve("hello", &[&authority.issue(&["shop.test"])]).workers(1).args(&limits).start();
    let address = cluster.address_of(1);
    let mut silent = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            // The beginning of a long record.
            stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
        }
        silent.push(stream);
    }
    until("they are connected", || (cluster.status()["workers"][0]["connections"] == 40).then_some(()));
    let client = TlsClient::new(&authority);
    for _ in 0..10 {
        let mut connection = over(client.connect(address, "shop.test").await.unwrap()).await;
        assert_eq!(connection.get("/").await.unwrap().status, 200);
    }
    for mut stream in silent {
        assert!(matches!(soon(stream.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    }
    let status = cluster.status();
    assert_eq!((&status["totals"]["handshakes_failed"], &status["totals"]["requests"]), (&40.into(), &10.into()));
    cluster.stderr.find("a TLS handshake failed: it took too long");
    assert_eq!(status["limits"]["max-handshakes"], "1");
}

/// Clients that send all of their first message, for which the server works, and then nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_do_not_go_on_make_room_for_others() {
    let authority = Authority::new("tests");
    let limits = ["--max-handshakes", "2", "--tls-handshake-timeout", "1h"];
    let cluster = serve("hello", &[&authority.issue(&["shop.test"])]).workers(1).args(&limits).start();
    let client = TlsClient::new(&authority);
    let mut stuck = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(cluster.address_of(1)).await.unwrap();
        stream.write_all(&client.hello("shop.test")).await.unwrap();
        stuck.push(stream);
    }
    let stream = client.connect(cluster.address_of(1), "shop.test").await.unwrap();
    assert_eq!(over(stream).await.get("/").await.unwrap().status, 200);
    assert_eq!(cluster.status()["totals"]["handshakes"], 1);
}

/// Silent clients make room for others, as idle ones do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_handshakes_make_room_for_others() {
    let authority = Authority::new("tests");
    let limits = ["--max-connections", "4", "--tls-handshake-timeout", "1h"];
    let cluster = serve("hello", &[&authority.issue(&["shop.test"])]).workers(1).args(&limits).start();
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(cluster.address_of(1)).await.unwrap());
    }
    let client = TlsClient::new(&authority);
    // As long as none of them has had its chance, a client is told to come again.
    for tries in 0.. {
        let stream = client.connect(cluster.address_of(1), "shop.test").await.unwrap();
        match over(stream).await.get("/").await.unwrap().status {
            200 => break,
            status => assert!(status == 503 && tries < 10, "{status}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_unfinished_handshakes() {
    let authority = Authority::new("tests");
    let limits = ["--tls-handshake-timeout", "1h", "--shutdown-timeout", "1h", "--drain-idle-grace", "100ms"];
    let cluster = serve("scenarios", &[&authority.issue(&["shop.test"])]).workers(1).args(&limits).start();
    let address = cluster.address_of(1);
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut begun = TcpStream::connect(address).await.unwrap();
    begun.write_all(b"\x16\x03\x01").await.unwrap();
    let mut at_work = over(TlsClient::new(&authority).connect(address, "shop.test").await.unwrap()).await;
    let answer = at_work.send(Method::GET, "/drip?chunks=5&ms=100", Full::default()).await.unwrap();
    until("all are connected", || (cluster.status()["workers"][0]["connections"] == 3).then_some(()));
    cluster.signal(Signal::SIGTERM);
    // What was begun is answered to the end.
    assert_eq!(whole(answer).await.unwrap().text(), "tick\n".repeat(5));
    assert!(cluster.wait().success());
    cluster.stderr.find(" stopped");
}

/// A FIN behind the request, with the end of the session before it or without: most clients that do so wait for the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_side_is_still_answered_over_tls() {
    let authority = Authority::new("tests");
    let cluster = serve("scenarios", &[&authority.issue(&["shop.test"])]).workers(1).start();
    let client = TlsClient::new(&authority);
    for says_so in [true, false] {
        let mut stream = client.connect(cluster.address_of(1), "shop.test").await.unwrap();
        stream.write_all(b"GET /sleep?ms=200 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream.flush().await.unwrap();
        if says_so {
            stream.shutdown().await.unwrap()
        } else {
            stream.get_mut().0.shutdown().await.unwrap()
        }
        let mut answer = Vec::new();
        // To an end that the server says to be one.
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", answer.escape_ascii());
    }
    let status = cluster.status();
    assert_eq!((&status["totals"]["requests"], &status["totals"]["aborted"]), (&2.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_cancels_its_guest_over_tls() {
    let authority = Authority::new("tests");
    let timeout = ["--request-timeout", "1h"];
    let cluster = serve("scenarios", &[&authority.issue(&["shop.test"])]).workers(1).args(&timeout).start();
    let client = TlsClient::new(&authority);
    let mut stream = client.connect(cluster.address_of(1), "shop.test").await.unwrap();
    stream.write_all(b"GET /sleep?ms=3600000 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until("it is at work", || (cluster.in_flight() == Some(1)).then_some(()));
    drop(stream);
    until("it is cancelled", || (cluster.status()["totals"]["aborted"] == 1).then_some(()));
    assert_eq!(cluster.in_flight(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_text_on_an_https_port_is_answered_with_what_to_do() {
    let authority = Authority::new("tests");
    let cluster = serve("hello", &[&authority.issue(&["shop.test"])]).workers(1).start();
    for request in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[b'x'; 100_000]] {
        let mut stream = TcpStream::connect(cluster.address_of(1)).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nthis is an https port: use a URL with https://\r\n"), "{answer}");
    }
    let totals = cluster.status()["totals"].clone();
    assert_eq!((&totals["refused"], &totals["handshakes_failed"]), (&3.into(), &0.into()));
    // A look whether the port is open is nothing.
    drop(TcpStream::connect(cluster.address_of(1)).await.unwrap());
    let stream = TlsClient::new(&authority).connect(cluster.address_of(1), "shop.test").await.unwrap();
    assert_eq!(over(stream).await.get("/").await.unwrap().status, 200);
    assert_eq!(cluster.status()["totals"]["handshakes_failed"], 0);
}

/// Whatever a client sends instead of a handshake, or behind one, its own connection ends by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_make_no_sense_cost_their_own_connection() {
    let authority = Authority::new("tests");
    let cluster = serve("hello", &[&authority.issue(&["shop.test"])]).workers(1).start();
    let address = cluster.address_of(1);
    let worker = cluster.worker(0);
    let record = |length: usize, contents: &[u8]| {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        [&[0x16, 3, 1][..], &length, contents].concat()
    };
    let nonsense = [
        record(4, b"\x01\x00\x00\x00"),
        record(40, &[7; 40]),
        // Longer than a record may be, and a message longer than rustls reads.
        record(0xffff, &[0; 0x4000]),
        record(0x4000, &[&b"\x01\xff\xff\xff"[..], &[0; 0x3ffc]].concat()),
        // A finished message in the beginning, and a version that never was.
        record(16, &[&b"\x14\x00\x00\x0c"[..], &[0; 12]].concat()),
        [&[0x16, 9, 9, 0, 4][..], b"\x01\x00\x00\x00"].concat(),
    ];
    for bytes in &nonsense {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        // An alert, perhaps, and the end.
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    let client = TlsClient::new(&authority);
    for bytes in [
        &b"\x17\x03\x03\x00\x20................................"[..],
        b"\x17\x03\x03\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = client.connect(address, "shop.test").await.unwrap();
        stream.get_mut().0.write_all(bytes).await.unwrap();
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    let failed = nonsense.len();
    until("the status counts them", || (cluster.status()["totals"]["handshakes_failed"] == failed).then_some(()));
    let stream = client.connect(address, "shop.test").await.unwrap();
    assert_eq!(over(stream).await.get("/").await.unwrap().status, 200);
    assert_eq!(cluster.worker(0), worker, "no worker died of it");
    until("all are gone", || (cluster.status()["workers"][0]["connections"].as_u64() <= Some(1)).then_some(()));
}

/// Every one is a single line that names the file or the flag.
#[test]
fn a_start_without_a_good_certificate_says_what_is_wrong() {
    let authority = Authority::new("tests");
    let good = authority.issue(&["shop.test"]);
    let refused = |issued: &Issued, message: &str| {
        let ended = serve("hello", &[issued]).run();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.lines().count() == 1 && ended.stderr.contains(message), "{ended:?}");
    };
    refused(&authority.issue_for(&["shop.test"], -3), "pair-0.pem expired on ");
    refused(&Issued { key: authority.issue(&["a"]).key, ..clone(&good) }, "the key does not belong to the certificate");
    refused(&Issued { cert: "nonsense".into(), ..clone(&good) }, "it has no certificate");
    let ended = Setup::new(&guest("hello")).args(&["--listen", "https://127.0.0.1:0"]).run();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("needs a certificate; add --tls-cert FILE and --tls-key FILE"), "{ended:?}");
}

fn clone(Issued { cert, key, der }: &Issued) -> Issued {
    Issued { cert: cert.clone(), key: key.clone(), der: der.clone() }
}

#[test]
fn certificates_that_end_soon_are_warned_of() {
    let authority = Authority::new("tests");
    let pairs = [authority.issue(&["late.test"]), authority.issue_for(&["soon.test", "*.soon.test"], 10)];
    let setup = serve("hello", &pairs.each_ref());
    let key = setup.folder.path().join("pair-0.key");
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let cluster = setup.start();
    cluster.stderr.find("the certificate for soon.test, *.soon.test expires in 9 days on ");
    cluster.stderr.find("other users can read or write the key ");
    let status = cluster.status();
    let certificates = status["certificates"].as_array().unwrap();
    assert_eq!(certificates[1]["names"], serde_json::json!(["soon.test", "*.soon.test"]));
    assert!(certificates[0]["file"].as_str().unwrap().ends_with("/pair-0.pem"), "{status}");
    let said = |field: &str| certificates.iter().map(|it| it[field] == true).collect::<Vec<_>>();
    assert_eq!((said("expires_soon"), said("expired")), (vec![false, true], vec![false, false]));
    let table = cluster.command(&["status"]).stdout;
    assert!(
        table.contains("\ncertificate late.test, expires on 20") && table.contains(" 0 failed handshakes"),
        "{table}"
    );
    assert!(table.contains("\ncertificate soon.test, *.soon.test, expires SOON, on 20"), "{table}");
    assert!(!cluster.stderr.lines().iter().any(|line| line.contains("late.test expires")));
}

/// What a tool says; None if the machine has none of that name.
fn run(tool: &mut Command, input: &str) -> Option<String> {
    let spawned = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        println!("skipped: there is no {} here", tool.get_program().display());
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn curl_and_openssl_are_served() {
    let authority = Authority::new("tests");
    let cluster = serve("hello", &[&authority.issue(&["localhost", "127.0.0.1"])]).start();
    let ca = cluster.folder.path().join("authority.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let address = cluster.address_of(1);
    for arguments in [&["--tlsv1.3"][..], &["--tls-max", "1.2"], &["--http1.0"], &["--http1.1"], &["--http2"]] {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "30", "--noproxy", "*", "--cacert"]).arg(&ca).args(arguments);
        if let Some(said) = run(curl.arg(format!("https://{address}/")), "") {
            assert_eq!(said, "Hello from wasmcluster!\n", "{arguments:?}");
        }
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", version, "-ign_eof", "-verify_return_error", "-CAfile"]).arg(&ca);
        openssl.args(["-servername", "localhost", "-connect", &address.to_string()]);
        let request = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        if let Some(said) = run(&mut openssl, request) {
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
            assert!(said.contains("Hello from wasmcluster!"), "{said}");
        }
    }
    // TLS 1.1 is refused.
    if let Some(said) = run(Command::new("openssl").args(["s_client", "-tls1_1", "-connect", &address.to_string()]), "")
    {
        assert!(said.contains("no peer certificate available"), "{said}");
    }
}
