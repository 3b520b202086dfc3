//! Limits of a file as the host reports them: size, blocks, discard limits. Control thread only.
//!
//! Nothing is invented: a limit that the host does not report, or that cannot be (see
//! [`plausible`]), is absent.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

use super::direct_io::{self, DirectIo};
use super::open::FileKind;
use super::plausible::{self, DroppedLimit, ReportedLimits};
use crate::space::is_zvol_driver;
use crate::{DiskOptions, Geometry, OpenError, StableCopies};

/// Limits of an opened file or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostLimits {
    /// As it was when the file was opened.
    pub(crate) geometry: Geometry,
    /// Present if the page cache is bypassed.
    pub(crate) direct: Option<DirectIo>,
    /// The unit of the host's discard and zeroing calls, in bytes.
    pub(crate) range_unit: u32,
    /// Limits that the host reports and the guest is not offered.
    pub(crate) dropped: Vec<DroppedLimit>,
}

impl HostLimits {
    /// The unit of direct I/O if it is larger than the guest's block, in bytes: several guest
    /// blocks share one host block then.
    pub(crate) fn shared_block(&self) -> Option<u32> {
        let unit = self.direct.map_or(0, |direct| direct.offset);
        (unit > self.geometry.logical_block).then_some(unit)
    }
}

const SECTOR: u32 = 512;

/// File systems without `FALLOC_FL_PUNCH_HOLE`, by their magic numbers (statfs(2)): ramfs, FAT,
/// exFAT, ISO 9660, UDF, squashfs, minix.
const WITHOUT_HOLES: [rustix::fs::FsWord; 8] =
    [0x8584_58f6, 0x4d44, 0x2011_bab0, 0x9660, 0x1501_3346, 0x7371_7368, 0x137f, 0x138f];

/// Maximum length of one zeroing call, in bytes: it locks others out of a file meanwhile. A granule
/// that is larger cannot be zeroed by discarding it.
pub(crate) const MAX_ZEROED_AT_ONCE: u64 = 64 << 20;

/// Queries all limits of an opened file.
///
/// # Errors
///
/// The host's error, or the file cannot serve as a disk.
pub(crate) fn probe(
    file: &File,
    path: &Path,
    kind: FileKind,
    options: &DiskOptions,
    copies: &StableCopies,
) -> Result<HostLimits, OpenError> {
    let probe = Probe {
        file,
        path,
        block_size: options.block_size,
        discards: options.discard && !options.read_only,
    };
    let mask = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask)
        .map_err(|errno| probe.refused("query it", errno.into()))?;
    let direct = match options.cache.is_direct() {
        true => Some(direct_io::probe(file, path, &stat, copies)?),
        false => None,
    };
    let (mut reported, range_unit) = match kind {
        FileKind::Regular => (probe.file_limits(&stat)?, 1),
        FileKind::BlockDevice => probe.device_limits(&stat)?,
    };
    reported.direct_unit = direct.map_or(0, |direct| direct.offset);
    probe.check(&reported)?;
    let (geometry, dropped) = plausible::geometry(&reported);
    Ok(HostLimits { geometry, direct, range_unit, dropped })
}

struct Probe<'a> {
    file: &'a File,
    path: &'a Path,
    block_size: Option<u32>,
    /// The guest is offered discards.
    discards: bool,
}

