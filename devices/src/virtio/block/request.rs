//! virtio-blk requests as they stand in guest memory (Virtio 1.2 §5.2.6). Pure parsing, no I/O.

use std::io;

use block::{ByteOffset, ByteRange, Durability, Operation};

/// Bytes of a sector, the unit of all addresses in the protocol whatever the block size (§5.2.2).
pub(super) const SECTOR_BYTES: u64 = 512;
/// Bytes of the answer to GET_ID (§5.2.6).
pub(super) const ID_BYTES: usize = 20;
/// Bytes of the header before the data.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of one range of a discard or zeroing.
pub(super) const RANGE_BYTES: usize = 16;
/// The most bytes that one request may move. Far above what drivers send, below what one system
/// call takes.
const MAX_TRANSFER_BYTES: u64 = 1 << 30;

/// What ends a request (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed.
    IoError = 1,
    /// Not offered or not understood.
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

/// Request types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) sector: u64,
}

impl Header {
    /// Decodes `struct virtio_blk_req` up to its data, as two little-endian words; `None` for a type that is not known.
    #[inline]
    pub(super) fn decode([kind, sector]: [u64; 2]) -> Option<Self> {
        // Above the type is a field that is reserved.
        let kind = match kind & u64::from(u32::MAX) {
            0 => Kind::In,
            1 => Kind::Out,
            4 => Kind::Flush,
            8 => Kind::GetId,
            11 => Kind::Discard,
            13 => Kind::WriteZeroes,
            _ => return None,
        };
        Some(Self { kind, sector })
    }
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) capacity: u64,
    pub(super) logical_block: u32,
    pub(super) read_only: bool,
    pub(super) discard: bool,
    pub(super) max_range_sectors: u32,
}

impl Limits {
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

    /// A discard of the range in `raw` (§5.2.6.2).
    pub(super) fn discard(
        &self,
        raw: [u8; RANGE_BYTES],
        durability: Durability,
    ) -> Result<Operation, Status> {
        if flags(&raw) != 0 {
            return Err(Status::Unsupported);
        }
        let range = self.changeable_range(&raw)?;
        if self.discard {
            Ok(Operation::Discard { range, durability, more_follows: false })
        } else {
            Err(Status::Unsupported)
        }
    }

    /// A zeroing of the range in `raw` (§5.2.6.2).
    pub(super) fn write_zeroes(
        &self,
        raw: [u8; RANGE_BYTES],
        durability: Durability,
    ) -> Result<Operation, Status> {
        const UNMAP: u32 = 1;
        let flags = flags(&raw);
        if flags & !UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        let unmap = flags & UNMAP != 0 && self.discard;
        Ok(Operation::WriteZeroes { range: self.changeable_range(&raw)?, unmap, durability })
    }

    /// The place of a transfer that lies within the disk and moves whole blocks.
    fn transfer(&self, sector: u64, len: u64) -> Result<ByteOffset, Status> {
        let at = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        if len > MAX_TRANSFER_BYTES {
            return Err(Status::IoError);
        }
        Ok(self.check_range(ByteRange { start: ByteOffset(at), len })?.start)
    }

    /// The range in `struct virtio_blk_discard_write_zeroes`, if it may be changed.
    fn changeable_range(&self, raw: &[u8; RANGE_BYTES]) -> Result<ByteRange, Status> {
        if self.read_only {
            return Err(Status::IoError);
        }
        let (sector, sectors) = (le_u64(raw, 0), le_u32(raw, 8));
        if sectors > self.max_range_sectors {
            return Err(Status::IoError);
        }
        let start = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        let len = u64::from(sectors) * SECTOR_BYTES;
        self.check_range(ByteRange { start: ByteOffset(start), len })
    }

    /// Passes a range that lies within the disk and consists of whole blocks.
    fn check_range(&self, range: ByteRange) -> Result<ByteRange, Status> {
        // A power of two.
        let within_block = u64::from(self.logical_block) - 1;
        let end = range.start.0.checked_add(range.len).ok_or(Status::IoError)?;
        let whole_blocks = (range.start.0 | range.len) & within_block == 0;
        if end > self.capacity || !whole_blocks { Err(Status::IoError) } else { Ok(range) }
    }
}

/// The flags of a discard or zeroing. Unknown ones are looked for first: §5.2.6.2 knows no exception.
fn flags(raw: &[u8; RANGE_BYTES]) -> u32 {
    le_u32(raw, 12)
}

