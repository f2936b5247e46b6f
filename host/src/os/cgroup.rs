//! What the control groups that this process is in leave it: memory and processors, by version 1 and 2 of the interface, and
//! by both where a machine has both. Of nested groups the tightest counts.

use std::fs;
use std::path::{Path, PathBuf};

/// What is left of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Allowance {
    /// In bytes.
    pub(crate) memory: Option<u64>,
    /// Processors' worth of time.
    pub(crate) cpus: Option<f64>,
    /// Processes and threads.
    pub(crate) tasks: Option<u64>,
    /// How much of the memory may be on a disk, in bytes. Only version 2 says that by itself.
    pub(crate) swap: Option<u64>,
    /// Without memory the kernel ends every process of the group, not one.
    pub(crate) ends_as_one: bool,
}

impl Allowance {
    pub(crate) fn of_this_process() -> Self {
        Self::read(Path::new("/"))
    }

    /// As seen from `root`, which has a `proc` and the mounts that it tells of.
    fn read(root: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(root.join("proc/self").join(file)).unwrap_or_default();
        let (groups, mounts) = (read("cgroup"), read("mountinfo"));
        let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
        let mut allowance = Self::default();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
            for mount in mounts.iter().filter(|mount| mount.has(controllers)) {
                for folder in mount.folders(root, Path::new(group)) {
                    allowance.tighten(Self::in_folder(&folder));
                }
            }
        }
        allowance
    }

    /// What one group says, whichever version it is of: the files have different names.
    fn in_folder(folder: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let memory = ["memory.max", "memory.high", "memory.limit_in_bytes"].into_iter().filter_map(number).min();
        // Also of groups above that cannot be seen from a container.
        let inherited = read("memory.stat").and_then(|stat| {
            stat.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit ")?.trim().parse().ok())
        });
        let quota = read("cpu.max").or_else(|| Some(read("cpu.cfs_quota_us")? + " " + &read("cpu.cfs_period_us")?));
        let cpus = quota.and_then(|quota| {
            let mut numbers = quota.split_whitespace().map(str::parse::<f64>);
            // Without a quota it is `max`, or -1.
            let (quota, period) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        });
        Self {
            memory: least(memory, inherited),
            cpus,
            tasks: number("pids.max"),
            swap: number("memory.swap.max"),
            ends_as_one: number("memory.oom.group") == Some(1),
        }
    }

    fn tighten(&mut self, other: Self) {
        self.memory = least(self.memory, other.memory);
        self.cpus = least(self.cpus, other.cpus);
        self.tasks = least(self.tasks, other.tasks);
        self.swap = least(self.swap, other.swap);
        self.ends_as_one |= other.ends_as_one;
    }
}

fn least<T: PartialOrd>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other < one { other } else { one }),
        (one, other) => one.or(other),
    }
}

/// A mounted hierarchy of groups, from a line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct Mount<'a> {
    /// The group that is seen at the place: not the topmost one in a container.
    group: PathBuf,
    place: PathBuf,
    is_v2: bool,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' ').skip(3), kind.split(' '));
        let is_v2 = match kind.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        Some(Self {
            group: unescape(place.next()?),
            place: unescape(place.next()?),
            is_v2,
            options: kind.nth(1).unwrap_or_default(),
        })
    }

    /// Whether the group with these controllers is of this hierarchy. Version 2 names none.
    fn has(&self, controllers: &str) -> bool {
        if controllers.is_empty() {
            return self.is_v2;
        }
        !self.is_v2
            && controllers.split(',').all(|controller| self.options.split(',').any(|option| option == controller))
    }

    /// The folders of `group` and those above it, as far as they can be seen. What cannot is not there, which reads like
    /// a group without limits.
    fn folders(&self, root: &Path, group: &Path) -> Vec<PathBuf> {
        let top = root.join(self.place.strip_prefix("/").unwrap_or(&self.place));
        let below = group.strip_prefix(&self.group).unwrap_or(Path::new(""));
        let above = below.ancestors().filter(|part| !part.as_os_str().is_empty());
        above.map(|part| top.join(part)).chain([top.clone()]).collect()
    }
}

