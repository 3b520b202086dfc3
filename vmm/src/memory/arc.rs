//! The ARC of ZFS, a cache that the kernel does not count as one.
//!
//! `MemAvailable` has no part of the ARC's data in any version up to OpenZFS 2.4: the pages of
//! scattered buffers come from the page allocator (`abd_os.c`), and Linux counts free pages, file
//! pages and reclaimable slabs only (`si_mem_available()`). OpenZFS 2.2.7 and 2.3 mark these pages
//! `__GFP_RECLAIMABLE` (pull request 16385), which affects their placement and not the count;
//! issue 10255 is open. Since then headers and linear buffers are reclaimable slabs, and counted.
//!
//! So what counts here is the scattered data that the ARC's shrinker would evict, which no version
//! counts twice. The shrinker runs in direct reclaim of every allocation, so memory that is
//! populated receives it. The ARC is not charged to cgroups.

use std::fs;
use std::path::Path;

/// Bytes that the kernel can take from the ARC in addition to `MemAvailable`; 0 without ZFS. Files
/// are below `root`.
pub(super) fn evictable_bytes(root: &Path) -> u64 {
    let read = |name| fs::read_to_string(root.join("proc/spl/kstat/zfs").join(name)).ok();
    let arc = read("arcstats").and_then(|arcstats| evictable(&arcstats));
    let scattered = read("abdstats").and_then(|abdstats| value(&abdstats, "scatter_data_size"));
    arc.unwrap_or(0).min(scattered.unwrap_or(0))
}

/// The shrinker's own estimate (`arc_evictable_memory()`): clean buffers, but the ARC keeps
/// `c_min`, of which its dirty buffers and headers are a part.
fn evictable(arcstats: &str) -> Option<u64> {
    let value = |name: &str| value(arcstats, name);
    let clean = ["mru", "mfu"].into_iter().try_fold(0_u64, |sum, list| {
        let data = value(&format!("{list}_evictable_data"))?;
        let metadata = value(&format!("{list}_evictable_metadata"))?;
        sum.checked_add(data)?.checked_add(metadata)
    })?;
    let above_minimum = value("size")?.saturating_sub(value("c_min")?);
    Some(clean.min(above_minimum))
}

/// A value of a kstat, whose lines have a name, a type and a number.
fn value(kstat: &str, name: &str) -> Option<u64> {
    kstat.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let is_wanted = fields.next() == Some(name);
        fields.nth(1).filter(|_| is_wanted)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 GiB in use, of which at least 512 MiB stay.
    const ARCSTATS: &str = "\
9 1 0x01 147 39984 5146203612 1204712393519
name                            type data
hits                            4    8041365039
c                               4    6442450944
c_min                           4    536870912
c_max                           4    8589934592
size                            4    4294967296
mru_size                        4    2147483648
mru_evictable_data              4    1073741824
mru_evictable_metadata          4    1048576
mfu_evictable_data              4    2147483648
mfu_evictable_metadata          4    0
";
    const ABDSTATS: &str = "\
7 1 0x01 21 5712 5146203612 1204712393519
name                            type data
linear_data_size                4    268435456
scatter_data_size               4    3758096384
";

    fn evictable_of(arcstats: &str, abdstats: &str) -> u64 {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/spl/kstat/zfs");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("arcstats"), arcstats).unwrap();
        fs::write(folder.join("abdstats"), abdstats).unwrap();
        evictable_bytes(root.path())
    }

    #[test]
    fn clean_scattered_data_is_evictable() {
        assert_eq!(evictable_of(ARCSTATS, ABDSTATS), (3 << 30) + (1 << 20));
    }

    #[test]
    fn the_minimum_stays() {
        let larger_minimum = ARCSTATS.replace(" 536870912", " 3221225472");
        assert_eq!(evictable_of(&larger_minimum, ABDSTATS), 1 << 30);
        let shrunk =
            ARCSTATS.replace("size                            4    4294967296", "size 4 1");
        assert_eq!(evictable_of(&shrunk, ABDSTATS), 0);
    }

    #[test]
    fn linear_data_is_not_counted_twice() {
        let abdstats = ABDSTATS.replace("3758096384", "4096");
        assert_eq!(evictable_of(ARCSTATS, &abdstats), 4096);
    }

    #[test]
    fn without_zfs_nothing_is_evictable() {
        assert_eq!(evictable_bytes(Path::new("/nonexistent")), 0);
        assert_eq!(evictable_of("", ""), 0);
    }
}
