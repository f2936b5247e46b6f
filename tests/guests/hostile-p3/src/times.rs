//! Odd times by 0.3, which has words for what was before 1970.

use misdeeds::Query;
use wasip3::clocks::{monotonic_clock, system_clock};
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{NewTimestamp, PathFlags};

/// The ends of what clocks can be asked, and of what a file can be set to; a line for each of the latter.
pub(crate) async fn odd_times(query: &Query) -> String {
    monotonic_clock::wait_until(0).await;
    monotonic_clock::wait_for(0).await;
    monotonic_clock::get_resolution();
    system_clock::now();
    system_clock::get_resolution();
    let mut lines = String::new();
    let Some(path) = query.text("path") else {
        return lines;
    };
    let inside = |(_, name): &(_, String)| path.strip_prefix(name.trim_end_matches('/'))?.strip_prefix('/');
    let directories = get_directories();
    let Some((rest, directory)) = directories.iter().find_map(|found| Some((inside(found)?, &found.0))) else {
        return lines;
    };
    for (seconds, nanoseconds) in [(-1, 0), (-1, u32::MAX), (i64::MIN, 0), (i64::MAX, 999_999_999)] {
        let time = || NewTimestamp::Timestamp(system_clock::Instant { seconds, nanoseconds });
        let set = directory.set_times_at(PathFlags::SYMLINK_FOLLOW, rest.into(), time(), time()).await;
        lines += &format!("\n0.3 set {seconds} {nanoseconds}: {set:?}");
        let stat = directory.stat_at(PathFlags::SYMLINK_FOLLOW, rest.into()).await;
        lines += &format!("\n0.3 stat: {:?}", stat.map(|stat| stat.data_modification_timestamp));
    }
    lines
}
