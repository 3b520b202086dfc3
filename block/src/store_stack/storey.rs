//! The types of a stack: a storey for each file system and device. Plain data.

use super::queue::QueueAttributes;

/// One file system or device, and those that it stores its data on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storey {
    /// Its kind, with the facts of that kind.
    pub kind: StoreyKind,
    /// The mount point of a file system, or the node of a device.
    pub name: String,
    /// The name of a device in sysfs.
    pub device: Option<String>,
    /// Attributes of its request queue, if it is a whole device.
    pub queue: Option<QueueAttributes>,
    /// The storeys that hold its data.
    pub below: Vec<Storey>,
}

/// The kind of a storey. A fact that the host does not report is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreyKind {
    /// A mounted file system.
    FileSystem(FileSystem),
    /// A loop device.
    Loop {
        /// Path of its backing file.
        file: String,
        /// It bypasses the page cache of the backing file.
        direct: Option<bool>,
        /// The backing file has holes.
        has_holes: Option<bool>,
    },
    /// A software RAID array.
    Md {
        /// `raid1`, `raid5`, `linear` and so on.
        level: Option<String>,
    },
    /// A device of the device mapper.
    Dm {
        /// Its target.
        target: DmTarget,
    },
    /// A block device replicated between hosts.
    Drbd,
    /// A ZFS volume.
    Volume(ZfsDataset),
    /// A network block device.
    Nbd,
    /// A Ceph block device.
    Rbd,
    /// An NVMe namespace.
    Nvme,
    /// A SCSI, SATA or USB disk.
    Scsi {
        /// The drive's cache as its mode page 08h reports it (`scsi_disk/*/cache_type`).
        cache: Option<String>,
    },
    /// A virtio-blk disk of this virtual machine.
    Virtio {
        /// The device's cache (`cache_type`).
        cache: Option<String>,
    },
    /// A partition of the storey below.
    Partition,
    /// A block device in the memory of the host: zram, brd, null_blk.
    Memory,
    /// A drive of another driver: eMMC and SD cards, persistent memory, Xen, DASD.
    Drive,
    /// An unknown block driver.
    Other,
    /// A storey that cannot be learned, and the reason.
    Unknown(String),
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its type as in `/proc/filesystems`.
    pub fs_type: String,
    /// Its mount options: those of the superblock after those of the mount.
    pub options: Vec<String>,
    /// Facts of the disk's file if it is on btrfs.
    pub btrfs: Option<BtrfsFile>,
    /// The dataset if it is ZFS.
    pub zfs: Option<ZfsDataset>,
}

/// A file on btrfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BtrfsFile {
    /// The file has no copy-on-write and so no checksums (`FS_NOCOW_FL`, `chattr +C`).
    pub no_cow: Option<bool>,
    /// Profiles of the data block groups, as in `/sys/fs/btrfs/UUID/allocation/data`.
    pub data_profiles: Option<Vec<String>>,
}

/// A ZFS file system or volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZfsDataset {
    /// `POOL/NAME`; `None` if it cannot be learned without opening the device.
    pub name: Option<String>,
    /// Version of the kernel module.
    pub version: Option<String>,
    /// A volume whose requests pass through blk-mq (`zvol_use_blk_mq`).
    pub blk_mq: bool,
    /// The pool sends no flush to its devices (`zfs_nocacheflush`, `zil_nocacheflush`).
    pub no_cache_flush: bool,
    /// The nearest dataset above a volume that has a `quota`.
    pub quota_of: Option<String>,
    /// Properties, as far as the program `zfs` reports them.
    pub properties: Vec<(String, String)>,
}

/// The target of a dm device, as far as its UUID and the names of its slaves show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmTarget {
    /// `linear` or `striped`.
    Linear,
    /// `crypt`.
    Crypt,
    /// `integrity`.
    Integrity,
    /// `verity`.
    Verity,
    /// `multipath`.
    Multipath,
    /// `thin` or `thin-pool`.
    Thin,
    /// `snapshot` or `snapshot-origin`.
    Snapshot,
    /// `cache` or `writecache`.
    Cache,
    /// `raid`.
    Raid,
    /// `mirror`.
    Mirror,
    /// `vdo`.
    Vdo,
    /// Not known.
    Unknown,
}

impl DmTarget {
    /// The name of its module without `dm-`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Crypt => "crypt",
            Self::Integrity => "integrity",
            Self::Verity => "verity",
            Self::Multipath => "multipath",
            Self::Thin => "thin",
            Self::Snapshot => "snapshot",
            Self::Cache => "cache",
            Self::Raid => "raid",
            Self::Mirror => "mirror",
            Self::Vdo => "vdo",
            Self::Unknown => "unknown",
        }
    }
}

impl Storey {
    /// Whether it is a dataset of ZFS.
    pub(crate) fn is_zfs(&self) -> bool {
        match &self.kind {
            StoreyKind::FileSystem(found) => found.zfs.is_some(),
            StoreyKind::Volume(_) => true,
            _ => false,
        }
    }

    /// Whether a power cut empties it, as it is in the memory of this host.
    pub(super) fn is_in_memory(&self) -> bool {
        match &self.kind {
            StoreyKind::Memory => true,
            StoreyKind::FileSystem(found) => matches!(found.fs_type.as_str(), "tmpfs" | "ramfs"),
            _ => false,
        }
    }

    pub(crate) fn unknown(name: String, reason: impl Into<String>) -> Self {
        Self {
            kind: StoreyKind::Unknown(reason.into()),
            name,
            device: None,
            queue: None,
            below: Vec::new(),
        }
    }
}

impl FileSystem {
    /// Whether it is an overlay that stores its writes in an upper directory.
    pub(super) fn has_upper(&self) -> bool {
        self.options.iter().any(|option| option.starts_with("upperdir="))
    }

    /// Whether it is an overlay whose upper layer is never synced (`volatile`; Linux 6.18 shows
    /// `fsync=volatile`).
    pub(super) fn is_volatile(&self) -> bool {
        self.has_option("volatile") || self.has_option("fsync=volatile")
    }

    /// Whether it is mounted without barriers.
    pub(super) fn sends_no_flush(&self) -> bool {
        let options = ["nobarrier", "barrier=0", "fsync_mode=nobarrier"];
        options.iter().any(|option| self.has_option(option))
    }

    /// Whether it is mounted with this option.
    #[must_use]
    pub fn has_option(&self, option: &str) -> bool {
        self.options.iter().any(|found| found == option)
    }
}

impl ZfsDataset {
    /// The value of a property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        let mut properties = self.properties.iter();
        properties.find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}
