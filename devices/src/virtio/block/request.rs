//! virtio-blk requests in guest memory (Virtio 1.2 §5.2.6). Pure parsing, no I/O.

use std::io;

use ::block::{ByteOffset, ByteRange, Durability, Operation};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::storage::SECTOR_BYTES;

/// Length of the answer to GET_ID (§5.2.6), in bytes.
pub(super) const ID_BYTES: usize = 20;
/// Length of the header before the data, in bytes.
pub(super) const HEADER_BYTES: usize = 16;
/// Length of a [`DiscardWriteZeroes`], in bytes.
pub(super) const RANGE_BYTES: usize = size_of::<DiscardWriteZeroes>();
/// Maximum length of a transfer, in bytes: far more than drivers send, less than one system call
/// takes.
const MAX_TRANSFER_BYTES: u64 = 1 << 30;

/// The status byte of a request (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

impl From<&io::Result<()>> for Status {
    fn from(result: &io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Self::Unsupported,
            Err(_) => Self::IoError,
        }
    }
}

/// Request types (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestType {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestHeader {
    pub(super) kind: RequestType,
    pub(super) sector: u64,
}

impl RequestHeader {
    /// Decodes `struct virtio_blk_req` up to its data, given as two words in the CPU's byte order;
    /// `None` for an unknown type.
    #[inline]
    pub(super) fn decode([kind, sector]: [u64; 2]) -> Option<Self> {
        // The upper half of the first word is reserved.
        let kind = match kind & u64::from(u32::MAX) {
            0 => RequestType::In,
            1 => RequestType::Out,
            4 => RequestType::Flush,
            8 => RequestType::GetId,
            11 => RequestType::Discard,
            13 => RequestType::WriteZeroes,
            _ => return None,
        };
        Some(Self { kind, sector })
    }
}

/// `struct virtio_blk_discard_write_zeroes` (§5.2.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
pub(super) struct DiscardWriteZeroes {
    sector: U64,
    num_sectors: U32,
    flags: U32,
}

/// Limits that requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestLimits {
    /// In bytes.
    pub(super) capacity: u64,
    /// In bytes, a power of two.
    pub(super) logical_block: u32,
    pub(super) read_only: bool,
    /// Whether the disk supports discards.
    pub(super) discard: bool,
    pub(super) max_range_sectors: u32,
}

impl RequestLimits {
    /// A read of `len` bytes from `sector`.
    pub(super) fn read(&self, sector: u64, len: u64) -> Result<Operation, Status> {
        Ok(Operation::Read { at: self.transfer(sector, len)? })
    }

    /// A write of `len` bytes to `sector`.
    pub(super) fn write(
        &self,
        sector: u64,
        len: u64,
        durability: Durability,
    ) -> Result<Operation, Status> {
        if self.read_only {
            return Err(Status::IoError);
        }
        Ok(Operation::Write { at: self.transfer(sector, len)?, durability })
    }

    /// A discard (§5.2.6.2). Unknown flags are checked first: the clause has no exception.
    pub(super) fn discard(
        &self,
        range: &DiscardWriteZeroes,
        durability: Durability,
    ) -> Result<Operation, Status> {
        if range.flags.get() != 0 {
            return Err(Status::Unsupported);
        }
        let range = self.writable_range(range)?;
        if self.discard {
            Ok(Operation::Discard { range, durability, more_follows: false })
        } else {
            Err(Status::Unsupported)
        }
    }

    /// A zeroing (§5.2.6.2). Unknown flags are checked first, as for a discard.
    pub(super) fn write_zeroes(
        &self,
        range: &DiscardWriteZeroes,
        durability: Durability,
    ) -> Result<Operation, Status> {
        const UNMAP: u32 = 1;
        let flags = range.flags.get();
        if flags & !UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        let unmap = flags & UNMAP != 0 && self.discard;
        Ok(Operation::WriteZeroes { range: self.writable_range(range)?, unmap, durability })
    }

    /// Offset of a transfer, checked to be on the disk and of whole blocks.
    fn transfer(&self, sector: u64, len: u64) -> Result<ByteOffset, Status> {
        let at = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        if len > MAX_TRANSFER_BYTES {
            return Err(Status::IoError);
        }
        Ok(self.check_range(ByteRange { start: ByteOffset(at), len })?.start)
    }

    /// A range checked to be writable, within the limits and of whole blocks.
    fn writable_range(&self, range: &DiscardWriteZeroes) -> Result<ByteRange, Status> {
        if self.read_only {
            return Err(Status::IoError);
        }
        let (sector, sectors) = (range.sector.get(), range.num_sectors.get());
        if sectors > self.max_range_sectors {
            return Err(Status::IoError);
        }
        let start = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        let len = u64::from(sectors) * SECTOR_BYTES;
        self.check_range(ByteRange { start: ByteOffset(start), len })
    }

