//! One request in flight: what the host is asked, step by step, and what its answers mean.
//!
//! No I/O happens here: a step becomes a ring entry, and an entry's result a next step or the end.

use std::io;

use io_uring::{opcode, squeue, types};

use super::transfer::{Cursor, Memory};
use crate::host_file::HostFile;
use crate::{Durability, Operation, Segments};

/// The disk among the ring's registered files.
const DISK: types::Fixed = types::Fixed(0);

/// `BLOCK_URING_CMD_DISCARD` of `linux/blkdev.h`: `_IO(0x12, 0)`. Linux 6.12.
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

/// Where zeroes come from when the host cannot zero by itself. Aligned for direct I/O.
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

#[repr(C, align(4096))]
struct Zeroes([u8; 64 << 10]);

/// What the host is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    /// Give blocks of a block device back (the block layer's discard).
    DiscardBlocks,
    /// Punch a hole. On a block device: zero by unmapping, or fail.
    PunchHole,
    /// Zero, keeping the space.
    ZeroRange,
    /// Zero by writing zeroes.
    WriteZeroes,
    Sync,
}

/// What follows an answer of the host.
pub(super) enum Progress {
    /// Ask again: [`InFlight::entry`] has the next step.
    Again,
    /// The request is complete.
    Done(io::Result<()>),
}

/// A request the host works on.
#[derive(Debug)]
pub(super) struct InFlight {
    op: Operation,
    step: Step,
    /// Where on the disk the next step starts.
    at: u64,
    /// What is still to be zeroed or discarded, in bytes.
    range_left: u64,
    /// What is still to be read or written.
    cursor: Cursor,
    /// The host asked to be asked again: let it block on a thread of its own.
    blocking: bool,
}

impl InFlight {
    pub(super) fn new(op: Operation, segments: Segments, host: &HostFile) -> Self {
        let (step, at, range_left) = match op {
            Operation::Read { at } => (Step::Read, at.0, 0),
            Operation::Write { at, .. } => (Step::Write, at.0, 0),
            Operation::Flush => (Step::Sync, 0, 0),
            Operation::Discard { range, .. } if host.is_block_device() => {
                (Step::DiscardBlocks, range.start.0, range.len)
            }
            Operation::Discard { range, .. }
            | Operation::WriteZeroes { range, unmap: true, .. } => {
                (Step::PunchHole, range.start.0, range.len)
            }
            Operation::WriteZeroes { range, unmap: false, .. } => {
                (Step::ZeroRange, range.start.0, range.len)
            }
        };
        let cursor = Cursor::new(segments, host.direct);
        Self { op, step, at, range_left, cursor, blocking: false }
    }

    pub(super) fn op(&self) -> Operation {
        self.op
    }

    pub(super) fn into_segments(self) -> Segments {
        self.cursor.into_segments()
    }

