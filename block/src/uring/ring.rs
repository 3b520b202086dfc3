//! Making a ring. Runs on the worker's thread.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{Builder, IoUring};

/// A name for the log, and the flags.
type Rung = (&'static str, fn(&mut Builder));

/// Ways to run completions, best first: on the thread's own terms when it enters the ring, at its next
/// system call, or by interrupting it.
const RUNGS: [Rung; 3] = [
    ("deferred completions (Linux 6.1)", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    }),
    ("cooperative completions (Linux 5.19)", |builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    }),
    ("plain completions (Linux 5.13)", |_| {}),
];

/// Makes a ring that never runs out of entries: each request in flight has at most one of its own, and
/// the kick has another. The file becomes its fixed file 0.
///
/// # Errors
///
/// The kernel refuses the ring or the file.
pub(super) fn make(depth: u16, file: &File) -> io::Result<IoUring> {
    let entries = (u32::from(depth) + 2).next_power_of_two();
    let ring = build(entries)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    Ok(ring)
}

fn build(entries: u32) -> io::Result<IoUring> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for (name, set_flags) in RUNGS {
        let mut builder = IoUring::builder();
        set_flags(&mut builder);
        match builder.dontfork().setup_cqsize(2 * entries).build(entries) {
            Ok(ring) => {
                tracing::info!(engine = "io_uring", ring = name, entries, "I/O engine ready");
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}
