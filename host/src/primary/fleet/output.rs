//! The thread that carries lines out: what guests print, what workers and the primary log.
//!
//! It alone may block when nobody reads the primary's standard output or error; the pipes then fill and their writers
//! drop lines, but supervision goes on. Each source gets a bounded share of a round, so a flood delays its siblings by
//! one share at most. Until [`Output::release`] nothing is carried, so that the line which announces the server is the
//! first.

use std::fmt;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Map;

use crate::logging::{self, LogFormat, LogLevel, Logging, Volume, json};
use crate::os::pipe::{LineBuffer, LineWriter, MARK, output_pipe};
use crate::wire::ids::{Generation, WorkerId};

/// Bytes that are taken from a source in one round.
const SHARE: usize = 64 * 1024;
/// Sources that wait to be taken over; past that, a worker's lines are dropped.
const MAX_WAITING: usize = 1024;
/// How long [`Output::finish`] waits for the last lines to be carried out.
const FINISH: Duration = Duration::from_secs(1);

/// A pipe to read from.
#[derive(Debug)]
pub(crate) struct Source {
    reader: std::fs::File,
    kind: SourceKind,
    lines: LineBuffer,
}

/// Whose lines they are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SourceKind {
    /// Log lines, formatted already.
    Log,
    /// What a guest printed.
    Guest { stream: OutputStream, worker: WorkerId, generation: Generation },
}

/// Where a guest printed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputStream {
    Stdout,
    Stderr,
}

impl Source {
    pub(crate) fn new(reader: OwnedFd, kind: SourceKind) -> Self {
        Self { reader: reader.into(), kind, lines: LineBuffer::of_marked_lines() }
    }
}

#[derive(Debug)]
enum OutputOrder {
    Add(Source),
    Release,
    /// Bytes for standard error, also before the release.
    Show(Vec<u8>),
    Finish,
}

/// The handle to the thread.
#[derive(Debug)]
pub(crate) struct Output {
    orders: SyncSender<OutputOrder>,
    /// A byte in this pipe makes the thread look at its orders.
    wake: PipeWriter,
    /// Disconnects when the thread has ended.
    done: Receiver<()>,
    /// Whether standard error is one that lines can be written over on.
    is_terminal: bool,
}

impl Output {
    /// Starts the thread, and lets this process log through it.
    pub(crate) fn start(logging: Logging, level: LogLevel) -> io::Result<(Self, Volume)> {
        let (orders, received) = sync_channel(MAX_WAITING);
        let (wakened, wake) = io::pipe()?;
        let (ending, done) = sync_channel(0);
        std::thread::Builder::new().name("output".into()).spawn(move || {
            Carrier { format: logging.format, sources: Vec::new(), orders: received, wakened }.run();
            drop(ending);
        })?;
        let is_terminal = io::stderr().is_terminal() && logging.format == LogFormat::Pretty;
        let output = Self { orders, wake, done, is_terminal };

        let (reader, writer) = output_pipe(None)?;
        output.add(Source::new(reader, SourceKind::Log));
        let log: &'static LineWriter = Box::leak(Box::new(LineWriter::new(writer)));
        let volume = logging.install(level, move || log);
        Ok((output, volume))
    }

    /// Carries what `source` says from now on, until its end.
    pub(crate) fn add(&self, source: Source) {
        self.order(OutputOrder::Add(source));
    }

    /// Announces the cluster, and lets lines through.
    pub(crate) fn announce(&self, lines: String) {
        self.order(OutputOrder::Show(lines.into_bytes()));
        self.order(OutputOrder::Release);
    }

    /// A line of the start's own, also before the release.
    pub(crate) fn say(&self, level: LogLevel, message: fmt::Arguments<'_>) {
        self.order(OutputOrder::Show(logging::line(level, message).into_bytes()));
    }

    /// Tells what takes long: on a terminal in a line that [`Output::end_progress`] removes, elsewhere once.
    pub(crate) fn progress(&self, doing: &str, time: Duration, was_told: bool) {
        let sentence = format!("{}{}…", doing[..1].to_uppercase(), &doing[1..]);
        if self.is_terminal {
            self.order(OutputOrder::Show(format!("\r{sentence} {} s\x1b[K", time.as_secs()).into_bytes()));
        } else if !was_told {
            self.say(LogLevel::Info, format_args!("{sentence}"));
        }
    }

    pub(crate) fn end_progress(&self) {
        if self.is_terminal {
            self.order(OutputOrder::Show(b"\r\x1b[K".to_vec()));
        }
    }

