//! wasmcluster serves a WebAssembly component on every core: a primary process that owns the listening sockets and
//! keeps one worker process per core alive, each running the component behind the shared port.
//!
//! This library is the program; `main.rs` only turns its result into an exit code. ARCHITECTURE.md is the map.

mod artifact;
mod build;
mod cgroup;
mod child;
pub mod cli;
mod component;
mod config;
mod engine;
mod folders;
#[cfg(test)]
mod fuzz;
mod grants;
mod ids;
mod ipc;
mod limits;
mod listener;
mod logging;
mod memfd;
mod metrics;
mod pagemap;
mod pipe;
mod primary;
mod signal;
mod state_file;
mod stats;
mod worker;
