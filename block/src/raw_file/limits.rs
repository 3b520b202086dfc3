//! What the host says of a file: its size, its blocks, what it can discard. Control thread only.
//!
//! Nothing is invented: a limit the host does not name is absent.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::host_file::{DirectAlignment, Kind};
use crate::page::{PAGE, Page};
use crate::steps::ZEROED_AT_ONCE;
use crate::{DiscardLimits, DiskOptions, Geometry, OpenError, zvol};

pub(super) struct Limits {
    pub(super) geometry: Geometry,
    pub(super) direct: Option<DirectAlignment>,
    /// What discarding and zeroing by the host want ranges to be multiples of, in bytes.
    pub(super) range_unit: u32,
    /// The unit of direct I/O where it is larger than the guest's block, in bytes.
    pub(super) shared_block: Option<u32>,
}

const SECTOR: u32 = 512;

/// Asks the host everything there is to know of an opened disk.
///
/// # Errors
///
/// The host refuses a question, or its answers make no disk.
pub(super) fn probe(
    file: &File,
    path: &Path,
    kind: Kind,
    options: &DiskOptions,
) -> Result<Limits, OpenError> {
    let probe = Probe {
        file,
        path,
        block_size: options.block_size,
        discards: options.discard && !options.read_only,
    };
    let mask = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask)
        .map_err(|errno| probe.refused("query it", errno.into()))?;
    let direct = if options.mode.is_direct() { Some(probe.direct_alignment(&stat)?) } else { None };
    let (mut geometry, range_unit) = match kind {
        Kind::Regular => (probe.file_geometry(&stat)?, 1),
        Kind::BlockDevice => probe.device_geometry(&stat)?,
    };
    let unit = direct.map_or(0, |direct| direct.offset);
    geometry.physical_block = geometry.physical_block.max(unit).max(geometry.logical_block);
    probe.check(&geometry, unit)?;
    let shared_block = (unit > geometry.logical_block).then_some(unit);
    Ok(Limits { geometry, direct, range_unit, shared_block })
}

struct Probe<'a> {
    file: &'a File,
    path: &'a Path,
    block_size: Option<u32>,
    /// Whether guests may give space back.
    discards: bool,
}

