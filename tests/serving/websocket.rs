//! WebSocket: what guests say and hear, over HTTP/1.1 and HTTP/2, and how it ends.

use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use harness::client::{get, soon};
use harness::http2::{
    self, Client, END_HEADERS, HEADERS, INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, WINDOW_UPDATE, piece, send_all,
};
use harness::tls::{Authority, TlsClient};
use harness::websocket::{BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, PONG, Socket, TEXT, frame, handshake};
use harness::{Cluster, Follower, Setup, guest, root, until};

use super::clients::anonymous_memory;
use super::strictness::exchange;
use super::tls;

/// The same guest in both versions of WASI.
const GUESTS: [&str; 2] = ["sdk", "sdk_p3"];

fn serve(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

fn open(cluster: &Cluster, path: &str) -> Socket {
    Socket::open(cluster.address(), path)
}

fn refusal(cluster: &Cluster, path: &str, fields: &str) -> String {
    Socket::try_open(cluster.address(), path, fields).err().expect("no WebSocket")
}

/// A number of the only worker's.
fn worker(cluster: &Cluster, name: &str) -> u64 {
    cluster.status()["workers"][0][name].as_u64().unwrap()
}

fn until_it_has(cluster: &Cluster, name: &str, number: u64) {
    until(&format!("{name} is {number}"), || (worker(cluster, name) == number).then_some(()));
}

#[test]
fn a_guest_hears_and_says_whole_messages() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut socket = open(&cluster, "/websocket/echo");
        socket.say("h\u{e9}llo");
        assert_eq!(socket.hear(), "h\u{e9}llo", "{name}");
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| at as u8).collect();
        socket.send(FIN | BINARY, &bytes);
        assert_eq!(socket.receive(), Some(Frame::Binary(bytes)));
        // In parts, with a ping between them.
        socket.send(TEXT, b"one ");
        socket.send(FIN | PING, b"there?");
        socket.send(CONTINUATION, b"two ");
        socket.send(FIN | CONTINUATION, b"three");
        assert_eq!(socket.receive(), Some(Frame::Control(PONG, b"there?".into())));
        assert_eq!(socket.hear(), "one two three");
        // Both at once: neither waits for the other.
        for number in 0..200 {
            socket.say(&number.to_string());
        }
        assert!((0..200).all(|number| socket.hear() == number.to_string()));
        socket.send(FIN | CLOSE, &[&4001_u16.to_be_bytes()[..], b"enough"].concat());
        assert_eq!(socket.closed(), (4001, "enough".into()));
        assert_eq!(socket.receive(), None);
    }
}

#[test]
fn a_guest_ends_its_socket_as_it_says() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-instance-reuse-count", "100"]);
        for (text, code, reason) in [("close 4000 bye", 4000, "bye"), ("fail", 1011, ""), ("trap", 1011, "")] {
            let mut socket = open(&cluster, "/websocket/echo");
            socket.say(text);
            assert_eq!(socket.closed(), (code, reason.into()), "{name}: {text}");
        }
        cluster.stderr.find("the guest trapped");
        assert_eq!(cluster.status()["totals"]["traps"], 1);
        let mut flood = open(&cluster, "/websocket/flood?bytes=10&count=3");
        let said: Vec<_> = std::iter::from_fn(|| flood.receive()).take(4).collect();
        assert_eq!(said[3], Frame::Text("done".into()));
        assert_eq!(flood.closed(), (1000, String::new()), "it returned");
    }
}

