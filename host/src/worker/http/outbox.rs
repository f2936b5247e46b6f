//! Short answers leave together.
//!
//! A write wakes its reader, and a reader on the same machine that is woken for each answer, to fall asleep behind it,
//! costs the worker as much as a small guest does. So a connection that has a short answer to write is put aside until
//! the others that are ready have been polled, and then all that were put aside are polled in a row. Once they are late,
//! or what comes next is slow, they come first.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::worker::clock;

/// What is longer goes at once: its reader has something to do.
const MAX_SHORT: usize = 16 * 1024;
/// How long others are polled before those that were put aside. A turn that takes longer is slow.
const LATE: Duration = Duration::from_millis(1);

/// What is put aside. It runs in here, to be polled from elsewhere than its own task.
pub(crate) struct Outbox {
    late: Duration,
    aside: RefCell<Vec<Rc<Aside>>>,
    /// When the first of them was put there.
    since: Cell<Option<Instant>>,
    /// What is being polled, and since when.
    current: RefCell<Option<(Rc<Aside>, Instant)>>,
    /// Wakes [`Outbox::run_last`].
    last: RefCell<Option<Waker>>,
}

/// Lets others that are ready go first, before something is written.
pub(super) struct Turn {
    outbox: Rc<Outbox>,
    /// The next write has waited for others.
    has_waited: bool,
}

impl Turn {
    pub(super) fn new(outbox: Rc<Outbox>) -> Self {
        Self { outbox, has_waited: false }
    }

    /// Once for each short write.
    pub(super) fn poll(&mut self, bytes: usize) -> Poll<()> {
        self.has_waited = !self.has_waited && bytes <= MAX_SHORT;
        if !self.has_waited {
            return Poll::Ready(());
        }
        self.outbox.put_aside();
        Poll::Pending
    }
}

struct Aside {
    /// `None` when it has ended.
    future: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    alarm: Arc<Alarm>,
    /// Rings the alarm.
    waker: Waker,
    was_slow: Cell<bool>,
}

/// Wakes a work's task, and rings until the work is polled. If it is silent when the task is polled, then a poll from
/// elsewhere has seen already what woke the task.
struct Alarm {
    rings: AtomicBool,
    task: Waker,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rings.swap(true, Ordering::AcqRel) {
            self.task.wake_by_ref();
        }
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new(LATE)
    }
}

impl Outbox {
    fn new(late: Duration) -> Self {
        let (aside, since) = (RefCell::default(), Cell::default());
        Self { late, aside, since, current: RefCell::default(), last: RefCell::default() }
    }

    /// Runs `work`, which may put itself aside. It stays in the task that polls it first.
    pub(crate) async fn run(&self, work: impl Future<Output = ()> + 'static) {
        let task = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
        let alarm = Arc::new(Alarm { rings: AtomicBool::new(true), task });
        let waker = Waker::from(alarm.clone());
        let future = RefCell::new(Some(Box::pin(work) as _));
        let work = Rc::new(Aside { future, alarm, waker, was_slow: Cell::new(false) });
        poll_fn(|_| {
            if !work.alarm.rings.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            let mut now = Instant::now();
            if self.since.get().is_some_and(|since| work.was_slow.get() || now - since > self.late) {
                now = self.poll_all(now);
            }
            self.poll(&work, now).0
        })
        .await;
    }

    /// Polls what is put aside when every other task that was ready has been polled. Never ends; to be run as a task
    /// beside the others.
    pub(crate) async fn run_last(&self) {
        poll_fn(|context| {
            self.last.borrow_mut().get_or_insert(context.waker().clone());
            self.poll_all(Instant::now());
            Poll::Pending
        })
        .await
    }

    /// Puts aside what is being polled: it is polled again soon.
    pub(crate) fn put_aside(&self) {
        let Some((work, now)) = self.current.borrow().clone() else { return };
        self.aside.borrow_mut().push(work);
        if self.since.get().is_none() {
            self.since.set(Some(now));
            // Tasks are polled in the order in which they were woken.
            if let Some(last) = &*self.last.borrow() {
                last.wake_by_ref();
            }
        }
    }

    /// Begins at `now`. When it ended.
    fn poll_all(&self, mut now: Instant) -> Instant {
        self.since.set(None);
        for work in self.aside.take() {
            let (polled, ended) = self.poll(&work, now);
            if polled.is_ready() {
                // Its own task has yet to learn that.
                work.waker.wake_by_ref();
            }
            now = ended;
        }
        now
    }

