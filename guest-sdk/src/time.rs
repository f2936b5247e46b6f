//! Time passing, by the host's monotonic clock.

use std::future::poll_fn;
use std::time::Duration;

use wasip2::clocks::monotonic_clock;

use crate::reactor::Waiter;

/// Completes when the duration has passed since it was first polled.
pub async fn sleep(duration: Duration) {
    if duration.is_zero() {
        return;
    }
    // Some 584 years; longer is as good as for ever.
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let waiter = Waiter::new(monotonic_clock::subscribe_duration(nanoseconds));
    poll_fn(|context| waiter.poll(context)).await;
}
