//! What the kernel must be able to do, and what it may be able to: tried, as a version says little about a container.

use std::fs;

use crate::component::engine;
use crate::os::resources::address_space;
use crate::os::{child, memfd, pagemap};
use crate::settings::{MAX_INSTANCES, size};

use super::{CheckResult, CheckVerdict};

/// The settings of the kernel that limit what a process may map.
const OVERCOMMIT: &str = "vm.overcommit_memory";
const MAPPINGS: &str = "vm.max_map_count";
/// The kernel's own default: each instance in a pool splits a few mappings.
const MIN_MAPPINGS: u64 = 65_530;

pub(super) fn check() -> Vec<CheckResult> {
    let mut findings = vec![version(), processes(), sealed_files(), compiled_code(), reset()];
    findings.extend(mappings());
    findings
}

fn version() -> CheckResult {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match fs::read_link("/proc/self/exe") {
        Ok(_) => CheckResult::ok("kernel", format!("Linux {}", release.trim())),
        Err(error) => CheckResult::of(
            CheckVerdict::Fault,
            "kernel",
            format!("/proc cannot be read ({error}), from which workers are started"),
            "mount /proc",
        ),
    }
}

fn processes() -> CheckResult {
    match child::can_be_followed() {
        Ok(()) => CheckResult::ok("processes", "workers can be followed by descriptors (pidfd)"),
        Err(error) => CheckResult::of(
            CheckVerdict::Fault,
            "processes",
            format!("workers cannot be followed by descriptors, as pidfd_open fails: {error}"),
            "use Linux 5.4 or later, and a container runtime whose seccomp profile knows the call",
        ),
    }
}

fn sealed_files() -> CheckResult {
    match memfd::constant(c"wasmcluster-doctor", &b"sealed"[..]) {
        Ok(_) => CheckResult::ok("sealed files", "native code and settings can be handed on sealed (memfd)"),
        Err(error) => CheckResult::of(
            CheckVerdict::Fault,
            "sealed files",
            format!("memory cannot be sealed: {error}"),
            "allow memfd_create and F_ADD_SEALS in the sandbox that this runs in",
        ),
    }
}

/// Compiles and runs a small module as a worker would.
fn compiled_code() -> CheckResult {
    let limits = || {
        let read = |name: &str| setting(name).map_or("unknown".into(), |value| value.to_string());
        let mapped = address_space().map_or("unlimited".into(), size);
        format!(
            "what limits it is `ulimit -v` ({mapped}), {OVERCOMMIT} ({}), where 2 is strict, or {MAPPINGS} ({})",
            read(OVERCOMMIT),
            read(MAPPINGS)
        )
    };
    match engine::try_as_worker() {
        Ok(MAX_INSTANCES) => CheckResult::ok(
            "native code",
            format!("compiled code runs, and there is address space for {MAX_INSTANCES} instances in each worker"),
        ),
        Ok(0) => CheckResult::of(
            CheckVerdict::Warning,
            "native code",
            "there is no address space for a pool of instances; they are mapped on demand, which is slower",
            limits(),
        ),
        Ok(instances) => CheckResult::of(
            CheckVerdict::Warning,
            "native code",
            format!("there is address space for {instances} instances in each worker, not for {MAX_INSTANCES}"),
            limits(),
        ),
        Err(error) => CheckResult::of(
            CheckVerdict::Fault,
            "native code",
            format!("compiled code does not run: {error:#}"),
            match address_space() {
                Some(mapped) => format!("raise the limit of its addresses, `ulimit -v`, which is {}", size(mapped)),
                None => {
                    "allow memory to become executable (MemoryDenyWriteExecute= in systemd, SELinux's execmem)".into()
                }
            },
        ),
    }
}

fn reset() -> CheckResult {
    if pagemap::scan_is_safe() {
        return CheckResult::ok("memory reset", "only what an instance wrote is reset for the next (PAGEMAP_SCAN)");
    }
    CheckResult::of(
        CheckVerdict::Note,
        "memory reset",
        "the kernel does not tell which pages were written (PAGEMAP_SCAN), so a fresh instance costs up to twice as much",
        "use Linux 6.7 or later",
    )
}

fn mappings() -> Option<CheckResult> {
    let mappings = setting(MAPPINGS).filter(|mappings| *mappings < MIN_MAPPINGS)?;
    Some(CheckResult::of(
        CheckVerdict::Warning,
        "mappings",
        format!("a process may have only {mappings} mappings, and each instance takes some"),
        format!("set {MAPPINGS} to {MIN_MAPPINGS} or more with sysctl"),
    ))
}

/// A number that sysctl shows under this name.
pub(super) fn setting(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?.trim().parse().ok()
}