    /// Lets lines through.
    pub(crate) fn release(&self) {
        self.order(OutputOrder::Release);
    }

    /// Carries out what has been said so far; waits for it, but not for long.
    pub(crate) fn finish(self) {
        self.order(OutputOrder::Finish);
        let _ = self.done.recv_timeout(FINISH);
    }

    fn order(&self, order: OutputOrder) {
        // With so many orders waiting, the thread is stuck on a reader who stopped: the source is dropped, and its
        // writers notice that nobody listens.
        if self.orders.try_send(order).is_ok() {
            // The pipe holds more bytes than the queue holds orders.
            let _ = (&self.wake).write(&[0]);
        }
    }
}

struct Carrier {
    format: LogFormat,
    sources: Vec<Source>,
    orders: Receiver<OutputOrder>,
    wakened: PipeReader,
}

impl Carrier {
    fn run(mut self) {
        // Held back until the server is announced, or has failed to start.
        while let Ok(order) = self.orders.recv() {
            match order {
                OutputOrder::Add(source) => self.sources.push(source),
                OutputOrder::Release => break,
                OutputOrder::Show(bytes) => show(&bytes),
                OutputOrder::Finish => return self.carry_the_rest(),
            }
        }
        loop {
            let readable = self.wait(PollTimeout::NONE);
            self.carry(&readable);
            for order in self.take_orders() {
                match order {
                    OutputOrder::Add(source) => self.sources.push(source),
                    OutputOrder::Release => {}
                    OutputOrder::Show(bytes) => show(&bytes),
                    OutputOrder::Finish => return self.carry_the_rest(),
                }
            }
        }
    }

    fn take_orders(&mut self) -> Vec<OutputOrder> {
        self.orders.try_iter().collect()
    }

    /// What is in the pipes already; whoever still holds a write end is not waited for.
    fn carry_the_rest(mut self) {
        let deadline = Instant::now() + FINISH;
        while Instant::now() < deadline {
            let readable = self.wait(PollTimeout::ZERO);
            if readable.is_empty() {
                return;
            }
            self.carry(&readable);
        }
    }

    /// The sources that have something to say, by index.
    fn wait(&mut self, timeout: PollTimeout) -> Vec<usize> {
        let woken = PollFd::new(self.wakened.as_fd(), PollFlags::POLLIN);
        let sources = self.sources.iter().map(|source| PollFd::new(source.reader.as_fd(), PollFlags::POLLIN));
        let mut polled: Vec<PollFd<'_>> = std::iter::once(woken).chain(sources).collect();
        // An interrupted or failed poll reports nothing, and is tried again by the caller.
        if poll(&mut polled, timeout).is_err() {
            return Vec::new();
        }
        let said: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(polled);
        if said[0] {
            let mut bytes = [0; MAX_WAITING];
            let _ = self.wakened.read(&mut bytes);
        }
        said[1..].iter().enumerate().filter(|(_, said)| **said).map(|(index, _)| index).collect()
    }

    /// Takes one share from each of these sources and writes it out.
    fn carry(&mut self, readable: &[usize]) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut ended = Vec::new();
        let mut share = vec![0; SHARE];
        for &index in readable {
            let source = &mut self.sources[index];
            let out = match source.kind {
                SourceKind::Guest { stream: OutputStream::Stdout, .. } => &mut stdout,
                SourceKind::Guest { stream: OutputStream::Stderr, .. } | SourceKind::Log => &mut stderr,
            };
            let (kind, format) = (source.kind, self.format);
            match source.reader.read(&mut share) {
                Ok(0) | Err(_) => {
                    source.lines.finish(|line| render(format, kind, line, out));
                    ended.push(index);
                }
                Ok(taken) => source.lines.push(&share[..taken], |line| render(format, kind, line, out)),
            }
        }
        for index in ended.into_iter().rev() {
            self.sources.swap_remove(index);
        }
        // Whoever closed our output does not want it.
        let _ = io::stdout().write_all(&stdout).and_then(|()| io::stdout().flush());
        let _ = io::stderr().write_all(&stderr);
    }
}

fn show(bytes: &[u8]) {
    // Whoever closed our output does not want it.
    let _ = io::stderr().write_all(bytes);
}

