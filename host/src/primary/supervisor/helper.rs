//! When a child process that helps the cluster is started and ended; pure.
//!
//! ```text
//!   Unneeded ──▶ Due ──▶ Running ──▶ (ended) ──▶ Due: at once, then after 100 ms, doubling to 1 s
//!                           └─ silent for the hang timeout ──▶ killed ──▶ not ended in time: given up, and Due
//! ```

use std::time::Duration;

use super::{FIRST_BACKOFF, HEALTHY, KILL_PATIENCE, Time};

/// The longest that the cluster is without it: less than for a worker, as it does what no other can do meanwhile, and a
/// start costs milliseconds.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HelperStep {
    Start,
    Kill,
    /// It does not die: it is blocked in the kernel.
    GiveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HelperPhase {
    /// Nobody has asked for it.
    Unneeded,
    Due(Time),
    Running {
        since: Time,
        heard: Time,
        killed: Option<Time>,
    },
}

/// The life of such helpers, one after the other.
#[derive(Debug)]
pub(crate) struct HelperWatch {
    phase: HelperPhase,
    /// That ended before they were healthy, one after the other.
    failures: u32,
    pub(crate) hang_timeout: Duration,
}

impl HelperWatch {
    pub(crate) fn new(hang_timeout: Duration) -> Self {
        Self { phase: HelperPhase::Unneeded, failures: 0, hang_timeout }
    }

    /// Somebody has something to do for it.
    pub(crate) fn needed(&mut self, now: Time) {
        if self.phase == HelperPhase::Unneeded {
            self.phase = HelperPhase::Due(now);
        }
    }

    pub(crate) fn started(&mut self, now: Time) {
        self.phase = HelperPhase::Running { since: now, heard: now, killed: None };
    }

    /// It is at work; or nobody could hear it.
    pub(crate) fn heard(&mut self, now: Time) {
        if let HelperPhase::Running { heard, .. } = &mut self.phase {
            *heard = now;
        }
    }

    /// It has ended, or could not be started. In how much time there is another.
    pub(crate) fn ended(&mut self, now: Time) -> Duration {
        let was_healthy = matches!(self.phase, HelperPhase::Running { since, .. } if now >= since + HEALTHY);
        self.failures = if was_healthy { 0 } else { self.failures.saturating_add(1) };
        let wait = match self.failures {
            0 | 1 => Duration::ZERO,
            more => FIRST_BACKOFF.saturating_mul(1 << (more - 2).min(16)).min(MAX_WAIT),
        };
        self.phase = HelperPhase::Due(now + wait);
        wait
    }

    /// When [`Self::next`] is to be asked.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.phase {
            HelperPhase::Due(at) => Some(at),
            HelperPhase::Running { heard, killed: None, .. } => Some(heard + self.hang_timeout),
            HelperPhase::Running { killed: Some(at), .. } => Some(at + KILL_PATIENCE),
            HelperPhase::Unneeded => None,
        }
    }

    /// What is to be done now, if anything.
    pub(crate) fn next(&mut self, now: Time) -> Option<HelperStep> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        match &mut self.phase {
            HelperPhase::Running { killed: killed @ None, .. } => {
                *killed = Some(now);
                Some(HelperStep::Kill)
            }
            HelperPhase::Running { .. } => Some(HelperStep::GiveUp),
            HelperPhase::Due(_) => Some(HelperStep::Start),
            HelperPhase::Unneeded => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_helper_is_started_when_it_is_needed_and_again_with_back_off() {
        let mut watch = HelperWatch::new(ms(10_000));
        assert_eq!((watch.deadline(), watch.next(ms(5))), (None, None));
        watch.needed(ms(5));
        assert_eq!(watch.next(ms(5)), Some(HelperStep::Start));
        watch.started(ms(6));
        // Another one that needs it changes nothing.
        watch.needed(ms(7));
        assert_eq!(watch.next(ms(7)), None);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let now = watch.deadline().unwrap();
            waits.push(watch.ended(now).as_millis());
            let due = watch.deadline().unwrap();
            assert!(due == now || watch.next(due - ms(1)).is_none());
            assert_eq!(watch.next(due), Some(HelperStep::Start));
            watch.started(due);
        }
        assert_eq!(waits, [0, 100, 200, 400, 800, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
        // One that was well clears what was before.
        let now = watch.deadline().unwrap() + HEALTHY;
        assert_eq!(watch.ended(now), Duration::ZERO);
    }

    #[test]
    fn a_helper_that_is_silent_is_killed_once() {
        let mut watch = HelperWatch::new(ms(1000));
        watch.needed(ms(0));
        watch.started(ms(0));
        watch.heard(ms(900));
        assert_eq!(
            (watch.next(ms(1899)), watch.next(ms(1900)), watch.next(ms(9000))),
            (None, Some(HelperStep::Kill), None)
        );
        assert_eq!(watch.next(ms(1900) + KILL_PATIENCE), Some(HelperStep::GiveUp));
        watch.ended(ms(9000));
        assert_eq!(watch.next(ms(9000)), Some(HelperStep::Start));
    }
}
