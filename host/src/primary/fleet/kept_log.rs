//! The latest lines of output and log, for whoever asks: `wasmcluster logs`.
//!
//! One buffer is all there is: the thread that carries lines out appends to it, and each reader has a place in it, at which
//! it reads on when there is more. So what is kept and what follows are one thing, and a reader that is too slow costs
//! nothing: lines that are gone before it comes are counted and told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, mpsc, watch};

use super::problems::Problems;
use crate::control::protocol::Problem;
use crate::control::query::{LogForm, LogsRequest};
use crate::logging::{LogLevel, json};
use crate::wire::ids::{Generation, WorkerId};

/// Lines that are kept, and their bytes.
const MAX_KEPT: usize = 2000;
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Readers at the same time: with those of the events, they leave connections to other commands.
const MAX_READERS: usize = 4;
/// Lines that a reader looks at, and bytes that it takes, while the buffer is locked.
const LOOKS_AT: usize = 256;
const TAKES: usize = 64 * 1024;

/// A line as it went out.
#[derive(Debug)]
pub(crate) struct KeptLine {
    pub(crate) at: SystemTime,
    /// Its end included.
    pub(crate) text: Bytes,
    pub(crate) about: About,
    pub(crate) json: JsonText,
}

/// What a line is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct About {
    pub(crate) worker: Option<u64>,
    pub(crate) request: Option<String>,
    /// What its client calls it.
    pub(crate) x_request_id: Option<String>,
    /// Several, with spaces between them.
    pub(crate) requests: Option<String>,
}

impl About {
    /// As a line of the log says it in JSON.
    pub(crate) fn of(json: &[u8], worker: Option<WorkerId>) -> Self {
        let mut about: Self = serde_json::from_slice(json).unwrap_or_default();
        about.worker = about.worker.or(worker.map(|worker| worker.0));
        about
    }

    fn is_asked_for(&self, asked: &LogsRequest) -> bool {
        let is_it = |name: &str| {
            let of_several = self.requests.iter().flat_map(|names| names.split(' '));
            self.request
                .as_deref()
                .into_iter()
                .chain(self.x_request_id.as_deref())
                .chain(of_several)
                .any(|it| it == name)
        };
        asked.worker.is_none_or(|worker| self.worker == Some(worker)) && asked.request.as_deref().is_none_or(is_it)
    }
}

/// What a line is as JSON.
#[derive(Debug)]
pub(crate) enum JsonText {
    /// What it is anyway.
    Same,
    Line(Bytes),
    /// A guest's line, which is made JSON for those who ask for that: its fields, and where in the text it begins.
    OfGuest {
        fields: GuestFields,
        from: usize,
    },
    /// The JSON of a line before it has it.
    Elsewhere,
}

/// Where a guest's line comes from.
#[derive(Clone, Debug)]
pub(crate) struct GuestFields {
    pub(crate) stream: &'static str,
    pub(crate) worker: WorkerId,
    pub(crate) generation: Generation,
    /// As `Asked` displays it; empty if it is not known.
    pub(crate) asked: String,
}

impl GuestFields {
    pub(crate) fn about(&self) -> About {
        let [request, _, _, x_request_id] = self.parts().map(|part| part.map(str::to_owned));
        About { worker: Some(self.worker.0), request, x_request_id, requests: None }
    }

    /// The line as JSON, newline included.
    pub(crate) fn line(&self, at: SystemTime, line: &[u8]) -> String {
        let mut fields = Map::from_iter([
            ("stream".into(), self.stream.into()),
            ("worker".into(), self.worker.0.into()),
            ("generation".into(), self.generation.0.into()),
        ]);
        let named = ["request", "method", "path", "x_request_id"].into_iter().zip(self.parts());
        fields.extend(named.filter_map(|(name, value)| Some((name.into(), value?.into()))));
        json::guest_line(at, line, fields)
    }

