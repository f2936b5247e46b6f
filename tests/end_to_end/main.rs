//! The whole, through the real binary: each test starts a cluster of its own on a free port, in a temporary folder, and
//! leaves no process behind. The guests are built by `make guests`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "tests tell what they measured, and why they failed")]

mod client;
mod commands;
mod drain;
mod errors;
mod harness;
mod lifecycle;
mod load;
mod output;
mod serving;
mod store;
mod supervision;
