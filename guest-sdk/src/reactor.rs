//! Waiting. A component of WASI 0.2 has one thread and one way to sleep: `wasi:io/poll`, a call with all pollables
//! that anything waits for. `block_on` polls one future, and when that is pending makes this call. Futures that wait
//! for the host hold a [`Waiter`].
//!
//! Nothing here runs, and nothing is allocated, for a handler that never waits.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use wasip2::io::poll::{self, Pollable};

thread_local! {
    /// One place for each living [`Waiter`]; a place that was left is used again.
    static PLACES: RefCell<Vec<Option<Place>>> = const { RefCell::new(Vec::new()) };
}

struct Place {
    pollable: Pollable,
    /// Whom to wake. `None` while nobody waits here.
    waker: Option<Waker>,
    ready: bool,
}

/// Waits for one pollable of the host, as often as is needed. It must be dropped before the resource that the pollable
/// came from.
#[derive(Debug)]
pub(crate) struct Waiter(usize);

impl Waiter {
    pub(crate) fn new(pollable: Pollable) -> Self {
        let place = Some(Place { pollable, waker: None, ready: false });
        PLACES.with_borrow_mut(|places| match places.iter().position(Option::is_none) {
            Some(free) => {
                places[free] = place;
                Self(free)
            }
            None => {
                places.push(place);
                Self(places.len() - 1)
            }
        })
    }

    /// Ready once for each time that the host found the pollable ready.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let waker = context.waker().clone();
        // What was there drops outside the borrow: a waker is foreign code, and may hold a waiter of its own.
        let (poll, _previous) = PLACES.with_borrow_mut(|places| {
            let place = places[self.0].as_mut().expect("a waiter has its place until it is dropped");
            if std::mem::take(&mut place.ready) {
                return (Poll::Ready(()), Some(waker));
            }
            (Poll::Pending, place.waker.replace(waker))
        });
        poll
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _place = PLACES.with_borrow_mut(|places| places[self.0].take());
    }
}

/// Runs the future to its end.
///
/// # Panics
///
/// If the future waits for something that cannot happen: no pollable is awaited and nothing woke it.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        // A future that wakes itself, as one that yields does, must not keep the others from their pollables.
        let wait = if woken.0.swap(false, Ordering::Relaxed) { Wait::No } else { Wait::Yes };
        wake_ready(wait);
        woken.0.store(false, Ordering::Relaxed);
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Yes,
    No,
}

/// Asks the host which of the awaited pollables are ready and wakes those who wait for them.
fn wake_ready(wait: Wait) {
    let wakers: Vec<Waker> = PLACES.with_borrow_mut(|places| {
        let mut awaited: Vec<&mut Place> = places.iter_mut().flatten().filter(|place| place.waker.is_some()).collect();
        let ready: Vec<usize> = match wait {
            Wait::No => (0..awaited.len()).filter(|&index| awaited[index].pollable.ready()).collect(),
            Wait::Yes => {
                assert!(!awaited.is_empty(), "the handler waits for something that can never happen");
                let pollables: Vec<&Pollable> = awaited.iter().map(|place| &place.pollable).collect();
                poll::poll(&pollables).into_iter().map(|index| index as usize).collect()
            }
        };
        ready
            .into_iter()
            .filter_map(|index| {
                awaited[index].ready = true;
                awaited[index].waker.take()
            })
            .collect()
    });
    // Outside the borrow: a waker is foreign code.
    wakers.into_iter().for_each(Waker::wake);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{poll_fn, ready};

    #[test]
    fn a_ready_future_needs_no_host() {
        assert_eq!(block_on(ready(7)), 7);
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_again() {
        let mut left = 3;
        block_on(poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }));
        assert_eq!(left, 0);
    }

    #[test]
    #[should_panic(expected = "can never happen")]
    fn waiting_for_nothing_is_an_error() {
        block_on(std::future::pending::<()>());
    }
}
