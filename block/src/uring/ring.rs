//! The kernel as the engine sees it, and how a kernel's ring is made. Runs on the worker's thread.
//!
//! The simulator in `tests/` is the other implementer: all of the engine except this file runs over
//! it, so that it treats short, failed and reordered results as production does.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{Builder, IoUring, cqueue, opcode, squeue, types};

/// A submission and a completion queue with a kernel behind them.
pub trait Ring {
    /// Adds an entry to the submission queue; `false` if it is full.
    ///
    /// # Safety
    ///
    /// The memory that the entry names stays valid until its result was taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool;

    /// Whether the submission queue holds entries that the kernel has not taken.
    fn has_unsubmitted(&mut self) -> bool;

    /// Whether entering the kernel has an effect: there are entries to take, or results to post.
    fn wants_entering(&mut self) -> bool;

    /// Enters the kernel: it takes entries, and waits for `want` results, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// The kernel's error; `EINTR`, `EAGAIN` and `EBUSY` are transient. A timeout is no error.
    fn submit_and_wait(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()>;

    /// Takes the next result.
    fn next_result(&mut self) -> Option<RingResult>;

    /// Signals an eventfd whenever a result is posted, or will be once the kernel is entered.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    fn signal_to(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()>;
}

/// An entry of the completion queue.
#[derive(Clone, Copy, Debug)]
pub struct RingResult {
    /// That of the submitted entry.
    pub user_data: u64,
    /// A count or a negated errno.
    pub result: i32,
    /// The same entry has further results.
    pub more: bool,
}

/// Pushes a multishot poll for readability; `false` if the submission queue is full.
pub(crate) fn push_poll(ring: &mut impl Ring, fd: BorrowedFd<'_>, user_data: u64) -> bool {
    let events = u32::from(libc::POLLIN.unsigned_abs());
    let fd = types::Fd(fd.as_raw_fd());
    let entry = opcode::PollAdd::new(fd, events).multi(true).build().user_data(user_data);
    // SAFETY: the entry names no memory, and the kernel holds the file once it has taken the entry.
    unsafe { ring.push(&entry) }
}

/// A ring of the kernel.
pub(crate) struct KernelRing(IoUring);

impl Ring for KernelRing {
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise is the one required here.
        unsafe { self.0.submission().push(entry) }.is_ok()
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.0.submission().is_empty()
    }

    fn wants_entering(&mut self) -> bool {
        let queue = self.0.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    fn submit_and_wait(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let Some(timeout) = timeout else { return self.0.submit_and_wait(want).map(drop) };
        wait_at_most(&self.0, want, timeout)
    }

    fn next_result(&mut self) -> Option<RingResult> {
        let entry = self.0.completion().next()?;
        Some(RingResult {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
        })
    }

    fn signal_to(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.submitter().register_eventfd(eventfd.as_raw_fd())
    }
}

#[cold]
fn wait_at_most(ring: &IoUring, want: usize, timeout: Duration) -> io::Result<()> {
    let timeout = types::Timespec::from(timeout);
    let args = types::SubmitArgs::new().timespec(&timeout);
    match ring.submitter().submit_with_args(want, &args) {
        Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
        outcome => outcome.map(drop),
    }
}

impl Drop for KernelRing {
    /// Closes the fixed files. The kernel dismantles a closed ring some time later: until then the
    /// files would stay open, and the disk in use.
    fn drop(&mut self) {
        if let Err(error) = self.0.submitter().unregister_files() {
            tracing::warn!(%error, "cannot close the files of a ring");
        }
    }
}

/// A name for the log, and the flags.
type RingFlags = (&'static str, fn(&mut Builder));

/// Ways to run completions, best first: when the thread enters the ring, at its next system call,
/// or by an interrupt.
const RING_FLAGS: [RingFlags; 3] = [
    ("deferred completions (Linux 6.1)", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    }),
    ("cooperative completions (Linux 5.19)", |builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    }),
    ("plain completions (Linux 5.13)", |_| {}),
];

/// Makes a ring that never runs out of entries: each request in flight has at most one, and the
/// poll of the kick has one. `files` become its fixed files.
///
/// # Errors
///
/// The kernel refuses the ring or the files.
pub(super) fn make(depth: u16, files: &[BorrowedFd<'_>; 3]) -> io::Result<KernelRing> {
    let entries = (u32::from(depth) + 1).next_power_of_two();
    let ring = KernelRing(build(entries)?);
    ring.0.submitter().register_files(&files.map(|file| file.as_raw_fd()))?;
    Ok(ring)
}

pub(super) fn build(entries: u32) -> io::Result<IoUring> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for (name, set_flags) in RING_FLAGS {
        let mut builder = IoUring::builder();
        set_flags(&mut builder);
        match builder.dontfork().setup_cqsize(2 * entries).build(entries) {
            Ok(ring) => {
                tracing::debug!(ring = name, entries, "ring of an I/O engine created");
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}
