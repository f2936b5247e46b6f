//! The file of the access log, which workers write to: opened by the primary, and again when somebody has taken it away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::Context;
use tokio::sync::mpsc;

use crate::os::log_file::{self, Rotation};

/// The file as it is open now.
#[derive(Debug)]
pub(crate) struct AccessLogFile {
    file: File,
    /// None of standard output.
    rotation: Option<Rotation>,
    opened: mpsc::Receiver<io::Result<File>>,
}

impl AccessLogFile {
    /// Opens it, or standard output if there is no path. May wait for a file system.
    pub(crate) fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let (sender, opened) = mpsc::channel(1);
        let Some(path) = path else {
            let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            return Ok(Self { file, rotation: None, opened });
        };
        let open = || log_file::open(&path).with_context(|| format!("cannot open the access log {}", path.display()));
        let (file, watched) = (open()?, open()?);
        let rotation = Rotation::watch(path, watched, move |opened| drop(sender.blocking_send(opened)))?;
        Ok(Self { file, rotation: Some(rotation), opened })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has it opened again.
    pub(crate) fn reopen(&self) {
        if let Some(rotation) = &self.rotation {
            rotation.ask();
        }
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
