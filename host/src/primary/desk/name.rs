//! One name, one cluster: what a primary holds for life, so that no other has its name, its control socket or its state.
//!
//! There is a lock beside the socket and one beside the state, each under the name, so neither another `--control` nor
//! another `--state-dir` makes a second cluster possible. Whoever has the locks owns the files, and only if nobody answers
//! at a socket is it a leftover. Files can be removed behind our back: a logout takes the runtime folder along, a cleaner
//! what is old. So a thread compares, each second, the files at these paths with those that are held, and makes again what
//! is gone. It is a thread since a file system may hang, and the executor must not.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::logging::one_line;
use crate::os::files::{self, Inode};
use crate::os::listener::{Behind, behind, remove_socket};
use crate::settings::paths;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a lock file is opened anew that was removed just then, by whoever held it.
const MAX_TRIES: usize = 10;
/// How long the end may take: a file system that hangs keeps its files.
const END_WITHIN: Duration = Duration::from_secs(1);
/// Largest note in a lock file, in bytes.
const MAX_NOTE: u64 = 8 * 1024;

/// What a lock file says of whoever holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Holder {
    pid: u32,
    /// The control socket, as an absolute path.
    pub(crate) control: PathBuf,
}

impl Holder {
    /// Of the lock file, if it can be read.
    pub(crate) fn read(lock: &Path) -> Option<Self> {
        let file = File::options().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(lock);
        Self::noted(&file.ok()?)
    }

    fn noted(file: &File) -> Option<Self> {
        let mut note = Vec::new();
        file.take(MAX_NOTE).read_to_end(&mut note).ok()?;
        serde_json::from_slice(&note).ok()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}, control socket {}", self.pid, one_line(&self.control.to_string_lossy()))
    }
}

/// A lock on a file, which is removed with it.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: Flock<File>,
    inode: Inode,
}

impl Lock {
    /// Fails if another process has it.
    fn take(path: &Path, name: &str, holder: &Holder) -> anyhow::Result<Self> {
        for _ in 0..MAX_TRIES {
            let mut options = File::options();
            options.create(true).truncate(false).read(true).write(true).mode(0o600);
            let file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
            let file = file.with_context(|| format!("cannot open the lock {}", path.display()))?;
            let metadata = file.metadata()?;
            // Another user's, in a folder that everybody can write to, would be held for ever; behind a second name may be
            // any file.
            ensure!(
                metadata.is_file() && metadata.nlink() <= 1 && metadata.uid() == geteuid().as_raw(),
                "the lock {} is not a regular file of yours; remove it, or choose another --control or --state-dir",
                path.display()
            );
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, Errno::EWOULDBLOCK)) => {
                    let of =
                        Holder::noted(&file).map_or_else(|| format!("lock {}", path.display()), |it| it.to_string());
                    bail!(
                        "a cluster named '{name}' is running already ({of}). Give this one another --name, or stop the \
                         other"
                    );
                }
                Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
            };
            let inode = Inode::from(file.metadata()?);
            // Whoever had it may have removed the file between the two: that lock is on a file without a name.
            if Inode::at(path) == Some(inode) {
                note(&file, holder);
                return Ok(Self { path: path.into(), _file: file, inode });
            }
        }
        bail!("the lock {} keeps being removed", path.display())
    }

    fn is_in_place(&self) -> bool {
        Inode::at(&self.path) == Some(self.inode)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is held: see `take`.
        remove_if(&self.path, self.inode);
    }
}

/// For people and `status --all`: a full disk does not keep a cluster from starting.
fn note(mut file: &File, holder: &Holder) {
    let written = serde_json::to_vec(holder).map_err(Into::into).and_then(|note| {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&note)
    });
    if let Err(error) = written {
        tracing::debug!("cannot write the owner into the lock: {error}");
    }
}

/// Removes the file at `path` if it is that very one: another cluster may have put its own there.
fn remove_if(path: &Path, inode: Inode) {
    if Inode::at(path) == Some(inode) {
        // It is gone already, or cannot be: the next primary of this name replaces it.
        let _ = fs::remove_file(path);
    }
}

/// What is held. Dropped, all files are gone that are still ours.
#[derive(Debug)]
struct HeldFiles {
    name: String,
    socket: PathBuf,
    bound: Inode,
    holder: Holder,
    /// Of the state, if there is any, and of the socket, in this order.
    locks: Vec<Lock>,
}

