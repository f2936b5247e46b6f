//! Clients that send one request after the other, and what became of them.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::{Answer, Connection};
use crate::http2::{Client, request, was_not_begun};
use crate::until;

/// Far shorter than any grace.
const PAUSE: Duration = Duration::from_millis(20);

/// How clients use their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// For as long as the server allows it, one request at once after the other.
    KeepAlive,
    /// Likewise, with a pause before each request: a server that closes idle connections meets some of these.
    WithPauses,
    /// A connection for each request.
    No,
}

/// A request without an answer.
pub struct Failed {
    /// The answer that came before it over the same connection.
    pub last: Option<Answer>,
    /// What came instead.
    pub error: Box<dyn Error + Send + Sync>,
}

/// What all clients share.
#[derive(Clone, Default)]
struct Shared {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    again: Arc<AtomicU64>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Clients at work until they are told to end.
pub struct Load {
    shared: Shared,
    clients: Vec<JoinHandle<Vec<Failed>>>,
}

impl Load {
    /// Starts `clients` that get `/` until [`Load::end`]. Answers other than 200 fail the test.
    pub fn start(address: SocketAddr, clients: usize, reuse: Reuse) -> Self {
        Self::mixed(address, [(clients, reuse)])
    }

    /// The same with several groups of clients, each with its use of connections.
    pub fn mixed(address: SocketAddr, groups: impl IntoIterator<Item = (usize, Reuse)>) -> Self {
        let shared = Shared::default();
        let all = groups.into_iter().flat_map(|(clients, reuse)| std::iter::repeat_n(reuse, clients));
        let client = |reuse| tokio::spawn(client(address, reuse, shared.clone()));
        let clients = all.map(client).collect();
        Self { shared, clients }
    }

    /// The same over HTTP/2: `connections` with so many `streams` each, on each of which a request is sent as soon as the one
    /// before is answered. What the server has not begun with is sent again, as clients do, and is no failure.
    pub fn start_http2(address: SocketAddr, connections: usize, streams: usize) -> Self {
        let shared = Shared::default();
        let client = |_| tokio::spawn(http2_client(address, streams, shared.clone()));
        let clients = (0..connections).map(client).collect();
        Self { shared, clients }
    }

    /// How many requests were answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many requests were sent again.
    pub fn again(&self) -> u64 {
        self.shared.again.load(Ordering::Relaxed)
    }

    /// Waits until many more answers have come.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.answered();
        until("more answers come", || (self.answered() > before + 100).then_some(()));
    }

    /// Has the clients end: how many requests were answered, and which failed.
    pub async fn end(self) -> (u64, Vec<Failed>) {
        self.shared.end.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in self.clients {
            failed.extend(client.await.expect("no client gets a wrong answer"));
        }
        (self.shared.answered.load(Ordering::Relaxed), failed)
    }

    /// Has the clients end: how many requests were answered. Panics if one failed.
    pub async fn end_well(self) -> u64 {
        let (answered, failed) = self.end().await;
        let errors: Vec<String> = failed.iter().map(|failed| failed.error.to_string()).collect();
        assert!(errors.is_empty(), "{} of {answered} failed: {errors:?}", errors.len());
        answered
    }
}

async fn client(address: SocketAddr, reuse: Reuse, shared: Shared) -> Vec<Failed> {
    let mut failed = Vec::new();
    let mut kept: Option<(Connection<Full<Bytes>>, Answer)> = None;
    while !shared.is_over() {
        let (mut connection, last) = match kept.take() {
            Some((connection, last)) => (connection, Some(last)),
            None => {
                Shared::count(&shared.connections);
                (Connection::open(address).await, None)
            }
        };
        if reuse == Reuse::WithPauses && last.is_some() {
            tokio::time::sleep(PAUSE).await;
        }
        match connection.get("/").await {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                Shared::count(&shared.answered);
                let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
                if reuse != Reuse::No && !closes {
                    kept = Some((connection, answer));
                }
            }
            Err(error) => failed.push(Failed { last, error: error.into() }),
        }
    }
    failed
}

/// One connection after the other: a server that ends one says so before.
async fn http2_client(address: SocketAddr, streams: usize, shared: Shared) -> Vec<Failed> {
    let mut failed = Vec::new();
    while !shared.is_over() {
        Shared::count(&shared.connections);
        let client = Client::open(address).await;
        let mut streams: JoinSet<_> = (0..streams).map(|_| http2_stream(client.clone(), shared.clone())).collect();
        while let Some(ended) = streams.join_next().await {
            failed.extend(ended.expect("no client gets a wrong answer"));
        }
    }
    failed
}

/// Requests until the connection takes no more of them.
async fn http2_stream(mut client: Client, shared: Shared) -> Vec<Failed> {
    let (mut failed, mut last) = (Vec::new(), None);
    while !shared.is_over() {
        let Ok(asked) = client.ask(request(http::Method::GET, "/")).await else { break };
        match asked.whole().await {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                Shared::count(&shared.answered);
                last = Some(answer);
            }
            Err(error) if was_not_begun(&error) => Shared::count(&shared.again),
            Err(error) => failed.push(Failed { last: last.take(), error: error.into() }),
        }
    }
    failed
}
