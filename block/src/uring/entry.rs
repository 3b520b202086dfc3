//! Ring entries for what the host is asked.

use io_uring::{opcode, squeue, types};

use crate::steps::{Ask, Call, Memory, SimpleTransfer};

/// The ring's registered files, in the order of `EngineFiles`.
const DISK: types::Fixed = types::Fixed(0);
const SYNCS: types::Fixed = types::Fixed(1);
const RANGES: types::Fixed = types::Fixed(2);

/// `BLOCK_URING_CMD_DISCARD` of `linux/blkdev.h`: `_IO(0x12, 0)`. Linux 6.12.
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

/// The entry that asks the host. It names memory as the call does.
pub(super) fn entry(call: &Call) -> squeue::Entry {
    let entry = match call.ask {
        Ask::Read { memory, at } => read(memory, at),
        Ask::Write { memory, at, durable } => write(memory, at, durable),
        Ask::Discard { at, len } => discard(at, len),
        Ask::PunchHole { at, len } => fallocate(libc::FALLOC_FL_PUNCH_HOLE, at, len),
        Ask::ZeroRange { at, len } => fallocate(libc::FALLOC_FL_ZERO_RANGE, at, len),
        Ask::Sync => opcode::Fsync::new(SYNCS).flags(types::FsyncFlags::DATASYNC).build(),
    };
    if call.may_block { entry.flags(squeue::Flags::ASYNC) } else { entry }
}

/// The entry of a transfer in one piece.
#[inline]
pub(super) fn simple(transfer: SimpleTransfer) -> squeue::Entry {
    let SimpleTransfer { at, base, bytes, writes } = transfer;
    if writes {
        opcode::Write::new(DISK, base, bytes).offset(at).build()
    } else {
        opcode::Read::new(DISK, base, bytes).offset(at).build()
    }
}

fn read(memory: Memory, at: u64) -> squeue::Entry {
    match memory {
        Memory::Buffer(base, len) => opcode::Read::new(DISK, base, len).offset(at).build(),
        Memory::Vector(base, count) => opcode::Readv::new(DISK, base, count).offset(at).build(),
    }
}

fn write(memory: Memory, at: u64, durable: bool) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match memory {
        Memory::Buffer(base, len) => {
            opcode::Write::new(DISK, base, len).offset(at).rw_flags(flags).build()
        }
        Memory::Vector(base, count) => {
            opcode::Writev::new(DISK, base, count).offset(at).rw_flags(flags).build()
        }
    }
}

fn fallocate(mode: libc::c_int, at: u64, len: u64) -> squeue::Entry {
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    opcode::Fallocate::new(RANGES, len).offset(at).mode(mode).build()
}

/// The block layer's own discard: punching a hole would ask the device to zero, which many that
/// can discard cannot. The length goes where the entry's third address lies.
fn discard(at: u64, len: u64) -> squeue::Entry {
    let mut command = [0; 16];
    let (third_address, _) = command.split_at_mut(8);
    third_address.copy_from_slice(&len.to_ne_bytes());
    opcode::UringCmd16::new(RANGES, BLOCK_URING_CMD_DISCARD).addr(Some(at)).cmd(command).build()
}
