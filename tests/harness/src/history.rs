//! Whether what clients of a register saw can have happened in one order, each operation at some moment between its beginning
//! and its end: linearisability, by the search of Wing and Gong with the memory of Lowe.

use std::collections::HashSet;
use std::time::Instant;

/// What a client did with a register that has a number, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// It saw this.
    Get(Option<i64>),
    /// It set this.
    Set(i64),
    /// It took the value away.
    Delete,
    /// It added, and was told the sum.
    Increment(i64, Option<i64>),
    /// It set the second if the first was there, and was told whether.
    Swap(Option<i64>, i64, Option<bool>),
}

/// An operation, and when it was under way. Without an end nobody knows whether it was done at all, or when.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// When it was asked for.
    pub begin: Instant,
    /// When it was answered.
    pub end: Option<Instant>,
    /// What it was.
    pub operation: Operation,
}

impl Operation {
    /// What the register has afterwards; None if the operation cannot have seen what it saw.
    fn apply(self, value: Option<i64>) -> Option<Option<i64>> {
        match self {
            Self::Get(seen) => (seen == value).then_some(value),
            Self::Set(new) => Some(Some(new)),
            Self::Delete => Some(None),
            Self::Increment(by, told) => {
                let sum = value.unwrap_or(0) + by;
                told.is_none_or(|told| told == sum).then_some(Some(sum))
            }
            Self::Swap(from, to, told) => {
                let is_swapped = from == value;
                let after = if is_swapped { Some(to) } else { value };
                told.is_none_or(|told| told == is_swapped).then_some(after)
            }
        }
    }
}

/// Whether the history of a register that began with nothing is linearisable.
pub fn is_linearisable(steps: &[Step]) -> bool {
    let mut steps = steps.to_vec();
    steps.sort_by_key(|step| step.begin);
    let words = steps.len().div_ceil(64);
    let mut seen = HashSet::new();
    let mut stack = vec![(vec![0_u64; words], None)];
    while let Some((done, value)) = stack.pop() {
        let is_done = |number: usize| done[number / 64] >> (number % 64) & 1 == 1;
        let left = || (0..steps.len()).filter(|&number| !is_done(number));
        // Whatever begins after another has ended, comes after it.
        let Some(first_end) = left().filter_map(|number| steps[number].end).min() else { return true };
        for number in left().take_while(|&number| steps[number].begin <= first_end) {
            let Some(after) = steps[number].operation.apply(value) else { continue };
            let mut done = done.clone();
            done[number / 64] |= 1 << (number % 64);
            if seen.insert((done.clone(), after)) {
                stack.push((done, after));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Operation::{Delete, Get, Increment, Set, Swap};
    use super::*;

    /// Begin and end in milliseconds; an end of 0 is none.
    fn check(history: &[(u64, u64, Operation)]) -> bool {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let step = |&(begin, end, operation): &(u64, u64, _)| Step {
            begin: at(begin),
            end: (end > 0).then(|| at(end)),
            operation,
        };
        is_linearisable(&history.iter().map(step).collect::<Vec<_>>())
    }

    #[test]
    fn histories_that_can_have_happened_are_told_from_others() {
        assert!(check(&[(0, 1, Set(1)), (2, 3, Get(Some(1)))]));
        assert!(!check(&[(0, 1, Set(1)), (2, 3, Get(None))]), "a lost write");
        assert!(check(&[(0, 5, Set(1)), (2, 3, Get(None)), (3, 4, Get(Some(1)))]));
        assert!(!check(&[(0, 5, Set(1)), (1, 2, Get(Some(1))), (3, 4, Get(None))]), "back in time");
        assert!(check(&[(0, 0, Set(1)), (2, 3, Get(None)), (4, 5, Get(Some(1)))]), "unknown: later");
        assert!(check(&[(0, 0, Set(1)), (2, 3, Get(None))]), "unknown: never");
        assert!(!check(&[(0, 1, Set(2)), (2, 3, Get(Some(1))), (4, 0, Set(1))]), "before it began");
        assert!(check(&[(0, 9, Increment(1, Some(2))), (0, 9, Increment(1, Some(1)))]));
        assert!(!check(&[(0, 9, Increment(1, Some(1))), (0, 9, Increment(1, Some(1)))]), "one is lost");
        assert!(check(&[(0, 9, Swap(None, 1, Some(true))), (0, 9, Swap(None, 2, Some(false)))]));
        assert!(!check(&[(0, 9, Swap(None, 1, Some(true))), (0, 9, Swap(None, 2, Some(true)))]));
        assert!(check(&[(0, 1, Set(1)), (2, 3, Delete), (4, 5, Get(None))]));
    }
}