impl Probe<'_> {
    fn refused(&self, what: &'static str, source: io::Error) -> OpenError {
        OpenError::Host { path: self.path.into(), what, source }
    }

    fn unsuitable(&self, why: String) -> OpenError {
        OpenError::Unsuitable { path: self.path.into(), why }
    }

    fn check(&self, geometry: &Geometry, unit: u32) -> Result<(), OpenError> {
        let Geometry { capacity, logical_block, .. } = *geometry;
        if logical_block != SECTOR && logical_block != 4096 {
            return Err(self.unsuitable(format!(
                "its block of {logical_block} bytes is neither 512 nor 4096"
            )));
        }
        if capacity == 0 {
            return Err(self.unsuitable("it is empty; give it a size with truncate(1)".into()));
        }
        if !capacity.is_multiple_of(u64::from(logical_block)) {
            return Err(self.unsuitable(format!(
                "its size of {capacity} bytes is not a multiple of its block of {logical_block} bytes"
            )));
        }
        if unit > 0 && !capacity.is_multiple_of(u64::from(unit)) {
            return Err(self.unsuitable(format!(
                "its size of {capacity} bytes is not a multiple of the {unit} bytes that direct I/O moves \
                 at least here; make it longer with truncate(1), or use a cache mode with the page cache"
            )));
        }
        Ok(())
    }

    /// The file system's block is the unit of its read-modify-write and of what it frees. Larger ones
    /// (records, stripes) are a preference: some file systems name their transfer size there.
    fn file_geometry(&self, stat: &Statx) -> Result<Geometry, OpenError> {
        let logical_block = self.block_size.unwrap_or(SECTOR);
        let preferred = stat.stx_blksize;
        let discard = if self.discards && preferred > 0 && self.punches_holes(stat)? {
            Some(DiscardLimits {
                granularity: preferred.max(logical_block),
                alignment: 0,
                reads_zero: true,
            })
        } else {
            None
        };
        let page = preferred.is_power_of_two() && preferred > logical_block;
        Ok(Geometry {
            capacity: stat.stx_size,
            logical_block,
            physical_block: if page { preferred.min(4096) } else { logical_block },
            optimal_io: if preferred > 4096 { preferred } else { 0 },
            discard,
        })
    }

    /// Tries a hole behind the end of the file, where there is no data to lose.
    fn punches_holes(&self, stat: &Statx) -> Result<bool, OpenError> {
        let block = u64::from(stat.stx_blksize);
        let behind = stat.stx_size.next_multiple_of(block);
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.file, mode, behind, block) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(self.refused("try a hole behind its end", errno.into())),
        }
    }

    /// The geometry, and the device's own logical block, in bytes.
    fn device_geometry(&self, stat: &Statx) -> Result<(Geometry, u32), OpenError> {
        let capacity = (&*self.file)
            .seek(SeekFrom::End(0))
            .map_err(|error| self.refused("find its size", error))?;
        let own_block = rustix::fs::ioctl_blksszget(self.file)
            .map_err(|errno| self.refused("ask its logical block", errno.into()))?;
        let physical_block = rustix::fs::ioctl_blkpbszget(self.file)
            .map_err(|errno| self.refused("ask its physical block", errno.into()))?;
        let device = Sysfs::of(stat);
        let read = |name| device.read(name).map_err(|e| self.refused("read its limits in /sys", e));
        let granularity = read("queue/discard_granularity")?;
        let frees = read("queue/discard_max_bytes")? > 0 && granularity > 0 && self.discards;
        let limits = DiscardLimits {
            granularity: self.as_u32(granularity)?,
            alignment: self.as_u32(read("discard_alignment")?)?,
            reads_zero: zvol::is_driver(stat.stx_rdev_major)
                && granularity.is_power_of_two()
                && granularity <= ZEROED_AT_ONCE,
        };
        let geometry = Geometry {
            capacity,
            logical_block: self.block_size.unwrap_or(own_block),
            physical_block: physical_block.max(own_block),
            optimal_io: self.as_u32(read("queue/optimal_io_size")?)?,
            discard: frees.then_some(limits),
        };
        Ok((geometry, own_block))
    }

    fn as_u32(&self, limit: u64) -> Result<u32, OpenError> {
        u32::try_from(limit)
            .map_err(|_| self.unsuitable(format!("its device names a limit of {limit} bytes")))
    }

    fn direct_alignment(&self, stat: &Statx) -> Result<DirectAlignment, OpenError> {
        let said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
        let direct = if said {
            DirectAlignment { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align }
        } else {
            self.try_direct_alignment()?
        };
        let usable = |align: u32| align.is_power_of_two() && align as usize <= PAGE;
        if !(usable(direct.memory) && usable(direct.offset)) {
            return Err(self.unsuitable(format!(
                "direct I/O wants {} bytes alignment in memory and {} on disk; at most {PAGE} can be \
                 had (use a cache mode with the page cache)",
                direct.memory, direct.offset
            )));
        }
        Ok(direct)
    }

    /// Kernels before 6.1 and some file systems do not say: then a read tells. Memory alignment
    /// followed the disk's there.
    fn try_direct_alignment(&self) -> Result<DirectAlignment, OpenError> {
        let mut page = Page::ZERO;
        for block in [SECTOR, 4096] {
            let Some(buffer) = page.0.get_mut(..block as usize) else { continue };
            match rustix::io::pread(self.file, buffer, 0) {
                Ok(_) => return Ok(DirectAlignment { memory: block, offset: block }),
                Err(Errno::INVAL) => {}
                Err(errno) => return Err(self.refused("try a direct read", errno.into())),
            }
        }
        Err(self.unsuitable("the host takes no direct read of 512 or 4096 bytes".into()))
    }
}

/// A block device's directory in sysfs.
struct Sysfs(PathBuf);

impl Sysfs {
    fn of(stat: &Statx) -> Self {
        Self(format!("/sys/dev/block/{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor).into())
    }

    /// A number; the limits of a partition are its disk's, one directory up.
    fn read(&self, name: &str) -> io::Result<u64> {
        let text = match std::fs::read_to_string(self.0.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::read_to_string(self.0.join("..").join(name))?
            }
            answer => answer?,
        };
        text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
