//! A memory control group whose limit can be lowered, of version 2 or 1. Needs root.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// Bytes above the anonymous memory of the processes that a lowered limit leaves.
const MARGIN: u64 = 24 << 20;

/// The control group of all processes under test, removed when dropped.
pub(crate) struct MemoryGroup {
    folder: PathBuf,
    /// File of the limit, and its value without one.
    limit: &'static str,
    unlimited: &'static str,
}

impl MemoryGroup {
    /// Makes one, if this host has a hierarchy in which this process may.
    pub(crate) fn new() -> Option<Self> {
        let name = format!("bulkhead-chaos-{}", std::process::id());
        let places = [
            ("/sys/fs/cgroup", "memory.high", "max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "-1"),
        ];
        places.into_iter().find_map(|(parent, limit, unlimited)| {
            let folder = PathBuf::from(parent).join(&name);
            fs::create_dir(&folder).ok()?;
            if folder.join(limit).exists() {
                return Some(Self { folder, limit, unlimited });
            }
            // No memory controller here.
            let _ = fs::remove_dir(folder);
            None
        })
    }

    /// Moves a process into it.
    pub(crate) fn add(&self, pid: u32) -> std::io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string())
    }

    /// Lowers the limit to `anonymous_kib` and a margin, so that page cache is reclaimed. The
    /// kernel may refuse it if too little can be reclaimed at once.
    pub(crate) fn squeeze(&self, anonymous_kib: u64) -> std::io::Result<()> {
        let bytes = anonymous_kib * 1024 + MARGIN;
        fs::write(self.folder.join(self.limit), bytes.to_string())
    }

    /// Removes the limit.
    pub(crate) fn release(&self) {
        let _ = fs::write(self.folder.join(self.limit), self.unlimited);
    }

    /// The limit in words.
    pub(crate) fn limit(&self) -> &'static str {
        self.limit
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        self.release();
        // The group is busy until its last process has been reaped.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
