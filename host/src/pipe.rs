//! The write ends of the pipes that carry a worker's output to its primary.
//!
//! They never block: a line for which there is no room is dropped and counted, so that a reader who stops cannot
//! stop a worker, and a guest that floods its output loses lines, not time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};

/// Longest line that is passed on in one piece, without its newline; longer ones are broken.
pub(crate) const MAX_LINE: usize = 8 * 1024;

/// A pipe whose write end does not block; both ends close on exec.
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// Writes whole lines into a pipe, or drops them.
#[derive(Debug)]
pub(crate) struct LineWriter {
    fd: OwnedFd,
    /// The pipe took only the beginning of the last line.
    broken: Mutex<bool>,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The pipe took it.
    Whole,
    /// There was no room, or no reader.
    Dropped,
}

impl LineWriter {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, broken: Mutex::new(false) }
    }

    /// Writes `line`, which must end in a newline.
    pub(crate) fn write(&self, line: &[u8]) -> Written {
        debug_assert!(line.ends_with(b"\n"));
        // A poisoned lock means a panic between two writes: the flag is as good as it was.
        let mut broken = self.broken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *broken {
            match self.try_write(b"\n") {
                1 => *broken = false,
                _ => return Written::Dropped,
            }
        }
        let taken = self.try_write(line);
        *broken = taken > 0 && taken < line.len();
        if taken == line.len() { Written::Whole } else { Written::Dropped }
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
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    partial: Vec<u8>,
}

impl LineBuffer {
    /// Takes `bytes` and hands each line that is now complete to `emit`, newline included.
    pub(crate) fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            for piece in piece.chunks(MAX_LINE) {
                if self.partial.len() + piece.len() > MAX_LINE + usize::from(piece.ends_with(b"\n")) {
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
    fn a_full_pipe_drops_lines_and_recovers_at_a_line_start() {
        let (reader, writer) = output_pipe().unwrap();
        let writer = LineWriter::new(writer);
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        while writer.write(&line) == Written::Whole {}
        assert_eq!(writer.write(&line), Written::Dropped);

        let mut reader = std::fs::File::from(reader);
        let mut drained = vec![0; 1024 * 1024];
        let count = reader.read(&mut drained).unwrap();
        assert!(count > MAX_LINE);
        assert_eq!(writer.write(b"after\n"), Written::Whole);
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        let mut all = drained[..count].to_vec();
        all.extend(rest);
        assert!(all.ends_with(b"\nafter\n"));
    }
}
