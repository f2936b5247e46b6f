//! Waiting. A component of WASI 0.2 has one thread and one way to sleep: `wasi:io/poll`, a call with all pollables
//! that anything waits for. `block_on` polls one future, and when that is pending makes this call. Futures that wait
//! for the host hold a [`Waiter`].
//!
//! Nothing here runs, and nothing is allocated, for a handler that never waits.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use wasip2::io::poll::{self, Pollable};

thread_local! {
    /// One place for each living [`Waiter`]; a place that was left is used again.
    static PLACES: RefCell<Vec<Option<Place>>> = const { RefCell::new(Vec::new()) };
    /// What runs beside the handler, for as long as that runs.
    static TASKS: RefCell<Vec<Task>> = const { RefCell::new(Vec::new()) };
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Runs the future beside the handler. It is dropped when the handler has ended.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    TASKS.with_borrow_mut(|tasks| tasks.push(Box::pin(future)));
}

fn poll_tasks(context: &mut Context<'_>) {
    // They may spawn others, and are foreign code: no borrow is held while they run.
    let mut running = TASKS.take();
    running.retain_mut(|task| task.as_mut().poll(context).is_pending());
    TASKS.with_borrow_mut(|tasks| tasks.append(&mut running));
}

/// Drops what is left when a handler has ended.
struct EndTasks;

impl Drop for EndTasks {
    fn drop(&mut self) {
        drop(TASKS.take());
    }
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
    let _end = EndTasks;
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        poll_tasks(&mut context);
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
