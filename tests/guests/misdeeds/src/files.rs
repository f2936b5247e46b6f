//! Reading, writing and linking files that may be out of bounds.

use std::time::{Duration, SystemTime};

use wasip2::clocks::wall_clock::Datetime;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, NewTimestamp, OpenFlags, PathFlags};

use crate::{Outcome, debug};

/// Most bytes of a file that are read through the bare interface.
const MAX_READ: u64 = 1024 * 1024;

pub(crate) fn read(path: String) -> Outcome {
    std::fs::read_to_string(path).map_err(debug)
}

/// Hands `path` to the host as it is: the C library would look for its directory first, and fail without asking.
pub(crate) fn read_at(directory: u64, path: String) -> Outcome {
    let mut directories = get_directories().into_iter();
    let (directory, _) = directories.nth(directory as usize).ok_or("no such directory")?;
    let file = directory
        .open_at(PathFlags::SYMLINK_FOLLOW, &path, OpenFlags::empty(), DescriptorFlags::READ)
        .map_err(debug)?;
    let (bytes, _) = file.read(MAX_READ, 0).map_err(debug)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn write(path: String, text: String) -> Outcome {
    std::fs::write(path, text).map_err(debug)?;
    Ok("written".into())
}

pub(crate) fn list(path: String) -> Outcome {
    let entries = std::fs::read_dir(path).map_err(debug)?;
    entries.map(|entry| Ok(format!("{}\n", entry.map_err(debug)?.file_name().display()))).collect()
}

/// Makes `to` a symbolic link with the text `from`; std can do so only on nightly.
pub(crate) fn link(from: String, to: String) -> Outcome {
    let (directory, rest) = directory_of(&to).ok_or("no preopened directory has it")?;
    directory.symlink_at(&from, &rest).map_err(debug)?;
    Ok("linked".into())
}

pub(crate) fn preopens() -> String {
    get_directories().into_iter().map(|(_, name)| name + "\n").collect()
}

/// Sets times at the ends of what can be said, then reads them; a line for each. 0.2 counts from 1970 on, and has no
/// words for what was before.
pub(crate) fn odd_times(path: String) -> String {
    let mut lines = String::new();
    let before = SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(1));
    let by_std = before.map(|time| std::fs::File::options().write(true).open(&path)?.set_modified(time));
    lines += &format!("\nstd, before 1970: {by_std:?}");
    let Some((directory, rest)) = directory_of(&path) else {
        return lines + "\nno preopened directory has it";
    };
    for (seconds, nanoseconds) in
        [(0, 0), (0, u32::MAX), (i64::MAX as u64, 999_999_999), (u64::MAX, 0), (u64::MAX, u32::MAX)]
    {
        let time = || NewTimestamp::Timestamp(Datetime { seconds, nanoseconds });
        let set = directory.set_times_at(PathFlags::SYMLINK_FOLLOW, &rest, time(), time());
        lines += &format!("\nset {seconds} {nanoseconds}: {set:?}");
        lines += &format!(
            "\nstat: {:?}",
            directory.stat_at(PathFlags::SYMLINK_FOLLOW, &rest).map(|stat| stat.data_modification_timestamp)
        );
        lines += &format!("\nstd: {:?}", std::fs::metadata(&path).and_then(|metadata| metadata.modified()));
    }
    lines
}

/// The preopened directory that `path` is in, and the rest of the path.
fn directory_of(path: &str) -> Option<(Descriptor, String)> {
    let inside = |(directory, name): (Descriptor, String)| {
        let rest = path.strip_prefix(name.trim_end_matches('/'))?.strip_prefix('/')?.to_owned();
        Some((directory, rest))
    };
    get_directories().into_iter().filter_map(inside).min_by_key(|(_, rest)| rest.len())
}
