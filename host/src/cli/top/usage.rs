//! How much processor time workers have used, from `/proc`, where they are processes of this machine.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::control::protocol::Status;

/// Ticks of `/proc` in a second, as good as everywhere.
const USUAL_TICKS: u64 = 100;

/// The time that each worker has used so far, by its id. A worker that cannot be seen from here is left out.
pub(super) fn processor_times(status: &Status) -> BTreeMap<u64, Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let per_second = per_second.filter(|ticks| *ticks > 0).unwrap_or(USUAL_TICKS);
    let workers = status.workers.iter().filter_map(|worker| Some((worker.id?, worker.pid?)));
    let times = workers.filter_map(|(id, pid)| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((id, Duration::from_millis(ticks_of_child(&stat, status.pid)? * 1000 / per_second)))
    });
    times.collect()
}

/// Ticks of a process that is a child of `parent`. In another pid namespace, its number is that of somebody else here.
fn ticks_of_child(stat: &str, parent: u32) -> Option<u64> {
    // Behind its name, which can be anything: the state, the parent, and 9 fields later the times (proc(5)).
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(1);
    let is_child = fields.next()?.parse() == Ok(parent);
    let (user, system): (u64, u64) = (fields.nth(9)?.parse().ok()?, fields.next()?.parse().ok()?);
    is_child.then(|| user.saturating_add(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_of_own_children_are_read() {
        let stat = "12 (a ) b) S 7 12 12 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 3 0 99 0 0";
        assert_eq!(ticks_of_child(stat, 7), Some(281));
        assert_eq!(ticks_of_child(stat, 8), None);
        assert_eq!(ticks_of_child("nothing", 7), None);
    }
}
