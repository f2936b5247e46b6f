//! Child processes: started clean, and followed by a descriptor until they have ended.
//!
//! A descriptor (`pidfd_open(2)`, Linux 5.3) tells of the end of this very process, whatever signal ended it and whoever else
//! reaps it, and a signal through it never meets a stranger that has the same number by now.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::os::resources;

/// One more than the highest signal.
const SIGNALS: libc::c_int = 65;

/// Lets what `command` starts begin as every program expects to: no signal blocked or ignored, standard streams and no other
/// descriptor, the limit on descriptors that this process itself was started with, a process group of its own. The umask, the
/// other limits and the niceness are those of this process.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    let descriptors = resources::first_descriptor_limit();
    command.process_group(0);
    // SAFETY: between fork and exec, the closure makes system calls alone; it neither allocates nor locks.
    unsafe { command.pre_exec(move || start_clean(descriptors)) }
}

/// Lets what `command` starts begin with no signal blocked or ignored, in the process group of this process: a build is
/// interrupted with whoever asked for it.
pub(crate) fn with_default_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec, the function makes system calls alone; it neither allocates nor locks.
    unsafe { command.pre_exec(default_signals) }
}

fn start_clean(descriptors: Option<(u64, u64)>) -> io::Result<()> {
    default_signals()?;
    if let Some((soft, hard)) = descriptors {
        // Somebody may have lowered it since.
        let hard = getrlimit(Resource::RLIMIT_NOFILE)?.1.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
    }
    // Ours are closed on exec anyway; this is for those that we were started with. Kernels before 5.11 do not know the flag.
    // SAFETY: descriptors are marked, none is closed here.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

fn default_signals() -> io::Result<()> {
    // The kernel's `struct sigaction`: all zeros is the default. Not by way of libc, which keeps 32 and 33 for itself, while
    // whoever started us may have ignored them.
    let default = [0_u64; 4];
    for signal in 1..SIGNALS {
        // SAFETY: the default runs no code of ours. For those that cannot be changed the kernel says so, which does no harm.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, size_of::<u64>()) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: the set is written before it is read, and no pointer outlives its call.
    Errno::result(unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    })?;
    Ok(())
}

/// Children that are not reaped yet, for [`reap_orphans`].
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn children() -> MutexGuard<'static, BTreeSet<i32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child process that leads a process group of its own. A task of its own reaps it, also when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    fd: Arc<AsyncFd<OwnedFd>>,
    end: watch::Receiver<Option<String>>,
}

impl Child {
    /// Starts it, see [`clean`]; beside it come the pipes that `command` asked for. To be called on the executor.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<(Self, std::process::Child)> {
        let mut child = clean(command).spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let fd = match open(pid) {
            Ok(fd) => Arc::new(fd),
            Err(error) => {
                // Nobody would learn of its end: it must not live.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        children().insert(pid.as_raw());
        let (tell, end) = watch::channel(None);
        tokio::spawn(follow(pid, fd.clone(), tell));
        Ok((Self { pid, fd, end }, child))
    }

    /// Resolves when it has ended: how. Can be called by many, and again.
    pub(crate) async fn end(&self) -> String {
        let mut end = self.end.clone();
        // The task that tells lives until it has told, or the whole executor ends.
        let told = end.wait_for(Option::is_some).await;
        told.ok().and_then(|how| how.clone()).unwrap_or_else(|| "has ended".into())
    }

    /// Kills it and all that it has started, unless that left its process group. To be called on the executor.
    pub(crate) fn kill_group(&self) {
        // Whoever reaps it says so on this executor before anything else runs there: until then, the number is its own.
        if self.end.borrow().is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }

    /// Sends it a signal; one that has ended does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        let fd = self.fd.get_ref().as_raw_fd();
        // SAFETY: a system call on an open descriptor; without further information about the signal, and without flags.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, std::ptr::null::<()>(), 0) };
    }
}

fn open(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: a system call with two numbers. The child is not reaped yet, so the number is its own.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel just made this descriptor, closed on exec, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    // SAFETY: an `OwnedFd` reports the same descriptor for life, and closes it only when it drops.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Whether children can be followed at all: older kernels, and sandboxes that are older than the call, refuse it.
pub(crate) fn can_be_followed() -> io::Result<()> {
    // SAFETY: a system call with two numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
    Ok(())
}

async fn follow(pid: Pid, fd: Arc<AsyncFd<OwnedFd>>, tell: watch::Sender<Option<String>>) {
    // The descriptor is readable from the child's end on. That waiting fails is not known to happen; the reaping tells.
    let _ = fd.readable().await;
    let how = reap(pid, fd.get_ref());
    children().remove(&pid.as_raw());
    tell.send_replace(Some(how));
}

/// Reaps a child that has ended; what it left in its process group dies with it.
fn reap(pid: Pid, fd: &OwnedFd) -> String {
    let id = fd.as_raw_fd().cast_unsigned();
    match wait(libc::P_PIDFD, id, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) {
        Ok(_) => {
            // While it is not reaped, its number and so its group's is nobody else's.
            let _ = killpg(pid, Signal::SIGKILL);
            let end = wait(libc::P_PIDFD, id, libc::WEXITED | libc::WNOHANG).ok().flatten();
            end.map_or_else(|| "has ended".into(), |end| end.how)
        }
        Err(errno) => format!("has ended; its exit status is not known ({errno})"),
    }
}

/// The end of a process.
struct ChildEnd {
    pid: Pid,
    how: String,
}

/// `waitid(2)`: unlike the wrappers around `waitpid`, it has a word for each of the 64 signals.
fn wait(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> nix::Result<Option<ChildEnd>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: the kernel writes to `info`, which lives through the call.
        match Errno::result(unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => break,
        }
    }
    // SAFETY: all zeros is a valid value, and after success it describes a child, or is still zero if none has ended.
    let (pid, code, status) = unsafe {
        let info = info.assume_init_ref();
        (info.si_pid(), info.si_code, info.si_status())
    };
    let how = || match code {
        libc::CLD_EXITED => format!("exited with code {status}"),
        _ => format!("was killed by {}", signal_name(status)),
    };
    Ok((pid != 0).then(|| ChildEnd { pid: Pid::from_raw(pid), how: how() }))
}

