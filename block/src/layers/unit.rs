//! The unit of the map.

/// Size of a block in bytes.
pub(super) const BLOCK_SIZE: u32 = 4096;
/// The same, as a part of positions.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;
/// The same, as the size of memory.
pub(super) const BLOCK_BYTES: usize = BLOCK_SIZE as usize;