    /// Begins at `now`. What came of it, and when.
    ///
    /// Aside that panics has ended. The panic goes no further: the task that polls here may be another work's, or
    /// [`Outbox::run_last`], and what was put aside behind this work has nobody else who would poll it.
    fn poll(&self, work: &Rc<Aside>, now: Instant) -> (Poll<()>, Instant) {
        let mut future = work.future.borrow_mut();
        let Some(running) = &mut *future else { return (Poll::Ready(()), now) };
        self.current.replace(Some((work.clone(), now)));
        work.alarm.rings.swap(false, Ordering::AcqRel);
        let mut context = Context::from_waker(&work.waker);
        // The future is dropped after a panic, and never polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| clock::standing(now, || running.as_mut().poll(&mut context))));
        self.current.replace(None);
        let polled = polled.unwrap_or(Poll::Ready(()));
        if polled.is_ready() {
            // Its parts may panic as well when they are dropped in the middle of something.
            let ended = future.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(ended)));
        }
        let ended = Instant::now();
        work.was_slow.set(ended - now > self.late);
        (polled, ended)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::thread::sleep;

    use tokio::sync::Notify;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    /// What several works do that are ready at the same time: each thing, and who did it.
    #[derive(Clone, Default)]
    struct Told(Rc<RefCell<Vec<String>>>);

    impl Told {
        fn push(&self, name: &str, what: &str) {
            self.0.borrow_mut().push(format!("{name} {what}"));
        }
    }

    async fn aside(outbox: &Outbox) {
        let mut was_aside = false;
        poll_fn(|_| {
            if was_aside {
                return Poll::Ready(());
            }
            was_aside = true;
            outbox.put_aside();
            Poll::Pending
        })
        .await
    }

    /// Lets everything else go first that is ready.
    async fn again() {
        let mut was_polled = false;
        poll_fn(|context| {
            if was_polled {
                return Poll::Ready(());
            }
            was_polled = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    async fn check<W: Future<Output = ()> + 'static>(
        late: Duration,
        names: &[&'static str],
        work: impl Fn(Rc<Outbox>, Told, &'static str) -> W,
        expected: &[&str],
    ) {
        let told = Told::default();
        LocalSet::new()
            .run_until(async {
                let outbox = Rc::new(Outbox::new(late));
                let last = outbox.clone();
                spawn_local(async move { last.run_last().await });
                again().await;
                let start = |&name| {
                    let (work, outbox) = (work(outbox.clone(), told.clone(), name), outbox.clone());
                    spawn_local(async move { outbox.run(work).await })
                };
                for task in names.iter().map(start).collect::<Vec<_>>() {
                    task.await.unwrap();
                }
            })
            .await;
        assert_eq!(*told.0.borrow(), expected);
    }

    #[tokio::test]
    async fn answers_wait_until_everything_has_been_worked_on() {
        let work = |outbox: Rc<Outbox>, told: Told, name| async move {
            for round in ["once", "twice"] {
                told.push(name, round);
                aside(&outbox).await;
                told.push(name, "answered");
            }
        };
        let first = ["a once", "b once", "a answered", "a twice", "b answered", "b twice"];
        check(Duration::MAX, &["a", "b"], work, &[&first[..], &["a answered", "b answered"]].concat()).await;
    }

    #[tokio::test]
    async fn the_time_is_one_for_all_of_a_poll() {
        let work = |_: Rc<Outbox>, told: Told, name| async move {
            let begun = clock::now();
            sleep(Duration::from_millis(2));
            told.push(name, if clock::now() == begun { "stands" } else { "went on" });
            again().await;
            told.push(name, if clock::now() == begun { "stands" } else { "went on" });
        };
        check(Duration::MAX, &["a"], work, &["a stands", "a went on"]).await;
    }

    #[tokio::test]
    async fn an_answer_that_is_late_goes_before_others_are_worked_on() {
        let work = |outbox: Rc<Outbox>, told: Told, name| async move {
            told.push(name, "works");
            aside(&outbox).await;
            told.push(name, "answers");
        };
        let expected = ["a works", "a answers", "b works", "b answers"];
        check(Duration::ZERO, &["a", "b"], work, &expected).await;
    }

    #[tokio::test]
    async fn what_was_slow_lets_answers_go_first() {
        let work = |outbox: Rc<Outbox>, told: Told, name| async move {
            if name == "slow" {
                sleep(LATE * 2);
                told.push(name, "begins");
                again().await;
            } else {
                again().await;
                aside(&outbox).await;
            }
            told.push(name, "ends");
        };
        check(LATE, &["a", "slow"], work, &["slow begins", "a ends", "slow ends"]).await;
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_that_panics_and_no_other() {
        for late in [Duration::MAX, Duration::ZERO] {
            let told = Told::default();
            let done = told.clone();
            LocalSet::new()
                .run_until(async move {
                    let outbox = Rc::new(Outbox::new(late));
                    let last = outbox.clone();
                    let sending = spawn_local(async move { last.run_last().await });
                    again().await;
                    let start = |name: &'static str| {
                        let (outbox, told) = (outbox.clone(), told.clone());
                        spawn_local(async move {
                            let aside_in = outbox.clone();
                            let work = async move {
                                for round in ["once", "twice"] {
                                    aside(&aside_in).await;
                                    assert!(name != "b", "a panic in the middle of an answer");
                                    told.push(name, round);
                                }
                            };
                            outbox.run(work).await
                        })
                    };
                    for task in ["a", "b", "c"].map(start) {
                        task.await.expect("a task goes on, whoever panics in it");
                    }
                    assert!(!sending.is_finished());
                })
                .await;
            let mut told = done.0.take();
            told.sort();
            assert_eq!(told, ["a once", "a twice", "c once", "c twice"]);
        }
    }

    #[tokio::test]
    async fn what_was_polled_from_elsewhere_is_not_polled_again() {
        let end = Rc::new(Notify::new());
        let work = move |outbox: Rc<Outbox>, told: Told, name: &'static str| {
            let end = end.clone();
            async move {
                if name == "b" {
                    // Long enough for the task of the other, which was woken, to be looked at.
                    for _ in 0..5 {
                        again().await;
                    }
                    end.notify_one();
                    return;
                }
                let (mut polls, mut ended) = (0, pin!(end.notified()));
                poll_fn(|context| {
                    polls += 1;
                    told.push(name, "is polled");
                    if polls == 1 {
                        context.waker().wake_by_ref();
                        outbox.put_aside();
                        return Poll::Pending;
                    }
                    ended.as_mut().poll(context)
                })
                .await;
            }
        };
        check(Duration::MAX, &["a", "b"], work, &["a is polled"; 3]).await;
    }
}
