//! Processes: who starts, watches, replaces and ends them, what of a cluster is left, and whose word is taken.
//! The crate `harness` tells how a test is written.

#![expect(clippy::print_stdout, reason = "tests tell what they measured, and what they skipped")]

mod access_log;
mod admin;
mod config;
mod cost;
mod faults;
mod lifecycle;
mod logs;
mod names;
mod output;
mod page;
mod processes;
mod prometheus;
mod redis;
mod service_manager;
mod state;
mod stores;
mod supervision;
mod traces;
