//! Programs under valgrind's callgrind, which counts what they execute.
//!
//! Wasmcluster's primary cannot run there, as valgrind does not know all of its system calls. So it runs by itself, and this
//! program follows it: what it executes as a worker is executed by valgrind instead, and so is its compiler, since code
//! must fit the CPU that valgrind shows.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::{ANYWHERE, output};

/// The argument that makes this program follow another: behind it a folder, a program and its arguments.
pub(crate) const COMMAND: &str = "follow";

/// The caches that are simulated: those that a core of today's servers has alone. Bytes, ways, bytes of a line.
const CACHES: [&str; 3] = ["--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64"];

/// What is counted, in one file for all of a process's threads.
const EVENTS: [&str; 9] = ["Ir", "Dr", "Dw", "I1mr", "D1mr", "D1mw", "ILmr", "DLmr", "DLmw"];

/// Where valgrind and this program leave files for each other.
pub(crate) struct Valgrind(PathBuf);

/// What a process did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Instructions, and those of them that callgrind finds in no file: code that was compiled from WebAssembly, and some that
    /// leads to shared libraries, which is less than one for each request.
    pub(crate) instructions: u64,
    pub(crate) in_guest: u64,
    /// Accesses that the first-level caches do not have, and those that the second level does not have either.
    pub(crate) first_level_misses: u64,
    pub(crate) second_level_misses: u64,
}

impl Valgrind {
    pub(crate) fn new(folder: PathBuf) -> Result<Self> {
        output(Command::new("valgrind").arg("--version"), ANYWHERE)
            .context("there is no valgrind: on Debian, apt-get install valgrind")?;
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            std::fs::remove_file(entry?.path())
                .context("there is something else in the folder for callgrind's files")?;
        }
        // Programs run in folders of their own.
        Ok(Self(folder.canonicalize()?))
    }

    /// The same command under valgrind, as itself or as what its workers are executed by.
    pub(crate) fn wrap(&self, command: &Command, is_ours: bool) -> Result<Command> {
        let mut wrapped = if is_ours {
            let mut follow = Command::new(std::env::current_exe()?);
            follow.arg(COMMAND).arg(&self.0);
            follow
        } else {
            let mut valgrind = Command::new("valgrind");
            valgrind.args(self.counting());
            valgrind
        };
        wrapped.arg(command.get_program()).args(command.get_args()).env_remove("VALGRIND_OPTS");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        Ok(wrapped)
    }

    fn counting(&self) -> Vec<String> {
        let files = [("--callgrind-out-file", "counts"), ("--log-file", "log")];
        let files = files.map(|(flag, name)| format!("{flag}={}", self.0.join(name).display()));
        // Nothing is counted until somebody asks for it: what comes before is ten times faster.
        let flags = ["--tool=callgrind", "--instr-atstart=no", "--cache-sim=yes"].into_iter().chain(CACHES);
        flags.map(String::from).chain(files).collect()
    }

    fn translating(&self) -> Vec<String> {
        vec!["--tool=none".into(), "--vgdb=no".into(), format!("--log-file={}", self.0.join("compiler.log").display())]
    }

    fn pid_file(&self) -> PathBuf {
        self.0.join("worker")
    }

    /// The last worker that was executed.
    pub(crate) fn worker(&self) -> Result<u32> {
        let number = std::fs::read_to_string(self.pid_file()).context("no worker was executed under valgrind")?;
        number.parse().context("reading the number of a process")
    }

    /// What this process does while something else is done. `settle` is done once before, with the counting on.
    pub(crate) fn count(
        &self,
        pid: u32,
        settle: impl FnOnce() -> Result<()>,
        what: impl FnOnce() -> Result<()>,
    ) -> Result<Counts> {
        let tell = |words: &[&str]| {
            // It tells each time what it sends.
            let mut command = Command::new("vgdb");
            command.arg(format!("--pid={pid}")).args(words).stderr(Stdio::null());
            output(&mut command, ANYWHERE).with_context(|| format!("telling valgrind: {}", words.join(" ")))
        };
        tell(&["instrumentation", "on"])?;
        settle()?;
        tell(&["zero"])?;
        what()?;
        tell(&["dump"])?;
        tell(&["instrumentation", "off"])?;
        let file = self.0.join("counts.1");
        Counts::read(&std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?)
    }
}

