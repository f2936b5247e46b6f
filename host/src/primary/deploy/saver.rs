//! The thread that writes down what is committed. It is alone, so what it writes is in order, and a disk that is slow, full
//! or hung holds up nobody else. Of what waits for it only the newest is written; what could not be is tried again.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::wire::committed::Committed;
use crate::wire::ids::Generation;

/// How long a reload waits until what it committed is written down.
pub(crate) const SAVED_WITHIN: Duration = Duration::from_secs(5);
/// When it is tried again, after it has failed.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the end may take: a file system that hangs keeps what it has.
const END_WITHIN: Duration = Duration::from_secs(1);

/// What became of a commit, and of all before it.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) generation: Generation,
    /// An error says which folder, and why.
    pub(crate) result: Result<(), String>,
}

/// The handle to the thread.
#[derive(Debug)]
pub(crate) struct Saver {
    desk: Arc<Desk>,
    /// Its end says that the thread has ended.
    ended: std::sync::mpsc::Receiver<Infallible>,
}

#[derive(Debug, Default)]
struct Desk {
    waiting: Mutex<Unsaved>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Unsaved {
    commit: Option<Committed>,
    is_over: bool,
}

impl Saver {
    /// Starts the thread, which writes for the cluster `name` into `folder`; what comes of it goes to `saved`.
    pub(crate) fn start(folder: PathBuf, name: String, saved: mpsc::Sender<Saved>) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let (end, ended) = std::sync::mpsc::channel();
        let work = desk.clone();
        thread::Builder::new().name("state".into()).spawn(move || {
            let mut failed = None;
            while let Some(commit) = work.next(&mut failed) {
                let result = commit.write(&folder, &name).map_err(|error| format!("{error:#}"));
                let generation = commit.generation;
                failed = result.is_err().then_some(commit);
                if saved.blocking_send(Saved { generation, result }).is_err() {
                    break;
                }
            }
            drop(end);
        })?;
        Ok(Self { desk, ended })
    }

    pub(crate) fn save(&self, commit: Committed) {
        self.desk.change(|waiting| waiting.commit = Some(commit));
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.desk.change(|waiting| waiting.is_over = true);
        // Nothing is ever sent: the answer is that nobody could any more, or that it takes too long.
        let _ = self.ended.recv_timeout(END_WITHIN);
    }
}

impl Desk {
    fn change(&self, change: impl FnOnce(&mut Unsaved)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// What is to be written next; what has `failed`, after a while, if there is nothing newer. `None` at the end.
    fn next(&self, failed: &mut Option<Committed>) -> Option<Committed> {
        self.next_within(if failed.is_some() { AGAIN } else { Duration::MAX }, failed)
    }

    fn next_within(&self, patience: Duration, failed: &mut Option<Committed>) -> Option<Committed> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let has_nothing = |waiting: &mut Unsaved| waiting.commit.is_none() && !waiting.is_over;
        let (mut waiting, _) =
            self.changed.wait_timeout_while(waiting, patience, has_nothing).unwrap_or_else(PoisonError::into_inner);
        match waiting.commit.take() {
            None if waiting.is_over => None,
            None => failed.take(),
            newer => newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::version::Version;
    use crate::wire::version::WasiHttp;

    fn commit(generation: u64) -> Committed {
        let version =
            Version { digest: "sha256:0".into(), http: WasiHttp::V0_2, source: "/app.wasm".into(), manifest: None };
        Committed::new(Generation(generation), "/app.wasm".into(), version, None, Default::default())
    }

    #[test]
    fn the_newest_commit_is_written_and_an_older_one_is_never_written_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let (saves, mut saved) = mpsc::channel(200);
        let saver = Saver::start(folder.path().into(), "shop".into(), saves).unwrap();
        (1..=100).for_each(|generation| saver.save(commit(generation)));
        drop(saver);
        assert_eq!(Committed::read(folder.path(), "shop").unwrap(), Some(commit(100)));
        let mut last = 0;
        while let Some(Saved { generation, result }) = saved.blocking_recv() {
            result.unwrap();
            assert!(generation.0 > last, "{generation} after {last}");
            last = generation.0;
        }
        assert_eq!(last, 100);
    }

    #[test]
    fn what_failed_is_tried_again_unless_there_is_something_newer() {
        let desk = Desk::default();
        let mut failed = Some(commit(1));
        desk.change(|waiting| waiting.commit = Some(commit(2)));
        assert_eq!(desk.next(&mut failed), Some(commit(2)));
        assert_eq!(desk.next_within(Duration::ZERO, &mut failed), Some(commit(1)));
        desk.change(|waiting| waiting.is_over = true);
        assert_eq!(desk.next(&mut failed), None);
    }
}
