//! The thread that carries lines out: what guests print, what workers and the primary log. They go to standard output and
//! error, or all of them to a file.
//!
//! It alone may block when nobody reads the primary's standard output or error; the pipes then fill and their writers
//! drop lines, but supervision goes on. Each source gets a bounded share of a round, so a flood delays its siblings by
//! one share at most. Until [`Output::release`] nothing is carried, so that the line which announces the server is the
//! first.

use std::fmt;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Map;

use super::file_output::FileOutput;
use super::kept_log::{About, GuestFields, JsonText, KeptLine, KeptLog};
use super::problems::problem;
use crate::control::protocol::Problem;
use crate::logging::{self, LogFormat, LogLevel, Logging, Volume, announcement, json};
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
    event: LoggedEvent,
}

/// What was said as JSON of the event whose lines come.
#[derive(Debug, Default)]
struct LoggedEvent {
    about: About,
    /// None once its first line has come.
    json: Option<Bytes>,
}

/// Whose lines they are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SourceKind {
    /// Log lines, formatted already, of the primary or a worker.
    Log(Option<WorkerId>),
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
        Self { reader: reader.into(), kind, lines: LineBuffer::of_marked_lines(), event: LoggedEvent::default() }
    }
}

#[derive(Debug)]
enum OutputOrder {
    Add(Source),
    Release,
    /// For standard error, also before the release.
    Show(ShownText),
    Finish,
}

/// What the start itself says.
#[derive(Debug)]
enum ShownText {
    /// A line, and the same as JSON, unless it is that already.
    Line { text: String, json: Option<String> },
    /// What the next one overwrites.
    Progress(String),
}

/// The handle to the thread.
#[derive(Debug)]
pub(crate) struct Output {
    format: LogFormat,
    kept: KeptLog,
    /// Where lines go, if not to standard output and error.
    file: Option<Arc<FileOutput>>,
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
    pub(crate) fn start(logging: Logging, level: LogLevel, file: Option<FileOutput>) -> io::Result<(Self, Volume)> {
        let (orders, received) = sync_channel(MAX_WAITING);
        let (wakened, wake) = io::pipe()?;
        let (ending, done) = sync_channel(0);
        let (format, kept, file) = (logging.format, KeptLog::new(), file.map(Arc::new));
        let (kept_here, file_here) = (kept.clone(), file.clone());
        let carrier =
            Carrier { format, kept: kept_here, file: file_here, sources: Vec::new(), orders: received, wakened };
        std::thread::Builder::new().name("output".into()).spawn(move || {
            carrier.run();
            drop(ending);
        })?;
        let is_terminal = io::stderr().is_terminal() && format == LogFormat::Pretty;
        let output = Self { format, kept, file, orders, wake, done, is_terminal };

        let (reader, writer) = output_pipe(None)?;
        output.add(Source::new(reader, SourceKind::Log(None)));
        let log: &'static LineWriter = Box::leak(Box::new(LineWriter::new(writer)));
        let volume = logging.install(level, move || log);
        Ok((output, volume))
    }

    /// Carries what `source` says from now on, until its end.
    pub(crate) fn add(&self, source: Source) {
        self.order(OutputOrder::Add(source));
    }

    /// The latest of all lines.
    pub(crate) fn kept(&self) -> KeptLog {
        self.kept.clone()
    }

