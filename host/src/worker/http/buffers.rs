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

/// A worker's budget.
#[derive(Debug)]
pub(crate) struct Buffers {
    max: usize,
    held: Cell<usize>,
}

impl Buffers {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { max: (limits.max_connections * EACH).max(limits.max_header_bytes * LARGEST), held: Cell::new(0) }
    }

    /// In bytes.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.held.get() > self.max
    }
}

/// What one connection holds of it.
#[derive(Debug)]
pub(crate) struct Share {
    buffers: Rc<Buffers>,
    bytes: Cell<usize>,
}

impl Share {
    pub(crate) fn of(buffers: Rc<Buffers>) -> Self {
        Self { buffers, bytes: Cell::new(0) }
    }

    pub(crate) fn set(&self, bytes: usize) {
        let before = self.bytes.replace(bytes);
        self.buffers.held.set(self.buffers.held.get() - before + bytes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.get() == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
