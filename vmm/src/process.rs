//! Other processes of the host: their names for messages, and the end of the parent.

use std::num::NonZeroU32;
use std::{fs, io, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open};

/// Kills this process when `parent`, which started it, has ended in any way. The thread of this
/// inherits the blocked signals.
///
/// PR_SET_PDEATHSIG would not do: it follows the thread that started this process.
///
/// # Errors
///
/// The parent has ended, or the host's error.
pub(crate) fn end_with(parent: NonZeroU32) -> io::Result<()> {
    let parent = i32::try_from(parent.get()).ok().and_then(Pid::from_raw);
    let parent = parent.ok_or(io::ErrorKind::InvalidInput)?;
    let descriptor = pidfd_open(parent, PidfdFlags::empty())?;
    // Another process may have its number by now.
    if getppid() != Some(parent) {
        return Err(io::Error::other("the process that started this one has ended"));
    }
    let wait = move || {
        // A descriptor of a process is readable once that has ended.
        while poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], None).is_err() {}
        let _ = kill_process(getpid(), Signal::KILL);
    };
    thread::Builder::new().name("parent".to_owned()).spawn(wait).map(drop)
}

/// `process PID (NAME)`, for a process that the host reported.
pub(crate) fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let printable = |char: char| if char.is_control() { '\u{fffd}' } else { char };
    let name: String = name.trim_end().chars().map(printable).collect();
    if name.is_empty() { format!("process {pid}") } else { format!("process {pid} ({name})") }
}
