//! The file of the access log, which workers write to: opened by the primary, and again when somebody has taken it away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;

use crate::os::log_file;

/// How often it is looked whether the file is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The file as it is open now.
#[derive(Debug)]
pub(crate) struct AccessLogFile {
    file: File,
    /// That it is to be opened again, whether it is there or not.
    is_asked: Arc<AtomicBool>,
    opened: mpsc::Receiver<io::Result<File>>,
}

impl AccessLogFile {
    /// Opens it, or standard output if there is no path. May wait for a file system.
    pub(crate) fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let (sender, opened) = mpsc::channel(1);
        let is_asked = Arc::<AtomicBool>::default();
        let Some(path) = path else {
            let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            return Ok(Self { file, is_asked, opened });
        };
        let open = || log_file::open(&path).with_context(|| format!("cannot open the access log {}", path.display()));
        let (file, mut watched) = (open()?, open()?);
        let asked = is_asked.clone();
        // A file system that hangs keeps this thread, and nobody else.
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut has_failed = false;
            while !sender.is_closed() {
                std::thread::sleep(LOOK_EVERY);
                if !asked.swap(false, Ordering::Relaxed) && log_file::is_in_place(&watched, &path) {
                    continue;
                }
                let opened = log_file::open(&path).and_then(|file| {
                    watched = file.try_clone()?;
                    Ok(file)
                });
                // It is told once that it cannot be opened.
                if std::mem::replace(&mut has_failed, opened.is_err()) && opened.is_err() {
                    continue;
                }
                if sender.blocking_send(opened).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { file, is_asked, opened })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has it opened again.
    pub(crate) fn reopen(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// When it was opened again, or could not be.
    pub(crate) async fn opened_again(&mut self) -> io::Result<File> {
        match self.opened.recv().await {
            Some(opened) => opened,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn replace(&mut self, file: File) {
        let old = std::mem::replace(&mut self.file, file);
        // To close it may take long on a file system of another machine. If there is no thread, it is closed here.
        let _ = std::thread::Builder::new().name("close".into()).spawn(move || drop(old));
    }
}
