//! The end of processes that a check leaves behind.
//!
//! Orphans become children of this process, which is their subreaper. Those of a check are known by
//! its mount namespace, or by its folder in their environment. The main thread must have no other
//! children.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};

/// The variable that names the folder of a check.
pub(super) const FOLDER: &str = "BULKHEAD_TMP";

/// For how long the end of killed processes is awaited: the kernel may hold one in a call.
const PATIENCE: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_millis(1);

/// Marks by which the processes of a check differ from others.
pub(super) struct CheckMarks {
    /// Device and inode of its mount namespace, if it has one of its own.
    pub(super) mounts: Option<(u64, u64)>,
    /// Its folder.
    pub(super) folder: PathBuf,
}

impl CheckMarks {
    /// Whether a process belongs to the check.
    fn has(&self, process: Pid) -> bool {
        let folder = format!("/proc/{}", process.as_raw_nonzero());
        let mounts = namespace(Path::new(&folder));
        if self.mounts.is_some() && mounts == self.mounts {
            return true;
        }
        let variable = [FOLDER.as_bytes(), b"=", self.folder.as_os_str().as_bytes()].concat();
        let environment = fs::read(format!("{folder}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == variable)
    }
}

/// Identity of the mount namespace of the process or thread at a path of /proc.
pub(super) fn namespace(process: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(process.join("ns/mnt")).ok()?;
    Some((found.dev(), found.ino()))
}

/// Makes this process the parent of orphans, instead of the host's first one.
///
/// # Errors
///
/// The host's error.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Kills what is left of a check, or of all without one. Waits for their end, not for ever.
pub(super) fn end_leftovers(of: Option<&CheckMarks>) {
    let start = Instant::now();
    while end_some(of) && start.elapsed() < PATIENCE {
        thread::sleep(PERIOD);
    }
}

/// Returns whether there were any.
fn end_some(of: Option<&CheckMarks>) -> bool {
    // Orphans become children of the main thread. Shells are those of the threads that await them.
    let path = format!("/proc/self/task/{}/children", getpid().as_raw_nonzero());
    let children = fs::read_to_string(path).unwrap_or_default();
    let mut found = false;
    for pid in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
        // One that has ended has nothing by which its check is known.
        if matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_))) {
            continue;
        }
        if of.is_none_or(|marks| marks.has(pid)) {
            found = true;
            // It is a child that was not awaited, so that its number is its own.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// As for users that have no mount namespaces.
    #[test]
    fn a_process_is_known_by_its_environment() {
        let mut sleep = Command::new("sleep");
        let mut child = sleep.arg("60").env(FOLDER, "/tmp/check").spawn().unwrap();
        let process = Pid::from_child(&child);
        let marks = |folder: &str| CheckMarks { mounts: None, folder: folder.into() };
        // The variable is there once the program runs.
        let start = Instant::now();
        while !marks("/tmp/check").has(process) && start.elapsed() < PATIENCE {
            thread::sleep(PERIOD);
        }
        let known = ["/tmp/check", "/tmp/chec", "/tmp/check2"].map(|it| marks(it).has(process));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(known, [true, false, false]);
    }
}