fn le_u32(raw: &[u8; 16], at: usize) -> u32 {
    raw.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn le_u64(raw: &[u8; 16], at: usize) -> u64 {
    raw.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        capacity: 1 << 20,
        logical_block: 512,
        read_only: false,
        discard: true,
        max_range_sectors: 1024,
    };

    fn range(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE_BYTES] {
        let mut raw = [0; RANGE_BYTES];
        raw[..8].copy_from_slice(&sector.to_le_bytes());
        raw[8..12].copy_from_slice(&sectors.to_le_bytes());
        raw[12..].copy_from_slice(&flags.to_le_bytes());
        raw
    }

    #[test]
    fn transfers_end_at_the_capacity() {
        assert!(LIMITS.read(2047, 512).is_ok());
        assert_eq!(LIMITS.read(2047, 1024), Err(Status::IoError));
        assert_eq!(LIMITS.read(2048, 512), Err(Status::IoError));
    }

    /// On a disk large enough, what one request may move is still bounded.
    #[test]
    fn transfers_are_bounded() {
        let limits = Limits { capacity: 1 << 40, ..LIMITS };
        assert!(limits.read(0, MAX_TRANSFER_BYTES).is_ok());
        assert_eq!(limits.read(0, MAX_TRANSFER_BYTES + 512), Err(Status::IoError));
        let more = limits.write(0, 1 << 32, Durability::Volatile);
        assert_eq!(more, Err(Status::IoError));
    }

    /// A sector number whose byte offset overflows must not wrap around to a small offset
    /// (`checked_shl` would let it).
    #[test]
    fn a_sector_that_overflows_is_refused() {
        for sector in [u64::MAX, 1 << 55, (1 << 55) + 1, u64::MAX >> 9] {
            assert_eq!(LIMITS.read(sector, 512), Err(Status::IoError), "{sector:#x}");
            assert_eq!(
                LIMITS.discard(range(sector, 1, 0), Durability::Volatile),
                Err(Status::IoError)
            );
        }
    }

    #[test]
    fn a_read_only_disk_refuses_all_changes() {
        let limits = Limits { read_only: true, ..LIMITS };
        let volatile = Durability::Volatile;
        assert_eq!(limits.write(0, 512, volatile), Err(Status::IoError));
        assert_eq!(limits.discard(range(0, 1, 0), volatile), Err(Status::IoError));
        assert_eq!(limits.write_zeroes(range(0, 1, 0), volatile), Err(Status::IoError));
        assert!(limits.read(0, 512).is_ok());
    }

    #[test]
    fn unknown_flags_are_unsupported() {
        let volatile = Durability::Volatile;
        assert_eq!(LIMITS.discard(range(0, 1, 1), volatile), Err(Status::Unsupported));
        assert_eq!(LIMITS.write_zeroes(range(0, 1, 2), volatile), Err(Status::Unsupported));
        assert!(LIMITS.write_zeroes(range(0, 1, 1), volatile).is_ok());
    }

    #[test]
    fn part_of_a_block_is_refused() {
        assert_eq!(LIMITS.read(0, 100), Err(Status::IoError));
        let limits = Limits { logical_block: 4096, ..LIMITS };
        assert_eq!(limits.read(1, 4096), Err(Status::IoError));
        assert_eq!(limits.read(0, 512), Err(Status::IoError));
        assert!(limits.read(8, 4096).is_ok());
    }

    #[test]
    fn a_range_longer_than_announced_is_refused() {
        let volatile = Durability::Volatile;
        assert!(LIMITS.discard(range(0, 1024, 0), volatile).is_ok());
        assert_eq!(LIMITS.discard(range(0, 1025, 0), volatile), Err(Status::IoError));
    }

    proptest! {
        /// Whatever the driver writes, an accepted operation lies within the disk.
        #[test]
        fn accepted_operations_lie_within_the_disk(sector: u64, len in 0u64..1 << 33, raw: [u8; 16]) {
            if let Ok(Operation::Read { at }) = LIMITS.read(sector, len) {
                prop_assert!(at.0 + len <= LIMITS.capacity);
            }
            if let Ok(Operation::Discard { range, .. }) = LIMITS.discard(raw, Durability::Volatile) {
                prop_assert!(range.start.0 + range.len <= LIMITS.capacity);
            }
        }
    }
}