/// The answer is the guest's own, and so is whether there is a WebSocket.
#[test]
fn a_guest_decides_who_gets_a_websocket() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-instance-reuse-count", "100"]);
        let address = cluster.address();
        let socket = Socket::try_open(address, "/websocket/headers", "").ok().unwrap();
        assert!(socket.head.contains("set-cookie: a=1\r\nset-cookie: b=2; path=/\r\n"), "{}", socket.head);
        for (path, fields, status) in [
            ("/websocket/refuse", "", "403"),
            ("/websocket/other", "", "200"),
            ("/nowhere", "", "404"),
            ("/websocket/echo", "origin: https://evil.example\r\n", "403"),
        ] {
            let answer = refusal(&cluster, path, fields);
            assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{name} {path}: {answer}");
            assert!(!answer.contains("upgrade"), "{answer}");
        }
        assert!(Socket::try_open(address, "/websocket/echo", "origin: http://test\r\n").is_ok());
        assert!(Socket::try_open(address, "/websocket/any-origin", "origin: https://evil.example\r\n").is_ok());
        let offers = "sec-websocket-protocol: chat.v1, x\r\nsec-websocket-protocol: chat.v2\r\n";
        let mut socket = Socket::try_open(address, "/websocket/protocols", offers).ok().unwrap();
        assert!(socket.head.contains("sec-websocket-protocol: chat.v"), "{}", socket.head);
        assert!(socket.hear().starts_with("chat.v"));
        let mut socket = open(&cluster, "/websocket/protocols");
        assert!(!socket.head.contains("sec-websocket-protocol"), "{}", socket.head);
        assert_eq!(socket.hear(), "none");
        // Extensions are not spoken, and nobody is told otherwise.
        let extension = "sec-websocket-extensions: permessage-deflate\r\n";
        let socket = Socket::try_open(address, "/websocket/echo", extension).ok().unwrap();
        assert!(!socket.head.contains("extensions"), "{}", socket.head);
        // A ticket of the client's own is none.
        let ticket = "wasmcluster-websocket: 1\r\n";
        let plain = format!("GET /websocket/echo HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{ticket}\r\n");
        let plain = exchange(&cluster, plain.as_bytes());
        assert!(plain.starts_with("HTTP/1.1 426 "), "{plain}");
    }
}

#[test]
fn a_wrong_handshake_is_refused() {
    let cluster = serve("sdk", &[]);
    let ask = |head: &str| exchange(&cluster, head.as_bytes()).to_lowercase();
    let good = handshake("/websocket/echo", "").replace("connection: Upgrade", "connection: upgrade, close");
    let answer = ask(&good.replace("version: 13", "version: 8"));
    assert!(answer.starts_with("http/1.1 426 ") && answer.contains("sec-websocket-version: 13\r\n"), "{answer}");
    for (what, wrong) in [
        ("no key", good.replace("sec-websocket-key:", "x-key:")),
        ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")),
        ("two keys", good.replace("\r\n\r\n", "\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")),
        ("a body", good.replace("\r\n\r\n", "\r\ncontent-length: 1\r\n\r\nx")),
    ] {
        let answer = ask(&wrong);
        assert!(answer.starts_with("http/1.1 400 "), "{what}: {answer}");
    }
    // It does not ask for one, and is told so by the guest.
    assert!(ask(&good.replace("upgrade: websocket\r\n", "")).starts_with("http/1.1 426 "));
    assert!(ask(&good.replace("GET", "POST")).starts_with("http/1.1 426 "));
    // Who does not wait for the answer gets none: what it sends could be a request as well.
    let answer = exchange(&cluster, &[good.into_bytes(), frame(FIN | TEXT, b"early")].concat());
    assert!(!answer.contains("early"), "{answer}");
}