    /// Its number, method and path, and what its client calls it.
    fn parts(&self) -> [Option<&str>; 4] {
        let mut parts = self.asked.split_terminator(' ');
        std::array::from_fn(|_| parts.next())
    }
}

impl KeptLine {
    /// Nothing if it has none of that form.
    fn in_form(&self, form: LogForm) -> Option<Bytes> {
        match (form, &self.json) {
            (LogForm::Text, _) | (_, JsonText::Same) => Some(self.text.clone()),
            (LogForm::Json, JsonText::Line(line)) => Some(line.clone()),
            (LogForm::Json, JsonText::OfGuest { fields, from }) => {
                Some(fields.line(self.at, self.text.get(*from..)?).into())
            }
            (LogForm::Json, JsonText::Elsewhere) => None,
        }
    }

    fn bytes(&self) -> usize {
        let json = if let JsonText::Line(line) = &self.json { line.len() } else { 0 };
        self.text.len() + json
    }
}

/// The lines, and all who read them.
#[derive(Clone, Debug)]
pub(crate) struct KeptLog(Arc<SharedKept>);

#[derive(Debug)]
struct SharedKept {
    lines: Mutex<KeptLines>,
    problems: Mutex<Problems>,
    /// Changes when there are more.
    state: watch::Sender<LogState>,
    places: Arc<Semaphore>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogState {
    GoesOn,
    IsOver,
}

/// Lines have numbers from 0 on.
#[derive(Debug, Default)]
struct KeptLines {
    lines: VecDeque<KeptLine>,
    /// The number of the oldest.
    first: u64,
    bytes: usize,
}

impl KeptLines {
    fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    fn add(&mut self, line: KeptLine) {
        self.bytes += line.bytes();
        self.lines.push_back(line);
        while self.lines.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.first += 1;
        }
    }
}

impl KeptLog {
    pub(crate) fn new() -> Self {
        let (state, _) = watch::channel(LogState::GoesOn);
        let places = Arc::new(Semaphore::new(MAX_READERS));
        Self(Arc::new(SharedKept { lines: Mutex::default(), problems: Mutex::default(), state, places }))
    }

    /// Keeps these, and wakes the readers. Waits for nobody but readers that copy a few lines.
    pub(crate) fn add(&self, lines: impl IntoIterator<Item = KeptLine>) {
        let mut kept = self.lock();
        let before = kept.end();
        lines.into_iter().for_each(|line| kept.add(line));
        let has_more = kept.end() > before;
        drop(kept);
        if has_more {
            self.0.state.send_modify(|_| {});
        }
    }

    /// What the log warned of.
    pub(crate) fn warned(&self, problems: Vec<Problem>) {
        if !problems.is_empty() {
            let mut all = self.0.problems.lock().unwrap_or_else(PoisonError::into_inner);
            problems.into_iter().for_each(|problem| all.add(problem));
        }
    }

