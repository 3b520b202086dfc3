//! How a driver can break a virtqueue. A broken queue is not used again before a reset.

use super::inflight_record::RecordError;

/// Maximum number of buffers of a chain. An indirect table may be longer than the queue; the limit
/// is Linux' `UIO_MAXIOV`, the maximum number of segments of one system call.
pub(super) const MAX_BUFFERS: usize = 1024;

/// How the driver broke a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The size is not a power of two.
    #[error("queue size {0} is not a power of two")]
    Size(u16),
    /// An area violates the alignment of §2.7 or is outside of guest memory.
    #[error("a queue area at {0:#x} is misaligned or outside of guest memory")]
    Area(u64),
    /// More chains are available than the queue has entries.
    #[error("available index {available} is more than the queue size ahead of {next}")]
    AvailableIndex {
        /// The driver's available index.
        available: u16,
        /// The next entry that the device takes.
        next: u16,
    },
    /// A descriptor index is outside of its table.
    #[error("descriptor index {0} is outside of its table")]
    DescriptorIndex(u16),
    /// A chain loops or is longer than a driver may make it.
    #[error("a descriptor chain loops or has more than {MAX_BUFFERS} buffers")]
    ChainLength,
    /// A device-readable buffer follows a device-writable one (§2.7.4.2).
    #[error("a device-readable buffer follows a device-writable one")]
    BufferOrder,
    /// The length of an indirect table is zero or not a multiple of 16, or the table is outside of
    /// guest memory.
    #[error("an indirect table of {len} bytes at {addr:#x} is malformed")]
    IndirectTable {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// INDIRECT with NEXT, in an indirect table, or without negotiation (§2.7.5.3.1).
    #[error("an indirect descriptor is not allowed here")]
    IndirectMisplaced,
    /// The record of chains in flight does not belong to this queue.
    #[error("the record of chains in flight cannot be used: {0}")]
    Record(#[from] RecordError),
    /// A chain lacks the buffer for its status or response.
    #[error("a request lacks the buffer for its status")]
    NoStatus,
}
