//! New versions and the way back; compiled components and their store.
//! The crate `harness` tells how a test is written.

#![expect(clippy::print_stdout, reason = "tests tell what they measured, and what they skipped")]

mod artifacts;
mod certificates;
mod container;
mod gates;
mod kubernetes;
mod machines;
mod proxies;
mod registry;
mod reload;
mod settings;
mod snapshots;
mod store;
mod units;
