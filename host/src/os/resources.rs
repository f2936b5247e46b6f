//! Limits of the kernel's that a process of ours sets for itself.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, geteuid, sysconf};

use crate::os::cgroup::Allowance;

/// The limit on descriptors, soft and hard, before it was raised.
static FIRST_DESCRIPTOR_LIMIT: OnceLock<(u64, u64)> = OnceLock::new();

/// What other programs than ours are to be started with; `None` if it was not changed.
pub(crate) fn first_descriptor_limit() -> Option<(u64, u64)> {
    FIRST_DESCRIPTOR_LIMIT.get().copied()
}

/// Lets this process open as many descriptors as it may. The usual soft limit of 1024 is kept low for programs that
/// use `select`, which none of ours does; each connection takes one.
pub(crate) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let _ = FIRST_DESCRIPTOR_LIMIT.set((soft, hard));
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    });
    if let Err(errno) = raised {
        tracing::debug!("cannot raise the limit of open files: {errno}");
    }
}

/// Descriptors of a worker that connections leave alone: for the files of guests, their outbound requests, and the worker
/// itself. Where there are few, it is a fourth.
const DESCRIPTOR_RESERVE: u64 = 1024;

/// Lowers `max_connections`, of a worker, so that it does not run out of descriptors: it has the hard limit of this process.
/// What is to be said of that, if it was necessary.
pub(crate) fn keep_within_descriptors(max_connections: &mut usize) -> Option<String> {
    let (there, hard) = room_for_connections()?;
    let wanted = *max_connections;
    if there >= wanted {
        return None;
    }
    *max_connections = there;
    Some(format!(
        "a worker takes at most {there} connections, not {wanted} as --max-connections says: it may open only {hard} \
         files; raise that limit (ulimit -Hn, or LimitNOFILE= in systemd)"
    ))
}

/// Connections that a worker can have at most, by the hard limit of this process, and that limit.
pub(crate) fn room_for_connections() -> Option<(usize, u64)> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some((connections_within(hard), hard))
}

/// How many processes and threads this user may have, unless that is not limited.
pub(crate) fn room_for_threads() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
    // Root is not held to it.
    (soft != nix::libc::RLIM_INFINITY && !geteuid().is_root()).then_some(soft)
}

/// How much this process may map, unless that is not limited, in bytes.
pub(crate) fn address_space() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (soft != nix::libc::RLIM_INFINITY).then_some(soft)
}

fn connections_within(descriptors: u64) -> usize {
    let left = descriptors - DESCRIPTOR_RESERVE.min(descriptors / 4);
    usize::try_from(left).unwrap_or(usize::MAX).max(1)
}

/// Most memory that a compiler may use, in bytes, on a machine that has far more. A component of 18 MB
/// takes about a tenth of it.
const COMPILER_MEMORY: u64 = 4 * 1024 * 1024 * 1024;
/// What a compiler may map on the smallest machine, in bytes. The kernel limits what is mapped: for a small component about
/// 150 MiB, of which less than half is ever touched.
const LEAST_ADDRESS_SPACE: u64 = 256 * 1024 * 1024;
/// How far a compiler steps back behind processes that serve.
const COMPILER_NICENESS: i32 = 10;

/// Makes this process, a compiler, leave the processor to others, end if it wants too much memory, and be the first that
/// the kernel ends when there is none left.
pub(crate) fn restrain_compiler() {
    // SAFETY: changes the priority of this process, touches no memory.
    unsafe { nix::libc::nice(COMPILER_NICENESS) };
    let memory = Shares::of(memory_of_this_machine(), 0).compiler.max(LEAST_ADDRESS_SPACE);
    let restrained = setrlimit(Resource::RLIMIT_DATA, memory, memory)
        .and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0))
        .map_err(std::io::Error::from)
        .and_then(|()| std::fs::write("/proc/self/oom_score_adj", "1000"));
    if let Err(error) = restrained {
        tracing::debug!("cannot limit the compiler's memory: {error}");
    }
}

/// Bytes of memory for the largest component, and for all else that is needed to speak to a registry.
const REGISTRY_MEMORY: u64 = 768 * 1024 * 1024;

/// Keeps this process from wanting more memory, beside what it has, than a component takes up, for as long as this lasts: a
/// registry may send without end.
#[derive(Debug)]
pub(crate) struct BoundedMemory {
    before: Option<u64>,
}

