//! System calls for what the host is asked. Run on the pool's threads, where they may block.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::steps::{Ask, Memory};

/// `BLKDISCARD` of `linux/fs.h`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Asks the host with the files of an engine, and returns a count of bytes or a negated errno, as a ring does.
///
/// # Safety
///
/// The memory that is named is valid: to be written by a read, to be read by a write.
pub(super) unsafe fn answer(ask: &Ask, files: &[BorrowedFd<'_>; 3]) -> i32 {
    let [disk, syncs, ranges] = files.map(|file| file.as_raw_fd());
    let result = match *ask {
        Ask::Read { memory, at } => {
            let mut one = NOTHING;
            let (vector, count) = vector(memory, &mut one);
            // SAFETY: the vector is valid for the call, its memory by the caller's promise.
            unsafe { libc::preadv2(disk, vector, count, offset(at), 0) }
        }
        Ask::Write { memory, at, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            let mut one = NOTHING;
            let (vector, count) = vector(memory, &mut one);
            // SAFETY: as above.
            unsafe { libc::pwritev2(disk, vector, count, offset(at), flags) }
        }
        Ask::Discard { at, len } => {
            let range = [at, len];
            // SAFETY: the kernel reads the two numbers, which outlive the call.
            unsafe { libc::ioctl(ranges, BLKDISCARD, range.as_ptr()) as isize }
        }
        Ask::PunchHole { at, len } => fallocate(ranges, libc::FALLOC_FL_PUNCH_HOLE, at, len),
        Ask::ZeroRange { at, len } => fallocate(ranges, libc::FALLOC_FL_ZERO_RANGE, at, len),
        // SAFETY: names no memory.
        Ask::Sync => unsafe { libc::fdatasync(syncs) as isize },
    };
    // A transfer is at most 1 GiB (`Memory`).
    if result < 0 { -errno() } else { i32::try_from(result).unwrap_or(i32::MAX) }
}

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Memory as a vector, which is `one` for a single buffer.
fn vector(memory: Memory, one: &mut libc::iovec) -> (*const libc::iovec, libc::c_int) {
    match memory {
        Memory::Buffer(base, len) => {
            *one = libc::iovec { iov_base: base.cast(), iov_len: len as usize };
            (&raw const *one, 1)
        }
        // At most `UIO_MAXIOV`.
        Memory::Vector(base, count) => (base, libc::c_int::try_from(count).unwrap_or(0)),
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

/// Disks end below 2^63: their sizes came from the host as such.
fn offset(at: u64) -> libc::off_t {
    libc::off_t::try_from(at).unwrap_or(libc::off_t::MAX)
}
