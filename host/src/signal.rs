//! Signals that are read from a descriptor instead of interrupting whatever runs.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Takes these signals from their usual handling; the descriptor does not block. To be called before there are other
/// threads, which inherit what is blocked.
pub(crate) fn divert(signals: &[Signal]) -> io::Result<SignalFd> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
