//! Checks of a request before any call to the host.

use std::io;

use crate::disk_state::OpenDisk;
use crate::segment::is_zero;
use crate::{ByteOffset, ByteRange, DetectZeroes, FlushAction, Operation, Segment, total_len};

/// Result of the checks.
pub(super) enum Admission {
    /// The host has to execute the request.
    Execute,
    /// The request is complete.
    Complete(io::Result<()>),
}

/// Checks a request whose segments hold `bytes`. Device models check the guest's requests, so that
/// a refusal here is a bug of theirs.
pub(super) fn admit(op: Operation, bytes: u64, disk: &OpenDisk) -> Admission {
    let options = &disk.file.options;
    // The host fails a flush of a device that is read-only, such as a snapshot of a ZFS volume.
    let needs_no_flush = options.read_only || options.cache.flush_action() == FlushAction::Ignore;
    if op == Operation::Flush && needs_no_flush {
        return Admission::Complete(Ok(()));
    }
    let ByteRange { start: ByteOffset(start), len } = op.range(bytes);
    let is_change = !matches!(op, Operation::Read { .. } | Operation::Flush);
    if !is_within(disk, start, len) {
        return Admission::Complete(Err(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    if is_change && options.read_only {
        return Admission::Complete(Err(io::Error::from_raw_os_error(libc::EROFS)));
    }
    if let Err(lost) = check_promise(op, disk) {
        return Admission::Complete(Err(lost));
    }
    if len == 0 && op != Operation::Flush {
        return Admission::Complete(Ok(()));
    }
    Admission::Execute
}

/// Whether [`admit`] would let the host execute a transfer that promises no durability.
#[inline]
pub(super) fn admits_transfer(disk: &OpenDisk, at: u64, bytes: u32, is_write: bool) -> bool {
    is_within(disk, at, u64::from(bytes)) && !(is_write && disk.file.options.read_only)
}

/// Whether a range consists of whole blocks of the disk.
#[inline]
fn is_within(disk: &OpenDisk, start: u64, len: u64) -> bool {
    // The logical block is a power of two.
    let odd = (start | len) & (u64::from(disk.file.limits.geometry.logical_block) - 1);
    odd == 0 && start.checked_add(len).is_some_and(|end| end <= disk.state.capacity())
}

/// Checks that the durability which `op` promises can still be kept.
///
/// # Errors
///
/// `EIO` if acknowledged data was lost before.
#[inline]
pub(super) fn check_promise(op: Operation, disk: &OpenDisk) -> io::Result<()> {
    if op.is_durable() { disk.state.latch.check() } else { Ok(()) }
}

/// The operation, or zeroing in place of a write of zeroes if the disk detects them.
pub(super) fn detect_zeroes(op: Operation, segments: &[Segment], disk: &OpenDisk) -> Operation {
    let detect = disk.file.options.detect_zeroes;
    match op {
        Operation::Write { at, durability } if detect != DetectZeroes::Off && is_zero(segments) => {
            let range = ByteRange { start: at, len: total_len(segments) as u64 };
            Operation::WriteZeroes { range, unmap: detect == DetectZeroes::Unmap, durability }
        }
        _ => op,
    }
}
