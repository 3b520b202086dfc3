//! The kernel as the engine sees it, and making a real one. Runs on the worker's thread.
//!
//! The simulator in `tests/` is the other implementer: all of the engine but this file runs over it, so
//! that what it makes of short, failed and reordered answers is what production makes of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{Builder, IoUring, cqueue, squeue};

/// A submission and a completion queue with a kernel behind them.
pub trait Ring {
    /// Adds an entry to the submission queue; `false` if it is full.
    ///
    /// # Safety
    ///
    /// The memory that the entry names stays valid until its answer was taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool;

    /// Whether the submission queue holds entries that the kernel has not taken.
    fn has_unsubmitted(&mut self) -> bool;

    /// Whether entering the kernel would do anything: take entries or post answers.
    fn wants_entering(&mut self) -> bool;

    /// Enters the kernel: it takes entries, and waits until `want` answers are there.
    ///
    /// # Errors
    ///
    /// The kernel's error; `EINTR`, `EAGAIN` and `EBUSY` are passing.
    fn submit_and_wait(&mut self, want: usize) -> io::Result<()>;

    /// Takes the next answer.
    fn next_answer(&mut self) -> Option<Answer>;

    /// Signals an eventfd whenever an answer is there, or will be once the kernel is entered.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    fn signal_to(&mut self, _eventfd: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// An entry of the completion queue.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The submitted entry's own.
    pub user_data: u64,
    /// A count or a negated errno.
    pub result: i32,
    /// Whether the same entry answers again.
    pub more: bool,
}

/// A ring of the kernel.
pub(crate) struct KernelRing(IoUring);

impl Ring for KernelRing {
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.0.submission().push(entry) }.is_ok()
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.0.submission().is_empty()
    }

    fn wants_entering(&mut self) -> bool {
        let queue = self.0.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    fn submit_and_wait(&mut self, want: usize) -> io::Result<()> {
        self.0.submit_and_wait(want).map(drop)
    }

    fn next_answer(&mut self) -> Option<Answer> {
        let entry = self.0.completion().next()?;
        Some(Answer {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
        })
    }

    fn signal_to(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.submitter().register_eventfd(eventfd.as_raw_fd())
    }
}

impl Drop for KernelRing {
    /// The kernel takes a closed ring apart when it finds time: until then its files would stay open, and
    /// the disk in use.
    fn drop(&mut self) {
        if let Err(error) = self.0.submitter().unregister_files() {
            tracing::warn!(%error, "cannot close the files of a ring");
        }
    }
}

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
/// the kick and the alarms have three more. The files become its fixed files.
///
/// # Errors
///
/// The kernel refuses the ring or the file.
pub(super) fn make(depth: u16, files: &[BorrowedFd<'_>; 3]) -> io::Result<KernelRing> {
    let entries = (u32::from(depth) + 3).next_power_of_two();
    let ring = KernelRing(build(entries)?);
    ring.0.submitter().register_files(&files.map(|file| file.as_raw_fd()))?;
    Ok(ring)
}

fn build(entries: u32) -> io::Result<IoUring> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for (name, set_flags) in RUNGS {
        let mut builder = IoUring::builder();
        set_flags(&mut builder);
        match builder.dontfork().setup_cqsize(2 * entries).build(entries) {
            Ok(ring) => {
                tracing::debug!(ring = name, entries, "the ring of an I/O engine is ready");
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}
