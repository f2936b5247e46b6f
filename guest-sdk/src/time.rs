//! Timers, by the host's monotonic clock. For the time of day, use the standard library.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::host;

/// Completes when the duration has passed since it was first polled.
///
/// ```
/// # use std::time::Duration;
/// # use wasmcluster_guest::{Request, testing, time};
/// async fn handle(_: Request) -> &'static str {
///     time::sleep(Duration::from_secs(60)).await;
///     "good morning"
/// }
/// // In tests the clock is a stand-in: this takes no time.
/// # assert_eq!(testing::call(handle, Request::default()).text(), "good morning");
/// ```
pub async fn sleep(duration: Duration) {
    if !duration.is_zero() {
        host::sleep(duration).await;
    }
}

/// Drops the future if it is not done when the duration has passed.
///
/// ```
/// # use std::time::Duration;
/// # use wasmcluster_guest::{Request, Result, testing, time};
/// async fn handle(_: Request) -> Result<String> {
///     let slow = async { time::sleep(Duration::from_secs(60)).await };
///     Ok(format!("{:?}", time::timeout(Duration::from_secs(1), slow).await))
/// }
/// # assert_eq!(testing::call(handle, Request::default()).text(), "Err(Elapsed)");
/// ```
///
/// # Errors
///
/// [`Elapsed`] if it was dropped.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let (mut future, mut late) = (pin!(future), pin!(host::sleep(duration)));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => late.as_mut().poll(context).map(|()| Err(Elapsed)),
    })
    .await
}

/// Something took longer than its timeout.
///
/// ```
/// assert_eq!(wasmcluster_guest::time::Elapsed.to_string(), "it took too long");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it took too long")
    }
}

impl std::error::Error for Elapsed {}
