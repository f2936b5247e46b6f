//! The `wasmcluster` binary. Everything is in the library; only this file ends the process.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wasmcluster::cli::main()
}