impl BoundedMemory {
    pub(crate) fn for_registry() -> Self {
        let limited = getrlimit(Resource::RLIMIT_DATA).and_then(|(soft, hard)| {
            setrlimit(Resource::RLIMIT_DATA, data_of_this_process().saturating_add(REGISTRY_MEMORY).min(soft), hard)?;
            Ok(soft)
        });
        Self { before: limited.inspect_err(|error| tracing::debug!("cannot limit memory: {error}")).ok() }
    }
}

/// What counts against the limit on data, in bytes. The allocator may have reserved more than it uses.
fn data_of_this_process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kilobytes: Option<u64> = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

impl Drop for BoundedMemory {
    fn drop(&mut self) {
        let Some(before) = self.before else { return };
        let restored =
            getrlimit(Resource::RLIMIT_DATA).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_DATA, before, hard));
        if let Err(error) = restored {
            tracing::debug!("cannot lift the limit on memory: {error}");
        }
    }
}

/// Makes this process, and all that it starts from now on, leave no core dump. 1 keeps programs that take core dumps from
/// the kernel from being given one, as 0 would not.
pub(crate) fn forbid_core_dumps() {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 1, 1) {
        tracing::warn!("cannot forbid core dumps, which would show secrets: {error}");
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
        tracing::debug!(
            "cannot set oom_score_adj, so the kernel may end the primary first when memory runs out: {error}"
        );
    }
}

/// In bytes; of the control group, or one that it is in, where that has less.
pub(crate) fn memory_of_this_machine() -> u64 {
    let number = |variable| sysconf(variable).ok().flatten().map_or(u64::MAX, |number| number.unsigned_abs());
    let physical = number(SysconfVar::_PHYS_PAGES).saturating_mul(number(SysconfVar::PAGE_SIZE));
    Allowance::of_this_process().memory.map_or(physical, |limit| limit.min(physical))
}

/// Workers that there is work and room for: one for each processor that this process may use, as long as each has memory
/// for an instance or two.
pub(crate) fn workers_for_this_machine() -> u32 {
    let usable = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    // Half a processor's time would be one more worker that waits for the others.
    let granted = Allowance::of_this_process().cpus.map_or(usable, |cpus| cpus as usize);
    let roomy = Shares::of(memory_of_this_machine(), 0).worker / ROOM_FOR_A_WORKER;
    usable.min(granted).min(roomy.saturating_sub(1) as usize).max(1) as u32
}

/// Least memory that a worker is given before there are fewer workers, in bytes.
const ROOM_FOR_A_WORKER: u64 = 64 * 1024 * 1024;

/// How the memory of a machine, or of a control group, is shared out. All shares together are four fifths of it: the rest is
/// the processes' own, the kernel's for their sockets, and its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Of the instances of each worker, and of one more that takes the place of another, in bytes.
    pub(crate) worker: u64,
    /// Of the compiler of a reload, which works beside them.
    pub(crate) compiler: u64,
}

impl Shares {
    pub(crate) fn of(memory: u64, workers: u32) -> Self {
        let shared = memory / 5 * 4;
        let compiler = COMPILER_MEMORY.min(shared / 2);
        Self { worker: (shared - compiler) / (u64::from(workers) + 1), compiler }
    }
}

/// What there is to say of the surroundings, once, at the start.
pub(crate) fn warn_of_surroundings() {
    if Allowance::of_this_process().ends_as_one {
        tracing::warn!(
            "memory.oom.group is set for this control group: when memory runs out, the kernel kills the whole cluster \
             instead of one process. Under systemd, set OOMPolicy=continue"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_a_reserve_of_descriptors() {
        for (descriptors, connections) in [(0, 1), (8, 6), (4096, 3072), (1 << 20, (1 << 20) - 1024)] {
            assert_eq!(connections_within(descriptors), connections);
        }
    }

    #[test]
    fn shares_add_up_to_less_than_there_is() {
        for memory in [64 << 20, 512 << 20, 4 << 30, 24 << 30, 1 << 40_u64] {
            for workers in [1, 2, 8, 64, 1024] {
                let Shares { worker, compiler } = Shares::of(memory, workers);
                let sum = worker * (u64::from(workers) + 1) + compiler;
                assert!(sum <= memory / 5 * 4, "{memory} for {workers}: {sum}");
                assert!(compiler <= COMPILER_MEMORY && worker > 0);
            }
        }
        assert_eq!(Shares::of(5 << 30, 3), Shares { worker: 512 << 20, compiler: 2 << 30 });
    }
}
