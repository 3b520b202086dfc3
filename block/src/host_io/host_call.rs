//! One call to the host, whichever engine makes it: a ring entry or a system call.

use crate::Segment;

/// A call to the host.
///
/// Invariant: the memory that it names stays valid and in place until the call's result is handled
/// by the [`StateMachine`](super::StateMachine) or fast-path slot that made it. Those own the list
/// of segments and the bounce buffer; the segments are valid by [`Segment::new`].
/// [`crate::requests`] drops neither while the host works on a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostCall {
    pub(crate) op: HostOp,
    /// Run the call on a thread that may block: the host has refused it with `EAGAIN`, or is known
    /// to block.
    pub(crate) may_block: bool,
}

/// The operation of a call. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostOp {
    /// Read from the disk into the buffer.
    Read { buffer: IoBuffer, at: u64 },
    /// Write the buffer; if `durable`, with `RWF_DSYNC`.
    Write { buffer: IoBuffer, at: u64, durable: bool },
    /// Discard blocks of a block device (`BLKDISCARD`).
    Discard { at: u64, len: u64 },
    /// `FALLOC_FL_PUNCH_HOLE`. On a block device: zero by unmapping, or fail.
    PunchHole { at: u64, len: u64 },
    /// `FALLOC_FL_ZERO_RANGE`: zero, and keep the range allocated.
    ZeroRange { at: u64, len: u64 },
    /// `fdatasync(2)`, on a descriptor without other use.
    Sync,
}

/// Memory of a transfer, as the host takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IoBuffer {
    /// Address and length in bytes.
    Contiguous(*mut u8, u32),
    /// Address of an array of `iovec` and its length.
    Vector(*const libc::iovec, u32),
}

// SAFETY: addresses and lengths. The invariant of `HostCall` holds on any thread.
unsafe impl Send for IoBuffer {}

/// Maximum number of segments of one system call (`UIO_MAXIOV`).
pub(super) const MAX_SEGMENTS: usize = 1024;

impl IoBuffer {
    /// The bytes from `base` on, `len` of them or as many as one call transfers.
    pub(super) fn contiguous(base: *mut u8, len: usize) -> Self {
        Self::Contiguous(base, clamp(len))
    }

    /// The segments, or as many of them as one call transfers.
    #[inline]
    pub(super) fn of_segments(segments: &[Segment]) -> Self {
        match segments {
            [one] => Self::contiguous(one.base(), one.len()),
            // `Segment` is a transparent `iovec`.
            many => Self::Vector(many.as_ptr().cast(), clamp(many.len().min(MAX_SEGMENTS))),
        }
    }
}

/// Limits one transfer to 1 GiB; the rest follows as after a short transfer. A multiple of the
/// page, as direct I/O requires.
fn clamp(len: usize) -> u32 {
    const MAX: u32 = 1 << 30;
    u32::try_from(len).map_or(MAX, |len| len.min(MAX))
}