    /// Checks that a range is on the disk and of whole blocks.
    fn check_range(&self, range: ByteRange) -> Result<ByteRange, Status> {
        let block_mask = u64::from(self.logical_block) - 1;
        let end = range.start.0.checked_add(range.len).ok_or(Status::IoError)?;
        let whole_blocks = (range.start.0 | range.len) & block_mask == 0;
        if end > self.capacity || !whole_blocks { Err(Status::IoError) } else { Ok(range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: RequestLimits = RequestLimits {
        capacity: 1 << 20,
        logical_block: 512,
        read_only: false,
        discard: true,
        max_range_sectors: 1024,
    };

    fn range(sector: u64, sectors: u32, flags: u32) -> DiscardWriteZeroes {
        let mut raw = [0; RANGE_BYTES];
        raw[..8].copy_from_slice(&sector.to_le_bytes());
        raw[8..12].copy_from_slice(&sectors.to_le_bytes());
        raw[12..].copy_from_slice(&flags.to_le_bytes());
        DiscardWriteZeroes::read_from_bytes(&raw).unwrap()
    }

    #[test]
    fn transfers_end_at_the_capacity() {
        assert!(LIMITS.read(2047, 512).is_ok());
        assert_eq!(LIMITS.read(2047, 1024), Err(Status::IoError));
        assert_eq!(LIMITS.read(2048, 512), Err(Status::IoError));
    }

    #[test]
    fn transfers_are_bounded_on_a_large_disk() {
        let limits = RequestLimits { capacity: 1 << 40, ..LIMITS };
        assert!(limits.read(0, MAX_TRANSFER_BYTES).is_ok());
        assert_eq!(limits.read(0, MAX_TRANSFER_BYTES + 512), Err(Status::IoError));
        let more = limits.write(0, 1 << 32, Durability::Volatile);
        assert_eq!(more, Err(Status::IoError));
    }

    /// A sector whose byte offset overflows must not wrap to a small offset, as `checked_shl`
    /// would.
    #[test]
    fn sectors_that_overflow_are_refused() {
        for sector in [u64::MAX, 1 << 55, (1 << 55) + 1, u64::MAX >> 9] {
            assert_eq!(LIMITS.read(sector, 512), Err(Status::IoError), "{sector:#x}");
            assert_eq!(
                LIMITS.discard(&range(sector, 1, 0), Durability::Volatile),
                Err(Status::IoError)
            );
        }
    }

    #[test]
    fn read_only_disks_refuse_changes() {
        let limits = RequestLimits { read_only: true, ..LIMITS };
        let volatile = Durability::Volatile;
        assert_eq!(limits.write(0, 512, volatile), Err(Status::IoError));
        assert_eq!(limits.discard(&range(0, 1, 0), volatile), Err(Status::IoError));
        assert_eq!(limits.write_zeroes(&range(0, 1, 0), volatile), Err(Status::IoError));
        assert!(limits.read(0, 512).is_ok());
    }

    #[test]
    fn unknown_flags_are_unsupported() {
        let volatile = Durability::Volatile;
        assert_eq!(LIMITS.discard(&range(0, 1, 1), volatile), Err(Status::Unsupported));
        assert_eq!(LIMITS.write_zeroes(&range(0, 1, 2), volatile), Err(Status::Unsupported));
        assert!(LIMITS.write_zeroes(&range(0, 1, 1), volatile).is_ok());
    }

    #[test]
    fn partial_blocks_are_refused() {
        assert_eq!(LIMITS.read(0, 100), Err(Status::IoError));
        let limits = RequestLimits { logical_block: 4096, ..LIMITS };
        assert_eq!(limits.read(1, 4096), Err(Status::IoError));
        assert_eq!(limits.read(0, 512), Err(Status::IoError));
        assert!(limits.read(8, 4096).is_ok());
    }

    #[test]
    fn ranges_beyond_the_limit_are_refused() {
        let volatile = Durability::Volatile;
        assert!(LIMITS.discard(&range(0, 1024, 0), volatile).is_ok());
        assert_eq!(LIMITS.discard(&range(0, 1025, 0), volatile), Err(Status::IoError));
    }

    proptest! {
        /// Accepted operations are on the disk for any input.
        #[test]
        fn accepted_operations_are_on_the_disk(sector: u64, len in 0u64..1 << 33, raw: [u8; 16]) {
            if let Ok(Operation::Read { at }) = LIMITS.read(sector, len) {
                prop_assert!(at.0 + len <= LIMITS.capacity);
            }
            let range = DiscardWriteZeroes::read_from_bytes(&raw).unwrap();
            let op = LIMITS.discard(&range, Durability::Volatile);
            if let Ok(Operation::Discard { range, .. }) = op {
                prop_assert!(range.start.0 + range.len <= LIMITS.capacity);
            }
        }
    }
}
