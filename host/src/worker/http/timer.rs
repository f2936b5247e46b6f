//! A timer that costs little.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep_until};

/// Deadlines that move away, as they do with every request, do not touch it.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready once `deadline` has come, and again whenever it is asked after that.
    pub(super) fn poll(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        let deadline = deadline.into();
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// What comes round at intervals while it is asked for.
#[derive(Default)]
pub(super) struct Beat {
    timer: Timer,
    next: Option<Instant>,
}

impl Beat {
    /// Ready once in each interval; wakes its task for the next.
    pub(super) fn poll(&mut self, every: Duration, context: &mut Context<'_>) -> Poll<()> {
        let next = *self.next.get_or_insert_with(|| Instant::now() + every);
        ready!(self.timer.poll(next, context));
        self.next = None;
        context.waker().wake_by_ref();
        Poll::Ready(())
    }

    /// Nobody asks at the moment.
    pub(super) fn rest(&mut self) {
        self.next = None;
    }
}
