//! Where things are kept, and who may write there: compiled components, the state, the control socket.
//!
//! A flag comes first, then the variable that a service manager sets for a unit, then XDG's, then the user's home. What
//! belongs to the process's own folder is here too: by which name it is kept.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};
use nix::unistd::{AccessFlags, Group, Uid, User, access, geteuid};

/// Our part of a folder that others use too.
const OURS: &str = "wasmcluster";
/// Folders in which `status --all` looks for control sockets.
const MAX_RUNTIME_FOLDERS: usize = 256;

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
        let logical =
            absolute_variable(&std::env::var_os, "PWD").filter(|pwd| is_plain(pwd) && is_same(pwd, ".".as_ref()));
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

/// Where compiled components are kept, if nothing else is said and there is a place.
pub(crate) fn default_store() -> Option<PathBuf> {
    kept(&std::env::var_os, home_of_user, "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache")
}

/// Likewise, where the state is kept.
pub(crate) fn default_state() -> Option<PathBuf> {
    kept(&std::env::var_os, home_of_user, "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state")
}

/// Where the control socket of the cluster `name` is.
pub(crate) fn control_path(name: &str, given: Option<PathBuf>) -> PathBuf {
    let by_variable = || std::env::var_os("WASMCLUSTER_CONTROL").filter(|path| !path.is_empty()).map(PathBuf::from);
    given.or_else(by_variable).unwrap_or_else(|| {
        let folder = runtime_folder(&std::env::var_os, geteuid(), is_private_folder);
        folder.join(format!("{name}.sock"))
    })
}

/// Every folder in which there may be control sockets that this user may use; root may use everybody's.
pub(crate) fn runtime_folders() -> Vec<PathBuf> {
    let uid = geteuid();
    let mut folders = vec![runtime_folder(&std::env::var_os, uid, is_private_folder)];
    folders.extend(absolute_variable(&std::env::var_os, "XDG_RUNTIME_DIR").map(|folder| folder.join(OURS)));
    folders.extend([Path::new("/run").join(OURS), Path::new("/run/user").join(uid.to_string()).join(OURS)]);
    folders.push(in_temporary(uid));
    if uid.is_root() {
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(entries("/run/user".as_ref()).map(|folder| folder.join(OURS)).take(MAX_RUNTIME_FOLDERS));
        let temporary = entries(&std::env::temp_dir())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("wasmcluster-")));
        folders.extend(temporary.take(MAX_RUNTIME_FOLDERS));
    }
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    folders.dedup_by(|one, other| is_same(one, other));
    folders
}

