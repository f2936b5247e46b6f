//! What is told about the calls of guests: denials, and connections that the machine has no room for.
//!
//! Guests choose what they call, and their clients often choose it for them. So nobody can fill the log, nor use up
//! what may be told: each notice comes once in a while, all of them at a bounded rate, and the last ones are known, not
//! the first.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::worker::requests::{Asked, log_of};

/// Notices that are known to have been told.
const MAX_KNOWN: usize = 64;
/// One that was told is not told again for so long.
const AGAIN: Duration = Duration::from_secs(600);
/// Notices that may come at once, and how long it takes until there may be one more.
const BURST: u32 = 64;
const EACH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<ToldOnce>);

impl Notices {
    /// Logs that `what` was denied, and how it could be had.
    pub(crate) fn denied(&self, asked: Option<&Asked>, what: impl fmt::Display, remedy: impl fmt::Display) {
        self.tell(asked, format!("denied to the guest: {what}; {remedy}"));
    }

    pub(crate) fn tell(&self, asked: Option<&Asked>, message: String) {
        let judged = self.0.lock().unwrap_or_else(PoisonError::into_inner).judge(&message, Instant::now());
        let message = match judged {
            None => return,
            Some(0) => message,
            Some(untold) => format!("{message} ({untold} other such messages were not logged)"),
        };
        match asked {
            Some(asked) => log_of!(warn, asked, "{message}"),
            None => tracing::warn!("{message}"),
        }
    }
}

#[derive(Debug, Default)]
struct ToldOnce {
    /// The last at the end.
    known: VecDeque<(String, Instant)>,
    /// What was told of [`BURST`] and is not made up for yet, as of `counted_at`.
    spent: u32,
    counted_at: Option<Instant>,
    untold: u64,
}

impl ToldOnce {
    /// Whether `message` is to be told, and how many were not before it.
    fn judge(&mut self, message: &str, now: Instant) -> Option<u64> {
        self.known.retain(|(_, told_at)| now.duration_since(*told_at) < AGAIN);
        if self.known.iter().any(|(known, _)| known == message) {
            return None;
        }
        self.make_up(now);
        if self.spent >= BURST {
            // Not known either: it is told when there is room, if it comes again.
            self.untold += 1;
            return None;
        }
        self.spent += 1;
        if self.known.len() >= MAX_KNOWN {
            self.known.pop_front();
        }
        self.known.push_back((message.to_owned(), now));
        Some(std::mem::take(&mut self.untold))
    }

    fn make_up(&mut self, now: Instant) {
        let counted_at = *self.counted_at.get_or_insert(now);
        let whole = (now.duration_since(counted_at).as_millis() / EACH.as_millis()).min(BURST.into());
        if whole > 0 {
            self.spent = self.spent.saturating_sub(whole as u32);
            self.counted_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_client_chose_leave_room_for_others() {
        let (mut told, start) = (ToldOnce::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(told.judge("first", at(0)), Some(0));
        assert_eq!(told.judge("first", at(1)), None, "it was told");
        let chosen = (0..1000).filter(|n| told.judge(&format!("chosen {n}"), at(2)).is_some()).count();
        assert_eq!(chosen, BURST as usize - 1);
        assert_eq!(told.judge("a real one", at(3)), None, "too many");
        assert_eq!(told.judge("a real one", at(1001)), Some(1000 - (u64::from(BURST) - 1) + 1));
        assert_eq!(told.judge("a real one", at(5000)), None, "it was told");
        assert_eq!(told.judge("another", at(5000)), Some(0));
        assert!(told.known.len() <= MAX_KNOWN);
        assert_eq!(told.judge("first", at(700_000)), Some(0), "long after, once more");
    }
}
