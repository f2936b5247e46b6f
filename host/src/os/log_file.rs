//! A file that lines are appended to by many processes: each hands over its lines to a thread of its own, which writes
//! several at once. Nobody waits for a disk: what does not fit in memory meanwhile is lost, and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Bytes that wait to be written; what comes on top is lost.
const MAX_WAITING: usize = 1 << 20;
/// Bytes that are written without waiting for more: at full speed, what comes within [`WRITE_WITHIN`] would not fit.
const WRITE_AT: usize = 32 * 1024;
/// How long lines may wait for others to be written together with.
const WRITE_WITHIN: Duration = Duration::from_millis(50);
/// As many bytes as go into a pipe whole, whoever else writes into it; a file takes more.
const MAX_PIECE_OF_PIPE: usize = 4096;
const MAX_PIECE_OF_FILE: usize = 256 * 1024;
/// How often it is looked whether a file is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the end may take.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(1);

/// Opens the file, so that what is written to it comes at its end; it is made if it is not there.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Without waiting for a reader, should it be a pipe.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().append(true).create(true).mode(0o640).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // Whoever writes has a thread that may wait.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// Opens a file again when it is no longer at its path, or somebody asks for that.
#[derive(Debug)]
pub(crate) struct Rotation {
    is_asked: Arc<AtomicBool>,
}

impl Rotation {
    /// Looks after the file at this path, on a thread of its own, until it is dropped. `opened` gets it each time that it was
    /// opened again; that it cannot be opened, it hears once.
    pub(crate) fn watch(
        path: PathBuf,
        mut watched: File,
        mut opened: impl FnMut(io::Result<File>) + Send + 'static,
    ) -> io::Result<Self> {
        let is_asked = Arc::<AtomicBool>::default();
        let asked = Arc::downgrade(&is_asked);
        // A file system that hangs keeps this thread, and nobody else.
        std::thread::Builder::new().name("rotation".into()).spawn(move || {
            let mut has_failed = false;
            loop {
                std::thread::sleep(LOOK_EVERY);
                let Some(asked) = asked.upgrade() else { return };
                if !asked.swap(false, Ordering::Relaxed) && is_in_place(&watched, &path) {
                    continue;
                }
                let again = open(&path).and_then(|file| {
                    watched = file.try_clone()?;
                    Ok(file)
                });
                if !std::mem::replace(&mut has_failed, again.is_err()) || again.is_ok() {
                    opened(again);
                }
            }
        })?;
        Ok(Self { is_asked })
    }

    /// Has it opened again, whether it is there or not.
    pub(crate) fn ask(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }
}

/// Whether the path leads to the file, and not to another or none, as after a rotation.
fn is_in_place(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        (Err(_), _) => true,
    }
}

/// The way to the thread that writes.
#[derive(Debug)]
pub(crate) struct LogFile {
    shared: Arc<SharedLog>,
    /// Its end says that the thread has ended.
    ended: Mutex<std::sync::mpsc::Receiver<std::convert::Infallible>>,
}

#[derive(Debug)]
struct SharedLog {
    waiting: Mutex<WaitingLines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WaitingLines {
    bytes: Vec<u8>,
    /// In whose place the file is that is written to from now on.
    next: Option<File>,
    is_over: bool,
}

impl SharedLog {
    fn lock(&self) -> MutexGuard<'_, WaitingLines> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogFile {
    /// Starts the thread. `failed` is told of lines that could not be written.
    pub(crate) fn start(file: OwnedFd, failed: impl Fn(u64, io::Error) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(SharedLog { waiting: Mutex::default(), changed: Condvar::new() });
        let (end, ended) = std::sync::mpsc::channel();
        let work = shared.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            write_all(&work, file.into(), failed);
            drop(end);
        })?;
        Ok(Self { shared, ended: Mutex::new(ended) })
    }

    /// Takes a line, its end included. False if there is no room for it: it is lost.
    pub(crate) fn write(&self, line: &[u8]) -> bool {
        let mut waiting = self.shared.lock();
        if waiting.bytes.len() + line.len() > MAX_WAITING {
            return false;
        }
        let before = waiting.bytes.len();
        waiting.bytes.extend_from_slice(line);
        let now = waiting.bytes.len();
        drop(waiting);
        if before == 0 || (before < WRITE_AT && now >= WRITE_AT) {
            self.shared.changed.notify_one();
        }
        true
    }

    /// Writes to another file from now on.
    pub(crate) fn reopen(&self, file: OwnedFd) {
        // What it replaces is closed by nobody who holds the lock: that may take long.
        let unused = self.shared.lock().next.replace(file.into());
        self.shared.changed.notify_one();
        drop(unused);
    }
}

impl LogFile {
    /// Has everything written that was taken, if that does not take too long.
    pub(crate) fn finish(&self, within: Duration) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_one();
        // Nothing is ever sent: the answer is that nobody could any more, or that it takes too long.
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(within);
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.finish(END_WITHIN);
    }
}

