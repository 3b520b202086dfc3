//! Submission queue entries, decoded from their 64 bytes as the kernel does, so that the engine's
//! encoding is under test as well.

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

/// Operation of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Read,
    /// A write; true with `RWF_DSYNC`.
    Write(bool),
    Sync,
    PunchHole,
    ZeroRange,
    Discard,
    /// Poll of the kick.
    Poll,
}

/// `struct iovec`: memory of this process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Iovec {
    pub(super) base: *mut u8,
    pub(super) len: usize,
}

// SAFETY: an address and a length; the engine keeps the memory until the entry completes.
unsafe impl Send for Iovec {}

/// A decoded entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) opcode: Opcode,
    pub(super) user_data: u64,
    /// `IOSQE_ASYNC`: the call may block.
    pub(super) may_block: bool,
    pub(super) at: u64,
    /// Length of the range of a call without memory.
    pub(super) len: u64,
    pub(super) memory: Vec<Iovec>,
    /// The data of `memory`, once the process has died.
    pinned: Vec<u8>,
}

impl Entry {
    /// Decodes an entry; the error says why a real kernel would reject it.
    pub(super) fn decode(entry: &squeue::Entry) -> Result<Self, String> {
        const { assert!(size_of::<squeue::Entry>() == 64) };
        // SAFETY: an entry is `struct io_uring_sqe`, 64 initialised bytes of plain integers.
        let raw: [u8; 64] = unsafe { std::ptr::from_ref(entry).cast::<[u8; 64]>().read() };
        let u32_at = |at: usize| u32::from_le_bytes(*raw[at..].first_chunk().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(*raw[at..].first_chunk().unwrap());
        let (opcode, flags) = (raw[0], raw[1]);
        let (offset, addr, len, op_flags) = (u64_at(8), u64_at(16), u32_at(24), u32_at(28));
        if opcode != POLL_ADD && flags & FIXED_FILE == 0 {
            return Err(format!("opcode {opcode} is not on the registered file"));
        }
        let one = || {
            vec![Iovec {
                base: std::ptr::with_exposed_provenance_mut(addr as usize),
                len: len as usize,
            }]
        };
        let write = || match op_flags {
            0 => Ok(Opcode::Write(false)),
            DSYNC => Ok(Opcode::Write(true)),
            other => Err(format!("write flags {other:#x}")),
        };
        let (decoded, at, len, memory) = match opcode {
            POLL_ADD => (Opcode::Poll, 0, 0, vec![]),
            FSYNC if op_flags & DATASYNC != 0 && offset == 0 && len == 0 => {
                (Opcode::Sync, 0, 0, vec![])
            }
            READ => (Opcode::Read, offset, 0, one()),
            WRITE => (write()?, offset, 0, one()),
            READV => (Opcode::Read, offset, 0, vector(addr, len)),
            WRITEV => (write()?, offset, 0, vector(addr, len)),
            FALLOCATE if len == PUNCH_HOLE | KEEP_SIZE => (Opcode::PunchHole, offset, addr, vec![]),
            FALLOCATE if len == ZERO_RANGE | KEEP_SIZE => (Opcode::ZeroRange, offset, addr, vec![]),
            URING_CMD if u32_at(8) == BLKDISCARD => (Opcode::Discard, addr, u64_at(48), vec![]),
            _ => return Err(format!("unknown entry: {raw:?}")),
        };
        Ok(Self {
            opcode: decoded,
            user_data: u64_at(32),
            may_block: flags & ASYNC != 0,
            at,
            len,
            memory,
            pinned: Vec::new(),
        })
    }

    /// Copies the call's memory, which the kernel pins beyond the death of the process.
    pub(super) fn pin(&mut self) {
        let len = self.memory.iter().map(|piece| piece.len).sum();
        let mut pinned = vec![0; len];
        self.copy_from(0, &mut pinned);
        self.memory = vec![Iovec { base: pinned.as_mut_ptr(), len }];
        self.pinned = pinned;
    }

    /// Bytes of the call.
    pub(super) fn total(&self) -> u64 {
        self.len + self.memory.iter().map(|piece| piece.len as u64).sum::<u64>()
    }

    /// Whether memory, offset and lengths are aligned to `alignment`, as direct I/O requires.
    pub(super) fn is_aligned(&self, alignment: u64) -> bool {
        let addresses =
            self.memory.iter().fold(0, |all, piece| all | piece.base.addr() | piece.len);
        (addresses as u64 | self.at | self.len).is_multiple_of(alignment)
    }

    /// Copies the entry's memory from byte `at` into `bytes`.
    pub(super) fn copy_from(&self, at: usize, bytes: &mut [u8]) {
        self.visit(at, bytes.len(), |base, start, len| {
            // SAFETY: the engine keeps the memory until the entry completes, which it has not;
            // `start + len` is within `bytes`.
            unsafe {
                std::ptr::copy_nonoverlapping(base, bytes[start..start + len].as_mut_ptr(), len);
            };
        });
    }

    /// Copies `bytes` into the entry's memory from byte `at`.
    pub(super) fn copy_to(&self, at: usize, bytes: &[u8]) {
        self.visit(at, bytes.len(), |base, start, len| {
            // SAFETY: as in `copy_from`.
            unsafe { std::ptr::copy_nonoverlapping(bytes[start..start + len].as_ptr(), base, len) };
        });
    }

    /// Calls `each` for each contiguous part of the `len` bytes from `at`: its address, its start
    /// within the range, and its length.
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
fn vector(addr: u64, count: u32) -> Vec<Iovec> {
    let first: *const Iovec = std::ptr::with_exposed_provenance(addr as usize);
    // SAFETY: the engine keeps the array until the entry completes; `Iovec` has the layout of an
    // iovec.
    (0..count as usize).map(|at| unsafe { first.wrapping_add(at).read() }).collect()
}