/// As people write it; real-time signals have numbers alone.
fn signal_name(number: libc::c_int) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.to_string())
}

/// Reaps children that nobody here started: process 1 of a container inherits orphans that are none of its business. To be
/// called again and again.
pub(crate) fn reap_orphans() {
    while let Ok(Some(ChildEnd { pid, .. })) = wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) {
        if children().contains(&pid.as_raw()) {
            // Its own task is about to do so. Who stands behind it is reaped when this is called again.
            return;
        }
        // It has ended, so this does not wait.
        let _ = wait(libc::P_PID, pid.as_raw().cast_unsigned(), libc::WEXITED | libc::WNOHANG);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use nix::sys::wait::waitpid;

    use super::*;

    async fn end(child: &Child) -> String {
        tokio::time::timeout(std::time::Duration::from_secs(60), child.end()).await.unwrap()
    }

    fn shell(script: &str) -> (Child, std::process::Child) {
        Child::spawn(Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).stdin(Stdio::null())).unwrap()
    }

    #[tokio::test]
    async fn every_end_is_told() {
        assert_eq!(end(&shell("exit 7").0).await, "exited with code 7");
        // What does not end a process, or only stops it, is left out.
        let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
        let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        for signal in (1..SIGNALS).filter(|signal| !harmless.contains(signal) && !stops.contains(signal)) {
            let (child, _) = Child::spawn(Command::new("sleep").arg("60").stdin(Stdio::null())).unwrap();
            // SAFETY: a signal for a child of ours that is not reaped.
            assert_eq!(unsafe { libc::kill(child.pid.as_raw(), signal) }, 0);
            let expected = format!("was killed by {}", signal_name(signal));
            let end = tokio::time::timeout(std::time::Duration::from_secs(20), child.end()).await;
            assert_eq!(end, Ok(expected), "signal {signal}");
        }
    }

    #[tokio::test]
    async fn an_end_that_somebody_else_was_told_is_noticed() {
        let (child, _) = shell("exit 0");
        waitpid(child.pid, None).unwrap();
        let how = end(&child).await;
        assert!(how.starts_with("has ended"), "{how}");
    }

    #[tokio::test]
    async fn what_a_child_started_dies_with_it() {
        let (child, mut std) = shell("sleep 60 & echo $!; kill -9 $$");
        let mut said = String::new();
        let stdout = std.stdout.as_mut().unwrap();
        let mut line = io::BufReader::new(stdout);
        io::BufRead::read_line(&mut line, &mut said).unwrap();
        assert_eq!(end(&child).await, "was killed by SIGKILL");
        // Its end of the pipe closes when it is gone.
        assert_eq!(io::Read::read(&mut line, &mut [0]).unwrap(), 0);
    }

    /// A blocked or ignored signal, or a descriptor, would show.
    #[tokio::test]
    async fn children_start_clean() {
        let mut blocked = nix::sys::signal::SigSet::empty();
        blocked.add(Signal::SIGUSR2);
        blocked.thread_block().unwrap();
        let leaked = std::fs::File::open("/").unwrap();
        // SAFETY: it is open, and this only lets children inherit it.
        unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) };
        let mut status = String::new();
        let (child, mut pipes) = shell("exec cat /proc/self/status");
        io::Read::read_to_string(pipes.stdout.as_mut().unwrap(), &mut status).unwrap();
        end(&child).await;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        for mask in ["SigBlk:", "SigIgn:"] {
            assert_eq!(field(mask), "0000000000000000", "{mask}");
        }
        assert_eq!(field("NSpgid:"), field("Pid:"));
        let mut descriptors = String::new();
        let (child, mut pipes) = shell("exec ls /proc/self/fd");
        io::Read::read_to_string(pipes.stdout.as_mut().unwrap(), &mut descriptors).unwrap();
        end(&child).await;
        // Standard streams, and the folder that is being listed.
        assert_eq!(descriptors, "0\n1\n2\n3\n");
    }
}
