//! What the log warns of lately, for whoever wants to know what is wrong: each once, and how often it was said.

use std::collections::VecDeque;

use serde::Deserialize;

use crate::control::protocol::Problem;
use crate::logging::one_line;
use crate::wire::ids::WorkerId;

/// Problems that are kept.
const MAX_PROBLEMS: usize = 20;
/// Of these, what is said of requests, if there is more.
const MAX_OF_REQUESTS: usize = 12;
/// Bytes of a message that are.
const MAX_MESSAGE: usize = 300;

/// The latest last.
#[derive(Debug, Default)]
pub(super) struct Problems(VecDeque<Problem>);

/// A line of the log as far as it matters here.
#[derive(Deserialize)]
struct LoggedLine {
    timestamp: String,
    level: String,
    message: String,
    worker: Option<u64>,
    generation: Option<u64>,
    request: Option<String>,
    requests: Option<String>,
    method: Option<String>,
    path: Option<String>,
}

impl Problems {
    pub(super) fn add(&mut self, problem: Problem) {
        let is_same = |known: &Problem| {
            (&known.level, &known.message, known.generation) == (&problem.level, &problem.message, problem.generation)
        };
        let count = self.0.iter().position(is_same).and_then(|at| self.0.remove(at)).map_or(0, |known| known.count);
        if self.0.len() == MAX_PROBLEMS {
            // Guests and clients, who choose what is said of requests, leave room for others.
            let is_of_request = |known: &Problem| known.request.is_some();
            let are_many = self.0.iter().filter(|known| is_of_request(known)).count() > MAX_OF_REQUESTS;
            let oldest = self.0.iter().position(|known| is_of_request(known) || !are_many).unwrap_or(0);
            self.0.remove(oldest);
        }
        self.0.push_back(Problem { count: count.saturating_add(problem.count), ..problem });
    }

    /// The latest first.
    pub(super) fn latest(&self) -> Vec<Problem> {
        self.0.iter().rev().cloned().collect()
    }
}

/// What a line of the log, as JSON, warns of, if it does.
pub(super) fn problem(json: &[u8], of: Option<WorkerId>) -> Option<Problem> {
    let warns = [&b"\"level\":\"WARN\""[..], b"\"level\":\"ERROR\""];
    if !warns.into_iter().any(|level| memchr::memmem::find(json, level).is_some()) {
        return None;
    }
    let line: LoggedLine = serde_json::from_slice(json).ok()?;
    let level = line.level.to_ascii_lowercase();
    // What follows the first line is the way there.
    let mut message = one_line(line.message.lines().next().unwrap_or_default()).to_string();
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    // Clients choose it, and terminals are not to obey it.
    let harmless = |text: String| one_line(&text).to_string();
    let first = |names: String| names.split(' ').next().map(str::to_owned);
    ["warn", "error"].contains(&level.as_str()).then_some(Problem {
        time: line.timestamp,
        level,
        message,
        count: 1,
        worker: line.worker.or(of.map(|worker| worker.0)),
        generation: line.generation,
        request: line.request.or_else(|| line.requests.and_then(first)),
        method: line.method.map(harmless),
        path: line.path.map(harmless),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: &str, message: &str, number: u64) -> String {
        format!(
            r#"{{"timestamp":"2026-11-30T12:00:{number:02}Z","level":"{level}","message":"{message}","generation":2,"request":"1-{number}","method":"GET","path":"/a"}}"#
        )
    }

    #[test]
    fn what_is_said_again_is_counted_and_the_last_one_is_shown() {
        let mut problems = Problems::default();
        let mut take = |line: &[u8], of| problem(line, of).into_iter().for_each(|problem| problems.add(problem));
        take(line("ERROR", "the guest trapped\\n 0: f", 1).as_bytes(), Some(WorkerId(3)));
        take(line("WARN", "no answer", 2).as_bytes(), None);
        take(line("INFO", "fine", 3).as_bytes(), None);
        take(b"no JSON \"level\":\"WARN\"", None);
        take(br#"{"timestamp":"t","level":"ERROR","message":"a worker died","requests":"1-4 1-5","worker":1}"#, None);
        take(line("ERROR", "the guest trapped", 6).as_bytes(), Some(WorkerId(3)));
        let all = problems.latest();
        let told: Vec<_> = all
            .iter()
            .map(|it| (&*it.level, &*it.message, it.count, it.worker, it.request.as_deref().unwrap_or_default()))
            .collect();
        let expected = [
            ("error", "the guest trapped", 2, Some(3), "1-6"),
            ("error", "a worker died", 1, Some(1), "1-4"),
            ("warn", "no answer", 1, None, "1-2"),
        ];
        assert_eq!(told, expected);
        assert_eq!((all[0].generation, all[0].path.as_deref()), (Some(2), Some("/a")));
        let mut take = |line: &[u8]| problem(line, None).into_iter().for_each(|problem| problems.add(problem));
        for number in 0..40 {
            take(line("WARN", &format!("{number}{}", "x".repeat(1000)), 7).as_bytes());
        }
        let all = problems.latest();
        assert_eq!((all.len(), all[0].message.len()), (MAX_PROBLEMS, MAX_MESSAGE));
        assert!(all[0].message.starts_with("39x"));
        let mut problems = Problems::default();
        let mut take =
            |line: &str| problem(line.as_bytes(), None).into_iter().for_each(|problem| problems.add(problem));
        take(r#"{"timestamp":"t","level":"ERROR","message":"of the server's own"}"#);
        (0..100).for_each(|number| take(&line("WARN", &format!("of a guest {number}"), 1)));
        take(&line("WARN", "of a client", 1).replace("/a", "/\u{9b}2J\u{202e}"));
        let all = problems.latest();
        assert_eq!((all.len(), &*all[19].message), (MAX_PROBLEMS, "of the server's own"));
        assert!(!all[0].path.as_ref().unwrap().contains(['\u{9b}', '\u{202e}']), "{:?}", all[0].path);
    }
}
