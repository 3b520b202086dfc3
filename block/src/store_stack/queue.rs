//! Attributes of a block device's request queue in sysfs.

use std::path::Path;

use super::host_view::{read_number, read_word};

/// The cache that the kernel assumes in a device (`queue/write_cache`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueCache {
    /// Volatile: the kernel sends flushes.
    WriteBack,
    /// None or not volatile: the kernel sends no flush.
    WriteThrough,
}

/// Attributes of a request queue, as Linux's `Documentation/ABI/stable/sysfs-block` has them.
/// `None` stands for an attribute that this kernel lacks, or whose value is not of its form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAttributes {
    /// Whether the kernel sends flushes.
    pub cache: Option<QueueCache>,
    /// The device accepts writes with FUA. The kernel (`blk_validate_limits`) clears it for a
    /// device without a volatile cache.
    pub fua: Option<bool>,
    /// Data must not change while it is written.
    pub stable_writes: Option<bool>,
    /// The kernel verifies checksums of the data that it reads (`integrity/read_verify` with an
    /// integrity format).
    pub verifies_reads: bool,
    /// Logical block size.
    pub logical_block_bytes: Option<u64>,
    /// Physical block size.
    pub physical_block_bytes: Option<u64>,
    /// The longest discard; 0 if the device has none.
    pub discard_max_bytes: Option<u64>,
    /// The longest WRITE ZEROES; 0 if the device has none.
    pub write_zeroes_max_bytes: Option<u64>,
    /// The longest write that is atomic at a power failure; 0 if none is.
    pub atomic_write_max_bytes: Option<u64>,
    /// A rotating medium.
    pub rotational: Option<bool>,
    /// The medium can be mapped into memory.
    pub dax: Option<bool>,
    /// The device refuses writes (`ro`).
    pub read_only: Option<bool>,
}

impl QueueAttributes {
    /// Those of the whole device with this folder in sysfs.
    pub(super) fn read(device: &Path) -> Self {
        let queue = device.join("queue");
        let number = |name: &str| read_number(&queue.join(name));
        let flag = |path: &Path| read_number(path).map(|value| value != 0);
        let format = read_word(&device.join("integrity/format"));
        let verifies = flag(&device.join("integrity/read_verify")) == Some(true);
        Self {
            cache: match read_word(&queue.join("write_cache")).as_deref() {
                Some("write back") => Some(QueueCache::WriteBack),
                Some("write through") => Some(QueueCache::WriteThrough),
                _ => None,
            },
            fua: flag(&queue.join("fua")),
            // Before Linux 5.11 the attribute was that of the backing device info.
            stable_writes: flag(&queue.join("stable_writes"))
                .or_else(|| flag(&device.join("bdi/stable_pages_required"))),
            verifies_reads: verifies && format.is_some_and(|format| format != "none"),
            logical_block_bytes: number("logical_block_size"),
            physical_block_bytes: number("physical_block_size"),
            discard_max_bytes: number("discard_max_bytes"),
            write_zeroes_max_bytes: number("write_zeroes_max_bytes"),
            atomic_write_max_bytes: number("atomic_write_unit_max_bytes"),
            rotational: flag(&queue.join("rotational")),
            dax: flag(&queue.join("dax")),
            read_only: flag(&device.join("ro")),
        }
    }
}
