//! What the host is asked for one request, step by step, whichever engine asks.
//!
//! A request in flight names its next [`Call`]; an engine makes a ring entry or a system call of it and
//! hands the answer back. No I/O happens here, so that both engines mean the same by every answer.

mod bounce;
mod compare;
mod cursor;
mod in_flight;
mod plain;
mod ranges;
mod zeroes;

pub(crate) use self::cursor::Memory;
pub(crate) use self::in_flight::{InFlight, Progress, ZEROED_AT_ONCE, is_want_of_space};
pub(crate) use self::plain::{Fit, SimpleTransfer, plain_call};

/// One thing asked of the host. The memory it names is valid until the request is settled with the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) ask: Ask,
    /// The host said that it would have to block, or is known to: let it, on a thread of its own.
    pub(crate) may_block: bool,
}

/// What is asked. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// Fill the memory from the disk.
    Read { memory: Memory, at: u64 },
    /// Write the memory; with `durable`, as `RWF_DSYNC` does.
    Write { memory: Memory, at: u64, durable: bool },
    /// Give blocks of a block device back (the block layer's discard).
    Discard { at: u64, len: u64 },
    /// Punch a hole. On a block device: zero by unmapping, or fail.
    PunchHole { at: u64, len: u64 },
    /// Zero, keeping the space.
    ZeroRange { at: u64, len: u64 },
    /// `fdatasync(2)`, on a descriptor that does nothing else.
    Sync,
}
