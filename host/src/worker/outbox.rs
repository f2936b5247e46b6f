//! Short answers leave together.
//!
//! A write wakes its reader, and a reader on the same machine that is woken for each answer, to fall asleep behind it,
//! costs the worker as much as a small guest does. So a connection that has a short answer to write is put aside until
//! the others that are ready have been polled, and then all that were put aside are polled in a row. Once they are late,
//! or what comes next is slow, they come first.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What is longer goes at once: its reader has something to do.
pub(super) const MAX_SHORT: usize = 16 * 1024;
/// How long others are polled before those that were put aside. A turn that takes longer is slow.
const LATE: Duration = Duration::from_millis(1);

/// What is put aside. It runs in here, to be polled from elsewhere than its own task.
pub(super) struct Outbox {
    late: Duration,
    aside: RefCell<Vec<Rc<Work>>>,
    /// When the first of them was put there.
    since: Cell<Option<Instant>>,
    /// What is being polled, and since when.
    current: RefCell<Option<(Rc<Work>, Instant)>>,
    /// Wakes [`Outbox::run_last`].
    last: RefCell<Option<Waker>>,
}

struct Work {
    /// `None` when it has ended.
    future: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    waker: RefCell<Waker>,
    was_slow: Cell<bool>,
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

    /// Runs `work`, which may put itself aside.
    pub(super) async fn run(&self, work: impl Future<Output = ()> + 'static) {
        let (future, waker) = (RefCell::new(Some(Box::pin(work) as _)), RefCell::new(Waker::noop().clone()));
        let work = Rc::new(Work { future, waker, was_slow: Cell::new(false) });
        poll_fn(|context| {
            work.waker.borrow_mut().clone_from(context.waker());
            let mut now = Instant::now();
            if self.since.get().is_some_and(|since| work.was_slow.get() || now - since > self.late) {
                now = self.poll_all(now);
            }
            self.poll(&work, context, now).0
        })
        .await;
    }

    /// Polls what is put aside when every other task that was ready has been polled. Never ends; to be run as a task
    /// beside the others.
    pub(super) async fn run_last(&self) {
        poll_fn(|context| {
            self.last.borrow_mut().get_or_insert(context.waker().clone());
            self.poll_all(Instant::now());
            Poll::Pending
        })
        .await
    }

    /// Puts aside what is being polled: it is polled again soon.
    pub(super) fn put_aside(&self) {
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
            let waker = work.waker.borrow().clone();
            let (polled, ended) = self.poll(&work, &mut Context::from_waker(&waker), now);
            if polled.is_ready() {
                // Its own task has yet to learn that.
                waker.wake();
            }
            now = ended;
        }
        now
    }

    /// Begins at `now`. What came of it, and when.
    fn poll(&self, work: &Rc<Work>, context: &mut Context<'_>, now: Instant) -> (Poll<()>, Instant) {
        let mut future = work.future.borrow_mut();
        let Some(running) = &mut *future else { return (Poll::Ready(()), now) };
        self.current.replace(Some((work.clone(), now)));
        let polled = running.as_mut().poll(context);
        self.current.replace(None);
        let ended = Instant::now();
        work.was_slow.set(ended - now > self.late);
        if polled.is_ready() {
            *future = None;
        }
        (polled, ended)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

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
}
