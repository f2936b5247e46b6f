//! Standard error while other people's tools write to it and the format is JSON: their lines come out in our shape.

use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use nix::unistd::dup2_stderr;
use serde_json::Map;

use super::{LogLevel, is_json, json};

/// How long the last lines may take. A tool may leave a process behind that keeps the pipe open.
const LAST_LINES: Duration = Duration::from_secs(1);

/// In place until it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    stderr: OwnedFd,
    done: Receiver<()>,
}

impl Relay {
    /// None if the format is for people, who see what tools say as tools say it.
    pub(crate) fn start() -> io::Result<Option<Self>> {
        if !is_json() {
            return Ok(None);
        }
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let out = std::fs::File::from(stderr.try_clone()?);
        let (reader, writer) = io::pipe()?;
        let (ending, done) = sync_channel(0);
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            carry(reader, out);
            drop(ending);
        })?;
        dup2_stderr(&writer)?;
        Ok(Some(Self { stderr, done }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // With this the pipe has no writer any more, unless a tool left one behind.
        let _ = dup2_stderr(&self.stderr);
        let _ = self.done.recv_timeout(LAST_LINES);
    }
}

fn carry(reader: PipeReader, mut out: impl Write) {
    let build = Map::from_iter([("stream".into(), "build".into())]);
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        // Whoever closed it does not want to know.
        let _ = out.write_all(json::wrap(&line, LogLevel::Info, &build).as_bytes());
    }
}
