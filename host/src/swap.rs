//! Whether this machine swaps, and what follows from that for the memory of guests.
//!
//! Wasmtime resets the memory of a dropped instance by asking the kernel which of its pages were written
//! (`PAGEMAP_SCAN`), and cleans those. It asks for pages that are present: one that was written and then swapped out is
//! not named, not cleaned, and comes back with all that it holds in the memory of another instance. So there is no scan
//! on a machine that swaps: the pages are given back to the kernel, which costs a fresh instance its page faults.
//!
//! What counts is the whole machine. A control group may forbid its processes to swap (`memory.swap.max`), but that can
//! be changed without a word to them; swap that is turned on is told to whoever polls `/proc/swaps`. Where it cannot be
//! known, there is swap.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, RawFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::dup3_raw;

const SWAPS: &str = "/proc/swaps";

/// Whether a page of this process may be swapped out.
pub(crate) fn is_on() -> bool {
    let total = nix::sys::sysinfo::sysinfo().map(|info| info.swap_total());
    // Not what a container is told of its own share, as `/proc/meminfo` may.
    !total.is_ok_and(|total| total == 0) || has_swap(fs::read_to_string(SWAPS))
}

/// What `/proc/swaps` says: a heading, and a line for each device or file.
fn has_swap(swaps: io::Result<String>) -> bool {
    match swaps {
        Ok(text) => !text.starts_with("Filename") || text.lines().count() > 1,
        // A kernel without swap has no such file.
        Err(error) => error.kind() != io::ErrorKind::NotFound || !Path::new("/proc/self").exists(),
    }
}

/// Hears of swap that is turned on.
pub(crate) struct Watch(Option<File>);

impl Watch {
    /// What happens from now on is heard.
    pub(crate) fn start() -> Self {
        Self(File::open(SWAPS).ok())
    }

    /// To be polled for priority: the kernel then has changed its list.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}

/// Lets no later reset of a memory rely on the scan: wasmtime's file for it becomes one that cannot be asked, and then
/// it cleans or gives back all pages. Whether there was such a file.
pub(crate) fn forgo_scan() -> io::Result<bool> {
    let Some(pagemap) = find_pagemap()? else { return Ok(false) };
    let nothing = OpenOptions::new().read(true).open("/dev/null")?;
    // SAFETY: the descriptor belongs to a file that wasmtime keeps open as long as the process lives, for the one
    // request; another thread finds either file there, and wasmtime itself replaces it so in a child of its process.
    let replaced = unsafe { dup3_raw(nothing, pagemap, OFlag::O_CLOEXEC) }?;
    // It is not ours to close.
    let _ = replaced.into_raw_fd();
    Ok(true)
}

fn find_pagemap() -> io::Result<Option<RawFd>> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let is_pagemap = fs::read_link(&path).is_ok_and(|target| target.ends_with("pagemap"));
        if is_pagemap && let Some(fd) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn swap_is_known_by_its_list() {
        const HEADING: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let check = |text: &str, expected| assert_eq!(has_swap(Ok(text.to_owned())), expected, "{text:?}");
        check(HEADING, false);
        check(&format!("{HEADING}/swap.img                               file\t\t8388604\t\t0\t\t-2\n"), true);
        check(&format!("{HEADING}/dev/zram0                              partition\t8388604\t\t1024\t\t100\n"), true);
        check(&format!("{HEADING}/dev/sda2\\040(deleted)               partition\t8388604\t\t0\t\t-2\n"), true);
        check("", true);
        check("something else\n", true);
        assert!(!has_swap(Err(ErrorKind::NotFound.into())), "a kernel without swap");
        assert!(has_swap(Err(ErrorKind::PermissionDenied.into())), "it cannot be known");
    }
}