type Variables<'a> = &'a dyn Fn(&'static str) -> Option<OsString>;

/// What service managers name is the unit's own; in the others our folder is one of many.
fn kept(
    variables: Variables<'_>,
    home_of_user: impl Fn() -> Option<PathBuf>,
    of_unit: &'static str,
    base: &'static str,
    in_home: &str,
) -> Option<PathBuf> {
    let in_base = || {
        let home = || absolute_variable(variables, "HOME").or_else(&home_of_user);
        Some(absolute_variable(variables, base).or_else(|| Some(home()?.join(in_home)))?.join(OURS))
    };
    first_of(variables, of_unit).or_else(in_base)
}

/// Without variables it is found all the same by a command that has none of them either, as from cron.
fn runtime_folder(variables: Variables<'_>, uid: Uid, is_ours: impl Fn(&Path) -> bool) -> PathBuf {
    if let Some(folder) = first_of(variables, "RUNTIME_DIRECTORY") {
        return folder;
    }
    let of_session = Path::new("/run/user").join(uid.to_string());
    match absolute_variable(variables, "XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join(OURS),
        None if uid.is_root() => Path::new("/run").join(OURS),
        None if is_ours(&of_session) => of_session.join(OURS),
        None => in_temporary(uid),
    }
}

fn in_temporary(uid: Uid) -> PathBuf {
    std::env::temp_dir().join(format!("{OURS}-{uid}"))
}

/// systemd separates several folders of one kind by colons.
fn first_of(variables: Variables<'_>, name: &'static str) -> Option<PathBuf> {
    let folders = variables(name)?;
    std::env::split_paths(&folders).next().filter(|path| path.is_absolute())
}

/// XDG's rule: a relative path in such a variable is ignored.
fn absolute_variable(variables: Variables<'_>, name: &'static str) -> Option<PathBuf> {
    variables(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn home_of_user() -> Option<PathBuf> {
    User::from_uid(geteuid()).ok().flatten().map(|user| user.dir).filter(|home| home.is_absolute())
}

/// Makes the folders that are not there yet, and checks all: one message for everything that is wrong, so that a container
/// whose root is read-only is mended at once. Of the store only whether it is there: the compiler checks the rest.
pub(crate) fn prepare(store: &Path, state: Option<&Path>, control: &Path) -> anyhow::Result<()> {
    let checks = [
        Some(make(store).with_context(|| {
            format!("artifact store {} (choose another with --store or $CACHE_DIRECTORY)", store.display())
        })),
        state.map(prepare_state),
        Some(prepare_runtime(control)),
    ];
    let faults: Vec<String> =
        checks.into_iter().flatten().filter_map(|check| Some(format!("{:#}", check.err()?))).collect();
    match &faults[..] {
        [] => Ok(()),
        [fault] => bail!("{fault}"),
        faults => bail!(
            "there is no place for {} of the folders that are needed: {}. Where the root is read-only, mount something \
             writable for each",
            faults.len(),
            faults.join("; ")
        ),
    }
}

/// The folder of the state, which nobody else may write to.
pub(crate) fn prepare_state(folder: &Path) -> anyhow::Result<()> {
    let of = || format!("state folder {} (choose another with --state-dir or $STATE_DIRECTORY)", folder.display());
    make(folder).with_context(of)?;
    check_private(folder, &fs::metadata(folder).with_context(of)?, Owner::Us).with_context(of)?;
    access(folder, AccessFlags::W_OK).with_context(of)
}

/// The folder of a control socket: nobody but the owner, or root, may be able to put something else in its place.
pub(crate) fn prepare_runtime(control: &Path) -> anyhow::Result<()> {
    let of = || format!("control socket {} (choose another with --control or $RUNTIME_DIRECTORY)", control.display());
    let folder = parent(control);
    make(folder).with_context(of)?;
    let metadata = fs::metadata(folder).with_context(of)?;
    ensure!(metadata.is_dir(), "{}: {} is not a folder", of(), folder.display());
    // In a folder like /tmp, where everybody can write, the sticky bit keeps others from replacing the file.
    if metadata.mode() & 0o1000 == 0 || !is_ours_or_roots(&metadata) {
        check_private(folder, &metadata, Owner::UsOrRoot).with_context(of)?;
    }
    access(folder, AccessFlags::W_OK).with_context(of)
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
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
    let or_root = if owner == Owner::UsOrRoot { " or root" } else { "" };
    ensure!(
        found == user || (owner == Owner::UsOrRoot && found == 0),
        "{path} belongs to user {found}; it must belong to user {user}{or_root}: run `chown {user} {path}`"
    );
    ensure!(mode & 0o022 == 0, "other users can write to {path} (mode {:o}): run `chmod go-w {path}`", mode & 0o7777);
    Ok(())
}

fn is_ours_or_roots(metadata: &Metadata) -> bool {
    [0, geteuid().as_raw()].contains(&metadata.uid())
}

fn is_private_folder(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|it| it.is_dir() && check_private(folder, &it, Owner::Us).is_ok())
}

/// A file that says what is run must not be another user's to write: neither by owner nor by mode.
pub(crate) fn check_trusted(metadata: &Metadata) -> anyhow::Result<()> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let fix = "it says what is run, so it must be yours or root's, and writable by nobody else: chown or chmod it";
    ensure!(
        is_ours_or_roots(metadata) || Some(owner) == invoker(),
        "it belongs to user {owner}, who could change it; {fix}"
    );
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
    fn folders_are_found_by_unit_then_xdg_then_home_then_passwd() {
        let find = |variables: &[(&str, &str)]| {
            let get = |name: &'static str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            };
            let in_passwd = || Some(PathBuf::from("/home/passwd"));
            let (store, state) = (
                kept(&get, in_passwd, "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache").unwrap(),
                kept(&get, in_passwd, "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state").unwrap(),
            );
            (store.display().to_string(), state.display().to_string())
        };
        let check = |variables: &[(&str, &str)], store: &str, state: &str| {
            assert_eq!(find(variables), (store.to_owned(), state.to_owned()), "{variables:?}");
        };
        check(&[], "/home/passwd/.cache/wasmcluster", "/home/passwd/.local/state/wasmcluster");
        let home = ("HOME", "/home/a");
        check(&[home], "/home/a/.cache/wasmcluster", "/home/a/.local/state/wasmcluster");
        let xdg = [home, ("XDG_CACHE_HOME", "/xdg/c"), ("XDG_STATE_HOME", "relative")];
        check(&xdg, "/xdg/c/wasmcluster", "/home/a/.local/state/wasmcluster");
        let unit = [home, ("CACHE_DIRECTORY", "/var/cache/shop:/var/cache/more"), ("STATE_DIRECTORY", "/var/lib/shop")];
        check(&unit, "/var/cache/shop", "/var/lib/shop");
        assert_eq!(kept(&|_| None, || None, "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache"), None);
    }

    #[test]
    fn the_runtime_folder_is_found_without_variables_too() {
        let find = |variables: &[(&str, &str)], uid: u32, has_session: bool| {
            let get = |name: &'static str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            };
            runtime_folder(&get, Uid::from_raw(uid), |_| has_session)
        };
        let unit = [("RUNTIME_DIRECTORY", "/run/shop"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(find(&unit, 7, true), Path::new("/run/shop"));
        assert_eq!(find(&unit[1..], 0, true), Path::new("/run/user/7/wasmcluster"));
        assert_eq!(find(&[], 0, true), Path::new("/run/wasmcluster"));
        assert_eq!(find(&[], 7, true), Path::new("/run/user/7/wasmcluster"));
        assert_eq!(find(&[], 7, false), std::env::temp_dir().join("wasmcluster-7"));
    }

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

    #[test]
    fn every_folder_that_cannot_be_used_is_named_in_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        prepare(&path("store"), Some(&path("a/state")), &path("run/default.sock")).unwrap();
        fs::write(path("file"), "").unwrap();
        let in_file = path("file/inside");
        let error = prepare(&in_file, Some(&in_file), &in_file.join("x.sock")).unwrap_err().to_string();
        for part in ["--store", "--state-dir", "--control", "3 of the folders", "$STATE_DIRECTORY", "read-only"] {
            assert!(error.contains(part), "{error}");
        }
        fs::set_permissions(path("a/state"), fs::Permissions::from_mode(0o777)).unwrap();
        let error = prepare(&path("store"), Some(&path("a/state")), &path("run/x.sock")).unwrap_err().to_string();
        assert!(error.starts_with("state folder") && error.contains("(mode 777): run `chmod go-w"), "{error}");
    }
}
