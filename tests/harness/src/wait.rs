//! Waiting for conditions. Tests never sleep and hope.

use std::time::{Duration, Instant};

/// How long a condition may take to become true. Far more than it ever needs: no test passes or fails by speed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A compiler leaves the processor to others: one of a large component, without optimisation, beside other tests.
pub(crate) const COMPILE_PATIENCE: Duration = Duration::from_secs(900);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `look` finds something. Panics after a minute, saying `what` was waited for.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

#[track_caller]
pub(crate) fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}
