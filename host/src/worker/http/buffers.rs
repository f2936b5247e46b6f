//! The memory that connections hold for clients that nobody answers: heads that are not whole, and buffers that grew with
//! the last request. What the requests at work hold is bounded by their number, and counts nowhere here.

use std::cell::Cell;
use std::rc::Rc;

use crate::settings::Limits;

/// What every connection may hold, in bytes: hyper's buffer as it is in the beginning.
pub(crate) const FREE: usize = 16 * 1024;
/// What a connection may hold beyond that, as far as all do, in bytes.
const EACH: usize = 16 * 1024;
/// Largest heads that there is room for at the least, each in hyper's buffer and in our own, which may double both.
const LARGEST: usize = 4 * 4;

/// The part of the budget that may be on its way back before others wait for it.
const LEAVING: usize = 8;

/// A worker's budget.
#[derive(Debug)]
pub(crate) struct Buffers {
    max: usize,
    held: Cell<usize>,
    /// What connections hold that were told to end, until they have had their turn.
    leaving: Cell<usize>,
}

impl Buffers {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max: (limits.max_connections * EACH).max(limits.max_header_bytes * LARGEST),
            held: Cell::new(0),
            leaving: Cell::new(0),
        }
    }

    /// In bytes.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.held.get() > self.max
    }

    /// Whether much of what was to be given back is still held. Who wants more waits a turn, in which it is.
    pub(crate) fn is_about_to_shrink(&self) -> bool {
        self.leaving.get() > self.max / LEAVING
    }
}

/// What one connection holds of it.
#[derive(Debug)]
pub(crate) struct Share {
    buffers: Rc<Buffers>,
    bytes: Cell<usize>,
    /// What it holds although it was told to end.
    leaving: Cell<usize>,
}

impl Share {
    pub(crate) fn of(buffers: Rc<Buffers>) -> Self {
        Self { buffers, bytes: Cell::new(0), leaving: Cell::new(0) }
    }

    pub(crate) fn set(&self, bytes: usize) {
        let before = self.bytes.replace(bytes);
        self.buffers.held.set(self.buffers.held.get() - before + bytes);
    }

    /// It was told to end, and holds so many bytes until it does.
    pub(crate) fn leaves(&self, bytes: usize) {
        let before = self.leaving.replace(bytes);
        self.buffers.leaving.set(self.buffers.leaving.get() - before + bytes);
    }

    pub(crate) fn is_about_to_shrink(&self) -> bool {
        self.buffers.is_about_to_shrink()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.get() == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.leaves(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_back_is_waited_for_until_it_is_there() {
        let buffers = Rc::new(Buffers { max: 800, held: Cell::new(0), leaving: Cell::new(0) });
        let (one, other) = (Share::of(buffers.clone()), Share::of(buffers.clone()));
        one.set(500);
        other.set(400);
        assert!(buffers.is_exceeded() && !other.is_about_to_shrink());
        // It is told to end, which counts for nobody any more, and has not ended.
        one.leaves(500);
        one.set(0);
        assert!(!buffers.is_exceeded() && other.is_about_to_shrink());
        one.leaves(0);
        assert!(!other.is_about_to_shrink());
        one.leaves(100);
        assert!(!other.is_about_to_shrink(), "it is little");
        other.leaves(101);
        drop(one);
        assert!(other.is_about_to_shrink());
        drop(other);
        assert!(!buffers.is_about_to_shrink() && !buffers.is_exceeded());
    }
}
