//! Signals that are read from a descriptor instead of interrupting whatever runs.

use std::io;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Takes these signals, by number, from their usual handling; the descriptor does not block. To be called before there are
/// other threads, which inherit what is blocked.
pub(crate) fn divert(signals: impl IntoIterator<Item = i32>) -> io::Result<SignalFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: an empty set is written before anything is added to it.
    let mut set = unsafe {
        Errno::result(libc::sigemptyset(set.as_mut_ptr()))?;
        set.assume_init()
    };
    // The kernel's form, a bit a signal: libc leaves out 32 and 33, which it keeps for itself.
    let mut bits = 0_u64;
    for signal in signals {
        bits |= 1 << (signal - 1);
        // SAFETY: the set is initialised. A signal that libc keeps for itself is not added, and never read.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    // SAFETY: the kernel reads eight bytes.
    let blocked = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &bits, std::ptr::null_mut::<u64>(), size_of::<u64>())
    };
    Errno::result(blocked)?;
    // SAFETY: the set is initialised; only signals that the kernel knows are in it.
    let set = unsafe { SigSet::from_sigset_t_unchecked(set) };
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