/// One line, newline included, as it goes out.
fn render(format: LogFormat, kind: SourceKind, line: &[u8], out: &mut Vec<u8>) {
    match (kind, format) {
        (SourceKind::Log, LogFormat::Pretty) => out.extend_from_slice(line),
        // A pipe that was full may have taken the half of a line.
        (SourceKind::Log, LogFormat::Json) => {
            out.extend_from_slice(json::wrap(line, LogLevel::Error, &Map::new()).as_bytes());
        }
        (SourceKind::Guest { worker, generation, .. }, LogFormat::Pretty) => {
            let (request, line) = split_request(line);
            let request = if request.is_empty() { request } else { format!(" request {request}") };
            out.extend_from_slice(format!("[worker {worker} g {generation}{request}] ").as_bytes());
            out.extend_from_slice(line);
        }
        (SourceKind::Guest { stream, worker, generation }, LogFormat::Json) => {
            let stream = match stream {
                OutputStream::Stdout => "stdout",
                OutputStream::Stderr => "stderr",
            };
            let mut fields = Map::from_iter([
                ("stream".into(), stream.into()),
                ("worker".into(), worker.0.into()),
                ("generation".into(), generation.0.into()),
            ]);
            let (request, line) = split_request(line);
            let named = ["request", "method", "path", "x_request_id"].into_iter().zip(request.split_terminator(' '));
            fields.extend(named.map(|(name, value)| (name.into(), value.into())));
            out.extend_from_slice(json::guest_line(line, fields).as_bytes());
        }
    }
}

/// The request that a line of a guest is about, as `Asked` displays it, and the line. Empty where there is none, and of the
/// worker's own last words.
fn split_request(line: &[u8]) -> (String, &[u8]) {
    let end = |marked: &[u8]| marked.iter().position(|&byte| byte == MARK);
    match line.strip_prefix(&[MARK]).and_then(|marked| Some((marked, end(marked)?))) {
        Some((marked, end)) => (String::from_utf8_lossy(&marked[..end]).into_owned(), &marked[end + 1..]),
        None => (String::new(), line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_guests_name_the_request_they_are_about() {
        let guest = SourceKind::Guest { stream: OutputStream::Stdout, worker: WorkerId(3), generation: Generation(2) };
        for (line, pretty, fields) in [
            (&b"\x1e3-7 GET /a\x1ehi\n"[..], "[worker 3 g 2 request 3-7 GET /a] hi\n", [Some("3-7"), Some("/a"), None]),
            (
                b"\x1e3-7 GET /a abc\x1ehi\n",
                "[worker 3 g 2 request 3-7 GET /a abc] hi\n",
                [Some("3-7"), Some("/a"), Some("abc")],
            ),
            (b"\x1e\x1ehi\n", "[worker 3 g 2] hi\n", [None; 3]),
            // The worker's own.
            (b"hi\n", "[worker 3 g 2] hi\n", [None; 3]),
            // The guest's own marks are text.
            (b"\x1e\x1e\x1e9-9 GET /b\x1ehi\n", "[worker 3 g 2] \x1e9-9 GET /b\x1ehi\n", [None; 3]),
        ] {
            let mut out = Vec::new();
            render(LogFormat::Pretty, guest, line, &mut out);
            assert_eq!(out, pretty.as_bytes());
            out.clear();
            render(LogFormat::Json, guest, line, &mut out);
            let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(
                ["request", "path", "x_request_id"].map(|field| event.get(field).and_then(|it| it.as_str())),
                fields
            );
        }
    }

    #[test]
    fn lines_are_rendered_with_their_worker() {
        let guest = SourceKind::Guest { stream: OutputStream::Stderr, worker: WorkerId(3), generation: Generation(2) };
        let mut out = Vec::new();
        render(LogFormat::Pretty, guest, b"hello\n", &mut out);
        assert_eq!(out, b"[worker 3 g 2] hello\n");

        out.clear();
        render(LogFormat::Json, guest, b"say \"hi\"\xff\n", &mut out);
        let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(event["message"], "say \"hi\"\u{fffd}");
        assert_eq!(
            (&event["worker"], &event["generation"], &event["stream"]),
            (&3.into(), &2.into(), &"stderr".into())
        );

        assert_eq!(event["level"], "INFO");

        let ours = json::line("WARN", "careful", &Map::new());
        for (line, message) in [(ours.as_bytes(), "careful"), (&ours.as_bytes()[20..], ours[20..].trim_end())] {
            out.clear();
            render(LogFormat::Json, SourceKind::Log, line, &mut out);
            let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(event["message"], message);
        }
    }
}
