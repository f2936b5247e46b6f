//! Files and folders: by which name one is kept, which file it is, and who may write to it.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use anyhow::ensure;
use nix::fcntl::OFlag;
use nix::unistd::{Group, Uid, User, geteuid};

/// `path` from the root on, for use at any later time.
///
/// A relative one is taken from `$PWD` if that is the folder this process was started in: after `cd current`, a link that is
/// turned to the next release later on, the path goes by the link, as the shell that started us would.
pub(crate) fn absolute(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().is_empty() { std::path::absolute(path) } else { std::path::absolute(here().join(path)) }
}

/// Asked for at the start: once the link is turned, `$PWD` is another folder than the current one.
fn here() -> &'static Path {
    static HERE: OnceLock<PathBuf> = OnceLock::new();
    HERE.get_or_init(|| {
        let logical = std::env::var_os("PWD").map(PathBuf::from);
        let logical = logical.filter(|pwd| pwd.is_absolute() && is_plain(pwd) && is_same(pwd, ".".as_ref()));
        logical.unwrap_or_else(|| std::env::current_dir().unwrap_or_default())
    })
}

/// Without `.` and `..`, which lead elsewhere behind a link.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Whether two names are of one file or folder: by a link or without it.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    one == other || Inode::of(one).is_some_and(|inode| Inode::of(other) == Some(inode))
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode(u64, u64);

impl Inode {
    /// Of what is at `path`; a link counts as what it leads to.
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(Self::from)
    }

    /// Of what has this very name; a link is a file of its own.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(Self::from)
    }
}

impl From<Metadata> for Inode {
    fn from(metadata: Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// The path without links, as far as it is there.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => canonical(folder).join(name),
        _ => path.to_owned(),
    })
}

/// The folder that the file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is in a file of at most `max` bytes.
pub(crate) fn contents(path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    contents_if(path, max, |_| Ok(()))
}

/// The same, if nothing is wrong with the file.
pub(crate) fn contents_if(
    path: &Path,
    max: u64,
    check: impl FnOnce(&Metadata) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u8>> {
    // Without waiting, should it be a pipe.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is not a file");
    check(&metadata)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= max, "it is larger than {max} bytes");
    Ok(bytes)
}

/// What is to be said of a file with a secret that others can read, or replace.
pub(crate) fn exposed(path: &Path, what: &str) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    let path = path.display();
    (mode & 0o066 != 0).then(|| {
        format!("other users can read or write the {what} {path} (mode {:o}); run `chmod go= {path}`", mode & 0o7777)
    })
}

/// Who a file may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Us,
    /// Root could do anything anyway.
    UsOrRoot,
}

/// Fails if other users can write to the file: says why, and which command mends that.
pub(crate) fn check_private(path: &Path, metadata: &Metadata, owner: Owner) -> anyhow::Result<()> {
    let (found, user, mode, path) = (metadata.uid(), geteuid().as_raw(), metadata.mode(), path.display());
    let (is_owned, or_root) = match owner {
        Owner::Us => (found == user, ""),
        Owner::UsOrRoot => (is_ours_or_roots(metadata), " or root"),
    };
    ensure!(
        is_owned,
        "{path} belongs to user {found}; it must belong to user {user}{or_root}: run `chown {user} {path}`"
    );
    ensure!(mode & 0o022 == 0, "other users can write to {path} (mode {:o}): run `chmod go-w {path}`", mode & 0o7777);
    Ok(())
}

pub(crate) fn is_ours_or_roots(metadata: &Metadata) -> bool {
    [0, geteuid().as_raw()].contains(&metadata.uid())
}

/// A file that says what is run must not be another user's to write: neither by owner nor by mode.
pub(crate) fn check_trusted(metadata: &Metadata) -> anyhow::Result<()> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let fix = "it decides what is run, so it must be yours or root's, and writable by nobody else: run chown or chmod";
    ensure!(is_ours_or_roots(metadata) || Some(owner) == invoker(), "it belongs to user {owner}; {fix}");
    let by_group = mode & 0o020 != 0 && !is_group_of_one(owner, metadata.gid());
    ensure!(mode & 0o002 == 0 && !by_group, "other users can write to it (mode {:o}); {fix}", mode & 0o7777);
    Ok(())
}

/// Who became root by sudo for this command.
fn invoker() -> Option<u32> {
    if geteuid().is_root() { std::env::var("SUDO_UID").ok()?.parse().ok() } else { None }
}

/// Where each user has a group of the same name, files are writable by the group, which means the user alone.
fn is_group_of_one(owner: u32, group: u32) -> bool {
    let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
    let group = Group::from_gid(group.into()).ok().flatten();
    user.zip(group)
        .is_some_and(|(user, group)| group.name == user.name && group.mem.iter().all(|member| *member == user.name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_that_others_can_write_are_not_trusted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |mode: u32| {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            check_trusted(&fs::metadata(file.path()).unwrap())
        };
        check(0o644).unwrap();
        check(0o400).unwrap();
        for mode in [0o646, 0o666] {
            assert!(check(mode).unwrap_err().to_string().contains("other users can write"), "{mode:o}");
        }
    }
}