fn write_all(shared: &SharedLog, mut file: File, failed: impl Fn(u64, io::Error)) {
    let (mut lines, mut is_torn) = (Vec::new(), false);
    let mut max_piece = max_piece_of(&file);
    loop {
        let mut waiting = shared.lock();
        while waiting.bytes.is_empty() && waiting.next.is_none() && !waiting.is_over {
            waiting = shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let waits = |waiting: &mut WaitingLines| waiting.bytes.len() < WRITE_AT && !waiting.is_over;
        let (mut waiting, _) =
            shared.changed.wait_timeout_while(waiting, WRITE_WITHIN, waits).unwrap_or_else(PoisonError::into_inner);
        let is_over = waiting.is_over;
        std::mem::swap(&mut lines, &mut waiting.bytes);
        let next = waiting.next.take();
        drop(waiting);
        if let Some(next) = next {
            (file, is_torn) = (next, false);
            max_piece = max_piece_of(&file);
        }
        let mut rest = &lines[..];
        while let Some(piece) = next_piece(&mut rest, max_piece) {
            // What comes after a line that was cut short begins a line of its own.
            let begins = if is_torn { file.write_all(b"\n") } else { Ok(()) };
            match begins.map_err(|error| (0, error)).and_then(|()| write_piece(&mut file, piece)) {
                Ok(()) => is_torn = false,
                Err((written, error)) => {
                    is_torn |= written > 0 && piece[written - 1] != b'\n';
                    failed(piece[written..].iter().filter(|&&byte| byte == b'\n').count() as u64, error);
                }
            }
        }
        lines.clear();
        if is_over {
            return;
        }
    }
}

/// What is written at once goes into a file whole, as others cannot write meanwhile.
fn max_piece_of(file: &File) -> usize {
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if is_file { MAX_PIECE_OF_FILE } else { MAX_PIECE_OF_PIPE }
}

/// An error comes with how much was written.
fn write_piece(file: &mut File, piece: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < piece.len() {
        match file.write(&piece[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Whole lines, as many as are written at once; a line that is longer comes alone.
fn next_piece<'a>(rest: &mut &'a [u8], max: usize) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    let within = &rest[..rest.len().min(max)];
    let end = within.iter().rposition(|&byte| byte == b'\n').or_else(|| rest.iter().position(|&byte| byte == b'\n'));
    let (piece, left) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
    *rest = left;
    Some(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_whole_and_in_their_order() {
        let long = format!("{}\n", "x".repeat(10_000));
        let text = format!("{}{long}{}", "short\n".repeat(1000), "end\n".repeat(3));
        let (mut rest, mut pieces) = (text.as_bytes(), Vec::new());
        while let Some(piece) = next_piece(&mut rest, MAX_PIECE_OF_PIPE) {
            assert!(piece.ends_with(b"\n") && (piece.len() <= MAX_PIECE_OF_PIPE || piece.len() == long.len()));
            pieces.push(piece);
        }
        assert_eq!(pieces.concat(), text.as_bytes());
    }

    #[test]
    fn many_write_to_one_file_and_to_the_next_after_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let [path, old] = ["log", "log.1"].map(|name| folder.path().join(name));
        let first = open(&path).unwrap();
        assert!(is_in_place(&first, &path));
        let start = || LogFile::start(first.try_clone().unwrap().into(), |_, error| panic!("{error}")).unwrap();
        let logs = [start(), start()];
        let write = |from: u32, to: u32| {
            for number in from..to {
                assert!(logs.iter().all(|log| log.write(format!("{number}\n").as_bytes())));
            }
        };
        write(0, 5000);
        std::fs::rename(&path, &old).unwrap();
        assert!(!is_in_place(&first, &path));
        let next = open(&path).unwrap();
        logs.iter().for_each(|log| log.reopen(next.try_clone().unwrap().into()));
        write(5000, 10_000);
        drop(logs);
        let lines = [old, path].map(|path| std::fs::read_to_string(path).unwrap()).concat();
        let mut numbers: Vec<u32> = lines.lines().map(|line| line.parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..10_000).flat_map(|number| [number, number]).collect::<Vec<_>>());
    }

    /// Whether its writer sleeps until there is enough, has been idle for long, or has just written.
    #[test]
    fn a_line_is_written_before_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = LogFile::start(open(&path).unwrap().into(), |_, error| panic!("{error}")).unwrap();
        let mut written = String::new();
        for (number, pause) in [0, 5, 20, 45, 50, 55, 60, 100, 0, 200].into_iter().enumerate() {
            std::thread::sleep(Duration::from_millis(pause));
            let line = format!("{number}\n");
            assert!(log.write(line.as_bytes()));
            written += &line;
            let by = std::time::Instant::now() + Duration::from_secs(30);
            while std::fs::read_to_string(&path).unwrap() != written {
                assert!(std::time::Instant::now() < by, "line {number} is not there");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn what_nobody_takes_is_lost_and_nobody_waits() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let log = LogFile::start(write, |_, _| {}).unwrap();
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<u8>>();
        let taken = (0..10_000).filter(|_| log.write(&line)).count();
        assert!((1000..4000).contains(&taken), "{taken}");
        drop(read);
        drop(log);
    }
}
