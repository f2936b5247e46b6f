//! Tells the service manager, if there is one, how the cluster is: ready, reloading, stopping, in words, and that the driver
//! turns.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::os::service_manager::{self, Notifier, NotifyState};

/// What a start or a reload that takes longer asks for, again and again: a compilation may take minutes.
const MORE_TIME: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(10);
/// What a stop takes beyond what it may.
const END: Duration = Duration::from_secs(5);

/// Messages that a manager has yet to read, at most. Of more than that the first are of no interest any more.
const MAX_UNSENT: usize = 32;

/// The service manager.
#[derive(Debug)]
pub(crate) struct Manager {
    notifier: Option<Notifier>,
    /// What it could not be told, as it has yet to read what came before.
    unsent: VecDeque<String>,
    /// How often it wants a sign of life, and when it had the last.
    watchdog: Option<(Duration, Option<Instant>)>,
    /// What it was told last: the state as `status` calls it, and in words.
    told: (&'static str, String),
    /// It has asked for a reload.
    has_asked: bool,
    /// When a reload has asked for more time.
    asked_at: Option<Instant>,
    /// How long a stop may take.
    pub(crate) longest_stop: Duration,
}

impl Manager {
    /// Of a cluster whose stop may take so long.
    pub(crate) fn new(longest_stop: Duration) -> Self {
        let (notifier, unsent, told) = (Notifier::new(), VecDeque::new(), ("starting", String::new()));
        // Twice as often as it must be.
        let watchdog = notifier.as_ref().and_then(|_| service_manager::watchdog()).map(|time| (time / 2, None));
        Self { notifier, unsent, watchdog, told, has_asked: false, asked_at: None, longest_stop }
    }

    /// Whether anybody listens.
    pub(crate) fn is_there(&self) -> bool {
        self.notifier.is_some()
    }

    /// What the start is at. Said again, it asks for more time.
    pub(crate) fn starts(&mut self, doing: &str) {
        if self.told.1 == doing {
            self.tell(&[more_time(MORE_TIME)]);
        } else {
            self.told.1 = doing.into();
            self.tell(&[NotifyState::Status(doing)]);
        }
    }

    /// It has asked for a reload, and waits to hear that one begins and ends, also if none does.
    pub(crate) fn asks_for_reload(&mut self) {
        self.has_asked = true;
    }

    /// How the cluster is now.
    pub(crate) fn is(&mut self, state: &'static str, words: String) {
        let has_asked = std::mem::take(&mut self.has_asked);
        for step in steps(self.told.0, state, has_asked) {
            match step {
                Milestone::Ready => self.tell(&[NotifyState::Ready]),
                Milestone::Reloading => match NotifyState::monotonic_usec_now() {
                    Ok(now) => self.tell(&[NotifyState::Reloading, now]),
                    Err(error) => tracing::debug!("there is no clock: {error}"),
                },
                Milestone::Stopping => {
                    self.tell(&[NotifyState::Stopping, more_time(self.longest_stop.saturating_add(END))]);
                }
            }
        }
        if self.told.1 != words {
            self.tell(&[NotifyState::Status(&words)]);
        }
        self.told = (state, words);
    }

    /// The driver turns.
    pub(crate) fn turns(&mut self) {
        self.send();
        if self.told.0 != "reloading" {
            self.asked_at = None;
        } else if self.asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
            self.asked_at = Some(Instant::now());
            self.tell(&[more_time(MORE_TIME)]);
        }
        let Some((every, last)) = &mut self.watchdog else { return };
        if self.unsent.is_empty() && last.is_none_or(|last| last.elapsed() >= *every) {
            *last = Some(Instant::now());
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        if self.is_there() {
            self.unsent.push_back(states.iter().map(|state| format!("{state}\n")).collect());
            if self.unsent.len() > MAX_UNSENT {
                self.unsent.pop_front();
            }
            self.send();
        }
    }

    /// Sends what there is, as far as it listens.
    fn send(&mut self) {
        let Some(notifier) = &self.notifier else { return };
        while let Some(message) = self.unsent.front() {
            match notifier.tell(message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => tracing::debug!("the service manager was not told {message:?}: {error}"),
                Ok(()) => {}
            }
            self.unsent.pop_front();
        }
    }
}

fn more_time(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

/// What a change of the state is for the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Milestone {
    Ready,
    Reloading,
    Stopping,
}

/// From one state to another. A manager that has asked for a reload is told of one in any case.
fn steps(from: &str, to: &str, has_asked: bool) -> Vec<Milestone> {
    let (was_up, is_up) = (matches!(from, "running" | "degraded"), matches!(to, "running" | "degraded"));
    match (from, to) {
        ("stopping", _) => vec![],
        (_, "stopping") => vec![Milestone::Stopping],
        ("starting", "reloading") => vec![Milestone::Ready, Milestone::Reloading],
        ("reloading", "reloading") if has_asked => vec![Milestone::Reloading],
        (_, "reloading") if from != to => vec![Milestone::Reloading],
        _ if is_up && has_asked => vec![Milestone::Reloading, Milestone::Ready],
        _ if is_up && !was_up => vec![Milestone::Ready],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_what_it_waits_for() {
        use Milestone::{Ready, Reloading, Stopping};
        for (states, expected) in [
            (&["starting", "starting", "running", "running"][..], &[Ready][..]),
            (&["starting", "degraded", "running"], &[Ready]),
            (&["running", "reloading", "reloading", "running"], &[Reloading, Ready]),
            (&["running", "reloading", "degraded"], &[Reloading, Ready]),
            (&["degraded", "running", "degraded"], &[]),
            (&["running", "stopping", "stopping"], &[Stopping]),
            (&["running", "reloading", "stopping"], &[Reloading, Stopping]),
            (&["starting", "stopping"], &[Stopping]),
            (&["starting", "reloading", "running"], &[Ready, Reloading, Ready]),
        ] {
            let all: Vec<Milestone> = states.windows(2).flat_map(|pair| steps(pair[0], pair[1], false)).collect();
            assert_eq!(all, expected, "{states:?}");
        }
        // One that has asked hears of a reload, whatever came of it.
        assert_eq!(steps("running", "running", true), [Reloading, Ready]);
        assert_eq!(steps("running", "reloading", true), [Reloading]);
        assert_eq!(steps("reloading", "reloading", true), [Reloading]);
        assert_eq!(steps("reloading", "running", true), [Reloading, Ready]);
        assert_eq!(steps("stopping", "stopping", true), []);
    }
}
