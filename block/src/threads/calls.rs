//! The system calls of a host call. Made on the pool's threads, where they may block.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::host_io::{HostCall, HostOp, IoBuffer};

/// `BLKDISCARD` of `linux/fs.h`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Makes a call with the files of an engine, in the order of `EngineFiles::with_ranges`. Returns a
/// count of bytes or a negated errno, as a ring does.
pub(super) fn execute(call: &HostCall, files: &[BorrowedFd<'_>; 3]) -> i32 {
    let [disk, syncs, ranges] = files.map(|file| file.as_raw_fd());
    let result = match call.op {
        HostOp::Read { buffer, at } => {
            let mut one = EMPTY;
            let (vector, count) = vector(buffer, &mut one);
            // SAFETY: the vector outlives the call; it and its memory are valid (`HostCall`).
            unsafe { libc::preadv2(disk, vector, count, offset(at), 0) }
        }
        HostOp::Write { buffer, at, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            let mut one = EMPTY;
            let (vector, count) = vector(buffer, &mut one);
            // SAFETY: as above.
            unsafe { libc::pwritev2(disk, vector, count, offset(at), flags) }
        }
        HostOp::Discard { at, len } => {
            let range = [at, len];
            // SAFETY: the kernel reads the two numbers, which outlive the call.
            unsafe { libc::ioctl(ranges, BLKDISCARD, range.as_ptr()) as isize }
        }
        HostOp::PunchHole { at, len } => fallocate(ranges, libc::FALLOC_FL_PUNCH_HOLE, at, len),
        HostOp::ZeroRange { at, len } => fallocate(ranges, libc::FALLOC_FL_ZERO_RANGE, at, len),
        // SAFETY: names no memory.
        HostOp::Sync => unsafe { libc::fdatasync(syncs) as isize },
    };
    // A transfer is at most 1 GiB (`IoBuffer`).
    if result < 0 { -errno() } else { i32::try_from(result).unwrap_or(i32::MAX) }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// A buffer as a vector, which is `one` if it is contiguous.
fn vector(buffer: IoBuffer, one: &mut libc::iovec) -> (*const libc::iovec, libc::c_int) {
    match buffer {
        IoBuffer::Contiguous(base, len) => {
            *one = libc::iovec { iov_base: base.cast(), iov_len: len as usize };
            (&raw const *one, 1)
        }
        // At most `UIO_MAXIOV`.
        IoBuffer::Vector(base, count) => (base, libc::c_int::try_from(count).unwrap_or(0)),
    }
}

fn fallocate(fd: libc::c_int, mode: libc::c_int, at: u64, len: u64) -> isize {
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: names no memory.
    unsafe { libc::fallocate(fd, mode, offset(at), offset(len)) as isize }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Disks end below 2^63, as their sizes are reported by the host.
fn offset(at: u64) -> libc::off_t {
    libc::off_t::try_from(at).unwrap_or(libc::off_t::MAX)
}
