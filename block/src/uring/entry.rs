//! Ring entries of calls to the host.

use io_uring::{opcode, squeue, types};

use crate::host_io::{FastTransfer, HostCall, HostOp, IoBuffer};

/// The ring's fixed files, in the order of `EngineFiles::with_ranges`.
const DISK: types::Fixed = types::Fixed(0);
const SYNCS: types::Fixed = types::Fixed(1);
const RANGES: types::Fixed = types::Fixed(2);

/// `BLOCK_URING_CMD_DISCARD` of `linux/blkdev.h`: `_IO(0x12, 0)`. Linux 6.12.
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

/// The entry of a call. It names the same memory.
pub(super) fn entry(call: &HostCall) -> squeue::Entry {
    let entry = match call.op {
        HostOp::Read { buffer, at } => read(buffer, at),
        HostOp::Write { buffer, at, durable } => write(buffer, at, durable),
        HostOp::Discard { at, len } => discard(at, len),
        HostOp::PunchHole { at, len } => fallocate(libc::FALLOC_FL_PUNCH_HOLE, at, len),
        HostOp::ZeroRange { at, len } => fallocate(libc::FALLOC_FL_ZERO_RANGE, at, len),
        HostOp::Sync => opcode::Fsync::new(SYNCS).flags(types::FsyncFlags::DATASYNC).build(),
    };
    if call.may_block { entry.flags(squeue::Flags::ASYNC) } else { entry }
}

/// The entry of a fast-path transfer.
#[inline]
pub(super) fn fast_entry(transfer: FastTransfer) -> squeue::Entry {
    let FastTransfer { base, bytes, at, is_write } = transfer;
    if is_write {
        opcode::Write::new(DISK, base, bytes).offset(at).build()
    } else {
        opcode::Read::new(DISK, base, bytes).offset(at).build()
    }
}

fn read(buffer: IoBuffer, at: u64) -> squeue::Entry {
    match buffer {
        IoBuffer::Contiguous(base, len) => opcode::Read::new(DISK, base, len).offset(at).build(),
        IoBuffer::Vector(base, count) => opcode::Readv::new(DISK, base, count).offset(at).build(),
    }
}

fn write(buffer: IoBuffer, at: u64, durable: bool) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match buffer {
        IoBuffer::Contiguous(base, len) => {
            opcode::Write::new(DISK, base, len).offset(at).rw_flags(flags).build()
        }
        IoBuffer::Vector(base, count) => {
            opcode::Writev::new(DISK, base, count).offset(at).rw_flags(flags).build()
        }
    }
}

fn fallocate(mode: libc::c_int, at: u64, len: u64) -> squeue::Entry {
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    opcode::Fallocate::new(RANGES, len).offset(at).mode(mode).build()
}

/// The block layer's discard. Punching a hole would make the device zero the range, which many that
/// can discard cannot. The length takes the place of the entry's third address.
fn discard(at: u64, len: u64) -> squeue::Entry {
    let mut command = [0; 16];
    let (third_address, _) = command.split_at_mut(8);
    third_address.copy_from_slice(&len.to_ne_bytes());
    opcode::UringCmd16::new(RANGES, BLOCK_URING_CMD_DISCARD).addr(Some(at)).cmd(command).build()
}
