//! The memory limits of the cgroups that this process is in, version 1 or 2.
//!
//! Limits apply to the memory in use of a whole cgroup. File pages and reclaimable slabs are
//! evicted before a limit takes effect, and anonymous memory is swapped out if there is swap.

use std::fs;
use std::path::{Path, PathBuf};

use super::meminfo;
use crate::process_limits::cgroup::{CgroupFolder, CgroupVersion, folders, read_number};

/// The consequence of a limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitEffect {
    /// The kernel kills a process of the cgroup.
    Kill,
    /// The kernel delays each allocation.
    Throttle,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupMemory {
    /// The file that sets it.
    pub(crate) file: PathBuf,
    pub(crate) limit_bytes: u64,
    /// Memory that can still be allocated before the limit takes effect.
    pub(crate) available_bytes: u64,
    pub(crate) effect: LimitEffect,
}

/// All limits. Files are below `root`.
pub(super) fn limits(root: &Path) -> Vec<CgroupMemory> {
    let free_swap = meminfo::free_swap_bytes(root).unwrap_or(0);
    let folders = folders(root, "memory").into_iter();
    folders.flat_map(|folder| limits_of(&folder, free_swap)).collect()
}

fn limits_of(folder: &CgroupFolder, free_swap: u64) -> Vec<CgroupMemory> {
    use LimitEffect::{Kill, Throttle};
    let path = &folder.path;
    let limit = |file: &str, usage_file, reclaimable: u64, effect| {
        let limit_bytes = read_number(path, file)?;
        let unreclaimable = read_number(path, usage_file)?.saturating_sub(reclaimable);
        let available_bytes = limit_bytes.saturating_sub(unreclaimable);
        Some(CgroupMemory { file: path.join(file), limit_bytes, available_bytes, effect })
    };
    match folder.version {
        CgroupVersion::V2 => {
            let evictable =
                sum_of_stat(path, &["inactive_file", "active_file", "slab_reclaimable"]);
            let swap_max = read_number(path, "memory.swap.max").unwrap_or(u64::MAX);
            let swapped = read_number(path, "memory.swap.current").unwrap_or(0);
            let swap = free_swap.min(swap_max.saturating_sub(swapped));
            let reclaimable = evictable.saturating_add(swap);
            let limit = |file, effect| limit(file, "memory.current", reclaimable, effect);
            [limit("memory.max", Kill), limit("memory.high", Throttle)]
                .into_iter()
                .flatten()
                .collect()
        }
        CgroupVersion::V1 => {
            let evictable = sum_of_stat(path, &["total_inactive_file", "total_active_file"]);
            let usage = "memory.usage_in_bytes";
            let reclaimable = evictable.saturating_add(free_swap);
            let memory = limit("memory.limit_in_bytes", usage, reclaimable, Kill);
            let usage = "memory.memsw.usage_in_bytes";
            let with_swap = limit("memory.memsw.limit_in_bytes", usage, evictable, Kill);
            [memory, with_swap].into_iter().flatten().collect()
        }
    }
}

/// The sum of lines of `memory.stat`, which include the cgroup's descendants.
fn sum_of_stat(folder: &Path, names: &[&str]) -> u64 {
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let lines = stat.lines().filter_map(|line| line.split_once(' '));
    let wanted = lines.filter(|(name, _)| names.contains(name));
    wanted.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A folder of a cgroup with the given files.
    fn limits_with(
        version: CgroupVersion,
        free_swap: u64,
        files: &[(&str, &str)],
    ) -> Vec<(String, u64, u64, LimitEffect)> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let folder = CgroupFolder { version, path: folder.path().to_owned() };
        let limits = limits_of(&folder, free_swap).into_iter();
        limits
            .map(|limit| {
                let name = limit.file.file_name().unwrap().to_str().unwrap().to_owned();
                (name, limit.limit_bytes / MIB, limit.available_bytes / MIB, limit.effect)
            })
            .collect()
    }

    const V2: [(&str, &str); 4] = [
        ("memory.max", "536870912\n"),
        ("memory.high", "max\n"),
        ("memory.current", "268435456\n"),
        (
            "memory.stat",
            "anon 67108864\nfile 201326592\nshmem 33554432\nactive_file 67108864\n\
             inactive_file 100663296\nslab_reclaimable 33554432\nslab 67108864\n",
        ),
    ];

    #[test]
    fn file_pages_are_available() {
        let expected = ("memory.max".to_owned(), 512, 512 - (256 - 192), LimitEffect::Kill);
        assert_eq!(limits_with(CgroupVersion::V2, 0, &V2), [expected]);
    }

    #[test]
    fn memory_high_is_a_limit() {
        let mut files = V2;
        (files[0].1, files[1].1) = ("max", "134217728\n");
        let expected = ("memory.high".to_owned(), 128, 128 - (256 - 192), LimitEffect::Throttle);
        assert_eq!(limits_with(CgroupVersion::V2, 0, &files), [expected]);
    }

    #[test]
    fn swap_is_available_up_to_its_limit() {
        let available = |free_swap, more: &[(&str, &str)]| {
            limits_with(CgroupVersion::V2, free_swap, &[&V2[..], more].concat())[0].2
        };
        assert_eq!(available(16 * MIB, &[]), 448 + 16);
        let swap = [("memory.swap.max", "33554432\n"), ("memory.swap.current", "25165824\n")];
        assert_eq!(available(16 * MIB, &swap), 448 + 8);
        assert_eq!(available(16 * MIB, &[("memory.swap.max", "0\n")]), 448);
    }

    #[test]
    fn a_full_cgroup_has_nothing_left() {
        let mut files = V2;
        files[2].1 = "1073741824\n";
        assert_eq!(limits_with(CgroupVersion::V2, 0, &files)[0].2, 0);
    }

    #[test]
    fn limits_of_version_1_are_read() {
        let files = [
            ("memory.limit_in_bytes", "134217728\n"),
            ("memory.usage_in_bytes", "67108864\n"),
            ("memory.memsw.limit_in_bytes", "150994944\n"),
            ("memory.memsw.usage_in_bytes", "67108864\n"),
            (
                "memory.stat",
                "inactive_file 1\nactive_file 1\ntotal_inactive_file 16777216\n\
                 total_active_file 16777216\ntotal_rss 33554432\n",
            ),
        ];
        let limit =
            |name: &str, limit, available| (name.to_owned(), limit, available, LimitEffect::Kill);
        let memory = |available| limit("memory.limit_in_bytes", 128, available);
        let with_swap = limit("memory.memsw.limit_in_bytes", 144, 144 - 32);
        let limits = |free_swap| limits_with(CgroupVersion::V1, free_swap, &files);
        assert_eq!(limits(0), [memory(128 - 32), with_swap.clone()]);
        assert_eq!(limits(64 * MIB), [memory(128), with_swap]);
    }

    #[test]
    fn all_ancestors_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "0::/a/b\n");
        write("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        write("proc/meminfo", "MemAvailable: 1048576 kB\nSwapFree: 1024 kB\n");
        for (cgroup, max) in [("a/b", "max\n"), ("a", "104857600\n")] {
            write(&format!("sys/fs/cgroup/{cgroup}/memory.max"), max);
            write(&format!("sys/fs/cgroup/{cgroup}/memory.current"), "1048576\n");
        }
        let limits = limits(root.path());
        let [limit] = limits.as_slice() else { panic!("{limits:?}") };
        assert_eq!(limit.file, root.path().join("sys/fs/cgroup/a/memory.max"));
        assert_eq!(limit.available_bytes, 100 * MIB, "with swap for what is in use");
    }
}
