//! Finds the process that holds a lock on an image. Control thread only.
//!
//! The kernel reports the owner of a process-owned lock, but none for an open-file-description
//! lock. `/proc/PID/fdinfo` lists the locks of each descriptor. Unprivileged users see their own
//! processes only.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys::OfdLock;

/// A lock that was not granted.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) requested: OfdLock,
    pub(super) bytes: RangeInclusive<u64>,
}

/// A process with a descriptor of the same file, other than `file`, whose lock conflicts.
pub(super) fn find(file: &File, refusal: &Refusal) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    let own = (std::process::id(), file.as_raw_fd().to_string());
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let own_descriptor = (*pid == own.0).then_some(own.1.as_str());
        holds(*pid, &wanted, own_descriptor, refusal).unwrap_or(false)
    })
}

fn holds(pid: u32, wanted: &Metadata, except: Option<&str>, refusal: &Refusal) -> io::Result<bool> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    for entry in fs::read_dir(process.join("fd"))?.filter_map(Result::ok) {
        let descriptor = entry.file_name();
        if except.is_some_and(|except| descriptor == OsStr::new(except)) {
            continue;
        }
        // A stat hangs with the file's store: only descriptors with such a lock get one.
        if !has_conflict(&process.join("fdinfo").join(descriptor), refusal) {
            continue;
        }
        // The descriptor may have been closed since.
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        if (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_conflict(fdinfo: &Path, refusal: &Refusal) -> bool {
    let info = fs::read_to_string(fdinfo).unwrap_or_default();
    info.lines().any(|line| conflicts(line, refusal).unwrap_or(false))
}

/// Whether a line of fdinfo is a lock that conflicts: `lock: 1: OFDLCK ADVISORY READ -1 fe:00:7 100
/// 101` (proc(5)). `flock(2)` has locks of its own.
fn conflicts(line: &str, refusal: &Refusal) -> Option<bool> {
    let mut fields = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    let (kind, access) = (fields.next()?, fields.nth(1)?);
    let (start, end) = (fields.nth(2)?.parse::<u64>().ok()?, fields.next()?);
    // The end of a lock on the whole file is `EOF`.
    let end = end.parse().unwrap_or(u64::MAX);
    let overlaps = start <= *refusal.bytes.end() && *refusal.bytes.start() <= end;
    let excludes = access == "WRITE" || refusal.requested == OfdLock::Exclusive;
    Some(kind != "FLOCK" && overlaps && excludes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_overlaps_and_is_exclusive_on_one_side() {
        let conflicts = |line: &str, requested, bytes| {
            conflicts(line, &Refusal { requested, bytes }).unwrap_or(false)
        };
        let read = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10240078 100 101";
        assert!(conflicts(read, OfdLock::Exclusive, 101..=101));
        assert!(!conflicts(read, OfdLock::Exclusive, 102..=102));
        assert!(!conflicts(read, OfdLock::Shared, 101..=101));
        let write = "lock:\t1: POSIX  ADVISORY  WRITE 7 fe:00:10240078 0 EOF";
        assert!(conflicts(write, OfdLock::Shared, 101..=101));
        let flock = "lock:\t1: FLOCK  ADVISORY  WRITE 7 fe:00:10240078 0 EOF";
        assert!(!conflicts(flock, OfdLock::Exclusive, 0..=u64::MAX));
        assert!(!conflicts("pos:\t0", OfdLock::Exclusive, 0..=u64::MAX));
    }
}
