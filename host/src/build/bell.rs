//! What tells that something may have changed in folders, so that they need not be looked through all the time.
//!
//! The kernel tells of what is done through this machine to a file system of its own. Of others (a network's, a virtual
//! machine's shared folder) it tells nothing, so there, and where it has no watches left, folders are looked at as often as
//! before; and now and then they are everywhere.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::statfs::{self, FsType, statfs};

/// How long nothing is looked at where the kernel tells of changes.
const LONGEST: Duration = Duration::from_secs(5);
/// File systems that only this machine's kernel writes to.
const LOCAL: [FsType; 5] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
];
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// A bell that hangs at folders. By default it hangs nowhere, and is not to be relied on.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    inotify: Option<Inotify>,
    /// Some folder has none.
    is_missing: Cell<bool>,
}

impl Bell {
    pub(super) fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok();
        Self { inotify, is_missing: Cell::new(false) }
    }

    /// Rings from now on when a file in this folder changes. Twice is as good as once.
    pub(super) fn hang_at(&self, folder: &Path) {
        let hangs = || {
            let inotify = self.inotify.as_ref()?;
            statfs(folder).ok().filter(|kind| LOCAL.contains(&kind.filesystem_type()))?;
            inotify.add_watch(folder, CHANGES).ok()
        };
        if hangs().is_none() {
            self.is_missing.set(true);
        }
    }

    /// Waits until it rings, or until it is time to look without that: after `usual`, if there are folders where the bell
    /// does not hang. What rang is forgotten. Another look hangs it again wherever it is missing.
    pub(super) fn wait(&self, usual: Duration) {
        let Some(inotify) = self.inotify.as_ref().filter(|_| !self.is_missing.take()) else {
            return std::thread::sleep(usual);
        };
        let timeout = PollTimeout::try_from(LONGEST).unwrap_or(PollTimeout::MAX);
        // Interrupted, it is one look too many.
        let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout);
        while inotify.read_events().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;

    /// Waits much longer than a file takes to be written, should it not ring; or for no time at all.
    fn rings(bell: &Bell) -> bool {
        let started = Instant::now();
        bell.wait(Duration::from_secs(60));
        started.elapsed() < LONGEST
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "a test says why it is skipped")]
    fn it_rings_for_every_kind_of_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let bell = Bell::new();
        bell.hang_at(folder.path());
        if bell.is_missing.take() {
            println!("skipped: the kernel tells of no changes here");
            return;
        }
        let check = |change: &dyn Fn() -> std::io::Result<()>, what: &str| {
            change().unwrap();
            assert!(rings(&bell), "{what}");
        };
        check(&|| fs::write(path("a"), "1"), "a new file");
        check(&|| fs::write(path("a"), "2"), "a file written anew");
        check(&|| fs::rename(path("a"), path("b")), "a file renamed");
        check(&|| fs::create_dir(path("c")), "a new folder");
        bell.hang_at(&path("c"));
        bell.hang_at(&path("c"));
        check(&|| fs::write(path("c/d"), "1"), "a file in the new folder");
        check(&|| fs::remove_file(path("b")), "a file removed");
    }

    #[test]
    fn where_it_cannot_hang_it_is_not_waited_for() {
        let bell = Bell::new();
        // Not one of the file systems of this machine's own disks.
        bell.hang_at("/proc/self".as_ref());
        let started = Instant::now();
        bell.wait(Duration::ZERO);
        Bell::default().wait(Duration::ZERO);
        assert!(started.elapsed() < LONGEST);
    }
}
