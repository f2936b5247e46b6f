//! `--log-file`: the file that lines go to, in place of standard output and error.
//!
//! A thread writes to it, so that nobody waits for its disk; another opens it again after a rotation. Lines that it does not
//! take are lost, and counted; standard error is told why, and so is the log, which `wasmcluster logs` shows.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;

use super::kept_log::KeptLine;
use crate::logging::{self, LogLevel};
use crate::os::log_file::{self, END_WITHIN, LogFile, Rotation};

/// How often it is told that lines are lost.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The file, as it is open now.
#[derive(Debug)]
pub(crate) struct FileOutput {
    file: Arc<LogFile>,
    rotation: Rotation,
    lost: LostLines,
}

impl FileOutput {
    /// Opens it. May wait for a file system.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let name: Arc<str> = path.display().to_string().into();
        let open = || log_file::open(path).with_context(|| format!("cannot open the log file {name}"));
        let lost = LostLines { name: name.clone(), state: Arc::default() };
        let failing = lost.clone();
        let file = Arc::new(LogFile::start(open()?.into(), move |lines, error| failing.add(lines, &error))?);
        let reopened = file.clone();
        let rotation = Rotation::watch(path.to_owned(), open()?, move |opened| match opened {
            Ok(opened) => {
                reopened.reopen(opened.into());
                tracing::info!("opened the log file {name} again");
            }
            Err(error) => tracing::error!("cannot open the log file {name} again: {error}"),
        })?;
        Ok(Self { file, rotation, lost })
    }

    pub(super) fn write(&self, lines: &[KeptLine]) {
        for line in lines {
            if !self.file.write(&line.text) {
                self.lost.add(1, &"it takes them too slowly");
            }
        }
    }

    /// Has it opened again.
    pub(super) fn reopen(&self) {
        self.rotation.ask();
    }

    /// Lines that it did not take.
    pub(super) fn dropped(&self) -> u64 {
        self.lost.lock().lines
    }

    /// Has everything written that was taken, if that does not take too long.
    pub(super) fn finish(&self) {
        self.file.finish(END_WITHIN);
    }
}

/// Counts lines that are lost, and tells of them.
#[derive(Clone, Debug)]
struct LostLines {
    /// Of the file.
    name: Arc<str>,
    state: Arc<Mutex<LostState>>,
}

#[derive(Debug, Default)]
struct LostState {
    lines: u64,
    /// Of these, those that nobody was told of.
    untold: u64,
    why: String,
    /// There is a thread that tells.
    is_told: bool,
}

impl LostLines {
    fn add(&self, lines: u64, why: &dyn fmt::Display) {
        let mut state = self.lock();
        state.lines += lines;
        state.untold += lines;
        state.why = why.to_string();
        if !std::mem::replace(&mut state.is_told, true) {
            let telling = self.clone();
            // Whoever carries lines out, or writes them, must not wait for a standard error that is stuck.
            let told = std::thread::Builder::new().name("log-lost".into()).spawn(move || telling.tell());
            state.is_told = told.is_ok();
        }
    }

    /// Tells of them at once, and then once a minute, as long as more are lost.
    fn tell(&self) {
        loop {
            let mut state = self.lock();
            if state.untold == 0 {
                state.is_told = false;
                return;
            }
            let (lines, why) = (std::mem::take(&mut state.untold), state.why.clone());
            drop(state);
            let lines = if lines == 1 { "a line".into() } else { format!("{lines} lines") };
            let message = format!("the log file {} did not take {lines}, and more may follow: {why}", self.name);
            logging::say(LogLevel::Error, format_args!("{message}"));
            tracing::error!("{message}");
            std::thread::sleep(TELL_EVERY);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
