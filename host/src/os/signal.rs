//! Signals that are read from a descriptor instead of interrupting whatever runs.

use std::io;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What libc keeps for itself, to cancel threads and to change the user of all: both as good as never.
const LIBC_OWN: [i32; 2] = [32, 33];

/// Ignores a signal, also one that libc's own functions refuse to touch.
pub(crate) fn ignore(signal: i32) -> io::Result<()> {
    // The kernel's form: the handler, flags, a restorer and the mask, each of eight bytes at least.
    let action = [libc::SIG_IGN as u64, 0, 0, 0];
    // SAFETY: the kernel reads the action, which is as long as it expects; ignoring runs no code of ours.
    let set = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), std::ptr::null_mut::<u64>(), size_of::<u64>())
    };
    Errno::result(set)?;
    Ok(())
}

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
    // Libc takes its own two out of the mask again, when it starts its first thread. It asks for their handling only when it
    // needs them, which nothing here makes it do.
    for signal in LIBC_OWN.into_iter().filter(|signal| bits & 1 << (signal - 1) != 0) {
        ignore(signal)?;
    }
    // SAFETY: the set is initialised; only signals that the kernel knows are in it.
    let set = unsafe { SigSet::from_sigset_t_unchecked(set) };
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
