//! Clients that send one request after the other, and what became of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::task::JoinHandle;

use crate::client::{Answer, Connection};
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
    pub error: hyper::Error,
}

/// Clients at work until they are told to end.
pub struct Load {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<Failed>>>,
}

impl Load {
    /// Starts `clients` that get `/` until [`Load::end`]. Answers other than 200 fail the test.
    pub fn start(address: SocketAddr, clients: usize, reuse: Reuse) -> Self {
        Self::mixed(address, [(clients, reuse)])
    }

    /// The same with several groups of clients, each with its use of connections.
    pub fn mixed(address: SocketAddr, groups: impl IntoIterator<Item = (usize, Reuse)>) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let all = groups.into_iter().flat_map(|(clients, reuse)| std::iter::repeat_n(reuse, clients));
        let client = |reuse| tokio::spawn(client(address, reuse, end.clone(), answered.clone()));
        let clients = all.map(client).collect();
        Self { end, answered, clients }
    }

    /// How many requests were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until many more answers have come.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.answered();
        until("more answers come", || (self.answered() > before + 100).then_some(()));
    }

    /// Has the clients end: how many requests were answered, and which failed.
    pub async fn end(self) -> (u64, Vec<Failed>) {
        self.end.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in self.clients {
            failed.extend(client.await.expect("no client gets a wrong answer"));
        }
        (self.answered.load(Ordering::Relaxed), failed)
    }

    /// Has the clients end: how many requests were answered. Panics if one failed.
    pub async fn end_well(self) -> u64 {
        let (answered, failed) = self.end().await;
        let errors: Vec<String> = failed.iter().map(|failed| failed.error.to_string()).collect();
        assert!(errors.is_empty(), "{} of {answered} failed: {errors:?}", errors.len());
        answered
    }
}

async fn client(address: SocketAddr, reuse: Reuse, end: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> Vec<Failed> {
    let mut failed = Vec::new();
    let mut kept: Option<(Connection<Full<Bytes>>, Answer)> = None;
    while !end.load(Ordering::Relaxed) {
        let (mut connection, last) = match kept.take() {
            Some((connection, last)) => (connection, Some(last)),
            None => (Connection::open(address).await, None),
        };
        if reuse == Reuse::WithPauses && last.is_some() {
            tokio::time::sleep(PAUSE).await;
        }
        match connection.get("/").await {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                answered.fetch_add(1, Ordering::Relaxed);
                let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
                if reuse != Reuse::No && !closes {
                    kept = Some((connection, answer));
                }
            }
            Err(error) => failed.push(Failed { last, error }),
        }
    }
    failed
}
