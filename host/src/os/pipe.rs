//! The write ends of the pipes that carry a worker's output to its primary.
//!
//! They never block: a line for which there is no room is dropped and counted, so that a reader who stops cannot
//! stop a worker, and a guest that floods its output loses lines, not time.

#[cfg(test)]
mod fuzz;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};

/// Longest line that is passed on in one piece, without its newline; longer ones are broken.
pub(crate) const MAX_LINE: usize = 8 * 1024;
/// Before each line of a guest stands the request that it is about, if there is one, between two of these (ASCII's record
/// separator). Nobody else puts any there, so a line that begins otherwise is the worker's own.
pub(crate) const MARK: u8 = 0x1e;
/// Bytes of that, marks included.
pub(crate) const MAX_MARK: usize = 512;

/// A pipe whose write end does not block; both ends close on exec. If it is to hold so many bytes, its read end does not
/// block either; the kernel may give it less room.
pub(crate) fn output_pipe(room: Option<i32>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(room) = room {
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(room));
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// Writes whole lines into a pipe, or drops them.
#[derive(Debug)]
pub(crate) struct LineWriter {
    fd: OwnedFd,
    state: Mutex<PipeState>,
}

#[derive(Debug)]
struct PipeState {
    /// The pipe took only the beginning of the last line.
    is_broken: bool,
    rate: Option<Rate>,
}

/// So many bytes in a second, and as many at once after a second of silence.
#[derive(Debug)]
struct Rate {
    per_second: u32,
    left: u32,
    refilled: Instant,
}

impl Rate {
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let more = now.saturating_duration_since(self.refilled).min(Duration::from_secs(1)).as_secs_f64();
        let more = (more * f64::from(self.per_second)) as u32;
        // What is less than a byte is not lost: it comes with the next.
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.per_second);
            self.refilled = now;
        }
        let rest = u32::try_from(bytes).ok().and_then(|bytes| self.left.checked_sub(bytes));
        self.left = rest.unwrap_or(self.left);
        rest.is_some()
    }
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PipeWrite {
    /// The pipe took it.
    Whole,
    /// There was no room, or no reader, or there were too many lines in too short a time.
    Dropped,
}

impl LineWriter {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, state: Mutex::new(PipeState { is_broken: false, rate: None }) }
    }

    /// One that drops lines beyond so many bytes a second.
    pub(crate) fn limited(fd: OwnedFd, per_second: u32) -> Self {
        let rate = Some(Rate { per_second, left: per_second, refilled: Instant::now() });
        Self { fd, state: Mutex::new(PipeState { is_broken: false, rate }) }
    }

    /// Writes `line`, which must end in a newline.
    pub(crate) fn write(&self, line: &[u8]) -> PipeWrite {
        debug_assert!(line.ends_with(b"\n"));
        // A poisoned lock means a panic between two writes: the state is as good as it was.
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.rate.as_mut().is_some_and(|rate| !rate.take(line.len(), Instant::now())) {
            return PipeWrite::Dropped;
        }
        if state.is_broken {
            match self.try_write(b"\n") {
                1 => state.is_broken = false,
                _ => return PipeWrite::Dropped,
            }
        }
        let taken = self.try_write(line);
        state.is_broken = taken > 0 && taken < line.len();
        if taken == line.len() { PipeWrite::Whole } else { PipeWrite::Dropped }
    }

    fn try_write(&self, bytes: &[u8]) -> usize {
        loop {
            match write(self.fd.as_fd(), bytes) {
                Ok(taken) => return taken,
                Err(Errno::EINTR) => {}
                Err(_) => return 0,
            }
        }
    }
}

/// For `tracing-subscriber`, which hands over one event at a time, newline included.
impl io::Write for &LineWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        LineWriter::write(self, event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts a stream of bytes into lines of at most [`MAX_LINE`] bytes.
#[derive(Debug)]
pub(crate) struct LineBuffer {
    partial: Vec<u8>,
    max_line: usize,
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self { partial: Vec::new(), max_line: MAX_LINE }
    }
}

impl LineBuffer {
    /// For lines that have been cut already, and got their marks since.
    pub(crate) fn of_marked_lines() -> Self {
        Self { max_line: MAX_LINE + MAX_MARK, ..Self::default() }
    }

    /// Takes `bytes` and hands each line that is now complete to `emit`, newline included.
    pub(crate) fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            for piece in piece.chunks(self.max_line) {
                if self.partial.len() + piece.len() > self.max_line + usize::from(piece.ends_with(b"\n")) {
                    self.finish(&mut emit);
                }
                self.partial.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    emit(&self.partial);
                    self.partial.clear();
                }
            }
        }
    }

    /// Hands on what came after the last newline, as a line of its own.
    pub(crate) fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            self.partial.push(b'\n');
            emit(&self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut buffer = LineBuffer::default();
        let mut out = Vec::new();
        for piece in pieces {
            buffer.push(piece, |line| out.push(line.to_vec()));
        }
        buffer.finish(|line| out.push(line.to_vec()));
        out
    }

    #[test]
    fn lines_are_cut_at_newlines_wherever_the_writes_fall() {
        assert_eq!(lines(&[b"a\nb", b"c\n", b"\n", b"d"]), [&b"a\n"[..], b"bc\n", b"\n", b"d\n"]);
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn long_lines_are_broken_and_nothing_is_lost() {
        for length in [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE + 7] {
            let mut text = vec![b'x'; length];
            text.push(b'\n');
            for chunk in [1, 7, MAX_LINE, text.len()] {
                let pieces: Vec<&[u8]> = text.chunks(chunk).collect();
                let out = lines(&pieces);
                assert!(out.iter().all(|line| line.len() <= MAX_LINE + 1 && line.ends_with(b"\n")));
                let kept: usize = out.iter().map(|line| line.len() - 1).sum();
                assert_eq!(kept, length, "length {length}, chunk {chunk}");
                assert_eq!(out.len(), length.div_ceil(MAX_LINE), "length {length}, chunk {chunk}");
            }
        }
    }

    #[test]
    fn a_flood_is_held_to_its_rate() {
        let start = Instant::now();
        let mut rate = Rate { per_second: 1000, left: 1000, refilled: start };
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(rate.take(600, at(0)) && rate.take(400, at(0)), "a burst");
        assert!(!rate.take(1, at(0)));
        // What comes too often does not keep the rate from filling up.
        assert!((1..=10).filter(|&tenths| rate.take(1, start + Duration::from_micros(100 * tenths))).count() == 1);
        assert!(rate.take(99, at(101)) && !rate.take(99, at(101)));
        assert!(!rate.take(1001, at(10_000)), "never more than the burst");
        assert!(rate.take(1000, at(10_000)));
    }

    #[test]
    fn a_full_pipe_drops_lines_and_recovers_at_a_line_start() {
        let (reader, writer) = output_pipe(None).unwrap();
        let writer = LineWriter::new(writer);
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        while writer.write(&line) == PipeWrite::Whole {}
        assert_eq!(writer.write(&line), PipeWrite::Dropped);

        let mut reader = std::fs::File::from(reader);
        let mut drained = vec![0; 1024 * 1024];
        let count = reader.read(&mut drained).unwrap();
        assert!(count > MAX_LINE);
        assert_eq!(writer.write(b"after\n"), PipeWrite::Whole);
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        let mut all = drained[..count].to_vec();
        all.extend(rest);
        assert!(all.ends_with(b"\nafter\n"));
    }
}
