//! How a child process of the primary begins.
//!
//! A child is this very binary, executed anew: its own address space, no inherited thread or lock, an environment of
//! a few variables, and an IPC channel as its standard input.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::os::child::Child;

/// What a child finds in its environment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Environment<'a> {
    /// A few variables.
    Bare,
    /// What this process has but for these variables.
    Without(&'a [String]),
}

/// Starts this binary anew as `role`.
pub(super) fn execute(
    role: &str,
    environment: Environment<'_>,
    stdin: OwnedFd,
    stdout: Stdio,
    stderr: Stdio,
) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wasmcluster").arg(role);
    match environment {
        Environment::Bare => bare(&mut command),
        Environment::Without(hidden) => {
            for variable in hidden {
                command.env_remove(variable);
            }
        }
    }
    command
        // The heap is reserved, not taken: what is taken counts against the limit on the memory of those that have one.
        .envs((["compiler", "puller"].contains(&role)).then_some(("MIMALLOC_ARENA_EAGER_COMMIT", "0")))
        // Errors on the ordinary path of a request would capture native backtraces; panics still can.
        .env("RUST_LIB_BACKTRACE", "0")
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    // In a process group of its own, Ctrl-C reaches the primary alone, which then drains its workers.
    Ok(Child::spawn(&mut command)?.0)
}

fn bare(command: &mut Command) {
    command
        .env_clear()
        // A huge page for a heap of a few megabytes would cost each worker ten more.
        .env("MIMALLOC_ALLOW_THP", "0")
        // Where the machine's trusted certificates are, if not in the usual places.
        .envs(["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
}
