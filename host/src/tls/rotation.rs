//! When the keys of session tickets change: pure, time is an argument and the keys are made elsewhere.
//!
//! Each key is known to the workers for a turn before tickets are sealed with it, and opens them for another turn
//! afterwards. So no worker meets a key that it has not got yet, whichever of them hears of a change first.

use std::time::Duration;

/// Since the primary began.
pub(crate) type Time = Duration;

const ROTATE_EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a key opens tickets, from the first that is sealed with it.
pub(crate) const TICKET_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// The current, the previous and the next. After so many turns at once none is left of the old ones.
const KEYS: u32 = 3;

/// The keys, `K`, that there are at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TicketRotation<K> {
    current: K,
    previous: Option<K>,
    next: K,
    due: Time,
}

impl<K: Copy> TicketRotation<K> {
    pub(crate) fn new<E>(now: Time, mut make: impl FnMut() -> Result<K, E>) -> Result<Self, E> {
        Ok(Self { current: make()?, previous: None, next: make()?, due: now + ROTATE_EVERY })
    }

    /// When to call [`Self::rotate`].
    pub(crate) fn next_deadline(&self) -> Time {
        self.due
    }

    /// Goes on to the keys of `now`. If none can be made, the old ones stay for another turn.
    pub(crate) fn rotate<E>(&mut self, now: Time, mut make: impl FnMut() -> Result<K, E>) -> Result<(), E> {
        for _ in 0..KEYS {
            if self.due > now {
                return Ok(());
            }
            self.due += ROTATE_EVERY;
            let made = make()?;
            self.previous = Some(std::mem::replace(&mut self.current, std::mem::replace(&mut self.next, made)));
        }
        self.due = self.due.max(now + ROTATE_EVERY);
        Ok(())
    }

    /// The one that seals comes first.
    pub(crate) fn keys(&self) -> Vec<K> {
        [Some(self.current), self.previous, Some(self.next)].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn every_ticket_is_opened_by_whoever_is_a_turn_ahead_or_behind() {
        let mut last = 0;
        let mut make = move || {
            last += 1;
            Ok::<u32, ()>(last)
        };
        let mut rotation = TicketRotation::new(MINUTE, &mut make).unwrap();
        assert_eq!(rotation.keys(), [1, 2]);
        let mut sealed_since = vec![(1, MINUTE)];
        for turn in 1..10 {
            let before = rotation.keys();
            let due = rotation.next_deadline();
            assert_eq!(due, MINUTE + ROTATE_EVERY * turn);
            rotation.rotate(due - MINUTE, &mut make).unwrap();
            assert_eq!(rotation.keys(), before, "not before its time");
            rotation.rotate(due, &mut make).unwrap();
            let after = rotation.keys();
            assert!(before.contains(&after[0]) && after.contains(&before[0]), "{before:?} {after:?}");
            sealed_since.push((after[0], due));
            for (key, since) in &sealed_since {
                assert_eq!(after.contains(key), due - *since < TICKET_LIFETIME, "{key} at {due:?}");
            }
        }
    }

    #[test]
    fn after_a_long_sleep_no_old_key_is_left() {
        let mut last = 0;
        let mut make = move || {
            last += 1;
            Ok::<u32, ()>(last)
        };
        let mut rotation = TicketRotation::new(Duration::ZERO, &mut make).unwrap();
        let now = ROTATE_EVERY * 1000;
        rotation.rotate(now, &mut make).unwrap();
        assert_eq!((rotation.keys(), rotation.next_deadline()), (vec![4, 3, 5], now + ROTATE_EVERY));
        // Without random bytes there is no new key, and the old ones are still good.
        let keys = rotation.keys();
        rotation.rotate(rotation.next_deadline(), || Err(())).unwrap_err();
        assert_eq!((rotation.keys(), rotation.next_deadline()), (keys, now + 2 * ROTATE_EVERY));
    }
}
