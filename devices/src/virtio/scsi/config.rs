//! Features, queues and the device configuration of virtio-scsi (Virtio 1.2 §5.6.2 to §5.6.4).

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::address::Address;
use super::event_queue::EVENT_BYTES;

/// Number of entries of each request queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Number of entries of the control and event queues.
pub(super) const SMALL_QUEUE_SIZE: u16 = 64;
/// Number of queues before the request queues.
pub(super) const OTHER_QUEUES: u16 = 2;
/// Maximum number of data segments of a request: the queue size without header and response.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Hint for the maximum transfer size, in sectors of 512 bytes.
const MAX_SECTORS: u32 = 0xffff;

/// Offsets of the fields that the driver may write.
pub(super) const SENSE_SIZE_OFFSET: u64 = offset_of!(ScsiConfig, sense_size) as u64;
pub(super) const CDB_SIZE_OFFSET: u64 = offset_of!(ScsiConfig, cdb_size) as u64;

/// VIRTIO_SCSI_F_INOUT: a request may have data in both directions (§5.6.3).
pub(super) const FEATURE_INOUT: u64 = 1 << 0;

/// `struct virtio_scsi_config` (§5.6.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
pub(super) struct ScsiConfig {
    num_queues: U32,
    seg_max: U32,
    max_sectors: U32,
    cmd_per_lun: U32,
    event_info_size: U32,
    sense_size: U32,
    cdb_size: U32,
    max_channel: U16,
    max_target: U16,
    max_lun: U32,
}

impl ScsiConfig {
    /// The configuration of a controller with `queues` request queues whose highest target is
    /// `max_target`.
    pub(super) fn new(queues: usize, sense_size: u32, cdb_size: u32, max_target: u8) -> Self {
        Self {
            num_queues: u32::try_from(queues).unwrap_or(1).into(),
            seg_max: SEG_MAX.into(),
            max_sectors: MAX_SECTORS.into(),
            cmd_per_lun: u32::from(QUEUE_SIZE).into(),
            event_info_size: EVENT_BYTES.into(),
            sense_size: sense_size.into(),
            cdb_size: cdb_size.into(),
            max_channel: 0.into(),
            max_target: u16::from(max_target).into(),
            max_lun: u32::from(Address::MAX_LUN).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets are those of the structure in §5.6.4.
    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let config = ScsiConfig::new(3, 96, 32, 7);
        let words = [3, 254, 0xffff, 256, 16, 96, 32, 7 << 16, 0x3fff_u32];
        let expected: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(config.as_bytes(), expected);
        assert_eq!((SENSE_SIZE_OFFSET, CDB_SIZE_OFFSET), (20, 24));
    }
}
