//! Where things are kept, and who may write there: compiled components, the state, the control socket.
//!
//! A flag comes first, then the variable that a service manager sets for a unit, then XDG's, then the user's home.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::unistd::{AccessFlags, Uid, User, access, geteuid};

use crate::os::files::{self, Owner, check_private, is_same};

/// Our part of a folder that others use too.
const OURS: &str = "wasmcluster";
/// Folders in which `status --all` looks for control sockets.
const MAX_RUNTIME_FOLDERS: usize = 256;

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

/// Where the control socket is of a cluster that runs. Root finds those of units by their names alone.
pub(crate) fn running_control(name: &str, given: Option<PathBuf>) -> PathBuf {
    let is_said = given.is_some() || std::env::var_os("WASMCLUSTER_CONTROL").is_some_and(|path| !path.is_empty());
    let usual = control_path(name, given);
    let of_unit = in_unit(Path::new("/run"), name);
    if !is_said && geteuid().is_root() && !usual.exists() && of_unit.exists() { of_unit } else { usual }
}

/// Where a unit with `RuntimeDirectory=wasmcluster-NAME` has its socket, as those in deploy/systemd.
fn in_unit(run: &Path, name: &str) -> PathBuf {
    run.join(format!("{OURS}-{name}")).join(format!("{name}.sock"))
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
        let is_ours =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("wasmcluster-"));
        for folder in [&std::env::temp_dir(), Path::new("/run")] {
            folders.extend(entries(folder).filter(is_ours).take(MAX_RUNTIME_FOLDERS));
        }
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
            "cannot use {} of the folders that wasmcluster needs: {}. If the root file system is read-only, mount \
             something writable for each",
            faults.len(),
            faults.join("; ")
        ),
    }
}

/// The folder of the state, which nobody else may write to.
pub(crate) fn prepare_state(folder: &Path) -> anyhow::Result<()> {
    let of = || format!("state folder {} (choose another with --state-dir or $STATE_DIRECTORY)", folder.display());
    make(folder).with_context(of)?;
    check_state(folder).with_context(of)?;
    access(folder, AccessFlags::W_OK).with_context(of)
}

/// Fails if others can change what is in a folder of the state.
pub(crate) fn check_state(folder: &Path) -> anyhow::Result<()> {
    check_private(folder, &fs::metadata(folder)?, Owner::Us)
}

/// The folder of a control socket.
pub(crate) fn prepare_runtime(control: &Path) -> anyhow::Result<()> {
    let of = || format!("control socket {} (choose another with --control or $RUNTIME_DIRECTORY)", control.display());
    let folder = files::parent(control);
    make(folder).with_context(of)?;
    check_runtime(folder).with_context(of)?;
    access(folder, AccessFlags::W_OK).with_context(of)
}

/// Nobody but the owner, or root, may be able to put something else in the place of a control socket in this folder.
pub(crate) fn check_runtime(folder: &Path) -> anyhow::Result<()> {
    let metadata = fs::metadata(folder)?;
    ensure!(metadata.is_dir(), "{} is not a folder", folder.display());
    // In a folder like /tmp, where everybody can write, the sticky bit keeps others from replacing the file.
    if metadata.mode() & 0o1000 == 0 || !files::is_ours_or_roots(&metadata) {
        check_private(folder, &metadata, Owner::UsOrRoot)?;
    }
    Ok(())
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn is_private_folder(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|it| it.is_dir() && check_private(folder, &it, Owner::Us).is_ok())
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
