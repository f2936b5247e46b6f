//! Sockets of guests' own (`--allow-connect`): only to where it is granted, only TCP, only so many, and not for longer than
//! their instance. Names and real servers are in `tests/serving/connect.rs`.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use harness::client::get;
use harness::{Cluster, Setup, guest};

/// Guests of both versions of WASI, which do the same by 0.2, and the second something by 0.3.
const GUESTS: [&str; 2] = ["hostile_p2", "hostile_p3"];
/// Of an instance that serves one request at a time.
const MAX_SOCKETS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends back what it is sent, and tells when a connection begins, and when its other side has ended it.
struct Echo {
    address: SocketAddr,
    news: Receiver<News>,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Began,
    Ended,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, news) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, tell) = (stream.unwrap(), tell.clone());
                std::thread::spawn(move || {
                    // The test may be over.
                    let _ = tell.send(News::Began);
                    let _ = std::io::copy(&mut &stream, &mut &stream);
                    let _ = tell.send(News::Ended);
                });
            }
        });
        Self { address, news }
    }

    /// Waits until so many of its connections have ended.
    fn until_ended(&self, count: usize) {
        let mut left = count;
        while left > 0 {
            let news = self.news.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{left} of {count} never ended"));
            left -= usize::from(news == News::Ended);
        }
    }
}

fn start(name: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(args).start()
}