/// Whoever breaks the protocol is told with the code of RFC 6455, and the worker serves the others meanwhile.
#[test]
fn clients_that_break_the_protocol_are_told_so() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-websocket-message", "64KiB", "--max-instance-reuse-count", "100"]);
        let pid = cluster.worker(0).unwrap();
        let mut other = open(&cluster, "/websocket/echo");
        let cases: &[(&str, Vec<u8>, u16)] = &[
            ("no mask", vec![FIN | TEXT, 2, b'h', b'i'], 1002),
            ("reserved bits", frame(FIN | 0x70 | TEXT, b"x"), 1002),
            ("an unknown opcode", frame(FIN | 5, b"x"), 1002),
            ("a continuation of nothing", frame(FIN | CONTINUATION, b"x"), 1002),
            ("a close of one byte", frame(FIN | CLOSE, b"x"), 1002),
            ("a close with a code that none may send", frame(FIN | CLOSE, &1005_u16.to_be_bytes()), 1002),
            ("a ping in parts", frame(PING, b"x"), 1002),
            ("a long ping", frame(FIN | PING, &[0; 126]), 1002),
            ("no UTF-8", frame(FIN | TEXT, &[0xc0, 0xaf]), 1007),
            ("a giant frame", vec![FIN | BINARY, 0x80 | 127, 0, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0], 1009),
            ("a large message in parts", [frame(BINARY, &[0; 40 << 10]), frame(FIN, &[0; 40 << 10])].concat(), 1009),
            ("empty parts without end", [frame(TEXT, b""), frame(0, b"").repeat(120_000)].concat(), 1008),
            ("pings without end", frame(FIN | PING, b"").repeat(20_000), 1008),
        ];
        for (what, bytes, code) in cases {
            let mut socket = open(&cluster, "/websocket/echo");
            let mut writer = socket.stream().try_clone().unwrap();
            let bytes = bytes.clone();
            // It may be cut off in the middle.
            let sending = thread::spawn(move || drop(std::io::Write::write_all(&mut writer, &bytes)));
            assert_eq!(socket.closed().0, *code, "{name}: {what}");
            sending.join().unwrap();
            other.say(what);
            assert_eq!(other.hear(), *what);
        }
        // Nothing of a message that never ends, or of a client that vanishes, is left.
        let mut half = open(&cluster, "/websocket/echo");
        half.send(BINARY, &[0; 1000]);
        half.stream().shutdown(Shutdown::Both).unwrap();
        drop(other);
        until_it_has(&cluster, "websockets", 0);
        until_it_has(&cluster, "connections", 0);
        assert_eq!(cluster.worker(0), Some(pid));
        assert_eq!(cluster.status()["totals"]["traps"], 0, "{name}");
    }
}

/// A WebSocket is no request in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_take_no_place_of_requests() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-in-flight", "1", "--max-websockets", "3"]);
        let mut sockets: Vec<_> = (0..3).map(|_| open(&cluster, "/websocket/echo")).collect();
        until_it_has(&cluster, "websockets", 3);
        until_it_has(&cluster, "in_flight", 0);
        assert_eq!(get(cluster.address(), "/nowhere").await.unwrap().status, 404, "{name}");
        let answer = refusal(&cluster, "/websocket/echo", "");
        assert!(answer.starts_with("http/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
        cluster.stderr.find("see --max-websockets");
        for socket in &mut sockets {
            socket.say("still here");
            assert_eq!(socket.hear(), "still here");
        }
        sockets.pop();
        until_it_has(&cluster, "websockets", 2);
        until("its guest is done", || Socket::try_open(cluster.address(), "/websocket/echo", "").ok());
    }
}

#[test]
fn a_client_that_answers_no_pings_is_given_up() {
    let cluster = serve("sdk", &["--websocket-timeout", "600ms"]);
    let (mut live, mut silent) = (open(&cluster, "/websocket/goodbye"), open(&cluster, "/websocket/goodbye"));
    // It is asked three times over before the silent one is done with.
    for _ in 0..3 {
        assert_eq!(live.receive(), Some(Frame::Control(PING, Vec::new())));
        live.send(FIN | PONG, b"");
    }
    assert_eq!(silent.receive(), Some(Frame::Control(PING, Vec::new())));
    assert_eq!(silent.closed().0, 1006);
    cluster.stderr.find("code: CloseCode(1006)");
    live.send(FIN | CLOSE, b"");
    assert_eq!(live.receive(), Some(Frame::Close(1005, String::new())));
}

/// It waits for its client, with a queue of its own and the kernel's full, and goes on when that reads.
#[test]
fn a_client_that_does_not_read_makes_its_guest_wait() {
    for name in GUESTS {
        let cluster = serve(name, &["--log-level", "debug"]);
        let pid = cluster.worker(0).unwrap();
        let (bytes, count) = (256 << 10, 200);
        let mut socket = open(&cluster, &format!("/websocket/flood?bytes={bytes}&count={count}"));
        cluster.stderr.find("sent 1");
        let before = anonymous_memory(pid);
        let sent = until("it waits", || {
            let sent = cluster.stderr.lines().len();
            thread::sleep(Duration::from_millis(300));
            (cluster.stderr.lines().len() == sent).then_some(sent)
        });
        assert!(sent < count, "{name}: all {count} were taken");
        assert!(anonymous_memory(pid) < before + (16 << 20), "{name}");
        for _ in 0..count {
            assert_eq!(socket.receive(), Some(Frame::Binary(vec![b'x'; bytes])));
        }
        assert_eq!(socket.hear(), "done");
        // One that never reads is cut.
        let cluster = serve(name, &["--stream-timeout", "500ms"]);
        let _deaf = open(&cluster, &format!("/websocket/flood?bytes={bytes}&count={count}"));
        until_it_has(&cluster, "websockets", 1);
        until_it_has(&cluster, "websockets", 0);
    }
}

