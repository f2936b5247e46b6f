//! The `wasmcluster` binary. Everything is in the library; only this file ends the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    wasmcluster::cli::main()
}
