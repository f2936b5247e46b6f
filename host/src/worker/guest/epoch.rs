//! The epoch: what makes guests that compute give way to the executor.
//!
//! A plain thread advances it, since a task could not while a guest holds the executor. It rests when no guest could be
//! at work, so that an idle worker sleeps.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// How often running guests give way.
const TICK: Duration = Duration::from_millis(2);
/// Ticks without a guest before the thread rests: a worker that has something to do does not wake it each time.
const REST_AFTER: u32 = 10;

/// What `state` is beside a number of ticks: the executor is polling what may be a guest.
const AT_WORK: u32 = u32::MAX;
/// The thread rests, or is about to.
const RESTING: u32 = u32::MAX - 1;

/// What the thread and the executor share.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    /// How many ticks ago the executor polled a guest, or one of the above. The executor alone changes it to `AT_WORK` and
    /// from there to 0; all other changes are the thread's.
    state: AtomicU32,
    /// Set before it first rests.
    thread: OnceLock<Thread>,
}

impl Epoch {
    /// Starts the thread.
    pub(crate) fn start(self: Arc<Self>, engine: Engine) -> io::Result<()> {
        thread::Builder::new().name("epoch".into()).spawn(move || {
            self.thread.get_or_init(thread::current);
            loop {
                thread::sleep(TICK);
                engine.increment_epoch();
                if self.ticked() == Next::Rest {
                    // What unparks it has changed the state before.
                    while self.state.load(Ordering::Relaxed) == RESTING {
                        thread::park();
                    }
                }
            }
        })?;
        Ok(())
    }

    /// Polls a guest. It must not be polled in another way, or it would not give way.
    pub(super) fn polling<T>(&self, poll: impl FnOnce() -> T) -> T {
        if self.state.swap(AT_WORK, Ordering::Relaxed) == RESTING
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        // Also when it panics.
        let _polled = Polled(self);
        poll()
    }

    /// What the thread is to do after a tick.
    fn ticked(&self) -> Next {
        let (ticks, next) = match self.state.load(Ordering::Relaxed) {
            AT_WORK => return Next::Tick,
            ticks @ REST_AFTER.. => (ticks, RESTING),
            ticks => (ticks, ticks + 1),
        };
        // Unless the executor has begun to work meanwhile.
        let changed = self.state.compare_exchange(ticks, next, Ordering::Relaxed, Ordering::Relaxed);
        if changed.is_ok() && next == RESTING { Next::Rest } else { Next::Tick }
    }
}

/// The executor has polled a guest.
struct Polled<'a>(&'a Epoch);

impl Drop for Polled<'_> {
    fn drop(&mut self) {
        self.0.state.store(0, Ordering::Relaxed);
    }
}

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Tick,
    Rest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_when_no_guest_was_polled_for_some_ticks() {
        let epoch = Epoch::default();
        let tick = |times| (0..times).map(|_| epoch.ticked()).collect::<Vec<_>>();
        let all_tick = |ticked: Vec<Next>| ticked.iter().all(|&next| next == Next::Tick);
        for _ in 0..3 {
            assert!(all_tick(tick(REST_AFTER)));
            // It begins to count anew.
            epoch.polling(|| ());
            assert!(all_tick(tick(REST_AFTER)));
            assert_eq!(epoch.ticked(), Next::Rest);
            // However long a guest is polled, it never rests.
            epoch.polling(|| assert!(all_tick(tick(REST_AFTER * 10))));
        }
    }
}