/// And a guest that does not receive makes its client wait.
#[test]
fn a_guest_that_does_not_receive_makes_its_client_wait() {
    let cluster = serve("sdk", &[]);
    let mut socket = open(&cluster, "/websocket/deaf");
    let stream = socket.stream().try_clone().unwrap();
    stream.set_nonblocking(true).unwrap();
    let message = frame(FIN | BINARY, &[0; 60_000]);
    let mut sent = 0;
    until("nothing more is taken", || {
        for _ in 0..30 {
            match std::io::Write::write(&mut &stream, &message) {
                Ok(written) => sent += written,
                Err(_) => {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        std::io::Write::write(&mut &stream, &[]).unwrap();
        thread::sleep(Duration::from_millis(100));
        std::io::Write::write(&mut &stream, &message).is_err().then_some(())
    });
    assert!(sent < 32 << 20, "{sent}");
    until_it_has(&cluster, "websockets", 1);
    // Nor is it taken for silent.
    assert!(anonymous_memory(cluster.worker(0).unwrap()) < 64 << 20);
}

#[test]
fn waiting_for_two_things_loses_nothing() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut socket = open(&cluster, "/websocket/ticks");
        for number in 0..50 {
            socket.say(&number.to_string());
            thread::sleep(Duration::from_millis(7));
        }
        let (mut echoed, mut ticks) = (0, 0);
        while echoed < 50 || ticks < 4 {
            match socket.hear().strip_prefix("tick ") {
                Some(tick) => {
                    ticks += 1;
                    assert_eq!(tick, ticks.to_string());
                }
                None => echoed += 1,
            }
        }
    }
}

/// Each gets the last word of its guest, and then 1001; new ones go to the new version.
#[test]
fn a_reload_closes_websockets_with_a_last_word() {
    for (name, args) in [("sdk", &[][..]), ("sdk_p3", &["--max-instance-concurrent-reuse-count", "400"])] {
        let cluster = Setup::new(&guest(name)).workers(2).args(args).start();
        let mut sockets: Vec<_> = (0..200).map(|_| open(&cluster, "/websocket/goodbye")).collect();
        let open_now = || -> u64 {
            let status = cluster.status();
            status["workers"].as_array().unwrap().iter().map(|worker| worker["websockets"].as_u64().unwrap()).sum()
        };
        until("all are open", || (open_now() == 200).then_some(()));
        let reload = thread::scope(|scope| {
            let reload = scope.spawn(|| cluster.reload(&[]));
            for socket in &mut sockets {
                assert_eq!(socket.hear(), "goodbye", "{name}");
                assert_eq!(socket.closed(), (1001, String::new()));
                // As a page would, which may be given to a worker that is the next to drain.
                *socket = until("it is served again", || {
                    let mut again = open(&cluster, "/websocket/echo");
                    again.say("again");
                    match again.receive() {
                        Some(Frame::Text(text)) if text == "again" => Some(again),
                        Some(Frame::Close(1001, _)) => None,
                        other => panic!("{other:?}"),
                    }
                });
            }
            reload.join().unwrap()
        });
        assert_eq!(reload.code, Some(0), "{}", reload.stderr);
    }
}

/// A guest that has no last word is not waited for beyond the grace.
#[test]
fn a_drain_waits_for_no_guest_beyond_the_grace() {
    let cluster = serve("sdk", &["--drain-idle-grace", "300ms", "--request-timeout", "2s"]);
    let mut socket = open(&cluster, "/websocket/deaf");
    until_it_has(&cluster, "websockets", 1);
    let stop = thread::scope(|scope| {
        let stop = scope.spawn(|| cluster.command(&["stop"]));
        assert_eq!(socket.closed(), (1001, "the server is shutting down".into()));
        stop.join().unwrap()
    });
    assert_eq!(stop.code, Some(0), "{}", stop.stderr);
}

/// Whoever closes at once, again and again, does not get more guests than WebSockets: one that goes on keeps its place.
#[test]
fn a_guest_behind_a_closed_websocket_keeps_its_place() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-websockets", "2", "--request-timeout", "2s"]);
        for _ in 0..2 {
            open(&cluster, "/websocket/deaf");
        }
        until_it_has(&cluster, "websockets", 0);
        let answer = refusal(&cluster, "/websocket/deaf", "");
        assert!(answer.starts_with("http/1.1 503 "), "{name}: {answer}");
        cluster.stderr.find("the guest was stopped 2s after its WebSocket ended");
        until("there is a place", || Socket::try_open(cluster.address(), "/websocket/echo", "").ok());
    }
}

