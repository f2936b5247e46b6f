//! Clients that send one request after the other, and what became of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::task::JoinHandle;

use crate::client::{Answer, Connection};
use crate::harness::until;

/// Far shorter than any grace.
const PAUSE: Duration = Duration::from_millis(20);

/// How clients use their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// For as long as the server allows it, one request at once after the other.
    KeepAlive,
    /// Likewise, with a pause before each request: a server that closes idle connections meets some of these.
    WithPauses,
    /// A connection for each request.
    No,
}

/// A request without an answer.
pub(crate) struct Failed {
    /// The answer that came before it over the same connection.
    pub(crate) last: Option<Answer>,
    pub(crate) error: hyper::Error,
}

/// Clients at work until they are told to end.
pub(crate) struct Load {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<Failed>>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, clients: usize, reuse: Reuse) -> Self {
        Self::mixed(address, [(clients, reuse)])
    }

    pub(crate) fn mixed(address: SocketAddr, groups: impl IntoIterator<Item = (usize, Reuse)>) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let all = groups.into_iter().flat_map(|(clients, reuse)| std::iter::repeat_n(reuse, clients));
        let client = |reuse| tokio::spawn(client(address, reuse, end.clone(), answered.clone()));
        let clients = all.map(client).collect();
        Self { end, answered, clients }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until many more answers have come.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let before = self.answered();
        until("more answers come", || (self.answered() > before + 100).then_some(()));
    }

    /// How many were answered, and what failed.
    pub(crate) async fn end(self) -> (u64, Vec<Failed>) {
        self.end.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in self.clients {
            failed.extend(client.await.expect("no client gets a wrong answer"));
        }
        (self.answered.load(Ordering::Relaxed), failed)
    }

    /// How many were answered; none failed.
    pub(crate) async fn end_well(self) -> u64 {
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
