//! How the memory of a dropped instance is reset: so that no other instance sees any of it.
//!
//! Wasmtime asks the kernel which pages were written (`PAGEMAP_SCAN`), and cleans those; that halves what a fresh instance
//! costs. But it asks for pages that were written *and* are present. A page that was swapped out is not, nor is one that
//! the kernel is just moving (compaction, balancing between nodes, a huge page that is split): its entry in the page table
//! then says where it will be found. Such a page is not named, not cleaned, and comes back with all that it holds in the
//! memory of the next instance. Under compaction that was seen in half of 255 scans of 65,536
//! pages each; with what is done here, in none.
//!
//! The question has to be for pages that were written and are present or "swapped", which is what the kernel calls all that
//! it has elsewhere. Wasmtime has no setting for it, and every other way costs twice as
//! much: hence its calls go through [`ioctl`] here (rustix calls libc's with its feature `use-libc`, and a program's own
//! symbol comes before that of a library). If they do not, which [`scan_is_safe`] finds out, there is no scan.
//!
//! A second thing is put right on the way. Wasmtime keeps so many pages of a memory wherever they are in it; but of a memory
//! that has become larger than it began, the next instance has, and resets, only the beginning. Pages beyond that
//! would stay for ever, more with each instance that grows to another size. So the scan ends where that many pages end:
//! what is behind is given back to the kernel by wasmtime, and what stays of a memory is bounded, in its first pages.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use rustix::param::page_size;
use wasmtime::PoolingAllocationConfig;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<ScanArgument>() as u32) << 16 | (b'f' as u32) << 8 | 16;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// A scan of wasmtime's came by.
static IS_ASKED_HERE: AtomicBool = AtomicBool::new(false);

/// Whether instances may be reset by the scan: the kernel has it, and is asked the right question.
pub(crate) fn scan_is_safe() -> bool {
    // It tries one.
    PoolingAllocationConfig::is_pagemap_scan_available() && IS_ASKED_HERE.load(Ordering::Relaxed)
}

/// Keeps the kernel from merging equal pages of this process, which a service manager can ask for: a page that a guest
/// filled with zeros would become the page of zeros, which the scan takes for one that was never written.
pub(crate) fn forgo_merging() {
    // SAFETY: sets a flag of this process, and touches no memory. Kernels without it say so, and then do not merge.
    unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, 0, 0, 0, 0) };
}

/// The system call, but that a scan for written pages finds those that are not present too, and is bounded. All of this process comes by
/// here, from any thread; it blocks as long as the call does.
///
/// # Safety
///
/// As the system call: `argument` must be what `request` takes.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // Where libc takes an `int`, the upper half is undefined.
    let request = request as u32;
    if request == PAGEMAP_SCAN {
        // SAFETY: the request says what the argument is, and nobody else has it during the call.
        put_right(unsafe { &mut *argument.cast::<ScanArgument>() });
        IS_ASKED_HERE.store(true, Ordering::Relaxed);
    }
    // SAFETY: passed on as it came.
    let result: c_long = unsafe { libc::syscall(libc::SYS_ioctl, fd, c_ulong::from(request), argument) };
    // It is an `int` in the kernel.
    result as c_int
}