/// Its guest, which has the next message yet to receive, has no part in it.
#[test]
fn a_client_that_leaves_is_noticed_though_nobody_receives() {
    let cluster = serve("sdk", &[]);
    let mut sockets: Vec<_> = (0..2).map(|_| open(&cluster, "/websocket/deaf")).collect();
    for socket in &mut sockets {
        for _ in 0..4 {
            socket.send(FIN | BINARY, &[0; 60_000]);
        }
    }
    until_it_has(&cluster, "websockets", 2);
    // A reset, and an end.
    let mut reset = sockets.pop().unwrap();
    SockRef::from(&*reset.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    until_it_has(&cluster, "websockets", 1);
}

/// All that was sent before a close arrives, as long as the client takes some of it.
#[test]
fn a_slow_client_gets_all_that_was_sent_before_the_close() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut socket = open(&cluster, "/websocket/echo");
        let message = vec![b'x'; 1 << 20];
        let mut writer = socket.stream().try_clone().unwrap();
        let frames = [frame(FIN | BINARY, &message).repeat(8), frame(FIN | TEXT, b"close 4000 bye")].concat();
        let sending = thread::spawn(move || std::io::Write::write_all(&mut writer, &frames));
        let mut stream = socket.stream().try_clone().unwrap();
        let mut slow = Socket::opened(Slow(&mut stream));
        for _ in 0..8 {
            assert_eq!(slow.receive(), Some(Frame::Binary(message.clone())), "{name}");
        }
        assert_eq!(slow.receive(), Some(Frame::Close(4000, "bye".into())));
        sending.join().unwrap().unwrap();
    }
}

/// Reads some 3 MB a second.
struct Slow<'a>(&'a mut TcpStream);

impl std::io::Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(64 << 10);
        let read = std::io::Read::read(self.0, &mut buffer[..most])?;
        thread::sleep(Duration::from_micros(read as u64 / 3));
        Ok(read)
    }
}

/// What TLS has encrypted and the kernel has yet to take, goes out although nothing follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_nothing_stays_behind() {
    let authority = Authority::new("test");
    let setup = tls::serve("sdk", &[&authority.issue(&["localhost"])]).workers(1);
    let cluster = setup.args(&["--websocket-timeout", "1h"]).start();
    let client = TlsClient::new(&authority);
    let mut stream = client.connect(cluster.address_of(1), "localhost").await.unwrap();
    stream.write_all(handshake("/websocket/flood?bytes=1000000&count=5", "").as_bytes()).await.unwrap();
    // It is full before anything is read.
    until("it waits", || {
        let before = cluster.stderr.lines().len();
        thread::sleep(Duration::from_millis(200));
        (cluster.stderr.lines().len() == before).then_some(())
    });
    let (mut read, mut piece) = (0, vec![0; 20_000]);
    while read < 5_000_000 {
        let taken = soon(stream.read(&mut piece)).await.unwrap();
        assert!(taken > 0);
        read += taken;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Over HTTP/2 as well: the guest is told, and the connection of a client that takes nothing does not stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_of_http2_is_told_to_its_guests() {
    for name in GUESTS {
        let cluster = serve(name, &["--stream-timeout", "500ms"]);
        let mut client = Client::open(cluster.address()).await;
        assert_eq!(client.get("/nowhere").await.unwrap().status, 404);
        let socket = OverHttp2::open(&mut client, "/websocket/goodbye").await;
        drop((socket, client));
        cluster.stderr.find("code: CloseCode(1006)");

        let mut deaf = TcpStream::connect(cluster.address()).unwrap();
        let settings = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &(i32::MAX as u32).to_be_bytes()].concat();
        let fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/websocket/flood?bytes=1000000&count=50"),
            (":authority", "test"),
            ("sec-websocket-version", "13"),
        ];
        // Each as it is, and kept in no table (RFC 7541, section 6.2.2).
        let literal = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        let head = fields.map(|(name, value)| [vec![0], literal(name), literal(value)].concat()).concat();
        let wide = (i32::MAX as u32 - 65_535).to_be_bytes();
        for part in [
            PREFACE.to_vec(),
            http2::frame(SETTINGS, 0, 0, &settings),
            http2::frame(WINDOW_UPDATE, 0, 0, &wide),
            http2::frame(HEADERS, END_HEADERS, 1, &head),
        ] {
            std::io::Write::write_all(&mut deaf, &part).unwrap();
        }
        until_it_has(&cluster, "websockets", 1);
        until_it_has(&cluster, "websockets", 0);
        until_it_has(&cluster, "connections", 0);
        cluster.stderr.find("a WebSocket was cut: its client takes nothing; see --stream-timeout");
    }
}

