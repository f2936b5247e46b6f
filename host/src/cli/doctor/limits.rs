//! How much of the machine this process may have, by its limits and its control groups.

use std::fs;
use std::thread;

use super::kernel::setting;
use super::{CheckResult, CheckVerdict};
use crate::os::cgroup::Allowance;
use crate::os::resources::{
    Shares, memory_of_this_machine, room_for_connections, room_for_threads, workers_for_this_machine,
};
use crate::settings::{DEFAULT_BACKLOG, DEFAULT_MAX_CONNECTIONS, size};

/// Threads of a worker, generously, and of what is not a worker.
const THREADS_EACH: u64 = 16;
/// Memory that each worker has on a machine on which nobody has to think of it, in bytes.
const EASY_MEMORY: u64 = 128 << 20;

pub(super) fn check() -> Vec<CheckResult> {
    let workers = workers_for_this_machine();
    let mut findings = vec![processors(workers), memory(workers)];
    findings.extend(oom_group());
    findings.extend(swap());
    findings.push(open_files());
    findings.push(threads(workers));
    findings.extend(backlog());
    findings
}

fn processors(workers: u32) -> CheckResult {
    let usable = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let quota = Allowance::of_this_process().cpus;
    let quota = quota.filter(|quota| *quota < usable as f64);
    let of = if usable == 1 { "1 processor".into() } else { format!("{usable} processors") };
    let of = quota.map_or(of.clone(), |quota| format!("{quota:.1} of {of}, by the control group,"));
    let started = if workers == 1 { "1 worker".into() } else { format!("{workers} workers") };
    let expected = quota.map_or(usable, |quota| quota as usize).max(1);
    if (workers as usize) < expected {
        return CheckResult::of(
            CheckVerdict::Warning,
            "processors",
            format!("{of} may be used, but there is memory for {started} only"),
            "give it more memory, or say --workers",
        );
    }
    CheckResult::ok("processors", format!("{of} may be used: `serve` starts {started}"))
}

fn memory(workers: u32) -> CheckResult {
    let memory = memory_of_this_machine();
    let whose = if Allowance::of_this_process().memory.is_some_and(|limit| limit <= memory) {
        "the control group has"
    } else {
        "the machine has"
    };
    let share = Shares::of(memory, workers).worker >> 20 << 20;
    let says =
        format!("{whose} {}, so the instances of each worker may have {}", size(memory >> 20 << 20), size(share));
    if share < EASY_MEMORY {
        return CheckResult::of(
            CheckVerdict::Note,
            "memory",
            says,
            "more memory, or fewer --workers, leaves more for each",
        );
    }
    CheckResult::ok("memory", says)
}

fn oom_group() -> Option<CheckResult> {
    Allowance::of_this_process().ends_as_one.then(|| {
        CheckResult::of(
            CheckVerdict::Warning,
            "control group",
            "memory.oom.group is set: when memory runs out, the kernel kills the whole cluster instead of one process",
            "set OOMPolicy=continue in the systemd unit",
        )
    })
}

fn swap() -> Option<CheckResult> {
    let areas = fs::read_to_string("/proc/swaps").ok()?;
    // The first line is a title.
    let is_there = areas.lines().count() > 1;
    (is_there && Allowance::of_this_process().swap != Some(0)).then(|| {
        CheckResult::of(
            CheckVerdict::Note,
            "swap",
            "the machine swaps: what guests hold may get to the disk, and workers that were idle answer late",
            "set MemorySwapMax=0 in the systemd unit, or swapoff, if either matters",
        )
    })
}

fn open_files() -> CheckResult {
    let Some((connections, files)) = room_for_connections() else {
        return CheckResult::of(
            CheckVerdict::Note,
            "open files",
            "the limit of open files cannot be read",
            "see `ulimit -Hn`",
        );
    };
    if connections >= DEFAULT_MAX_CONNECTIONS {
        return CheckResult::ok("open files", format!("a worker may open {files} files, enough for its connections"));
    }
    CheckResult::of(
        CheckVerdict::Warning,
        "open files",
        format!(
            "a worker may open only {files} files, so it takes at most {connections} connections, not \
             {DEFAULT_MAX_CONNECTIONS}"
        ),
        "raise the hard limit (ulimit -Hn, or LimitNOFILE= in systemd)",
    )
}

fn threads(workers: u32) -> CheckResult {
    let advice = "raise the limit (ulimit -u or LimitNPROC=, pids.max or TasksMax=), or say fewer --workers";
    if let Err(error) = thread::Builder::new().spawn(|| ()) {
        return CheckResult::of(CheckVerdict::Fault, "threads", format!("no thread can be started: {error}"), advice);
    }
    // One worker more takes the place of another, and there are helpers.
    let needed = (u64::from(workers) + 2) * THREADS_EACH;
    let of_user = room_for_threads().map(|allowed| (allowed, "this user"));
    let of_group = Allowance::of_this_process().tasks.map(|allowed| (allowed, "the control group"));
    match of_user.into_iter().chain(of_group).min() {
        None => CheckResult::ok("threads", "processes and threads are not limited"),
        Some((allowed, who)) if allowed >= needed => {
            CheckResult::ok("threads", format!("{who} may have {allowed} processes and threads"))
        }
        Some((allowed, who)) => CheckResult::of(
            CheckVerdict::Warning,
            "threads",
            format!("{who} may have only {allowed} processes and threads in all; a cluster takes up to {needed}"),
            advice,
        ),
    }
}

fn backlog() -> Option<CheckResult> {
    let queued = setting("net.core.somaxconn").filter(|queued| *queued < DEFAULT_BACKLOG as u64)?;
    Some(CheckResult::of(
        CheckVerdict::Note,
        "backlog",
        format!("the kernel queues {queued} connections for each address, not the {DEFAULT_BACKLOG} of --backlog"),
        "raise net.core.somaxconn with sysctl",
    ))
}