fn put_right(scan: &mut ScanArgument) {
    if scan.category_mask & PAGE_IS_WRITTEN == 0 || scan.category_inverted & PAGE_IS_PRESENT != 0 {
        return;
    }
    scan.category_mask &= !PAGE_IS_PRESENT;
    // Without either, pages that were never touched would be meant too.
    scan.category_anyof_mask |= PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    // Zero is no limit.
    if let Some(pages) = NonZeroU64::new(scan.max_pages) {
        scan.end = scan.end.min(scan.start.saturating_add(pages.get().saturating_mul(page_size() as u64)));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;
    use std::thread;

    use super::*;

    /// What wasmtime asks for: written and present, neither a file's nor the page of zeros.
    const FILE: u64 = 1 << 2;
    const ZERO: u64 = 1 << 5;
    const MASK: u64 = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | FILE | ZERO;

    /// Private memory of this process, without huge pages.
    struct Memory(*mut u8, usize);

    impl Memory {
        fn new(len: usize) -> Self {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
            // SAFETY: a mapping of its own.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            let memory = Self(start.cast(), len);
            memory.advise(0, len, libc::MADV_NOHUGEPAGE).unwrap();
            memory
        }

        fn advise(&self, from: usize, len: usize, advice: c_int) -> std::io::Result<()> {
            assert!(from + len <= self.1);
            // SAFETY: within the mapping, to which there are no references.
            let failed = unsafe { libc::madvise(self.0.add(from).cast(), len, advice) };
            if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        }

        fn write(&self, page: usize) {
            assert!((page + 1) * page_size() <= self.1);
            // SAFETY: within the mapping.
            unsafe { self.0.add(page * page_size()).write_volatile(1) };
        }

        /// How many pages the scan finds, by way of [`ioctl`] or straight.
        fn scan(&self, call: impl Fn(c_int, &mut ScanArgument) -> c_long) -> usize {
            let pagemap = File::open("/proc/self/pagemap").unwrap();
            let mut regions = vec![[0_u64; 3]; self.1 / page_size()];
            let mut scan = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: self.0 as u64,
                end: self.0 as u64 + self.1 as u64,
                regions: regions.as_mut_ptr() as u64,
                regions_len: regions.len() as u64,
                category_inverted: FILE | ZERO,
                category_mask: MASK,
                ..ScanArgument::default()
            };
            let found = call(pagemap.as_raw_fd(), &mut scan);
            let found = usize::try_from(found).unwrap_or_else(|_| panic!("{}", std::io::Error::last_os_error()));
            regions[..found].iter().map(|[start, end, _]| (end - start) as usize / page_size()).sum()
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's own.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }

    fn ours(fd: c_int, scan: &mut ScanArgument) -> c_long {
        // SAFETY: the argument of this request, with room for the regions.
        c_long::from(unsafe { ioctl(fd, c_ulong::from(PAGEMAP_SCAN), std::ptr::from_mut(scan).cast()) })
    }

    fn as_wasmtime_means_it(fd: c_int, scan: &mut ScanArgument) -> c_long {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_ioctl, fd, c_ulong::from(PAGEMAP_SCAN), scan) }
    }

    /// Before Linux 6.7 there is nothing to test.
    fn is_there() -> bool {
        PoolingAllocationConfig::is_pagemap_scan_available()
    }

    #[test]
    fn wasmtime_asks_for_written_pages_by_way_of_us() {
        assert!(!is_there() || scan_is_safe());
    }

    #[test]
    fn written_pages_are_found_and_no_others() {
        if !is_there() {
            return;
        }
        let memory = Memory::new(64 * page_size());
        assert_eq!(memory.scan(ours), 0);
        memory.write(1);
        memory.write(40);
        // SAFETY: within the mapping.
        unsafe { memory.0.add(7 * page_size()).read_volatile() };
        assert_eq!(memory.scan(ours), 2);
    }

    /// What stays of a memory is in its first pages, so that none is forgotten where the next instance has no memory.
    #[test]
    fn a_scan_ends_where_what_may_stay_ends() {
        if !is_there() {
            return;
        }
        let memory = Memory::new(64 * page_size());
        [1, 7, 8, 40].into_iter().for_each(|page| memory.write(page));
        let found = memory.scan(|fd, scan| {
            scan.max_pages = 8;
            let found = ours(fd, scan);
            assert_eq!(scan.walk_end, scan.start + 8 * page_size() as u64);
            found
        });
        assert_eq!(found, 2);
    }

    #[test]
    #[ignore = "compacts the memory of the whole machine, for which it has to be root"]
    fn written_pages_are_found_while_the_kernel_moves_them() {
        const PAGES: usize = 16 * 1024;
        const EVERY: usize = 64;
        let mut missed = 0;
        for _ in 0..20 {
            // With gaps, so that there is something to move.
            let memory = Memory::new(PAGES * EVERY * page_size());
            (0..PAGES * EVERY).for_each(|page| memory.write(page));
            for page in (0..PAGES * EVERY).step_by(EVERY) {
                memory.advise((page + 1) * page_size(), (EVERY - 1) * page_size(), libc::MADV_DONTNEED).unwrap();
            }
            let moving = thread::spawn(|| fs::write("/proc/sys/vm/compact_memory", "1").unwrap());
            while !moving.is_finished() {
                assert_eq!(memory.scan(ours), PAGES);
                missed += PAGES - memory.scan(as_wasmtime_means_it);
            }
            moving.join().unwrap();
        }
        assert!(missed > 0, "nothing was moved while it was looked for: the test shows nothing");
    }
}
