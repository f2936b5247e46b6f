//! The signals that a primary acts on, read from a descriptor: so it is known who sent them.

use std::io;

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::signalfd::SignalFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::supervisor::Haste;
use crate::os::signal::divert;

/// What stops a process, or tells of a mistake in this very instruction, keeps its usual handling. All others are taken: a
/// stray signal whose default is to end a process must not end a cluster.
const LEFT_ALONE: [i32; 10] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGCONT,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGTSTP,
    libc::SIGURG,
];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalRequest {
    /// Children have ended, or were stopped or continued.
    LookAfterChildren,
    Stop(Haste),
    /// The terminal is gone: stop, but being told so twice, as happens, is no haste.
    Hangup,
    Reload,
    /// Files of logs were moved away.
    ReopenLogs,
    /// One worker more.
    Grow,
    /// One worker fewer.
    Shrink,
}

/// The descriptor. Of several equal signals that come close together only one may be seen, as is usual.
#[derive(Debug)]
pub(super) struct Signals {
    fd: AsyncFd<SignalFd>,
    hangup: Option<SignalRequest>,
}

/// Signals that are held back until there is an executor.
#[derive(Debug)]
pub(super) struct Taken {
    fd: SignalFd,
    hangup: Option<SignalRequest>,
}

impl Taken {
    /// To be called on the executor.
    pub(super) fn listen(self) -> io::Result<Signals> {
        // SAFETY: a `SignalFd` owns its descriptor, reports the same one for life, and closes it only when it drops.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd, Interest::READABLE) };
        Ok(Signals { fd: fd.map_err(io::Error::from)?, hangup: self.hangup })
    }
}

/// Keeps signals from ending this process, to be understood once there is an executor. Not undone.
pub(crate) fn hold_signals() -> io::Result<SignalFd> {
    // Whoever started us may have ignored it, which we would inherit: ended children would vanish unseen.
    // SAFETY: the default runs no code of ours.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    divert((1..=64).filter(|signal| !LEFT_ALONE.contains(signal)))
}

impl Signals {
    /// Takes the signals from their usual handling. To be called before there are other threads, which inherit what is
    /// blocked.
    pub(super) fn take() -> io::Result<Taken> {
        let hangup = meaning_of_hangup();
        Ok(Taken { fd: hold_signals()?, hangup })
    }

    /// Ends when the process is to end; whatever else is asked for is forgotten.
    pub(super) async fn until_stop(&mut self) -> io::Result<()> {
        while !matches!(self.next().await?, SignalRequest::Stop(_) | SignalRequest::Hangup) {}
        Ok(())
    }

    /// The next request. Can be dropped and called again without loss.
    pub(super) async fn next(&mut self) -> io::Result<SignalRequest> {
        loop {
            let mut ready = self.fd.readable_mut().await?;
            match ready.get_inner().read_signal()? {
                Some(signal) => {
                    if let Some(request) = understand(signal.ssi_signo, signal.ssi_code, self.hangup) {
                        return Ok(request);
                    }
                }
                None => ready.clear_ready(),
            }
        }
    }
}

/// What SIGHUP asks for: of a process that was started from a terminal, to stop, for its terminal is gone, unless it was
/// told to ignore that (`nohup`); of any other, a reload. It must be known beforehand: the terminal goes before the signal.
fn meaning_of_hangup() -> Option<SignalRequest> {
    if std::fs::File::open("/dev/tty").is_err() {
        return Some(SignalRequest::Reload);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = ignored.unwrap_or(0) & 1 << (Signal::SIGHUP as u32 - 1) != 0;
    (!is_ignored).then_some(SignalRequest::Hangup)
}

fn understand(number: u32, code: i32, hangup: Option<SignalRequest>) -> Option<SignalRequest> {
    // The kernel's own codes are positive: a terminal that wants a background process to wait is no wish for workers.
    let by_process = code <= 0;
    let Ok(signal) = Signal::try_from(number as i32) else {
        tracing::debug!("ignored signal {number}");
        return None;
    };
    match signal {
        Signal::SIGCHLD => Some(SignalRequest::LookAfterChildren),
        Signal::SIGHUP => hangup,
        Signal::SIGUSR1 => Some(SignalRequest::ReopenLogs),
        Signal::SIGUSR2 => Some(SignalRequest::Reload),
        Signal::SIGINT | Signal::SIGTERM => Some(SignalRequest::Stop(Haste::Drain)),
        Signal::SIGQUIT => Some(SignalRequest::Stop(Haste::Now)),
        Signal::SIGTTIN if by_process => Some(SignalRequest::Grow),
        Signal::SIGTTOU if by_process => Some(SignalRequest::Shrink),
        other => {
            tracing::debug!("ignored {other}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::libc::{SI_KERNEL, SI_QUEUE, SI_USER};

    use super::*;

    #[test]
    fn what_the_terminal_sends_changes_no_workers() {
        for (signal, code, expected) in [
            (Signal::SIGTTIN, SI_USER, Some(SignalRequest::Grow)),
            (Signal::SIGTTOU, SI_QUEUE, Some(SignalRequest::Shrink)),
            (Signal::SIGTTIN, SI_KERNEL, None),
            (Signal::SIGTTOU, SI_KERNEL, None),
            (Signal::SIGINT, SI_KERNEL, Some(SignalRequest::Stop(Haste::Drain))),
            (Signal::SIGQUIT, SI_USER, Some(SignalRequest::Stop(Haste::Now))),
        ] {
            assert_eq!(understand(signal as u32, code, None), expected, "{signal} with code {code}");
        }
    }
}