    /// What it warned of lately, the latest first.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.0.problems.lock().unwrap_or_else(PoisonError::into_inner).latest()
    }

    /// There are no more.
    pub(crate) fn end(&self) {
        self.0.state.send_replace(LogState::IsOver);
    }

    /// The lines that are asked for, those that are kept first, in pieces. To be called on the executor; an error says why
    /// not.
    pub(crate) fn read(&self, asked: LogsRequest) -> Result<mpsc::Receiver<Bytes>, String> {
        let place = self.0.places.clone().try_acquire_owned();
        let place = place.map_err(|_| format!("the log has {MAX_READERS} readers already, which is the limit"))?;
        // The reader is waited for with one piece under way; what comes meanwhile is in the buffer, or missed.
        let (pieces, receiver) = mpsc::channel(1);
        let at = LogPlace { next: None, end: self.lock().end() };
        let log = self.clone();
        tokio::spawn(async move {
            log.pass_on(&asked, at, &pieces).await;
            drop(place);
        });
        Ok(receiver)
    }

    async fn pass_on(&self, asked: &LogsRequest, mut at: LogPlace, pieces: &mpsc::Sender<Bytes>) {
        let mut state = self.0.state.subscribe();
        loop {
            // Before the look at the lines: what comes after it is a change.
            let is_over = *state.borrow_and_update() == LogState::IsOver;
            let (piece, is_end) = self.take(asked, &mut at);
            if !piece.is_empty() && pieces.send(piece.into()).await.is_err() {
                return;
            }
            if !is_end {
                continue;
            }
            if is_over || !asked.follow {
                return;
            }
            tokio::select! {
                _ = state.changed() => {}
                () = pieces.closed() => return,
            }
        }
    }

    /// The next lines that are asked for, and whether there are no more now.
    fn take(&self, asked: &LogsRequest, at: &mut LogPlace) -> (Vec<u8>, bool) {
        let kept = self.lock();
        let mut piece = Vec::new();
        // What was gone before it began is not missed.
        let mut next = at.next.unwrap_or(kept.first);
        if let Some(missed) = kept.first.checked_sub(next).filter(|&missed| missed > 0) {
            piece.extend_from_slice(missed_line(asked.form, missed).as_bytes());
            next = kept.first;
        }
        let end = if asked.follow { kept.end() } else { at.end.min(kept.end()) };
        let from = (next - kept.first) as usize;
        for line in kept.lines.iter().skip(from).take(LOOKS_AT.min(end.saturating_sub(next) as usize)) {
            if piece.len() >= TAKES {
                break;
            }
            next += 1;
            if line.about.is_asked_for(asked)
                && let Some(text) = line.in_form(asked.form)
            {
                piece.extend_from_slice(&text);
            }
        }
        at.next = Some(next);
        (piece, next >= end)
    }

    fn lock(&self) -> MutexGuard<'_, KeptLines> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a reader is.
#[derive(Clone, Copy, Debug)]
struct LogPlace {
    /// The number of the line that it reads next. None before the first.
    next: Option<u64>,
    /// Where it ends if it does not follow.
    end: u64,
}

