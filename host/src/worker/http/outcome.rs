//! What came of a request. Every request has one outcome, made when its answer has been handed over or never will be, and
//! so has every client that was refused before it had a request. The counters of the stats page hang here.

use std::time::Duration;

use http::StatusCode;

use crate::wire::stats::Stats;
use crate::worker::guest::trap::TrapKind;

/// What became of a request, from its head to the end of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Of the answer; `None` if there was none.
    pub(super) status: Option<StatusCode>,
    pub(super) verdict: Verdict,
    /// The answer had begun and was not to become whole.
    pub(super) is_cut: bool,
    pub(super) end: End,
    /// From the head of the request to the end of its answer; `None` if there was no request.
    pub(super) took: Option<Duration>,
}

/// Who is to answer for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A guest answered, well or not.
    Answered,
    /// Its guest trapped.
    Trapped(TrapKind),
    /// Something took longer than it may.
    Late,
    /// It is malformed, too large, or of a kind that is not served.
    Refused,
    /// The worker was full.
    Rejected,
}

/// How it ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    HandedOver,
    /// The client left, or the answer broke off.
    Aborted,
}

impl Outcome {
    /// Of a request that came whole, and whose client left before it was begun.
    pub(super) const UNSEEN: Self =
        Self { status: None, verdict: Verdict::Answered, is_cut: false, end: End::Aborted, took: None };

    /// Of a client that was refused before it had a request.
    pub(super) const fn of_no_request(verdict: Verdict) -> Self {
        Self { status: None, verdict, is_cut: false, end: End::HandedOver, took: None }
    }

    pub(super) fn count(&self, stats: &Stats) {
        match self.verdict {
            Verdict::Answered => {}
            Verdict::Trapped(kind) => {
                stats.traps.increment();
                kind.counter(stats).increment();
            }
            Verdict::Late => stats.timeouts.increment(),
            Verdict::Refused => stats.refused.increment(),
            Verdict::Rejected => stats.rejected.increment(),
        }
        if self.is_cut || self.status.is_some_and(|status| status.is_server_error()) {
            stats.errors.increment();
        }
        if self.end == End::Aborted {
            stats.aborted.increment();
        }
        if let Some(took) = self.took {
            stats.latency.record(took.as_micros() as u64);
            let answers = match self.status.map(|status| status.as_u16() / 100) {
                Some(1) => &stats.answers_1xx,
                Some(2) => &stats.answers_2xx,
                Some(3) => &stats.answers_3xx,
                Some(4) => &stats.answers_4xx,
                Some(_) => &stats.answers_5xx,
                None => &stats.answers_none,
            };
            answers.increment();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stats::Page;

    #[test]
    fn each_is_counted_as_what_it_is() {
        let check = |outcome: Outcome, expected: [u64; 6]| {
            let (page, fd) = Page::create().unwrap();
            outcome.count(Page::open(&fd).unwrap());
            let counted = page.snapshot();
            let found =
                [counted.errors, counted.traps, counted.timeouts, counted.refused, counted.rejected, counted.aborted];
            assert_eq!(found, expected, "{outcome:?}");
            assert_eq!(counted.traps, counted.traps_unreachable);
            assert_eq!(counted.latency.quantile(1.0).is_some(), outcome.took.is_some());
        };
        let of = |status: u16, verdict| Outcome {
            status: StatusCode::from_u16(status).ok(),
            verdict,
            is_cut: false,
            end: End::HandedOver,
            took: Some(Duration::from_millis(1)),
        };
        check(of(200, Verdict::Answered), [0, 0, 0, 0, 0, 0]);
        check(of(404, Verdict::Answered), [0, 0, 0, 0, 0, 0]);
        check(of(500, Verdict::Trapped(TrapKind::Unreachable)), [1, 1, 0, 0, 0, 0]);
        check(of(504, Verdict::Late), [1, 0, 1, 0, 0, 0]);
        check(of(408, Verdict::Late), [0, 0, 1, 0, 0, 0]);
        check(of(413, Verdict::Refused), [0, 0, 0, 1, 0, 0]);
        check(of(503, Verdict::Rejected), [1, 0, 0, 0, 1, 0]);
        check(Outcome { end: End::Aborted, ..of(200, Verdict::Answered) }, [0, 0, 0, 0, 0, 1]);
        // A cut answer is one error, whatever its head said.
        check(
            Outcome { is_cut: true, end: End::Aborted, ..of(200, Verdict::Trapped(TrapKind::Unreachable)) },
            [1, 1, 0, 0, 0, 1],
        );
        check(Outcome { is_cut: true, end: End::Aborted, ..of(500, Verdict::Answered) }, [1, 0, 0, 0, 0, 1]);
        check(Outcome::UNSEEN, [0, 0, 0, 0, 0, 1]);
        check(Outcome::of_no_request(Verdict::Late), [0, 0, 1, 0, 0, 0]);
        check(Outcome::of_no_request(Verdict::Refused), [0, 0, 0, 1, 0, 0]);
    }
}
