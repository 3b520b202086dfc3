//! Direct I/O to a file of the host: the alignment that it requires, and the transfers that need a
//! stable copy. The probe is for the control thread only.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FsWord, Statx, StatxFlags};
use rustix::io::Errno;

use crate::page::{PAGE, PageBuffer};
use crate::{OpenError, Segment, StableCopies};

/// Requirements of direct I/O. Alignments are powers of two, in bytes, at most a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectIo {
    /// Alignment of each segment's address.
    pub(crate) memory: u32,
    /// Alignment of the disk offset and of each segment's length.
    pub(crate) offset: u32,
    /// Reads go through a buffer of the monitor: the store verifies them in the memory that it
    /// reads into.
    pub(crate) copies_reads: bool,
    /// Writes go through a buffer of the monitor: the store must not see memory that changes.
    pub(crate) copies_writes: bool,
}

impl DirectIo {
    /// Whether a transfer of `segments` at the offset needs no copy.
    pub(crate) fn accepts(&self, segments: &[Segment], at: u64, is_write: bool) -> bool {
        let (addresses, lens) = segments.iter().fold((0, 0), |(addresses, lens), segment| {
            (addresses | segment.base().addr(), lens | segment.len())
        });
        let copied = if is_write { self.copies_writes } else { self.copies_reads };
        !copied
            && addresses.is_multiple_of(self.memory as usize)
            && (lens as u64 | at).is_multiple_of(u64::from(self.offset))
    }
}

/// `ZFS_SUPER_MAGIC` (OpenZFS, include/sys/fs/zfs.h).
const ZFS: FsWord = 0x2fc1_2fc1;

const SECTOR: u32 = 512;
/// A page: bounce buffers are aligned to it.
const MAX_ALIGNMENT: u32 = 4096;
const _: () = assert!(MAX_ALIGNMENT as usize == PAGE, "PageBuffer has this alignment");

/// Queries the requirements of direct I/O to a file that was opened for it.
///
/// # Errors
///
/// The host's error, or an alignment that is not supported.
pub(super) fn probe(
    file: &File,
    path: &Path,
    stat: &Statx,
    copies: &StableCopies,
) -> Result<DirectIo, OpenError> {
    let refused = |what| {
        move |errno: Errno| OpenError::Host { path: path.into(), what, source: errno.into() }
    };
    let [memory, offset] =
        if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) {
            let store = rustix::fs::fstatfs(file).map_err(refused("query its file system"))?;
            // ZFS reports the record, which it writes without reading it first, and accepts pages
            // (zfs_get_direct_alignment in module/zfs/zfs_vnops.c).
            let is_zfs = store.f_type == ZFS;
            let offset = if is_zfs { MAX_ALIGNMENT } else { stat.stx_dio_offset_align };
            [stat.stx_dio_mem_align, offset]
        } else {
            let tried = try_alignment(file).map_err(refused("try a direct read"))?;
            [tried.unwrap_or(0); 2]
        };
    let is_supported = |align: u32| align.is_power_of_two() && align <= MAX_ALIGNMENT;
    if !(is_supported(memory) && is_supported(offset)) {
        let why = format!(
            "direct I/O requires an alignment of {memory} bytes in memory and {offset} on disk; at most \
             {MAX_ALIGNMENT} is supported: use a cache mode with the page cache"
        );
        return Err(OpenError::Unsuitable { path: path.into(), why });
    }
    let (copies_reads, copies_writes) = (copies.reads.is_some(), copies.writes.is_some());
    Ok(DirectIo { memory, offset, copies_reads, copies_writes })
}

/// Finds the alignment by reading, for kernels before 6.1 and file systems without
/// `STATX_DIOALIGN`. On those, memory needs the same alignment as offsets. `None` if the host
/// refuses both.
fn try_alignment(file: &File) -> Result<Option<u32>, Errno> {
    let mut page = PageBuffer::zeroed(PAGE);
    for block in [SECTOR, MAX_ALIGNMENT] {
        let Some(buffer) = page.as_mut_slice().get_mut(..block as usize) else { continue };
        match rustix::io::pread(file, buffer, 0) {
            Ok(_) => return Ok(Some(block)),
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}