fn missed_line(form: LogForm, missed: u64) -> String {
    let lines = if missed == 1 { "1 line".into() } else { format!("{missed} lines") };
    let message = format!("missed {lines}: the reader was too slow");
    match form {
        LogForm::Text => format!("[{message}]\n"),
        LogForm::Json => {
            json::line(LogLevel::Warn.name(), &message, &Map::from_iter([("missed".into(), Value::from(missed))]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: LogsRequest = LogsRequest { follow: false, worker: None, request: None, form: LogForm::Text };

    fn line(text: &str, about: About) -> KeptLine {
        let text = Bytes::from(format!("{text}\n"));
        KeptLine { at: SystemTime::UNIX_EPOCH, text, about, json: JsonText::Elsewhere }
    }

    fn numbered(numbers: std::ops::Range<usize>) -> impl Iterator<Item = KeptLine> {
        numbers.map(|number| line(&number.to_string(), About::default()))
    }

    async fn read(mut pieces: mpsc::Receiver<Bytes>) -> String {
        let mut text = Vec::new();
        while let Some(piece) = pieces.recv().await {
            text.extend_from_slice(&piece);
        }
        String::from_utf8(text).unwrap()
    }

    fn expected(numbers: std::ops::Range<usize>) -> String {
        numbers.map(|number| format!("{number}\n")).collect()
    }

    #[tokio::test]
    async fn the_latest_lines_are_kept_and_what_follows_continues_them() {
        let log = KeptLog::new();
        log.add(numbered(0..MAX_KEPT + 10));
        assert_eq!(read(log.read(ALL).unwrap()).await, expected(10..MAX_KEPT + 10));
        let log = KeptLog::new();
        log.add(numbered(0..1000));
        let follows = read(log.read(LogsRequest { follow: true, ..ALL }).unwrap());
        let adds = async {
            for number in 1000..1500 {
                log.add(numbered(number..number + 1));
                tokio::task::yield_now().await;
            }
            log.end();
        };
        let (text, ()) = tokio::join!(follows, adds);
        assert_eq!(text, expected(0..1500));
        let large = || line(&"x".repeat(MAX_KEPT_BYTES / 4), About::default());
        log.add((0..10).map(|_| large()));
        assert!(log.lock().lines.len() == 3 && log.lock().bytes <= MAX_KEPT_BYTES, "bytes are counted, too");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_up_nobody_and_is_told_what_it_missed() {
        let log = KeptLog::new();
        let follow = || LogsRequest { follow: true, ..ALL };
        log.add(numbered(0..1));
        let mut slow = log.read(follow()).unwrap();
        assert_eq!(slow.recv().await.unwrap(), "0\n");
        // One piece comes to it, and the next is under way.
        for number in 1..=2 {
            log.add(numbered(number..number + 1));
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        log.add(numbered(3..3 + MAX_KEPT + 7));
        log.end();
        let text = read(slow).await;
        let missed = "1\n2\n[missed 7 lines: the reader was too slow]\n".to_owned();
        assert_eq!(text, missed + &expected(10..MAX_KEPT + 10));
        assert!(missed_line(LogForm::Json, 1).contains("\"missed\":1"));
    }

    #[tokio::test]
    async fn readers_of_the_log_are_few_and_those_that_left_are_forgotten() {
        let log = KeptLog::new();
        let follow = || log.read(LogsRequest { follow: true, ..ALL });
        let readers: Vec<_> = (0..MAX_READERS).map(|_| follow().unwrap()).collect();
        assert!(follow().unwrap_err().contains("4 readers already"));
        tokio::task::yield_now().await;
        drop(readers);
        tokio::task::yield_now().await;
        assert!(follow().is_ok(), "although there was no line since");
    }

    #[tokio::test]
    async fn lines_are_chosen_by_what_they_are_about() {
        let log = KeptLog::new();
        let of = |json: &str| About::of(json.as_bytes(), None);
        log.add([
            line("a", of(r#"{"worker":1,"request":"1-7","x_request_id":"abc"}"#)),
            line("b", of(r#"{"worker":2,"requests":"2-1 2-2"}"#)),
            line("c", About::of(b"no JSON", Some(WorkerId(1)))),
            line("d", About::default()),
        ]);
        for (worker, request, lines) in [
            (None, None, "a\nb\nc\nd\n"),
            (Some(1), None, "a\nc\n"),
            (Some(3), None, ""),
            (None, Some("1-7"), "a\n"),
            (None, Some("abc"), "a\n"),
            (None, Some("2-2"), "b\n"),
            (Some(1), Some("2-2"), ""),
            (None, Some("1"), ""),
        ] {
            let asked = LogsRequest { worker, request: request.map(str::to_owned), ..ALL };
            assert_eq!(read(log.read(asked).unwrap()).await, lines, "{worker:?} {request:?}");
        }
    }

    #[tokio::test]
    async fn lines_are_json_for_whoever_asks() {
        let log = KeptLog::new();
        let fields = GuestFields {
            stream: "stdout",
            worker: WorkerId(3),
            generation: Generation(2),
            asked: "3-7 GET /a abc".into(),
        };
        let text = Bytes::from("[worker 3] hi\n");
        let (at, about) = (SystemTime::UNIX_EPOCH, fields.about());
        log.add([KeptLine { at, text, about, json: JsonText::OfGuest { fields, from: "[worker 3] ".len() } }]);
        log.add([line("    a second line", About::default())]);
        let asked = LogsRequest { form: LogForm::Json, request: Some("3-7".into()), ..ALL };
        let text = read(log.read(asked).unwrap()).await;
        let line: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "timestamp": "1970-01-01T00:00:00.000000Z", "level": "INFO", "message": "hi", "stream": "stdout", "worker": 3,
            "generation": 2, "request": "3-7", "method": "GET", "path": "/a", "x_request_id": "abc",
        });
        assert_eq!(line, expected);
    }
}
