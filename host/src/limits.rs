//! Limits of the kernel's that a process of ours sets for itself.

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// Lets this process open as many descriptors as it may. The usual soft limit of 1024 is kept low for programs that
/// use `select`, which none of ours does; each connection takes one.
pub(crate) fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!("cannot raise the limit of open files: {errno}");
    }
}

/// Most memory that a compiler may use, in bytes, on a machine that has more than twice as much. A component of 18 MB
/// takes about a tenth of it.
const COMPILER_MEMORY: u64 = 4 * 1024 * 1024 * 1024;
/// How far a compiler steps back behind processes that serve.
const COMPILER_NICENESS: i32 = 10;

/// Makes this process, a compiler, leave the processor to others, end if it wants too much memory, and be the first that
/// the kernel ends when there is none left.
pub(crate) fn restrain_compiler() {
    // SAFETY: changes the priority of this process, touches no memory.
    unsafe { nix::libc::nice(COMPILER_NICENESS) };
    let memory = COMPILER_MEMORY.min(memory_of_this_machine() / 2);
    let restrained = setrlimit(Resource::RLIMIT_DATA, memory, memory)
        .and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0))
        .map_err(std::io::Error::from)
        .and_then(|()| std::fs::write("/proc/self/oom_score_adj", "1000"));
    if let Err(error) = restrained {
        tracing::debug!("cannot restrain the compiler: {error}");
    }
}

/// How much more likely than its primary a worker is to be ended by the kernel when there is no memory left. The compiler
/// goes first.
const WORKER_OOM_SCORE: i32 = 500;

/// Makes this process, a worker, go before its primary when there is no memory left.
pub(crate) fn restrain_worker() {
    let path = "/proc/self/oom_score_adj";
    let inherited = std::fs::read_to_string(path).ok().and_then(|score| score.trim().parse().ok()).unwrap_or(0);
    // Lowering it would take a privilege.
    if inherited < WORKER_OOM_SCORE
        && let Err(error) = std::fs::write(path, WORKER_OOM_SCORE.to_string())
    {
        tracing::debug!("cannot go before the primary when there is no memory left: {error}");
    }
}

/// In bytes; of the control group, or one that it is in, where that has less.
pub(crate) fn memory_of_this_machine() -> u64 {
    let number = |variable| sysconf(variable).ok().flatten().map_or(u64::MAX, |number| number.unsigned_abs());
    let physical = number(SysconfVar::_PHYS_PAGES).saturating_mul(number(SysconfVar::PAGE_SIZE));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Of version 2 of the interface: a single line that begins so.
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Path::new(group)
        .ancestors()
        .filter_map(|group| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join("memory.max")).ok())
        .filter_map(|limit| limit.trim().parse().ok())
        .fold(physical, u64::min)
}
