//! Clients of a balancer, and what became of each of their requests: nothing that they see fails a test by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::client::Connection;
use crate::until;

/// What became of requests.
#[derive(Clone, Debug, Default)]
pub struct Fates {
    /// Answers, by status.
    pub answers: BTreeMap<u16, u64>,
    /// Those without an answer.
    pub broken: u64,
    /// The longest that one took.
    pub slowest: Duration,
}

impl Fates {
    /// All requests.
    pub fn all(&self) -> u64 {
        self.answers.values().sum::<u64>() + self.broken
    }

    /// Those that had no answer of 200.
    pub fn lost(&self) -> u64 {
        self.all() - self.answers.get(&200).copied().unwrap_or(0)
    }
}

#[derive(Clone, Default)]
struct Shared {
    is_over: Arc<AtomicBool>,
    well: Arc<AtomicU64>,
    fates: Arc<Mutex<Fates>>,
}

/// Clients at work until they are told to end.
pub struct Traffic {
    shared: Shared,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts clients that get these paths from a Unix socket, one client a path, each one request after the other over a
    /// connection that it keeps.
    pub fn start<'a>(front: &Path, paths: impl IntoIterator<Item = &'a str>) -> Self {
        let shared = Shared::default();
        let client = |path: &str| tokio::spawn(client(front.to_owned(), path.to_owned(), shared.clone()));
        let clients = paths.into_iter().map(client).collect();
        Self { shared, clients }
    }

    /// How many requests were answered with 200 so far.
    pub fn well(&self) -> u64 {
        self.shared.well.load(Ordering::Relaxed)
    }

    /// What became of requests so far.
    pub fn fates(&self) -> Fates {
        self.shared.fates.lock().expect("no client panics with the lock").clone()
    }

    /// Waits until so many more were answered with 200.
    #[track_caller]
    pub fn goes_on(&self, more: u64) {
        let before = self.well();
        until("more answers come", || (self.well() > before + more).then_some(()));
    }

    /// Answers of 200 a second, measured over some time.
    pub async fn rate(&self, over: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.well());
        tokio::time::sleep(over).await;
        (self.well() - before) as f64 / begun.elapsed().as_secs_f64()
    }

    /// Has the clients end.
    pub async fn end(self) -> Fates {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no client panics");
        }
        self.shared.fates.lock().expect("no client panics with the lock").clone()
    }
}

async fn client(front: PathBuf, path: String, shared: Shared) {
    let mut kept = None;
    while !shared.is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Connection::over(UnixStream::connect(&front).await.expect("the balancer is there")).await,
        };
        let answer = connection.get(&path).await;
        let mut fates = shared.fates.lock().expect("no client panics with the lock");
        fates.slowest = fates.slowest.max(begun.elapsed());
        let Ok(answer) = answer else {
            fates.broken += 1;
            continue;
        };
        *fates.answers.entry(answer.status).or_default() += 1;
        drop(fates);
        if answer.status == 200 {
            shared.well.fetch_add(1, Ordering::Relaxed);
        }
        if answer.headers.get("connection").is_none_or(|value| value != "close") {
            kept = Some(connection);
        }
    }
}
