//! Limits of the kernel's that a process of ours sets for itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process open as many descriptors as it may. The usual soft limit of 1024 is kept low for programs that
/// use `select`, which none of ours does; each connection takes one.
pub(crate) fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!("cannot raise the limit of open files: {errno}");
    }
}

/// Most memory that a compiler may use, in bytes. A component of 18 MB takes about a tenth of it.
const COMPILER_MEMORY: u64 = 4 * 1024 * 1024 * 1024;
/// How far a compiler steps back behind processes that serve.
const COMPILER_NICENESS: i32 = 10;

/// Makes this process, a compiler, leave the processor to others, and end if it wants too much memory.
pub(crate) fn restrain_compiler() {
    // SAFETY: changes the priority of this process, touches no memory.
    unsafe { nix::libc::nice(COMPILER_NICENESS) };
    let restrained = setrlimit(Resource::RLIMIT_DATA, COMPILER_MEMORY, COMPILER_MEMORY);
    if let Err(errno) = restrained {
        tracing::debug!("cannot limit the compiler's memory: {errno}");
    }
}
