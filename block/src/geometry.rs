//! Size, blocks and discard limits of a disk. All values in bytes.

/// Geometry of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk, a multiple of the logical block.
    pub capacity: u64,
    /// Smallest addressable unit: 512 or 4096.
    pub logical_block: u32,
    /// Smallest unit that the host writes without a read-modify-write, a multiple of the logical
    /// block.
    pub physical_block: u32,
    /// Preferred size and alignment of large requests, or 0 if the host reports none.
    pub optimal_io: u32,
    /// Discard limits; `None` if the host deallocates nothing.
    pub discard: Option<DiscardLimits>,
}

/// Discard limits as the host reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// The unit in which the host deallocates space: a granule.
    pub granularity: u32,
    /// Offset of the first granule.
    pub alignment: u32,
    /// Deallocated granules read as zeroes. Of block devices only ZFS volumes guarantee that.
    pub reads_zero: bool,
}
