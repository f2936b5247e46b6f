//! No host: handlers run natively, in tests. Time is virtual: it passes when everything waits for it. What a test puts in
//! the place of a host is a `testing::Host`.
//!
//! Files: `websocket` has both ends of one, `stores` key-value stores.

pub(crate) mod stores;
pub(crate) mod websocket;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::mem::ManuallyDrop;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use send_wrapper::SendWrapper;

use crate::fetch::{FetchError, place};
use crate::metrics::Update;
#[cfg(feature = "tracing")]
use crate::testing::Span;
use crate::testing::{Host, Metric};
#[cfg(feature = "tracing")]
use crate::trace::{Context as SpanContext, Ended, Status};
use crate::worker::Worker;
use crate::{Request, Response, Result};

thread_local! {
    /// What stands in for the host on this thread.
    static HOST: RefCell<Host> = RefCell::default();
    static CLOCK: RefCell<Clock> = RefCell::default();
    static METRICS: RefCell<Vec<Metric>> = const { RefCell::new(Vec::new()) };
    #[cfg(feature = "tracing")]
    static SPANS: RefCell<Vec<Span>> = const { RefCell::new(Vec::new()) };
    /// What runs beside the function of a `block_on`, each in the host that it was begun in. Those that are left when the
    /// thread ends are leaked: what they would drop may use other thread-locals, which may be gone by then.
    static TASKS: RefCell<ManuallyDrop<Vec<Task>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
}

struct Task {
    host: Host,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// Updates that are kept for a test to look at.
const MAX_METRICS: usize = 100_000;
/// Spans, likewise.
#[cfg(feature = "tracing")]
const MAX_SPANS: usize = 100_000;

#[derive(Default)]
struct Clock {
    now: Duration,
    /// Who waits until when. The number tells those apart that wait until the same time.
    timers: BTreeMap<(Duration, u64), Waker>,
    next: u64,
}

/// There is none: bodies of tests are made by tests.
pub(crate) struct Incoming(Infallible);

impl Incoming {
    pub(crate) fn is_end(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.0 {}
    }

