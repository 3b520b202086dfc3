//! Names of the host's processes, for messages.

use std::fs;

/// `process PID (NAME)`, for a process that the host reported.
pub(crate) fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let printable = |char: char| if char.is_control() { '\u{fffd}' } else { char };
    let name: String = name.trim_end().chars().map(printable).collect();
    if name.is_empty() { format!("process {pid}") } else { format!("process {pid} ({name})") }
}
