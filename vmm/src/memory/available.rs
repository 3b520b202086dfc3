//! The memory that a guest can get: that of the host, and that of the cgroups of this process.

use std::path::Path;

use super::cgroup::CgroupMemory;
use super::{arc, cgroup, meminfo};

/// Memory that can be allocated, after the kernel has evicted its caches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AvailableMemory {
    /// Of the host; `None` if it does not report it.
    pub(crate) host_bytes: Option<u64>,
    pub(crate) cgroups: Vec<CgroupMemory>,
}

impl AvailableMemory {
    /// The memory that is available now.
    pub(crate) fn probe() -> Self {
        Self::read(Path::new("/"))
    }

    fn read(root: &Path) -> Self {
        let available = meminfo::available_bytes(root);
        let host_bytes = available.map(|bytes| bytes.saturating_add(arc::evictable_bytes(root)));
        Self { host_bytes, cgroups: cgroup::limits(root) }
    }

    /// The least of all limits.
    pub(super) fn least_bytes(&self) -> Option<u64> {
        let cgroups = self.cgroups.iter().map(|limit| limit.available_bytes);
        self.host_bytes.into_iter().chain(cgroups).min()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn evictable_arc_is_available() {
        let root = tempfile::tempdir().unwrap();
        let kstat = root.path().join("proc/spl/kstat/zfs");
        fs::create_dir_all(&kstat).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemAvailable: 1024 kB\n").unwrap();
        let memory = || AvailableMemory::read(root.path());
        assert_eq!(memory(), AvailableMemory { host_bytes: Some(1 << 20), cgroups: vec![] });
        let arcstats = "c_min 4 0\nsize 4 2097152\nmru_evictable_data 4 1048576\n\
                        mru_evictable_metadata 4 0\nmfu_evictable_data 4 0\n\
                        mfu_evictable_metadata 4 0\n";
        fs::write(kstat.join("arcstats"), arcstats).unwrap();
        fs::write(kstat.join("abdstats"), "scatter_data_size 4 2097152\n").unwrap();
        assert_eq!(memory().least_bytes(), Some(2 << 20));
    }
}