/// A WebSocket in a stream of HTTP/2 (RFC 8441).
struct OverHttp2 {
    send: SendStream<Bytes>,
    body: RecvStream,
    come: Vec<u8>,
}

fn connect(path: &str) -> Request<()> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://test{path}"))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

impl OverHttp2 {
    async fn open(client: &mut Client, path: &str) -> Self {
        let stream = client.begin(connect(path)).await.unwrap();
        let answer = stream.answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(
            !answer.headers().contains_key("sec-websocket-accept") && !answer.headers().contains_key("content-length")
        );
        Self { send: stream.body, body: answer.into_body(), come: Vec::new() }
    }

    async fn say(&mut self, first: u8, payload: &[u8]) {
        assert!(send_all(&mut self.send, frame(first, payload).into(), false).await);
    }

    /// The next frame, as far as one came before the stream ended.
    async fn receive(&mut self) -> Option<Frame> {
        loop {
            let mut rest = &self.come[..];
            if let Some(frame) = Socket::opened(&mut rest).receive() {
                let taken = self.come.len() - rest.len();
                self.come.drain(..taken);
                return Some(frame);
            }
            self.come.extend_from_slice(&piece(&mut self.body).await?.ok()?);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_share_a_connection_of_http2() {
    for name in GUESTS {
        let cluster = serve(name, &["--max-in-flight", "2"]);
        let mut client = Client::open(cluster.address()).await;
        // The server's settings are there.
        assert_eq!(client.get("/nowhere").await.unwrap().status, 404);
        assert!(client.may_connect());
        let mut sockets = Vec::new();
        for _ in 0..10 {
            sockets.push(OverHttp2::open(&mut client, "/websocket/echo").await);
        }
        let large = vec![7; 1 << 20];
        for socket in &mut sockets {
            socket.say(FIN | TEXT, b"hello").await;
            assert_eq!(socket.receive().await, Some(Frame::Text("hello".into())), "{name}");
            socket.say(FIN | BINARY, &large).await;
            assert_eq!(socket.receive().await, Some(Frame::Binary(large.clone())));
        }
        until_it_has(&cluster, "websockets", 10);
        assert_eq!(client.get("/nowhere").await.unwrap().status, 404, "beside them");
        let mut closed = sockets.pop().unwrap();
        closed.say(FIN | TEXT, b"close 4000 bye").await;
        assert_eq!(closed.receive().await, Some(Frame::Close(4000, "bye".into())));
        closed.say(FIN | CLOSE, &4000_u16.to_be_bytes()).await;
        assert_eq!(closed.receive().await, None, "the stream ends");
        let mut bad = sockets.pop().unwrap();
        assert!(send_all(&mut bad.send, Bytes::from_static(&[FIN | TEXT, 1, b'x']), false).await);
        assert_eq!(bad.receive().await, Some(Frame::Close(1002, "protocol error".into())));
        // A reset is the client's end.
        sockets.pop().unwrap().send.send_reset(Reason::CANCEL);
        until_it_has(&cluster, "websockets", 7);
        let refused = client.begin(connect("/websocket/refuse")).await.unwrap();
        assert_eq!(refused.answer.await.unwrap().status(), 403);
        drop((sockets, client));
        until_it_has(&cluster, "websockets", 0);
    }
}

/// A stop tells each of them, and the connection ends with the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_closes_websockets_of_http2_as_well() {
    for name in GUESTS {
        let cluster = serve(name, &[]);
        let mut client = Client::open(cluster.address()).await;
        assert_eq!(client.get("/nowhere").await.unwrap().status, 404);
        let mut socket = OverHttp2::open(&mut client, "/websocket/goodbye").await;
        thread::scope(|scope| {
            let stop = scope.spawn(|| cluster.command(&["stop"]));
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    assert_eq!(socket.receive().await, Some(Frame::Text("goodbye".into())), "{name}");
                    assert_eq!(socket.receive().await, Some(Frame::Close(1001, String::new())));
                    socket.say(FIN | CLOSE, &1001_u16.to_be_bytes()).await;
                    client.ended().await;
                });
            });
            assert_eq!(stop.join().unwrap().code, Some(0));
        });
    }
}