impl Probe<'_> {
    fn refused(&self, what: &'static str, source: io::Error) -> OpenError {
        OpenError::Host { path: self.path.into(), what, source }
    }

    fn unsuitable(&self, why: String) -> OpenError {
        OpenError::Unsuitable { path: self.path.into(), why }
    }

    fn check(&self, reported: &ReportedLimits) -> Result<(), OpenError> {
        let ReportedLimits { capacity, logical_block, direct_unit: unit, .. } = *reported;
        if logical_block != SECTOR && logical_block != 4096 {
            return Err(self.unsuitable(format!(
                "its block size of {logical_block} bytes is neither 512 nor 4096"
            )));
        }
        if capacity == 0 {
            return Err(self.unsuitable("it is empty, and a disk has a size".into()));
        }
        if !capacity.is_multiple_of(u64::from(logical_block)) {
            return Err(self.unsuitable(format!(
                "its size of {capacity} bytes is not a multiple of its block size of {logical_block} bytes"
            )));
        }
        if unit > 0 && !capacity.is_multiple_of(u64::from(unit)) {
            return Err(self.unsuitable(format!(
                "its size of {capacity} bytes is not a multiple of {unit} bytes, the alignment of \
                 direct I/O here: use a cache mode with the page cache, or a copy of a larger size"
            )));
        }
        Ok(())
    }

    /// Takes `st_blksize` for the unit of the file system's read-modify-write and deallocation, up
    /// to 4096 bytes. Larger values are a preference (records, stripes, network transfer
    /// sizes).
    fn file_limits(&self, stat: &Statx) -> Result<ReportedLimits, OpenError> {
        let preferred = u64::from(stat.stx_blksize);
        let frees = self.discards && preferred > 0 && self.punches_holes()?;
        Ok(ReportedLimits {
            capacity: stat.stx_size,
            logical_block: self.block_size.unwrap_or(SECTOR),
            physical_block: if preferred.is_power_of_two() { preferred.min(4096) } else { 0 },
            optimal_io: if preferred > 4096 { preferred } else { 0 },
            discard_granularity: preferred,
            frees,
            ranges_read_zero: true,
            ..ReportedLimits::default()
        })
    }

    /// Whether the file system may punch holes: all but those known not to. The only way to be
    /// certain is to punch one, which is a write. If the host refuses the first discard, the
    /// guest's discards succeed without effect.
    fn punches_holes(&self) -> Result<bool, OpenError> {
        let stat = rustix::fs::fstatfs(self.file)
            .map_err(|errno| self.refused("query its file system", errno.into()))?;
        Ok(!WITHOUT_HOLES.contains(&stat.f_type))
    }

    /// The limits, and the device's logical block in bytes.
    fn device_limits(&self, stat: &Statx) -> Result<(ReportedLimits, u32), OpenError> {
        let capacity = (&*self.file)
            .seek(SeekFrom::End(0))
            .map_err(|error| self.refused("query its size", error))?;
        let own_block = rustix::fs::ioctl_blksszget(self.file)
            .map_err(|errno| self.refused("query its logical block size", errno.into()))?;
        let physical_block = rustix::fs::ioctl_blkpbszget(self.file)
            .map_err(|errno| self.refused("query its physical block size", errno.into()))?;
        let device = Sysfs::of(stat);
        let read = |name| device.read(name).map_err(|e| self.refused("read its limits in /sys", e));
        let granularity = read("queue/discard_granularity")?;
        let limits = ReportedLimits {
            capacity,
            logical_block: self.block_size.unwrap_or(own_block),
            physical_block: physical_block.max(own_block).into(),
            direct_unit: 0,
            minimum_io: read("queue/minimum_io_size")?,
            optimal_io: read("queue/optimal_io_size")?,
            discard_granularity: granularity,
            discard_alignment: read("discard_alignment")?,
            frees: read("queue/discard_max_bytes")? > 0 && self.discards,
            granules_read_zero: is_zvol_driver(stat.stx_rdev_major)
                && granularity.is_power_of_two()
                && granularity <= MAX_ZEROED_AT_ONCE,
            ranges_read_zero: false,
        };
        Ok((limits, own_block))
    }
}

/// Whether the file is a block device that the kernel refuses to write (`ro` in sysfs), such as a
/// snapshot of a ZFS volume: also a flush of it fails.
pub(crate) fn is_read_only_device(file: &File) -> bool {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
    let is_device = |stat: &Statx| FileType::from_raw_mode(stat.stx_mode.into()).is_block_device();
    stat.is_ok_and(|stat| is_device(&stat) && Sysfs::of(&stat).read("ro").is_ok_and(|ro| ro != 0))
}

/// A block device's directory in sysfs.
struct Sysfs(PathBuf);

impl Sysfs {
    fn of(stat: &Statx) -> Self {
        Self(format!("/sys/dev/block/{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor).into())
    }

    /// Reads a number. The limits of a partition are those of its disk, one directory up.
    fn read(&self, name: &str) -> io::Result<u64> {
        let text = match std::fs::read_to_string(self.0.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::read_to_string(self.0.join("..").join(name))?
            }
            answer => answer?,
        };
        let number: i64 = text
            .trim()
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Linux shows alignments of misaligned stacks as -1.
        Ok(u64::try_from(number).unwrap_or(u64::MAX))
    }
}
