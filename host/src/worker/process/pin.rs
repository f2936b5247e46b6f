//! `--pin-cpus`: binds a worker to one CPU, the same for every worker of its slot.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::wire::ids::Slot;

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// Binds the calling thread, and those that it starts from now on. It may run where its primary may, and has inherited
/// that, so control groups and `taskset` are respected. A worker that cannot be bound serves all the same.
pub(crate) fn pin(slot: Slot) {
    match bind(slot) {
        Ok(cpu) => tracing::debug!(cpu, "pinned to a CPU"),
        Err(errno) => tracing::warn!("--pin-cpus: cannot pin this worker to a CPU, so it runs on any: {errno}"),
    }
}

fn bind(slot: Slot) -> nix::Result<usize> {
    let inherited = sched_getaffinity(THIS)?;
    let allowed: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| inherited.is_set(cpu) == Ok(true)).collect();
    // A thread that may run nowhere does not run: what cannot be is no reason to die.
    let cpu = cpu_of(slot, &allowed).ok_or(Errno::EINVAL)?;
    let mut own = CpuSet::new();
    own.set(cpu)?;
    sched_setaffinity(THIS, &own)?;
    Ok(cpu)
}

/// Each slot has the next of the CPUs that are allowed; when all have one, it begins anew.
fn cpu_of(slot: Slot, allowed: &[usize]) -> Option<usize> {
    allowed.get(slot.0 as usize % allowed.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_take_the_allowed_cpus_in_turn() {
        let cpus = |allowed: &[usize]| [0, 1, 2, 3, 1023].map(|slot| cpu_of(Slot(slot), allowed));
        assert_eq!(cpus(&[0, 1]), [0, 1, 0, 1, 1].map(Some));
        assert_eq!(cpus(&[2, 5, 7]), [2, 5, 7, 2, 2].map(Some));
        assert_eq!(cpus(&[9]), [9; 5].map(Some));
        assert_eq!(cpus(&[]), [None; 5]);
    }
}