/// Who does not know them does not say that it does, and CONNECT stays what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_without_websocket_says_so_nowhere() {
    let cluster = serve("hello", &[]);
    let mut client = Client::open(cluster.address()).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    assert!(!client.may_connect());
    let refused = client.begin(connect("/")).await.unwrap();
    assert_eq!(refused.answer.await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
    assert_eq!(client.get("/").await.unwrap().status, 200);
}

/// Runs a program of scripts/websocket-client, which says whether all went well.
fn client(args: &[&str]) -> Follower {
    let mut client = Command::new("timeout");
    // In the foreground, `timeout` passes SIGTERM on.
    client.args(["--foreground", "300"]).arg(root().join("scripts/websocket-client")).args(args);
    Follower::start(&mut client).unwrap()
}

/// Whether it ended well, or was skipped, which it says why.
#[track_caller]
fn ends_well(client: &Follower) {
    let status = client.wait();
    let said = client.stdout.lines();
    assert!(status.success(), "{said:?}");
    match said.iter().find(|line| line.starts_with("skipped: ")) {
        Some(skipped) => println!("{skipped}"),
        None => assert!(said.iter().any(|line| line == "well"), "{said:?}"),
    }
}

#[test]
fn clients_of_python_and_node_are_served() {
    let clusters = GUESTS.map(|name| Setup::new(&guest(name)).args(&["--max-instance-reuse-count", "1000"]).start());
    for cluster in &clusters {
        let address = cluster.address().to_string();
        let clients = ["python", "node"].map(|name| client(&[name, &address]));
        clients.iter().for_each(ends_well);
    }
}

/// A page in a browser says something in a room, and again when the room's server has been replaced.
#[test]
fn a_page_of_chromium_comes_back_after_a_reload() {
    let setup = tls::serve("chat", &[&Authority::new("test").issue(&["localhost"])]).workers(1);
    let folder = setup.folder.path().to_owned();
    let settings = root().join("examples/chat/wasmcluster.toml").display().to_string();
    let cluster = setup.args(&["--config", &settings]).start();
    for (number, scheme) in ["http", "https"].into_iter().enumerate() {
        let url = format!("{scheme}://{}/", cluster.address_of(number));
        let page = client(&["chromium", &url, folder.join(scheme).to_str().unwrap()]);
        let said = until("it says something", || {
            let lines = page.stdout.lines();
            lines.into_iter().find(|line| line == "said" || line.starts_with("skipped: "))
        });
        if said == "said" {
            let worker = &cluster.status()["workers"][0];
            assert_eq!(worker["websockets"], 1);
            // Over HTTP/2 the page and its WebSocket share a connection. Another one, begun before the browser knew that it
            // speaks HTTP/2 here, is soon closed.
            let is_shared = || cluster.status()["workers"][0]["connections"] == 1;
            match scheme {
                "https" => until("there is one connection", || is_shared().then_some(())),
                _ => assert!(!is_shared(), "{worker}"),
            }
            assert_eq!(cluster.reload(&[]).code, Some(0));
        }
        ends_well(&page);
    }
}
