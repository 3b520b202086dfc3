//! A cgroup for the processes of one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// A cgroup with a limit. Dropping it removes it, once its processes have ended.
pub(super) struct Cgroup {
    folder: PathBuf,
    limit: &'static str,
}

impl Cgroup {
    /// A cgroup of the memory controller with a limit, in version 1 or 2.
    pub(super) fn with_memory(bytes: u64) -> Self {
        Self::new("memory", ["memory.limit_in_bytes", "memory.max"], bytes)
    }

    /// A cgroup of the pids controller with a limit.
    pub(super) fn with_pids(max: u64) -> Self {
        Self::new("pids", ["pids.max"; 2], max)
    }

    fn new(controller: &str, limits: [&'static str; 2], value: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let [version_1, version_2] = limits;
        let mount = Path::new("/sys/fs/cgroup").join(controller);
        let (mount, limit) = if mount.join("cgroup.procs").exists() {
            (mount, version_1)
        } else {
            let mount = PathBuf::from("/sys/fs/cgroup");
            // Fails if the controller is enabled or absent; the limit's file is then absent too.
            let _ = fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}"));
            (mount, version_2)
        };
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = mount.join(format!("bulkhead-test-{process}-{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(limit), value.to_string()).unwrap();
        Self { folder, limit }
    }

    /// The file of the limit.
    pub(super) fn limit(&self) -> PathBuf {
        self.folder.join(self.limit)
    }

    /// Executes `command` in the cgroup.
    pub(super) fn enter(&self, command: &Command) -> Command {
        let mut entering = Command::new("sh");
        entering.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.folder);
        entering.arg(command.get_program()).args(command.get_args());
        entering
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the kernel has released the last process.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        assert!(std::thread::panicking(), "cannot remove {}", self.folder.display());
    }
}