impl HeldFiles {
    fn take(name: &str, socket: &Path, state: Option<&Path>) -> anyhow::Result<(Self, UnixListener)> {
        let holder = Holder { pid: std::process::id(), control: files::absolute(socket)? };
        let beside_state = state.map(|folder| folder.join(format!("{name}.lock")));
        let beside_socket = socket.with_added_extension("lock");
        // They may be one.
        let beside_state =
            beside_state.filter(|path| files::absolute(path).ok() != files::absolute(&beside_socket).ok());
        let paths = beside_state.into_iter().chain([beside_socket]);
        let locks = paths.map(|path| Lock::take(&path, name, &holder)).collect::<anyhow::Result<_>>()?;
        let (listener, bound) = listen(name, socket)?;
        Ok((Self { name: name.into(), socket: socket.into(), bound, holder, locks }, listener))
    }

    /// Makes again what is not in place any more. A new listener is one that clients reach instead of the old.
    ///
    /// A fault of one file is no reason to leave the others as they are; it is told beside.
    fn restore(&mut self) -> (Option<UnixListener>, anyhow::Result<()>) {
        let mut done = Ok(());
        let runtime = files::parent(&self.socket).to_owned();
        let (name, holder, socket) = (&self.name, &self.holder, &self.socket);
        let mut owns_socket = true;
        for lock in self.locks.iter_mut().filter(|lock| !lock.is_in_place()) {
            let is_of_socket = files::parent(&lock.path) == runtime;
            let prepare = || {
                if is_of_socket {
                    paths::prepare_runtime(socket)
                } else {
                    paths::prepare_state(files::parent(&lock.path))
                }
            };
            match prepare().and_then(|()| Lock::take(&lock.path, name, holder)) {
                Ok(taken) => {
                    *lock = taken;
                    tracing::info!("recreated {}, which had been removed", lock.path.display());
                }
                Err(error) => {
                    owns_socket &= !is_of_socket;
                    done = Err(error);
                }
            }
        }
        if !owns_socket || Inode::at(&self.socket) == Some(self.bound) {
            return (None, done);
        }
        match self.listen_again() {
            Ok(listener) => (Some(listener), done),
            Err(error) => (None, Err(error)),
        }
    }

    fn listen_again(&mut self) -> anyhow::Result<UnixListener> {
        paths::prepare_runtime(&self.socket)?;
        let (listener, bound) = listen(&self.name, &self.socket)?;
        self.bound = bound;
        tracing::info!("recreated the control socket {}, which had been removed", self.socket.display());
        Ok(listener)
    }
}

impl Drop for HeldFiles {
    fn drop(&mut self) {
        remove_if(&self.socket, self.bound);
    }
}