    pub(crate) fn poll_frame(&mut self, _: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self.0 {}
    }
}

pub(crate) fn fetch(
    request: Request,
    _idle_timeout: Option<Duration>,
) -> impl Future<Output = Result<Response, FetchError>> + Send {
    let denied = FetchError::Denied(place(request.uri()));
    let answering = HOST.with_borrow(|host| host.fetch(request));
    // A test has one thread, as a guest has.
    SendWrapper::new(async { Ok(answering.ok_or(denied)?.await) })
}

pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

pub(crate) fn worker() -> Worker {
    HOST.with_borrow(Host::current_worker)
}

pub(crate) fn config(key: &str) -> Option<String> {
    HOST.with_borrow(|host| host.config(key))
}

pub(crate) fn all_config() -> Vec<(String, String)> {
    HOST.with_borrow(Host::all_config)
}

/// A key-value store.
fn store(name: &str) -> Option<stores::Pairs> {
    HOST.with_borrow(|host| host.store(name))
}

pub(crate) fn metric(name: &str, labels: &[(String, String)], update: Update) {
    METRICS.with_borrow_mut(|metrics| {
        if metrics.len() < MAX_METRICS {
            metrics.push(Metric { name: name.into(), labels: labels.into(), update });
        }
    });
}

pub(crate) fn take_metrics() -> Vec<Metric> {
    METRICS.take()
}

/// Each request is part of a trace that is recorded.
#[cfg(feature = "tracing")]
pub(crate) fn outer_span() -> SpanContext {
    SpanContext { trace: format!("{:032x}", 1), span: format!("{:016x}", 1), is_sampled: true, state: Vec::new() }
}

#[cfg(feature = "tracing")]
pub(crate) fn span_begins(_: &SpanContext) {}

#[cfg(feature = "tracing")]
pub(crate) fn span_ends(span: Ended) {
    let error = match span.status {
        Status::Unset | Status::Ok => None,
        Status::Error(why) => Some(why),
    };
    let told = Span {
        id: span.context.span,
        parent: span.parent,
        name: span.name,
        attributes: span.attributes,
        events: span.events.into_iter().map(|event| event.name).collect(),
        error,
    };
    SPANS.with_borrow_mut(|spans| {
        if spans.len() < MAX_SPANS {
            spans.push(told);
        }
    });
}

#[cfg(feature = "tracing")]
pub(crate) fn take_spans() -> Vec<Span> {
    SPANS.take()
}

pub(crate) async fn sleep(duration: Duration) {
    let mut timer: Option<Timer> = None;
    poll_fn(|context| {
        CLOCK.with_borrow_mut(|clock| {
            let Timer(until, number) = timer.get_or_insert_with(|| {
                clock.next += 1;
                Timer(clock.now.saturating_add(duration), clock.next)
            });
            if clock.now >= *until {
                return Poll::Ready(());
            }
            clock.timers.insert((*until, *number), context.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

/// Until when, and its number.
struct Timer(Duration, u64);

impl Drop for Timer {
    fn drop(&mut self) {
        let _waker = CLOCK.with_borrow_mut(|clock| clock.timers.remove(&(self.0, self.1)));
    }
}

/// Runs the future in `host`, beside all that this thread runs from now on.
pub(crate) fn spawn(host: &Host, future: Pin<Box<dyn Future<Output = ()>>>) {
    TASKS.with_borrow_mut(|tasks| tasks.push(Task { host: host.clone(), future }));
}

fn poll_tasks(context: &mut Context<'_>) {
    // They may spawn others, and are foreign code: no borrow is held while they run.
    let mut running = TASKS.with_borrow_mut(|tasks| std::mem::take(&mut **tasks));
    running.retain_mut(|task| {
        let _restored = Restored(HOST.replace(task.host.clone()));
        task.future.as_mut().poll(context).is_pending()
    });
    TASKS.with_borrow_mut(|tasks| tasks.append(&mut running));
}

/// Runs what was spawned until all of it waits. No time passes.
pub(crate) fn run_tasks() {
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    while woken.0.swap(false, Ordering::Relaxed) {
        poll_tasks(&mut Context::from_waker(&waker));
    }
}

/// Runs the future to its end, in `host`.
///
/// # Panics
///
/// If the future waits for something that cannot happen: nothing woke it, and it waits for no time to pass.
pub(crate) fn block_on<F: Future>(host: &Host, future: F) -> F::Output {
    let _restored = Restored(HOST.replace(host.clone()));
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        poll_tasks(&mut context);
        if !woken.0.swap(false, Ordering::Relaxed) {
            let (_, first) = CLOCK
                .with_borrow_mut(|clock| {
                    let first = clock.timers.pop_first()?;
                    clock.now = first.0.0;
                    Some(first)
                })
                .expect("the handler waits for something that can never happen");
            first.wake();
        }
    }
}

/// The host that was there before.
struct Restored(Host);

impl Drop for Restored {
    fn drop(&mut self) {
        HOST.set(std::mem::take(&mut self.0));
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::testing::block_on;
    use crate::time;

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
        block_on(pending::<()>());
    }

    #[test]
    fn time_passes_when_everything_waits_for_it() {
        let hour = Duration::from_secs(3600);
        block_on(time::sleep(hour));
        assert_eq!(block_on(time::timeout(hour, time::sleep(2 * hour))), Err(time::Elapsed));
        assert_eq!(block_on(time::timeout(2 * hour, time::sleep(hour))), Ok(()));
        assert_eq!(block_on(time::timeout(hour, ready(7))), Ok(7));
        CLOCK.with_borrow(|clock| {
            assert_eq!(clock.now, 3 * hour);
            assert!(clock.timers.is_empty());
        });
    }
}