impl Counts {
    /// Of a file in callgrind's format, as its manual describes it: `ob=` names the file that the next lines are about; each line of
    /// costs begins with a position; and the line behind `calls=` has costs that are another's.
    fn read(text: &str) -> Result<Self> {
        let mut counts = Self::default();
        let (mut known, mut is_guest, mut is_of_others) = (std::collections::HashMap::new(), false, false);
        for line in text.lines() {
            if let Some(events) = line.strip_prefix("events: ") {
                ensure!(events.split(' ').eq(EVENTS), "callgrind counts other events: {events}");
            } else if let Some(positions) = line.strip_prefix("positions: ") {
                ensure!(positions == "line", "callgrind tells other positions: {positions}");
            } else if let Some(object) = line.strip_prefix("ob=") {
                // A name is told once, behind its number.
                let (number, name) =
                    object.split_once(' ').map_or((object, None), |(number, name)| (number, Some(name)));
                if let Some(name) = name {
                    known.insert(number, name == "???");
                }
                is_guest = known.get(number).copied().unwrap_or_default();
            } else if let Some(called) = line.strip_prefix("cob=") {
                if let Some((number, name)) = called.split_once(' ') {
                    known.insert(number, name == "???");
                }
            } else if line.starts_with("calls=") {
                is_of_others = true;
            } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first))
                && !std::mem::take(&mut is_of_others)
            {
                counts.add(line, is_guest)?;
            }
        }
        ensure!(counts.instructions > 0, "callgrind counted nothing");
        Ok(counts)
    }

    /// Zeros at the end of a line are left out.
    fn add(&mut self, line: &str, is_guest: bool) -> Result<()> {
        let mut costs = [0; EVENTS.len()];
        for (cost, word) in costs.iter_mut().zip(line.split_ascii_whitespace().skip(1)) {
            *cost = word.parse().with_context(|| format!("reading {line:?}"))?;
        }
        let [instructions, _, _, first @ .., i, r, w] = costs;
        self.instructions += instructions;
        self.in_guest += if is_guest { instructions } else { 0 };
        self.first_level_misses += first.iter().sum::<u64>();
        self.second_level_misses += i + r + w;
        Ok(())
    }
}

/// Runs a program, and has valgrind execute its workers and compilers. Ends as it does.
pub(crate) fn follow(folder: &Path, program: &[String]) -> Result<i32> {
    let (valgrind, paths) = (Valgrind(folder.to_owned()), std::env::var_os("PATH").unwrap_or_default());
    let found = std::env::split_paths(&paths).map(|folder| folder.join("valgrind")).find(|file| file.is_file());
    let itself =
        found.and_then(|file| file.into_os_string().into_string().ok()).context("valgrind is not on the PATH")?;
    let (name, arguments) = program.split_first().context("there is no program to follow")?;
    let mut command = Command::new(name);
    trace::follow(command.args(arguments), |executed, pid| {
        let tool = match executed.get(1).map(String::as_str) {
            Some("worker") => {
                std::fs::write(valgrind.pid_file(), pid.to_string())?;
                valgrind.counting()
            }
            Some("compiler") => valgrind.translating(),
            _ => return Ok(None),
        };
        let valgrind = [itself.clone()].into_iter().chain(tool).chain([name.clone()]);
        Ok(Some(valgrind.chain(executed[1..].iter().cloned()).collect()))
    })
}

#[cfg(target_arch = "x86_64")]
mod trace {
    //! Has a process execute something else than what it was about to, by ptrace(2).

    use std::process::{Child, Command};

    use anyhow::{Context, Result, ensure};
    use nix::errno::Errno;
    use nix::libc::{PTRACE_EVENT_EXEC, user_regs_struct};
    use nix::sys::ptrace::{self, AddressType, Options};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    const WORD: usize = size_of::<u64>();
    /// How far below the stack the new arguments are put: further than what is used there.
    const BELOW: u64 = 64 * 1024;
    /// `mov $59, %eax; syscall; ud2`: execve, of what the registers point to, or an end.
    const EXECVE: [u8; 9] = [0xb8, 59, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x0b];
    /// Stops, so that nothing happens before it is followed, and becomes what is behind.
    const STOPPED: &str = "kill -STOP $$; exec \"$@\"";

    /// `instead` is asked of each child's command line, and tells what it executes in place of that.
    pub(super) fn follow(
        command: &Command,
        instead: impl Fn(&[String], Pid) -> Result<Option<Vec<String>>>,
    ) -> Result<i32> {
        let mut stopped = Command::new("sh");
        stopped.args(["-c", STOPPED, "sh"]).arg(command.get_program()).args(command.get_args());
        let mut child = stopped.spawn().with_context(|| format!("starting {stopped:?}"))?;
        let followed = follow_child(&child, instead);
        if followed.is_err() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        followed
    }