    /// The next step for the ring. The memory it names stays valid until [`InFlight::settle`] or
    /// [`InFlight::into_segments`].
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let entry = match self.step {
            Step::Read => read_entry(&self.cursor.target(), self.at),
            Step::Write => write_entry(&self.cursor.source(), self.at, self.is_durable_write()),
            Step::DiscardBlocks => discard_entry(self.at, self.range_left),
            Step::PunchHole => {
                fallocate_entry(libc::FALLOC_FL_PUNCH_HOLE, self.at, self.range_left)
            }
            Step::ZeroRange => {
                fallocate_entry(libc::FALLOC_FL_ZERO_RANGE, self.at, self.range_left)
            }
            Step::WriteZeroes => write_entry(&zeroes(self.range_left), self.at, false),
            Step::Sync => opcode::Fsync::new(DISK).flags(types::FsyncFlags::DATASYNC).build(),
        };
        if self.blocking { entry.flags(squeue::Flags::ASYNC) } else { entry }
    }

    /// Takes the host's answer to the last entry: a count of bytes or a negated errno.
    pub(super) fn settle(&mut self, answer: i32, host: &HostFile) -> Progress {
        let Ok(count) = usize::try_from(answer) else {
            return self.refused(io::Error::from_raw_os_error(answer.wrapping_neg()), host);
        };
        self.blocking = false;
        match self.step {
            Step::Read => {
                self.cursor.filled(count);
                self.moved(count)
            }
            Step::Write => {
                self.cursor.advance(count);
                self.moved(count)
            }
            Step::WriteZeroes => {
                self.range_left = self.range_left.saturating_sub(count as u64);
                self.moved(count)
            }
            Step::DiscardBlocks | Step::PunchHole | Step::ZeroRange => self.range_done(),
            Step::Sync => Progress::Done(Ok(())),
        }
    }

    /// Bytes have moved, perhaps fewer than asked.
    fn moved(&mut self, count: usize) -> Progress {
        self.at += count as u64;
        if self.is_all_moved() {
            return match self.step {
                Step::WriteZeroes => self.range_done(),
                _ => Progress::Done(Ok(())),
            };
        }
        match self.step {
            _ if count > 0 => Progress::Again,
            Step::Read => fail(io::ErrorKind::UnexpectedEof, "the file ends before the disk does"),
            _ => fail(io::ErrorKind::WriteZero, "the host stopped in the middle of a write"),
        }
    }

    fn is_all_moved(&self) -> bool {
        match self.step {
            Step::WriteZeroes => self.range_left == 0,
            _ => self.cursor.is_spent(),
        }
    }

    /// The range is zeroed or discarded: it becomes durable like a write.
    fn range_done(&mut self) -> Progress {
        match self.op {
            Operation::Discard { durability: Durability::Durable, .. }
            | Operation::WriteZeroes { durability: Durability::Durable, .. } => {
                self.step = Step::Sync;
                Progress::Again
            }
            _ => Progress::Done(Ok(())),
        }
    }

    fn refused(&mut self, error: io::Error, host: &HostFile) -> Progress {
        match error.raw_os_error() {
            Some(libc::EINTR) => return Progress::Again,
            Some(libc::EAGAIN) => {
                self.blocking = true;
                return Progress::Again;
            }
            Some(libc::EOPNOTSUPP) => {
                if let Some(progress) = self.next_best(host) {
                    return progress;
                }
            }
            _ => {}
        }
        match self.step {
            Step::Sync => host.sync_failed(&error),
            Step::Write if self.is_durable_write() => host.durable_write_failed(&error),
            _ => {}
        }
        Progress::Done(Err(error))
    }

    /// What to try when the host cannot do a step at all. A discard is advice and may come to
    /// nothing; zeroing may not, and never gives space back unasked.
    fn next_best(&mut self, host: &HostFile) -> Option<Progress> {
        let discard = matches!(self.op, Operation::Discard { .. });
        self.step = match self.step {
            Step::PunchHole if discard => {
                host.note_discard_refusal();
                return Some(Progress::Done(Ok(())));
            }
            Step::DiscardBlocks => Step::PunchHole,
            Step::PunchHole => Step::ZeroRange,
            Step::ZeroRange => Step::WriteZeroes,
            Step::Read | Step::Write | Step::WriteZeroes | Step::Sync => return None,
        };
        Some(Progress::Again)
    }

    fn is_durable_write(&self) -> bool {
        matches!(self.op, Operation::Write { durability: Durability::Durable, .. })
    }
}

fn fail(kind: io::ErrorKind, text: &'static str) -> Progress {
    Progress::Done(Err(io::Error::new(kind, text)))
}

fn zeroes(wanted: u64) -> Memory {
    let most = ZEROES.0.len();
    let len = usize::try_from(wanted).map_or(most, |wanted| wanted.min(most));
    Memory::buffer(ZEROES.0.as_ptr().cast_mut(), len)
}

fn read_entry(memory: &Memory, at: u64) -> squeue::Entry {
    match *memory {
        Memory::Buffer(base, len) => opcode::Read::new(DISK, base, len).offset(at).build(),
        Memory::Vector(base, count) => opcode::Readv::new(DISK, base, count).offset(at).build(),
    }
}

fn write_entry(memory: &Memory, at: u64, durable: bool) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match *memory {
        Memory::Buffer(base, len) => {
            opcode::Write::new(DISK, base, len).offset(at).rw_flags(flags).build()
        }
        Memory::Vector(base, count) => {
            opcode::Writev::new(DISK, base, count).offset(at).rw_flags(flags).build()
        }
    }
}

fn fallocate_entry(mode: libc::c_int, at: u64, len: u64) -> squeue::Entry {
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    opcode::Fallocate::new(DISK, len).offset(at).mode(mode).build()
}

/// The block layer's own discard: punching a hole would ask the device to zero, which many that
/// can discard cannot. The length goes where the entry's third address lies.
fn discard_entry(at: u64, len: u64) -> squeue::Entry {
    let mut command = [0; 16];
    let (third_address, _) = command.split_at_mut(8);
    third_address.copy_from_slice(&len.to_ne_bytes());
    opcode::UringCmd16::new(DISK, BLOCK_URING_CMD_DISCARD).addr(Some(at)).cmd(command).build()
}
