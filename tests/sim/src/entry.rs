//! Submission queue entries as the kernel reads them: which call, on which bytes, with which
//! memory.
//!
//! Read out of the entry's 64 bytes, so that what the engine encodes is under test as well.

use io_uring::squeue;

const POLL_ADD: u8 = 6;
const FSYNC: u8 = 3;
const READV: u8 = 1;
const WRITEV: u8 = 2;
const FALLOCATE: u8 = 17;
const READ: u8 = 22;
const WRITE: u8 = 23;
const URING_CMD: u8 = 46;

const FIXED_FILE: u8 = 1;
const ASYNC: u8 = 16;
const DSYNC: u32 = 2;
const DATASYNC: u32 = 1;
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;
const BLKDISCARD: u32 = 0x1200;

/// What the engine asks of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Read,
    /// `true` with `RWF_DSYNC`.
    Write(bool),
    Sync,
    PunchHole,
    ZeroRange,
    Discard,
    /// Watch the kick.
    Poll,
}

/// A piece of memory of this process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Piece {
    pub(super) base: *mut u8,
    pub(super) len: usize,
}

// SAFETY: an address and a length; who makes the entry keeps the memory until it is answered.
unsafe impl Send for Piece {}

/// A decoded entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) ask: Ask,
    pub(super) user_data: u64,
    /// The engine allows the kernel to block.
    pub(super) may_block: bool,
    pub(super) at: u64,
    /// Of the range, for calls without memory.
    pub(super) len: u64,
    pub(super) memory: Vec<Piece>,
}

impl Entry {
    /// Reads an entry; `Err` says what a real kernel would not have taken.
    pub(super) fn decode(entry: &squeue::Entry) -> Result<Self, String> {
        const { assert!(size_of::<squeue::Entry>() == 64) };
        // SAFETY: an entry is `struct io_uring_sqe`, 64 initialised bytes of plain integers.
        let raw: [u8; 64] = unsafe { std::ptr::from_ref(entry).cast::<[u8; 64]>().read() };
        let u32_at = |at: usize| u32::from_le_bytes(*raw[at..].first_chunk().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(*raw[at..].first_chunk().unwrap());
        let (opcode, flags) = (raw[0], raw[1]);
        let (offset, addr, len, op_flags) = (u64_at(8), u64_at(16), u32_at(24), u32_at(28));
        if opcode != POLL_ADD && flags & FIXED_FILE == 0 {
            return Err(format!("opcode {opcode} is not on the registered disk"));
        }
        let one = || {
            vec![Piece {
                base: std::ptr::with_exposed_provenance_mut(addr as usize),
                len: len as usize,
            }]
        };
        let write = || match op_flags {
            0 => Ok(Ask::Write(false)),
            DSYNC => Ok(Ask::Write(true)),
            other => Err(format!("write flags {other:#x}")),
        };
        let (ask, at, len, memory) = match opcode {
            POLL_ADD => (Ask::Poll, 0, 0, vec![]),
            FSYNC if op_flags & DATASYNC != 0 && offset == 0 && len == 0 => {
                (Ask::Sync, 0, 0, vec![])
            }
            READ => (Ask::Read, offset, 0, one()),
            WRITE => (write()?, offset, 0, one()),
            READV => (Ask::Read, offset, 0, vector(addr, len)),
            WRITEV => (write()?, offset, 0, vector(addr, len)),
            FALLOCATE if len == PUNCH_HOLE | KEEP_SIZE => (Ask::PunchHole, offset, addr, vec![]),
            FALLOCATE if len == ZERO_RANGE | KEEP_SIZE => (Ask::ZeroRange, offset, addr, vec![]),
            URING_CMD if u32_at(8) == BLKDISCARD => (Ask::Discard, addr, u64_at(48), vec![]),
            _ => return Err(format!("an entry nobody knows: {raw:?}")),
        };
        Ok(Self { ask, user_data: u64_at(32), may_block: flags & ASYNC != 0, at, len, memory })
    }

    /// Bytes that the call is about.
    pub(super) fn total(&self) -> u64 {
        self.len + self.memory.iter().map(|piece| piece.len as u64).sum::<u64>()
    }

    /// Whether direct I/O takes it: memory, offset and lengths aligned to `alignment`.
    pub(super) fn is_aligned(&self, alignment: u64) -> bool {
        let addresses =
            self.memory.iter().fold(0, |all, piece| all | piece.base.addr() | piece.len);
        (addresses as u64 | self.at | self.len).is_multiple_of(alignment)
    }

    /// Copies the entry's memory from byte `at` on into `bytes`.
    pub(super) fn copy_from(&self, at: usize, bytes: &mut [u8]) {
        self.visit(at, bytes.len(), |base, start, len| {
            // SAFETY: the engine keeps the memory until the entry is answered, which it is not;
            // `start + len` is within `bytes`.
            unsafe {
                std::ptr::copy_nonoverlapping(base, bytes[start..start + len].as_mut_ptr(), len);
            };
        });
    }

    /// Copies `bytes` into the entry's memory from byte `at` on.
    pub(super) fn copy_to(&self, at: usize, bytes: &[u8]) {
        self.visit(at, bytes.len(), |base, start, len| {
            // SAFETY: as in `copy_from`.
            unsafe { std::ptr::copy_nonoverlapping(bytes[start..start + len].as_ptr(), base, len) };
        });
    }

    /// Calls `each` with the address of each piece of the `len` bytes from `at` on, and with its
    /// start among them and its length.
    fn visit(&self, at: usize, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        let (mut skip, mut start) = (at, 0);
        for piece in &self.memory {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let part = (piece.len - skip).min(len - start);
            each(piece.base.wrapping_add(skip), start, part);
            (start, skip) = (start + part, 0);
            if start == len {
                return;
            }
        }
    }
}

/// The iovecs at `addr`.
fn vector(addr: u64, count: u32) -> Vec<Piece> {
    let first: *const Piece = std::ptr::with_exposed_provenance(addr as usize);
    // SAFETY: the engine keeps the array until the entry is answered; a `Piece` is laid out like an
    // iovec.
    (0..count as usize).map(|at| unsafe { first.wrapping_add(at).read() }).collect()
}