    fn follow_child(child: &Child, instead: impl Fn(&[String], Pid) -> Result<Option<Vec<String>>>) -> Result<i32> {
        let root = Pid::from_raw(child.id().cast_signed());
        let begun = waitpid(root, Some(WaitPidFlag::WUNTRACED))?;
        ensure!(matches!(begun, WaitStatus::Stopped(_, Signal::SIGSTOP)), "it does not start: {begun:?}");
        // Its threads, and what they start, are followed as it is, and end with this process.
        let options = [
            Options::PTRACE_O_EXITKILL,
            Options::PTRACE_O_TRACECLONE,
            Options::PTRACE_O_TRACEEXEC,
            Options::PTRACE_O_TRACEFORK,
            Options::PTRACE_O_TRACEVFORK,
        ];
        ptrace::seize(root, options.into_iter().collect()).context("following a process")?;
        kill(root, Signal::SIGCONT)?;
        loop {
            // Whoever has ended meanwhile cannot be told to go on.
            let gone = |result: nix::Result<()>| if result == Err(Errno::ESRCH) { Ok(()) } else { result };
            match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))? {
                WaitStatus::PtraceEvent(pid, _, PTRACE_EVENT_EXEC) if pid != root => {
                    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
                    let words: Vec<String> = line.split_terminator('\0').map(String::from).collect();
                    if let Some(words) = instead(&words, pid)? {
                        execute(pid, &words)?;
                    }
                    gone(ptrace::detach(pid, None))?;
                }
                WaitStatus::PtraceEvent(pid, ..) => gone(ptrace::cont(pid, None))?,
                WaitStatus::Stopped(pid, signal) => gone(ptrace::cont(pid, signal))?,
                WaitStatus::Exited(pid, code) if pid == root => return Ok(code),
                WaitStatus::Signaled(pid, signal, _) if pid == root => return Ok(128 + signal as i32),
                _ => {}
            }
        }
    }

    /// The process, which stands before its first instruction, executes this with the environment that it has.
    fn execute(pid: Pid, words: &[String]) -> Result<()> {
        let mut registers = ptrace::getregs(pid)?;
        // What a program finds on its stack: a number, its arguments, a null, its environment.
        let arguments = ptrace::read(pid, registers.rsp as AddressType)?.cast_unsigned();
        let environment = registers.rsp + (arguments + 2) * WORD as u64;
        let mut free = (registers.rsp - BELOW) & !15;
        let mut pointers = Vec::new();
        for word in words {
            pointers.push(free);
            free = put(pid, free, &[word.as_bytes(), &[0]].concat())?;
        }
        pointers.push(0);
        let list: Vec<u8> = pointers.iter().flat_map(|pointer| pointer.to_ne_bytes()).collect();
        put(pid, free, &list)?;
        put(pid, registers.rip, &EXECVE)?;
        registers = user_regs_struct { rdi: pointers[0], rsi: free, rdx: environment, ..registers };
        Ok(ptrace::setregs(pid, registers)?)
    }

    /// Writes words, the last of them filled up with zeros, and returns what comes behind them.
    fn put(pid: Pid, mut at: u64, bytes: &[u8]) -> Result<u64> {
        for chunk in bytes.chunks(WORD) {
            let mut word = [0; WORD];
            word[..chunk.len()].copy_from_slice(chunk);
            ptrace::write(pid, at as AddressType, i64::from_ne_bytes(word))?;
            at += WORD as u64;
        }
        Ok(at)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod trace {
    use std::process::Command;

    use anyhow::{Result, bail};
    use nix::unistd::Pid;

    pub(super) fn follow(_: &Command, _: impl Fn(&[String], Pid) -> Result<Option<Vec<String>>>) -> Result<i32> {
        bail!("programs are followed on x86-64 only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_added_up_by_where_code_comes_from() {
        let text = "events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\nsummary: 1\n\nob=(1) /bin/server\nfl=(1) a.rs\nfn=(1) main\n\
                    12 100 7 7 1 2 3 4 5 6\n+3 10\ncob=(2) ???\ncfn=(2) 0x1\ncalls=1 0\n* 1000 9 9 9 9 9 9 9 9\n\
                    ob=(2)\nfn=(2)\n0 50\nob=(1)\nfn=(3) other\n-3 1\n";
        let counts = Counts::read(text).unwrap();
        let expected = Counts { instructions: 161, in_guest: 50, first_level_misses: 6, second_level_misses: 15 };
        assert_eq!(counts, expected);
        assert!(Counts::read("events: Ir\n0 1\n").is_err());
        assert!(Counts::read("").is_err());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_child_executes_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let script = format!("HIDDEN=shown sh -c 'exit 3' sh a; echo $? >{}; exit 4", said.display());
        let mut command = Command::new("sh");
        let code = trace::follow(command.args(["-c", &script]), |words, _| {
            let is_it = words == ["sh", "-c", "exit 3", "sh", "a"];
            let instead = ["/bin/sh", "-c", "test $HIDDEN = shown && exit 5"].map(String::from).into();
            Ok(is_it.then_some(instead))
        });
        if let Err(error) = &code
            && error.downcast_ref() == Some(&nix::errno::Errno::EPERM)
        {
            return println!("skipped: nothing may be followed here: {error:#}");
        }
        assert_eq!(code.unwrap(), 4);
        assert_eq!(std::fs::read_to_string(said).unwrap(), "5\n");
    }
}
