//! Certificates that are read again while connections go on: by reloads, by a signal, and by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use nix::sys::signal::Signal;
use rustls::HandshakeKind;
use tokio::task::JoinHandle;

use harness::client::Connection;
use harness::tls::{Authority, Issued, TlsClient};
use harness::{Cluster, Setup, guest, until};

/// As fast as workers start.
const AT_ONCE: [&str; 4] = ["--min-ready", "0s", "--soak", "0s"];

/// Clients that get `/` over TLS, one request at once after the other, over connections that last as long as the server
/// allows it.
struct TlsLoad {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    /// Full handshakes beyond each client's first.
    clients: Vec<JoinHandle<u64>>,
}

impl TlsLoad {
    fn start(cluster: &Cluster, authority: &Authority, clients: usize) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address = cluster.address_of(1);
        let client = |_| {
            let (client, end, answered) = (TlsClient::new(authority), end.clone(), answered.clone());
            tokio::spawn(async move {
                let (mut kept, mut full) = (None, 0);
                while !end.load(Ordering::Relaxed) {
                    let mut connection: Connection<Full<Bytes>> = match kept.take() {
                        Some(kept) => kept,
                        None => {
                            let stream = client.connect(address, "shop.test").await.expect("a handshake");
                            full += u64::from(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Full));
                            Connection::over(stream).await
                        }
                    };
                    let answer = connection.get("/").await.expect("an answer");
                    assert_eq!(answer.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                    let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
                    kept = (!closes).then_some(connection);
                }
                full - 1
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { end, answered, clients }
    }

    #[track_caller]
    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("more answers come", || (self.answered.load(Ordering::Relaxed) > before + 100).then_some(()));
    }

    /// How many requests were answered, and how many full handshakes were forced. Panics if one failed.
    async fn end(self) -> (u64, u64) {
        self.end.store(true, Ordering::Relaxed);
        let mut full = 0;
        for client in self.clients {
            full += client.await.expect("no request fails");
        }
        (self.answered.load(Ordering::Relaxed), full)
    }
}

fn serve(component: &str, issued: &Issued) -> Setup {
    let mut setup = Setup::new(&guest(component)).args(&["--listen", "https://127.0.0.1:0"]);
    let [cert, key] = issued.write(setup.folder.path(), "shop");
    setup.command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
    setup
}

/// The certificate that a new client is shown.
async fn shown(cluster: &Cluster, authority: &Authority) -> Vec<u8> {
    let stream = TlsClient::new(authority).connect(cluster.address_of(1), "shop.test").await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Sessions outlive the workers that began them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_force_no_full_handshake_and_lose_no_request_over_tls() {
    let authority = Authority::new("tests");
    let cluster = serve("whoami", &authority.issue(&["shop.test"])).args(&AT_ONCE).start();
    let load = TlsLoad::start(&cluster, &authority, 16);
    for _ in 0..10 {
        load.goes_on();
        let reloaded = cluster.reload(&[]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    }
    load.goes_on();
    let (answered, full) = load.end().await;
    assert_eq!(full, 0, "full handshakes");
    let totals = cluster.status()["totals"].clone();
    println!(
        "ten reloads of two workers over TLS: {answered} requests answered, 0 lost; {} handshakes, {} of them resumed",
        totals["handshakes"], totals["handshakes_resumed"]
    );
    assert_eq!(
        (&totals["handshakes_failed"], &totals["errors"], &totals["aborted"]),
        (&0.into(), &0.into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_served_without_a_lost_request() {
    let authority = Authority::new("tests");
    let mut serving = authority.issue(&["shop.test"]);
    let cluster = serve("hello", &serving).args(&AT_ONCE).start();
    let load = TlsLoad::start(&cluster, &authority, 8);
    let workers = cluster.ready();
    for round in 0..4 {
        load.goes_on();
        assert_eq!(shown(&cluster, &authority).await, serving.der.as_ref());
        serving = authority.issue(&["shop.test", "new.test"]);
        serving.write(cluster.folder.path(), "shop");
        match round {
            // Every worker has it when the command returns, and is the same as before.
            0 | 1 => {
                let ended = cluster.reload(&["--tls"]);
                assert_eq!(ended.code, Some(0), "{ended:?}");
                assert!(ended.stdout.starts_with("certificate shop.test, new.test, expires on 20"), "{ended:?}");
                assert_eq!(cluster.ready(), workers);
            }
            // With the component, by the command and by a signal.
            2 => assert_eq!(cluster.reload(&[]).code, Some(0)),
            _ => {
                let worker = cluster.worker(0).unwrap();
                // With a controlling terminal SIGHUP stops.
                let has_terminal = std::fs::File::open("/dev/tty").is_ok();
                cluster.signal(if has_terminal { Signal::SIGUSR2 } else { Signal::SIGHUP });
                cluster.replaced(0, worker);
            }
        }
        for _ in 0..10 {
            assert_eq!(shown(&cluster, &authority).await, serving.der.as_ref(), "round {round}");
        }
    }
    load.goes_on();
    let (answered, full) = load.end().await;
    println!("four new certificates under load: {answered} requests answered, 0 lost");
    assert_eq!(full, 0, "full handshakes");
    assert_eq!(cluster.status()["certificates"][0]["names"][1], "new.test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_certificate_is_refused_and_the_old_one_goes_on() {
    let authority = Authority::new("tests");
    let good = authority.issue(&["shop.test"]);
    let cluster = serve("hello", &good).args(&AT_ONCE).start();
    let other_key = Issued { key: authority.issue(&["shop.test"]).key, ..authority.issue(&["shop.test"]) };
    let broken = Issued { cert: "nonsense".into(), ..authority.issue(&["shop.test"]) };
    for (bad, message) in [
        (authority.issue_for(&["shop.test"], -1), "shop.pem expired on "),
        (other_key, "the key does not belong to the certificate"),
        (broken, "it has no certificate"),
    ] {
        bad.write(cluster.folder.path(), "shop");
        let alone = cluster.reload(&["--tls"]);
        assert_eq!((alone.code, alone.stderr.lines().count()), (Some(1), 1), "{alone:?}");
        let goes_on = "the cluster goes on with the certificates that it has";
        assert!(alone.stderr.contains(message) && alone.stderr.contains(goes_on), "{alone:?}");
        assert_eq!(shown(&cluster, &authority).await, good.der.as_ref());
        // A reload of the component says it as well, and brings workers that serve with the old ones.
        let together = cluster.reload(&[]);
        assert_eq!(together.code, Some(0), "{together:?}");
        assert!(
            together.stderr.lines().any(|line| line.starts_with("note: ") && line.contains(message)),
            "{together:?}"
        );
        assert_eq!(shown(&cluster, &authority).await, good.der.as_ref());
        cluster.stderr.find(message);
    }
    let crashes = cluster.status()["totals"]["crashes"].clone();
    assert_eq!(crashes, 0);
    let clear = Setup::new(&guest("hello")).start().reload(&["--tls"]);
    assert_eq!(clear.code, Some(1), "{clear:?}");
    assert!(clear.stderr.contains("none of its listeners is https"), "{clear:?}");
}