/// Spaces in paths are octal there.
fn unescape(path: &str) -> PathBuf {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Allowance) {
        let root = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        assert_eq!(Allowance::read(root.path()), expected);
    }

    #[test]
    fn without_groups_nothing_is_limited() {
        check(&[], Allowance::default());
        check(
            &[("proc/self/cgroup", "0::/\nnonsense\n"), ("proc/self/mountinfo", "nonsense - ")],
            Allowance::default(),
        );
    }

    #[test]
    fn of_nested_groups_of_version_2_the_tightest_counts() {
        let mounts = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let (shop, slice) = ("sys/fs/cgroup/a.slice/shop.service", "sys/fs/cgroup/a.slice");
        let file = |folder: &str, name: &str| format!("{folder}/{name}");
        let tree = [
            ("proc/self/cgroup".to_owned(), "0::/a.slice/shop.service\n"),
            ("proc/self/mountinfo".into(), mounts),
            (file(shop, "memory.max"), "max\n"),
            (file(shop, "memory.high"), "805306368\n"),
            (file(shop, "memory.oom.group"), "1\n"),
            (file(shop, "cpu.max"), "max 100000\n"),
            (file(shop, "pids.max"), "max\n"),
            (file(shop, "memory.swap.max"), "0\n"),
            (file(slice, "pids.max"), "512\n"),
            (file(slice, "memory.max"), "536870912\n"),
            (file(slice, "cpu.max"), "150000 100000\n"),
        ];
        let tree: Vec<(&str, &str)> = tree.iter().map(|(path, contents)| (path.as_str(), *contents)).collect();
        check(
            &tree,
            Allowance { memory: Some(512 * MIB), cpus: Some(1.5), tasks: Some(512), swap: Some(0), ends_as_one: true },
        );
    }

    #[test]
    fn groups_of_version_1_are_found_beside_an_empty_version_2() {
        let mounts = "\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        check(
            &[
                ("proc/self/cgroup", "4:memory:/shop/inner\n3:cpu,cpuacct:/shop\n1:name=systemd:/shop\n0::/shop\n"),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/shop/memory.limit_in_bytes", "268435456\n"),
                ("sys/fs/cgroup/memory/shop/inner/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/cpu,cpuacct/shop/cpu.cfs_quota_us", "200000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/shop/cpu.cfs_period_us", "100000\n"),
            ],
            Allowance { memory: Some(256 * MIB), cpus: Some(2.0), ..Allowance::default() },
        );
    }

    /// The path is the host's, and what is mounted is the container's own group, below limits that only its `memory.stat`
    /// tells of.
    #[test]
    fn a_container_sees_its_own_group_of_version_1() {
        check(
            &[
                ("proc/self/cgroup", "7:memory:/docker/c0ffee\n6:cpu:/docker/c0ffee\n"),
                (
                    "proc/self/mountinfo",
                    "50 40 0:32 /docker/c0ffee /sys/fs/cgroup/my\\040memory ro - cgroup cgroup rw,memory\n\
                     51 40 0:29 /docker/c0ffee /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n",
                ),
                ("sys/fs/cgroup/my memory/memory.limit_in_bytes", "536870912\n"),
                ("sys/fs/cgroup/my memory/memory.stat", "cache 0\nhierarchical_memory_limit 134217728\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ],
            Allowance { memory: Some(128 * MIB), ..Allowance::default() },
        );
    }

    #[test]
    fn a_group_that_lies_outside_of_what_is_mounted_is_read_at_its_top() {
        check(
            &[
                ("proc/self/cgroup", "0::/../other\n"),
                ("proc/self/mountinfo", "29 23 0:26 /mine /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/memory.max", "134217728\n"),
            ],
            Allowance { memory: Some(128 * MIB), ..Allowance::default() },
        );
    }
}