/// What the guest says of `path`.
async fn ask(cluster: &Cluster, path: &str) -> String {
    let answer = get(cluster.address(), path).await.unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.text().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_connects_to_what_is_granted_and_to_nothing_else() {
    let (granted, other) = (Echo::start(), Echo::start());
    let (address, port) = (granted.address, granted.address.port());
    for name in GUESTS {
        let by_name = format!("localhost:{port}");
        let args = ["--allow-connect", &address.to_string(), "--allow-connect", &by_name];
        let cluster = start(name, &[&args[..], &["--max-instance-reuse-count", "1"]].concat());
        assert_eq!(ask(&cluster, &format!("/tcp?addr={address}")).await, "connected", "{name}");
        let said = ask(&cluster, &format!("/reach?name=LOCALHOST.&at=127.0.0.1&port={port}")).await;
        assert!(said.contains("127.0.0.1") && said.ends_with("Ok(\"connected\")"), "{name}: {said}");
        for path in [
            // Another port, another address, this cluster itself, one that is special.
            format!("/tcp?addr={}", other.address),
            format!("/tcp?addr=127.0.0.2:{port}"),
            format!("/tcp?addr={}", cluster.address()),
            format!("/tcp?addr=[::1]:{port}"),
            "/tcp?addr=169.254.169.254:80".to_owned(),
            "/tcp?addr=1.1.1.1:443".to_owned(),
            "/tcp?addr=[fe80::1]:443".to_owned(),
            format!("/reach?name=localhost&at=127.0.0.1&port={}", other.address.port()),
            // Other kinds of sockets.
            format!("/udp?addr={address}"),
            // Names that are not granted; that it is this machine's, nobody is told.
            "/resolve?name=example.com".to_owned(),
            "/resolve?name=a.localhost".to_owned(),
        ] {
            let said = ask(&cluster, &path).await;
            assert!(said.contains("access-denied") && !said.contains("connected"), "{name} {path}: {said}");
        }
        for path in [
            // Addresses in disguise, and such as nobody has.
            format!("/tcp?addr=[::ffff:127.0.0.1]:{port}"),
            format!("/tcp?addr=0.0.0.0:{port}"),
            format!("/tcp?addr=[::]:{port}"),
            format!("/tcp?addr=224.0.0.1:{port}"),
            format!("/tcp?addr=255.255.255.255:{port}"),
            "/tcp?addr=127.0.0.1:0".to_owned(),
            "/resolve?name=127.1".to_owned(),
            "/resolve?name=".to_owned(),
        ] {
            let said = ask(&cluster, &path).await;
            assert!(said.contains("invalid-argument"), "{name} {path}: {said}");
        }
        assert_eq!(ask(&cluster, "/resolve?name=10.0.0.5").await, "10.0.0.5\n", "an address needs no look-up");
        for port in [port, 0] {
            let said = ask(&cluster, &format!("/listen?addr=127.0.0.1:{port}")).await;
            assert!(said.matches("access-denied").count() == 2 && said.contains("invalid-state"), "{name}: {said}");
        }
        // Once for each, with the flag.
        let flag = format!("grant it with --allow-connect {}", other.address);
        assert!(cluster.stderr.find(&flag).contains("request=\"1-"));
        assert!(ask(&cluster, &format!("/tcp?addr={}", other.address)).await.contains("access-denied"));
        assert_eq!(cluster.stderr.lines().iter().filter(|line| line.contains(&flag)).count(), 1);
        cluster.stderr.find("grant it with --allow-connect example.com:PORT");
    }
    assert!(other.news.try_recv().is_err(), "somebody connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_wasi_0_3_are_granted_and_denied_alike() {
    let echo = Echo::start();
    let args = ["--allow-connect", &echo.address.to_string(), "--allow-connect", "localhost:1"];
    let cluster = start("hostile_p3", &args);
    let long = "sent and come back ".repeat(400).replace(' ', "+");
    for say in ["hello", "", &long] {
        let said = ask(&cluster, &format!("/tcp-async?addr={}&say={say}", echo.address)).await;
        assert_eq!(said, format!("0 not sent, heard {}", say.replace('+', " ")));
    }
    for path in ["/tcp-async?addr=127.0.0.1:1", "/udp-async?addr=127.0.0.1:1", "/resolve-async?name=example.com"] {
        let said = ask(&cluster, path).await;
        assert!(said.contains("AccessDenied"), "{path}: {said}");
    }
    assert!(ask(&cluster, "/resolve-async?name=localhost").await.contains("127.0.0.1\n"));
    let said = ask(&cluster, "/listen-async?addr=127.0.0.1:0").await;
    assert_eq!(said.matches("AccessDenied").count(), 2, "{said}");
    // Without a grant all of it is denied.
    let cluster = start("hostile_p3", &[]);
    let tcp = format!("/tcp-async?addr={}", echo.address);
    for (path, error) in [(tcp.as_str(), "AccessDenied"), ("/resolve-async?name=localhost", "PermanentResolverFailure")]
    {
        let said = ask(&cluster, path).await;
        assert!(said.contains(error), "{path}: {said}");
    }
    cluster.stderr.find("a TCP socket; grant where it may connect to with --allow-connect HOST:PORT");
    cluster.stderr.find("grant it with --allow-connect localhost:PORT");
}

/// Sockets that are kept, and in WASI 0.3 only a side of each: they are counted until the connection is gone, and it is gone
/// with its instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_counted_and_end_with_their_instance() {
    for (name, path, error) in [
        ("hostile_p2", "/many-tcp", "new-socket-limit"),
        ("hostile_p3", "/many-tcp", "new-socket-limit"),
        ("hostile_p3", "/many-tcp-async", "new-socket-limit"),
    ] {
        let echo = Echo::start();
        let grant = echo.address.to_string();
        let many = format!("{path}?addr={grant}&n=100");
        for (max, expected) in [("1000", MAX_SOCKETS), ("3", 3)] {
            let args = ["--max-instance-reuse-count", "1", "--max-sockets", max, "--allow-connect", &grant];
            let cluster = start(name, &args);
            // Each time as many: those of the first have their places back.
            for _ in 0..3 {
                let said = ask(&cluster, &many).await;
                let begins = format!("{expected} connected, then ");
                assert!(said.starts_with(&begins) && said.contains(error), "{name} {path} {max}: {said}");
                echo.until_ended(expected);
            }
            let (what, remedy) = if max == "3" {
                ("more than 3 TCP sockets at a time in one worker", "raise --max-sockets")
            } else {
                ("more than 16 TCP sockets at a time in one instance", "no flag raises this limit")
            };
            assert!(cluster.stderr.find(what).contains(remedy));
            // The worker is well, and the same.
            assert_eq!(ask(&cluster, "/").await, "hello");
            assert_eq!(cluster.status()["workers"][0]["id"], 1);
        }
    }
}

/// An instance that traps, and one whose client is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_end_with_an_instance_that_ends_badly() {
    for name in GUESTS {
        let echo = Echo::start();
        let cluster = start(name, &["--request-timeout", "1s", "--allow-connect", &echo.address.to_string()]);
        let answer = get(cluster.address(), &format!("/tcp-then-spin?addr={}", echo.address)).await.unwrap();
        assert_eq!(answer.status, 504);
        echo.until_ended(1);
        let answer = get(cluster.address(), &format!("/tcp-then-trap?addr={}", echo.address)).await.unwrap();
        assert_eq!(answer.status, 500);
        echo.until_ended(1);
    }
}
