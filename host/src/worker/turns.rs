//! Guests that compute take turns.
//!
//! One that has computed for a tick of the epoch gives way, and goes on when it is called. One is called at a time, and
//! before each the executor looks at its sockets and timers: so what is ready waits for one guest that computes, however
//! many there are. If all of them went on together, it would wait for all.

use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

/// Guests that wait in line; more wait for a place there.
const MAX_WAITING: usize = 1024;

/// Where guests wait for their turn, in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct Turns(mpsc::Sender<oneshot::Sender<()>>);

impl Turns {
    /// Guests are called by a task of their own, as long as somebody has the line. Must be called on the runtime.
    pub(super) fn start() -> Self {
        let (line, mut waiting) = mpsc::channel::<oneshot::Sender<()>>(MAX_WAITING);
        tokio::spawn(async move {
            while let Some(next) = waiting.recv().await {
                if next.is_closed() {
                    // Its guest was cancelled.
                    continue;
                }
                // Unlike a task that wakes itself, this lets the executor look at sockets and timers first. The guest that
                // was called before runs behind the first look; what came meanwhile is seen in the second.
                yield_now().await;
                yield_now().await;
                let _ = next.send(());
            }
        });
        Self(line)
    }

    /// Waits until the guest may go on.
    pub(super) async fn wait(self) {
        let (next, called) = oneshot::channel();
        // The task that calls ends with the runtime, as this one does.
        if self.0.send(next).await.is_ok() {
            let _ = called.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Write;
    use std::os::unix::net;
    use std::rc::Rc;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    const ROUNDS: usize = 5;

    /// In each of its turns, a guest that computes sends a byte to a client, which sees it before any other turn.
    #[tokio::test]
    async fn sockets_are_looked_at_before_each_turn() {
        let told = Rc::new(RefCell::new(Vec::new()));
        let guests = ["a", "b", "c"];
        let work = async {
            let turns = Turns::start();
            let (reader, writer) = net::UnixStream::pair().unwrap();
            reader.set_nonblocking(true).unwrap();
            let (mut reader, seen) = (UnixStream::from_std(reader).unwrap(), told.clone());
            let reading = spawn_local(async move {
                for _ in 0..guests.len() * ROUNDS {
                    reader.read_u8().await.unwrap();
                    seen.borrow_mut().push("seen");
                }
            });
            for guest in guests {
                let (turns, mut writer, told) = (turns.clone(), writer.try_clone().unwrap(), told.clone());
                spawn_local(async move {
                    for _ in 0..ROUNDS {
                        turns.clone().wait().await;
                        told.borrow_mut().push(guest);
                        writer.write_all(&[0]).unwrap();
                    }
                });
            }
            reading.await.unwrap();
        };
        LocalSet::new().run_until(work).await;
        assert_eq!(*told.borrow(), ["a", "seen", "b", "seen", "c", "seen"].repeat(ROUNDS));
    }

    #[tokio::test]
    async fn whoever_gave_up_is_not_waited_for() {
        let turns = Turns::start();
        let gave_up: Vec<_> = (0..MAX_WAITING).map(|_| tokio::spawn(turns.clone().wait())).collect();
        yield_now().await;
        gave_up.iter().for_each(|waiting| waiting.abort());
        turns.wait().await;
    }
}