    /// What the log warned of lately.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.kept.problems()
    }

    /// Has the file opened again that lines go to.
    pub(crate) fn reopen(&self) {
        if let Some(file) = &self.file {
            file.reopen();
        }
    }

    /// Lines that this file did not take.
    pub(crate) fn dropped(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.dropped())
    }

    /// Announces the cluster, and lets lines through.
    pub(crate) fn announce(&self, urls: &[String]) {
        for url in urls {
            let json = (self.format != LogFormat::Json).then(|| announcement(LogFormat::Json, url));
            self.order(OutputOrder::Show(ShownText::Line { text: announcement(self.format, url), json }));
        }
        self.order(OutputOrder::Release);
    }

    /// A line of the start's own, also before the release.
    pub(crate) fn say(&self, level: LogLevel, message: fmt::Arguments<'_>) {
        let as_json = || json::line(level.name(), &message.to_string(), &Map::new());
        let json = (self.format != LogFormat::Json).then(as_json);
        self.order(OutputOrder::Show(ShownText::Line { text: logging::line(level, message), json }));
    }

    /// Tells what takes long: on a terminal in a line that [`Output::end_progress`] removes, elsewhere once.
    pub(crate) fn progress(&self, doing: &str, time: Duration, was_told: bool) {
        let sentence = format!("{}{}…", doing[..1].to_uppercase(), &doing[1..]);
        if self.is_terminal {
            self.order(OutputOrder::Show(ShownText::Progress(format!("\r{sentence} {} s\x1b[K", time.as_secs()))));
        } else if !was_told {
            self.say(LogLevel::Info, format_args!("{sentence}"));
        }
    }

    pub(crate) fn end_progress(&self) {
        if self.is_terminal {
            self.order(OutputOrder::Show(ShownText::Progress("\r\x1b[K".into())));
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
        self.kept.end();
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
    kept: KeptLog,
    file: Option<Arc<FileOutput>>,
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
                OutputOrder::Show(shown) => self.show(shown),
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
                    OutputOrder::Show(shown) => self.show(shown),
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
                break;
            }
            self.carry(&readable);
        }
        if let Some(file) = &self.file {
            file.finish();
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
        let mut round = Round::default();
        let mut ended = Vec::new();
        let mut share = vec![0; SHARE];
        for &index in readable {
            let Source { reader, kind, lines, event } = &mut self.sources[index];
            let mut take = |line: &[u8]| round.take(self.format, *kind, event, line);
            match reader.read(&mut share) {
                Ok(0) | Err(_) => {
                    lines.finish(take);
                    ended.push(index);
                }
                Ok(taken) => lines.push(&share[..taken], &mut take),
            }
        }
        for index in ended.into_iter().rev() {
            self.sources.swap_remove(index);
        }
        if let Some(file) = &self.file {
            file.write(&round.kept);
        }
        // Before what may be stuck.
        self.kept.warned(round.problems);
        self.kept.add(round.kept);
        if self.file.is_some() {
            return;
        }
        // Whoever closed our output does not want it.
        let _ = io::stdout().write_all(&round.stdout).and_then(|()| io::stdout().flush());
        let _ = io::stderr().write_all(&round.stderr);
    }

    fn show(&self, shown: ShownText) {
        let text = match shown {
            ShownText::Line { text, json } => {
                let json = json.map_or(JsonText::Same, |json| JsonText::Line(json.into()));
                let line = KeptLine { at: SystemTime::now(), text: text.clone().into(), about: About::default(), json };
                if let Some(file) = &self.file {
                    file.write(std::slice::from_ref(&line));
                }
                self.kept.add([line]);
                text
            }
            ShownText::Progress(text) => text,
        };
        // Whoever closed our output does not want it.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// What goes out together.
#[derive(Default)]
struct Round {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    kept: Vec<KeptLine>,
    /// What the lines warn of.
    problems: Vec<Problem>,
}

impl Round {
    /// Takes a line of a source, newline included.
    fn take(&mut self, format: LogFormat, kind: SourceKind, event: &mut LoggedEvent, line: &[u8]) {
        match kind {
            SourceKind::Log(worker) => self.take_logged(format, worker, event, line),
            SourceKind::Guest { stream, worker, generation } => {
                let (asked, line) = split_request(line);
                let name = match stream {
                    OutputStream::Stdout => "stdout",
                    OutputStream::Stderr => "stderr",
                };
                let fields = GuestFields { stream: name, worker, generation, asked };
                self.take_guests(format, stream, fields, line);
            }
        }
    }

    fn take_logged(&mut self, format: LogFormat, of: Option<WorkerId>, event: &mut LoggedEvent, line: &[u8]) {
        match (format, line.strip_prefix(&[MARK])) {
            // The lines for people follow.
            (LogFormat::Pretty, Some(json)) => {
                // A pipe that was full may have taken the half of it.
                let json = Some(Bytes::copy_from_slice(json)).filter(|json| json.ends_with(b"}\n"));
                self.problems.extend(problem(json.as_deref().unwrap_or_default(), of));
                *event = LoggedEvent { about: About::of(json.as_deref().unwrap_or_default(), of), json };
            }
            (LogFormat::Pretty, None) => {
                let json = event.json.take().map_or(JsonText::Elsewhere, JsonText::Line);
                self.keep(line, event.about.clone(), json);
                self.stderr.extend_from_slice(line);
            }
            (LogFormat::Json, _) => {
                // Likewise.
                let line = json::wrap(line, LogLevel::Error, &Map::new());
                self.problems.extend(problem(line.as_bytes(), of));
                self.keep(line.as_bytes(), About::of(line.as_bytes(), of), JsonText::Same);
                self.stderr.extend_from_slice(line.as_bytes());
            }
        }
    }

    fn take_guests(&mut self, format: LogFormat, stream: OutputStream, fields: GuestFields, line: &[u8]) {
        let GuestFields { worker, generation, asked, .. } = &fields;
        let about = fields.about();
        let (text, json) = match format {
            LogFormat::Pretty => {
                let request = if asked.is_empty() { String::new() } else { format!(" request {asked}") };
                let mut text = format!("[worker {worker} g {generation}{request}] ").into_bytes();
                let from = text.len();
                text.extend_from_slice(line);
                (text, JsonText::OfGuest { fields, from })
            }
            LogFormat::Json => (fields.line(SystemTime::now(), line).into_bytes(), JsonText::Same),
        };
        self.keep(&text, about, json);
        match stream {
            OutputStream::Stdout => self.stdout.extend_from_slice(&text),
            OutputStream::Stderr => self.stderr.extend_from_slice(&text),
        }
    }

    fn keep(&mut self, text: &[u8], about: About, json: JsonText) {
        self.kept.push(KeptLine { at: SystemTime::now(), text: Bytes::copy_from_slice(text), about, json });
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

    /// What goes out of a line.
    fn rendered(format: LogFormat, kind: SourceKind, line: &[u8]) -> Vec<u8> {
        let mut round = Round::default();
        round.take(format, kind, &mut LoggedEvent::default(), line);
        assert_eq!(round.kept.len(), 1);
        let out = [round.stdout, round.stderr].concat();
        assert_eq!(round.kept[0].text, out);
        out
    }

    #[test]
    fn events_are_shown_to_people_and_kept_as_json() {
        let (mut round, mut event) = (Round::default(), LoggedEvent::default());
        let log = SourceKind::Log(Some(WorkerId(3)));
        for line in [
            &b"\x1e{\"message\":\"a trap\",\"request\":\"3-7\"}\n"[..],
            b"ERROR a trap\n",
            b"    0: f\n",
            b"\x1e{\"mess\n",
            b"ERROR anoth\n",
        ] {
            round.take(LogFormat::Pretty, log, &mut event, line);
        }
        assert_eq!(round.stderr, b"ERROR a trap\n    0: f\nERROR anoth\n");
        let kept = round.kept.iter().map(|line| (line.about.worker, line.about.request.as_deref()));
        assert_eq!(kept.collect::<Vec<_>>(), [(Some(3), Some("3-7")), (Some(3), Some("3-7")), (Some(3), None)]);
        assert!(matches!(&round.kept[0].json, JsonText::Line(json) if json.ends_with(b"\"3-7\"}\n")));
        assert!(round.kept[1..].iter().all(|line| matches!(line.json, JsonText::Elsewhere)));
    }

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
            assert_eq!(rendered(LogFormat::Pretty, guest, line), pretty.as_bytes());
            let out = rendered(LogFormat::Json, guest, line);
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
        assert_eq!(rendered(LogFormat::Pretty, guest, b"hello\n"), b"[worker 3 g 2] hello\n");

        let out = rendered(LogFormat::Json, guest, b"say \"hi\"\xff\n");
        let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(event["message"], "say \"hi\"\u{fffd}");
        assert_eq!(
            (&event["worker"], &event["generation"], &event["stream"]),
            (&3.into(), &2.into(), &"stderr".into())
        );

        assert_eq!(event["level"], "INFO");

        let ours = json::line("WARN", "careful", &Map::new());
        for (line, message) in [(ours.as_bytes(), "careful"), (&ours.as_bytes()[20..], ours[20..].trim_end())] {
            let out = rendered(LogFormat::Json, SourceKind::Log(None), line);
            let event: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(event["message"], message);
        }
    }
}
