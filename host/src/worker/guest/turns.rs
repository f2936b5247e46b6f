//! Guests that compute take turns.
//!
//! One that has computed for a while gives way when the epoch ticks, waits in line, and goes on when it is called. As a rule
//! one is called at a time, and before each the executor looks at its sockets and timers: so what is ready waits for one or
//! two guests that compute, however many there are. If all of them went on together, it would wait for all. When what is
//! ready keeps the executor busy by itself, more are called at a time, so that the line is not starved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::worker::clock;

/// Who has computed for less when the epoch ticks goes on: most guests are done by then.
const MIN_TURN: Duration = Duration::from_micros(500);
/// One more is called for each time that this has passed since the last call: three times what a turn takes, so that the
/// line gets about a third of a busy executor, and calls do not make more calls.
const ONE_MORE: Duration = Duration::from_millis(6);
/// Guests that wait in line; more wait for a place there.
const MAX_WAITING: usize = 1024;

/// Where guests wait for their turn, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Turns {
    line: mpsc::Sender<oneshot::Sender<()>>,
    start: Instant,
    /// When the guest that is being polled began to be, in nanoseconds behind `start`.
    began: AtomicU64,
}

impl Turns {
    /// Guests are called by a task of their own, as long as this lives. Must be called on the runtime.
    pub(crate) fn start() -> Self {
        let (line, waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(call(waiting));
        Self { line, start: Instant::now(), began: AtomicU64::new(0) }
    }

    /// The turn of a guest begins: it is about to be polled.
    pub(crate) fn begin(&self) {
        self.began.store(self.nanos_at(Instant::now()), Ordering::Relaxed);
    }

    /// Whether the guest that is being polled is to give way.
    pub(crate) fn is_over(&self) -> bool {
        self.spent() >= MIN_TURN
    }

    /// The turn of a guest is over: how long it took. The time is what it is now for those that come next, too.
    pub(crate) fn end(&self) -> Duration {
        let now = Instant::now();
        clock::is(now.into_std());
        self.spent_by(now)
    }

    /// How long ago it began.
    fn spent(&self) -> Duration {
        self.spent_by(Instant::now())
    }

    fn spent_by(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.nanos_at(now).saturating_sub(self.began.load(Ordering::Relaxed)))
    }

    /// Waits until a guest that gave way may go on.
    pub(crate) fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        let line = self.line.clone();
        async move {
            let (next, called) = oneshot::channel();
            // The task that calls ends with the runtime, as this one does.
            if line.send(next).await.is_ok() {
                let _ = called.await;
            }
        }
    }

    fn nanos_at(&self, now: Instant) -> u64 {
        // Enough for five hundred years.
        now.duration_since(self.start).as_nanos() as u64
    }
}

async fn call(mut waiting: mpsc::Receiver<oneshot::Sender<()>>) {
    while let Some(first) = waiting.recv().await {
        if first.is_closed() {
            // Its guest was cancelled.
            continue;
        }
        let began = Instant::now();
        // Unlike a task that wakes itself, this lets the executor look at sockets and timers, and work on what is ready.
        yield_now().await;
        let _ = first.send(());
        for _ in 0..began.elapsed().as_nanos() / ONE_MORE.as_nanos() {
            let Ok(next) = waiting.try_recv() else { break };
            let _ = next.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::Write;
    use std::os::unix::net;
    use std::rc::Rc;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::advance;

    use super::*;

    const GUESTS: usize = 8;
    const ROUNDS: usize = 5;

    /// Guests compute in turns and send a byte in each, whose reader works for `reading` on it. How many bytes it had not
    /// seen when each was sent.
    async fn unseen(reading: Duration) -> Vec<usize> {
        let (sent, unseen) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
        let turns = Rc::new(Turns::start());
        let (reader, writer) = net::UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let (mut reader, waiting) = (UnixStream::from_std(reader).unwrap(), sent.clone());
        let read = spawn_local(async move {
            for _ in 0..GUESTS * ROUNDS {
                reader.read_u8().await.unwrap();
                waiting.set(waiting.get() - 1);
                advance(reading).await;
            }
        });
        for _ in 0..GUESTS {
            let (turns, mut writer) = (turns.clone(), writer.try_clone().unwrap());
            let (sent, unseen) = (sent.clone(), unseen.clone());
            spawn_local(async move {
                for _ in 0..ROUNDS {
                    turns.wait().await;
                    sent.set(sent.get() + 1);
                    unseen.borrow_mut().push(sent.get());
                    writer.write_all(&[0]).unwrap();
                }
            });
        }
        read.await.unwrap();
        unseen.take()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_waits_for_two_guests_at_most() {
        let unseen = LocalSet::new().run_until(unseen(Duration::ZERO)).await;
        assert!(unseen.len() == GUESTS * ROUNDS && unseen.iter().all(|&unseen| unseen <= 2), "{unseen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn when_much_is_ready_more_guests_are_called() {
        let unseen = LocalSet::new().run_until(unseen(ONE_MORE * GUESTS as u32)).await;
        assert!(unseen.contains(&GUESTS), "{unseen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_begins_when_its_guest_is_polled() {
        let turns = Turns::start();
        for _ in 0..3 {
            turns.begin();
            advance(MIN_TURN - Duration::from_micros(1)).await;
            assert!(!turns.is_over());
            advance(Duration::from_micros(1)).await;
            assert!(turns.is_over());
        }
    }

    #[tokio::test]
    async fn whoever_gave_up_is_not_waited_for() {
        let turns = Turns::start();
        let gave_up: Vec<_> = (0..MAX_WAITING).map(|_| tokio::spawn(turns.wait())).collect();
        yield_now().await;
        gave_up.iter().for_each(|waiting| waiting.abort());
        turns.wait().await;
    }
}
