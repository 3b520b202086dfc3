//! The device configuration of virtio-blk (Virtio 1.2 §5.2.4).

use std::mem::offset_of;

use ::block::Geometry;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::storage::SECTOR_BYTES;

/// Number of entries of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Maximum number of data segments of a request: the queue size without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Maximum length of a discard or zeroing, 2 GiB, in sectors.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Offset of the only field that the driver may write.
pub(in crate::virtio) const WRITEBACK_OFFSET: u64 = offset_of!(BlkConfig, writeback) as u64;

/// `struct virtio_blk_topology`: block sizes as exponents or in logical blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Immutable, IntoBytes)]
struct BlkTopology {
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
}

/// `struct virtio_blk_config` up to `max_secure_erase_sectors`, which is not offered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Immutable, IntoBytes)]
pub(super) struct BlkConfig {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    topology: BlkTopology,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

impl BlkConfig {
    /// The configuration of a disk with `capacity` sectors and this geometry.
    pub(super) fn new(capacity: u64, geometry: &Geometry, writeback: bool, queues: usize) -> Self {
        let config = Self {
            capacity: capacity.into(),
            seg_max: SEG_MAX.into(),
            blk_size: geometry.logical_block.into(),
            topology: topology(geometry),
            writeback: writeback.into(),
            num_queues: u16::try_from(queues).unwrap_or(u16::MAX).into(),
            max_write_zeroes_sectors: MAX_RANGE_SECTORS.into(),
            max_write_zeroes_seg: 1.into(),
            ..Self::default()
        };
        let Some(discard) = geometry.discard else { return config };
        let alignment = u64::from(discard.granularity) / SECTOR_BYTES;
        Self {
            max_discard_sectors: MAX_RANGE_SECTORS.into(),
            max_discard_seg: 1.into(),
            discard_sector_alignment: u32::try_from(alignment).unwrap_or(1).into(),
            write_zeroes_may_unmap: 1,
            ..config
        }
    }
}

fn topology(geometry: &Geometry) -> BlkTopology {
    let in_blocks = |bytes: u32| bytes / geometry.logical_block.max(1);
    let physical = in_blocks(geometry.physical_block).max(1);
    BlkTopology {
        physical_block_exp: u8::try_from(physical.ilog2()).unwrap_or(0),
        alignment_offset: 0,
        min_io_size: u16::try_from(physical).unwrap_or(1).into(),
        opt_io_size: in_blocks(geometry.optimal_io).into(),
    }
}

#[cfg(test)]
mod tests {
    use ::block::DiscardLimits;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        capacity: 1 << 30,
        logical_block: 512,
        physical_block: 4096,
        optimal_io: 64 << 10,
        discard: Some(DiscardLimits { granularity: 8192, alignment: 0, reads_zero: true }),
    };

    /// The offsets are those of the structure in §5.2.4.
    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let config = BlkConfig::new(0x0102_0304_0506, &GEOMETRY, true, 3);
        let bytes = config.as_bytes();
        let mut expected = [0; 60];
        let mut put =
            |at: usize, field: &[u8]| expected[at..at + field.len()].copy_from_slice(field);
        put(0, &[6, 5, 4, 3, 2, 1, 0, 0]);
        put(12, &[254, 0, 0, 0]);
        put(20, &[0, 2, 0, 0]);
        put(24, &[3, 0, 8, 0, 128, 0, 0, 0]);
        put(32, &[1, 0, 3, 0]);
        put(36, &[0, 0, 0x40, 0, 1, 0, 0, 0, 16, 0, 0, 0]);
        put(48, &[0, 0, 0x40, 0, 1, 0, 0, 0, 1]);
        assert_eq!(bytes, expected);
        assert_eq!(WRITEBACK_OFFSET, 32);
        let plain = BlkConfig::new(1, &Geometry { discard: None, ..GEOMETRY }, false, 1);
        assert_eq!(plain.as_bytes()[36..48], [0; 12]);
        assert_eq!(plain.as_bytes()[56], 0);
    }
}
