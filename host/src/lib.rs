//! wasmcluster serves a WebAssembly component on every core: a primary process that owns the listening sockets and
//! keeps one worker process per core alive, each running the component behind the shared port.
//!
//! This library is the program; `main.rs` only turns its result into an exit code. ARCHITECTURE.md is the map.

mod admin;
mod build;
pub mod cli;
mod component;
mod control;
mod exporter;
#[cfg(test)]
mod fuzz;
mod grants;
mod keyvalue;
#[cfg(test)]
mod layers;
mod logging;
mod os;
mod primary;
mod registry;
mod settings;
mod tls;
mod wire;
mod worker;
