//! Finds the process that holds the lock on an image. Control thread only.
//!
//! The kernel reports the owner of a process-owned lock, but none for an open-file-description
//! lock. `/proc/PID/fdinfo` lists the locks of each descriptor. Unprivileged users see their own
//! processes only.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process with a descriptor on `file` that holds a lock.
pub(super) fn find(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| holds(*pid, &wanted).unwrap_or(false))
}

fn holds(pid: u32, wanted: &Metadata) -> io::Result<bool> {
    let process = Path::new("/proc").join(pid.to_string());
    for entry in fs::read_dir(process.join("fd"))?.filter_map(Result::ok) {
        // A descriptor may be closed between readdir and stat.
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        if (found.dev(), found.ino()) != (wanted.dev(), wanted.ino()) {
            continue;
        }
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name()));
        if info.is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:"))) {
            return Ok(true);
        }
    }
    Ok(false)
}
