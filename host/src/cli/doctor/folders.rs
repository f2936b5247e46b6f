//! The folders that `serve` keeps things in: whether it could, without making any.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::{CheckResult, CheckVerdict};
use crate::os::files::{self, Owner, check_private};
use crate::settings::{paths, size};

/// Space below which the next component or the next state may find none, in bytes.
const LITTLE_SPACE: u64 = 100 << 20;

pub(super) fn check(store: Option<PathBuf>, state: Option<PathBuf>, control: &Path) -> Vec<CheckResult> {
    vec![
        of_store(store.or_else(paths::default_store)),
        of_state(state.or_else(paths::default_state)),
        of_control(control),
    ]
}

fn of_store(folder: Option<PathBuf>) -> CheckResult {
    let advice = "choose another folder with --store or $CACHE_DIRECTORY";
    let fault = |says: String| CheckResult::of(CheckVerdict::Fault, "store", says, advice);
    let Some(folder) = folder else { return fault("this user has no home folder for compiled components".into()) };
    match usable(&folder, |folder| check_private(folder, &fs::metadata(folder)?, Owner::UsOrRoot)) {
        Err(error) => fault(format!("{error:#}")),
        // One that was filled ahead of time need not be.
        Ok(FolderState::ReadOnly) => CheckResult::of(
            CheckVerdict::Warning,
            "store",
            format!("{} cannot be written to: what it lacks is compiled again at each start", folder.display()),
            advice,
        ),
        Ok(found) => with_space("store", &folder, found),
    }
}

fn of_state(folder: Option<PathBuf>) -> CheckResult {
    let advice = "choose another folder with --state-dir or $STATE_DIRECTORY";
    let Some(folder) = folder else {
        return CheckResult::of(
            CheckVerdict::Note,
            "state",
            "this user has no home folder: which version was committed is not kept, and --resume is refused",
            advice,
        );
    };
    match writable(&folder, paths::check_state) {
        Err(error) => CheckResult::of(CheckVerdict::Fault, "state", format!("{error:#}"), advice),
        Ok(found) => with_space("state", &folder, found),
    }
}

fn of_control(control: &Path) -> CheckResult {
    match writable(files::parent(control), paths::check_runtime) {
        Err(error) => CheckResult::of(
            CheckVerdict::Fault,
            "control socket",
            format!("{error:#}"),
            "choose another place with --control or $RUNTIME_DIRECTORY",
        ),
        Ok(_) => CheckResult::ok("control socket", format!("{} can be made", control.display())),
    }
}

/// A folder that can be used, once it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FolderState {
    Writable,
    ReadOnly,
    /// It can be made.
    Missing,
}

/// As [`usable`], and one that is there can be written to.
fn writable(folder: &Path, check: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<FolderState> {
    match usable(folder, check)? {
        FolderState::ReadOnly => bail!("{} cannot be written to", folder.display()),
        found => Ok(found),
    }
}

/// Whether the folder is there and passes the check of `serve`, or could be made.
fn usable(folder: &Path, check: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<FolderState> {
    match fs::metadata(folder) {
        Ok(metadata) if !metadata.is_dir() => bail!("{} is not a folder", folder.display()),
        Ok(_) => {
            check(folder)?;
            // The kernel is asked, as a disk may be mounted for reading only whatever the mode says.
            let is_writable = access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
            Ok(if is_writable { FolderState::Writable } else { FolderState::ReadOnly })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = nearest(folder);
            access(above, AccessFlags::W_OK | AccessFlags::X_OK)
                .map_err(|errno| anyhow!("{} cannot be made: {}: {}", folder.display(), above.display(), errno.desc()))
                .map(|()| FolderState::Missing)
        }
        Err(error) => Err(anyhow!("{}: {error}", folder.display())),
    }
}

/// The nearest folder above that is there.
fn nearest(folder: &Path) -> &Path {
    let above = folder.ancestors().find(|above| !above.as_os_str().is_empty() && above.exists());
    above.unwrap_or(Path::new(if folder.is_absolute() { "/" } else { "." }))
}

fn with_space(check: &'static str, folder: &Path, found: FolderState) -> CheckResult {
    let state = if found == FolderState::Missing { "can be made" } else { "can be used" };
    // What cannot be asked is not known to be little.
    let free = statvfs(nearest(folder)).map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size())).ok();
    match free {
        Some(free) if free < LITTLE_SPACE => CheckResult::of(
            CheckVerdict::Warning,
            check,
            format!("{} {state}, but only {} are free", folder.display(), size(free >> 10 << 10)),
            "make room",
        ),
        Some(free) => {
            CheckResult::ok(check, format!("{} {state}, {} are free", folder.display(), size(free >> 20 << 20)))
        }
        None => CheckResult::ok(check, format!("{} {state}", folder.display())),
    }
}
