//! What guests and clients cannot do: take too much, do harm, or have what they were not granted.
//! The crate `harness` tells how a test is written.

#![expect(clippy::print_stdout, reason = "tests tell what they measured, and what they skipped")]

mod capabilities;
mod hostile;
mod limits;
mod soak;
mod sockets;