/// Binds the socket. One that is there already is a leftover only if nobody answers.
fn listen(name: &str, path: &Path) -> anyhow::Result<(UnixListener, Inode)> {
    let of = || format!("control socket {} (choose another with --control)", path.display());
    match is_socket(path).then(|| behind(path)) {
        None | Some(Behind::Nobody) => {}
        Some(Behind::AnotherKind) => {
            bail!("{}: another program has a datagram socket at that path", of());
        }
        Some(Behind::Listener) => bail!(
            "a cluster named '{name}' is running already (its control socket is {}). Give this one another --name, or \
             stop the other",
            path.display()
        ),
    }
    remove_socket(path).with_context(of)?;
    let listener = UnixListener::bind(path).with_context(of)?;
    let bound = Inode::at(path).with_context(of)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(of)?;
    listener.set_nonblocking(true)?;
    Ok((listener, bound))
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A name that is held, and kept in place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Name {
    /// The one that clients reach; another when the socket had to be made again.
    listener: watch::Receiver<Arc<UnixListener>>,
    /// Its end ends the thread.
    life: Option<mpsc::Sender<Infallible>>,
    /// Its end says that the thread has removed all files.
    ended: mpsc::Receiver<Infallible>,
}

impl Name {
    /// Takes the name, or says who has it. The folders must be there.
    pub(crate) fn take(name: &str, socket: &Path, state: Option<&Path>) -> anyhow::Result<Self> {
        let (held, listener) = HeldFiles::take(name, socket, state)?;
        let (changed, listener) = watch::channel(Arc::new(listener));
        let (life, alive) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        without_signals(|| {
            thread::Builder::new().name("name".into()).spawn(move || {
                keep(held, &alive, &changed);
                drop(end);
            })
        })?;
        Ok(Self { listener, life: Some(life), ended })
    }

    pub(crate) fn listener(&self) -> watch::Receiver<Arc<UnixListener>> {
        self.listener.clone()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.life = None;
        // Nothing is ever sent: the answer is that nobody could any more, or that it takes too long.
        let _ = self.ended.recv_timeout(END_WITHIN);
    }
}

/// Signals are for the thread that reads them from a descriptor; a thread inherits the mask.
fn without_signals<T>(start: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = start();
    before.thread_set_mask()?;
    started
}

/// Looks after what is held until the primary ends. What goes wrong is said once, not each second.
fn keep(mut held: HeldFiles, alive: &mpsc::Receiver<Infallible>, changed: &watch::Sender<Arc<UnixListener>>) {
    let mut told = None;
    while let Err(RecvTimeoutError::Timeout) = alive.recv_timeout(LOOK_EVERY) {
        let (listener, done) = held.restore();
        if let Some(listener) = listener {
            changed.send_replace(Arc::new(listener));
        }
        let fault = done.err().map(|error| format!("{error:#}"));
        match &fault {
            Some(fault) if told.as_ref() != Some(fault) => tracing::warn!(
                "commands may not reach this cluster, and another cluster could take its name: {fault}. Retrying every \
                 second; signals to process {} still work",
                std::process::id()
            ),
            None if told.is_some() => tracing::info!("commands reach this cluster again"),
            _ => {}
        }
        told = fault;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Path, socket: &str, state: &str) -> anyhow::Result<(HeldFiles, UnixListener)> {
        fs::create_dir_all(folder.join(state))?;
        HeldFiles::take("shop", &folder.join(socket), Some(&folder.join(state)))
    }

    #[test]
    fn a_name_is_taken_once_by_socket_and_by_state() {
        let folder = tempfile::tempdir().unwrap();
        let held = take(folder.path(), "a.sock", "state").unwrap();
        for (socket, state) in [("a.sock", "state"), ("b.sock", "state"), ("a.sock", "other")] {
            let error = take(folder.path(), socket, state).unwrap_err().to_string();
            assert!(error.contains("'shop' is running already") && error.contains("a.sock"), "{error}");
        }
        drop(take(folder.path(), "b.sock", "other").unwrap());
        drop(held);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "only the folders of the state are left: {left:?}");
        take(folder.path(), "a.sock", "state").unwrap();
    }

    #[test]
    fn what_was_removed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        let (mut held, old) = take(folder.path(), "run/a.sock", "state").unwrap();
        assert!(matches!(held.restore(), (None, Ok(()))));
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        fs::remove_dir_all(folder.path().join("state")).unwrap();
        let (Some(new), Ok(())) = held.restore() else { panic!("expected a new listener") };
        assert!(held.locks.iter().all(Lock::is_in_place) && matches!(held.restore(), (None, Ok(()))));
        drop(old);
        drop(std::os::unix::net::UnixStream::connect(&held.socket).unwrap());
        assert!(new.accept().is_ok());
    }

    #[test]
    fn a_lock_that_cannot_be_made_again_keeps_no_socket_away() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        let (mut held, _old) = take(folder.path(), "run/a.sock", "state").unwrap();
        fs::remove_dir_all(folder.path().join("state")).unwrap();
        fs::write(folder.path().join("state"), "").unwrap();
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        let (listener, done) = held.restore();
        assert!(listener.is_some() && done.is_err());
        drop(std::os::unix::net::UnixStream::connect(&held.socket).unwrap());
    }

    #[test]
    fn the_state_and_the_socket_may_have_one_lock() {
        let folder = tempfile::tempdir().unwrap();
        drop(HeldFiles::take("shop", &folder.path().join("shop"), Some(folder.path())).unwrap());
    }

    #[test]
    fn another_clusters_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (mut held, _listener) = take(folder.path(), "a.sock", "state").unwrap();
        fs::remove_file(folder.path().join("a.sock")).unwrap();
        fs::remove_file(folder.path().join("a.sock.lock")).unwrap();
        let (other, answers) = take(folder.path(), "a.sock", "other").unwrap();
        let error = held.restore().1.unwrap_err().to_string();
        assert!(error.contains("running already"), "{error}");
        drop(held);
        assert_eq!(Inode::at(&other.socket), Some(other.bound));
        drop(std::os::unix::net::UnixStream::connect(&other.socket).unwrap());
        assert!(answers.accept().is_ok());
    }

    /// As when the lock was removed, but not the socket.
    #[test]
    fn a_socket_that_answers_is_no_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.sock");
        let live = UnixListener::bind(&socket).unwrap();
        let error = take(folder.path(), "a.sock", "state").unwrap_err().to_string();
        assert!(error.contains("running already"), "{error}");
        drop(live);
        take(folder.path(), "a.sock", "state").unwrap();
    }
}
