//! The time, read once for what belongs together.
//!
//! A request asks for it at a dozen places, and a reading takes as long as a hundred instructions. While a connection is
//! polled, all of them get one reading, which is made anew when a guest's turn is over. Elsewhere each gets its own: while a
//! guest computes, and in the tasks that streams of HTTP/2 have.

use std::cell::Cell;
use std::time::Instant;

thread_local! {
    static STANDS_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time, or what it was when it was last read in the same poll.
pub(crate) fn now() -> Instant {
    STANDS_AT.get().unwrap_or_else(Instant::now)
}

/// The time. Others get it from now on.
pub(crate) fn read() -> Instant {
    let now = Instant::now();
    is(now);
    now
}

/// Somebody has read the time.
pub(crate) fn is(now: Instant) {
    if STANDS_AT.get().is_some() {
        STANDS_AT.set(Some(now));
    }
}

/// While this is done it is `now`, until somebody reads the time.
pub(crate) fn standing<T>(now: Instant, what: impl FnOnce() -> T) -> T {
    let _goes_on = GoesOn(STANDS_AT.replace(Some(now)));
    what()
}

/// While this is done, everybody gets a reading of his own.
pub(crate) fn going_on<T>(what: impl FnOnce() -> T) -> T {
    let _stands = GoesOn(STANDS_AT.replace(None));
    what()
}

/// Puts back what it was.
struct GoesOn(Option<Instant>);

impl Drop for GoesOn {
    fn drop(&mut self) {
        STANDS_AT.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_stands_still_until_somebody_reads_it() {
        let earlier = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let ended = standing(earlier, || {
            assert_eq!((now(), now()), (earlier, earlier));
            let read = read();
            assert!(read > earlier && now() == read);
            is(earlier);
            standing(read, || assert_eq!(now(), read));
            going_on(|| assert!(now() > read));
            now()
        });
        assert_eq!(ended, earlier);
        let _ = catch_unwind(|| standing(earlier, || panic!("as a guest's host might")));
        assert!(now() > earlier);
        is(earlier);
        assert!(now() > earlier, "elsewhere it goes on");
    }
}
