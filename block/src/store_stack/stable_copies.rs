//! Whether direct I/O needs copies of its data that nothing else can change.
//!
//! A guest may change its memory while the host writes it. Where a storey computes a checksum or
//! parity from the pages of the write, or writes them to several devices, the results then
//! disagree. Where a storey copies the data before any such use, the storeys below are safe.

use super::queue::QueueAttributes;
use super::storey::{BtrfsFile, DmTarget, FileSystem, Storey, StoreyKind};

/// The directions of direct I/O that need a stable copy, with the reason: the storey that uses the
/// pages of the caller, as in `md raid1 /dev/md0`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StableCopies {
    /// Data of a write must not change while it is written.
    pub writes: Option<String>,
    /// Data that was read is verified in the buffer of the caller, which must not change
    /// meanwhile.
    pub reads: Option<String>,
}

/// The use of a caller's pages by one storey.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PageUse {
    /// It passes the pages to the storeys below.
    Passes,
    /// It copies the data.
    Copies,
    /// It depends on unchanged pages, for this reason.
    NeedsStable(String),
}

/// Block file systems whose direct I/O passes the pages of the caller to the device and computes
/// nothing from them.
const PASSING: [&str; 15] = [
    "ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "vfat", "exfat", "ntfs3", "ocfs2", "gfs2", "udf",
    "hfsplus", "squashfs", "erofs",
];

impl StableCopies {
    /// The copies that direct I/O on this storey needs.
    pub(super) fn below(storey: &Storey) -> Self {
        Self { writes: reason(storey, write_use), reads: reason(storey, read_use) }
    }
}

/// The first reason on the path of the pages.
fn reason(storey: &Storey, page_use: fn(&Storey) -> PageUse) -> Option<String> {
    match page_use(storey) {
        PageUse::Copies => None,
        PageUse::NeedsStable(reason) => Some(reason),
        PageUse::Passes if storey.below.is_empty() && !is_lowest(storey) => {
            Some(format!("unknown storage below {}", storey.name))
        }
        PageUse::Passes => storey.below.iter().find_map(|below| reason(below, page_use)),
    }
}

/// Whether the storey is a drive or another host. Below any other, sysfs names devices.
fn is_lowest(storey: &Storey) -> bool {
    match storey.kind {
        StoreyKind::FileSystem(_)
        | StoreyKind::Loop { .. }
        | StoreyKind::Md { .. }
        | StoreyKind::Dm { .. }
        | StoreyKind::Partition => false,
        StoreyKind::Volume(_)
        | StoreyKind::Drbd
        | StoreyKind::Nbd
        | StoreyKind::Rbd
        | StoreyKind::Nvme
        | StoreyKind::Scsi { .. }
        | StoreyKind::Virtio { .. }
        | StoreyKind::Drive
        | StoreyKind::Memory
        | StoreyKind::Other
        | StoreyKind::Unknown(_) => true,
    }
}

fn write_use(storey: &Storey) -> PageUse {
    let name = &storey.name;
    let needs = |what: &str| PageUse::NeedsStable(format!("{what} {name}"));
    let by_kind = match &storey.kind {
        StoreyKind::FileSystem(found) => return file_system_write(found, name),
        // The copy is the page cache of its file, or a clone of the bio: `crypt_convert` encrypts
        // from the pages of the caller into its own.
        StoreyKind::Loop { direct: Some(false), .. }
        | StoreyKind::Dm { target: DmTarget::Crypt }
        | StoreyKind::Volume(_) => return PageUse::Copies,
        StoreyKind::Md { level } => match level.as_deref() {
            Some("raid0" | "linear") => PageUse::Passes,
            Some(level) => needs(&format!("md {level}")),
            None => needs("md of unknown level"),
        },
        StoreyKind::Dm { target } => match target {
            DmTarget::Linear | DmTarget::Thin | DmTarget::Snapshot | DmTarget::Multipath => {
                PageUse::Passes
            }
            DmTarget::Unknown => needs("dm with an unknown target"),
            other => needs(&format!("dm {}", other.name())),
        },
        StoreyKind::Drbd => needs("DRBD"),
        StoreyKind::Other => needs("unknown driver of"),
        StoreyKind::Unknown(_) => needs("unknown storage"),
        StoreyKind::Loop { .. }
        | StoreyKind::Nbd
        | StoreyKind::Rbd
        | StoreyKind::Nvme
        | StoreyKind::Scsi { .. }
        | StoreyKind::Virtio { .. }
        | StoreyKind::Partition
        | StoreyKind::Drive
        | StoreyKind::Memory => PageUse::Passes,
    };
    match (&by_kind, storey.queue) {
        (PageUse::Passes, Some(QueueAttributes { stable_writes: Some(true), .. })) => {
            needs("stable_writes of")
        }
        (PageUse::Passes, Some(QueueAttributes { stable_writes: None, .. })) => {
            needs("unknown stable_writes of")
        }
        _ => by_kind,
    }
}

fn file_system_write(found: &FileSystem, name: &str) -> PageUse {
    let needs = |what: String| PageUse::NeedsStable(format!("{what} on {name}"));
    let fs_type = found.fs_type.as_str();
    match fs_type {
        "btrfs" => btrfs_write(found.btrfs.as_ref(), name),
        "zfs" => needs("ZFS checksums".to_owned()),
        "bcachefs" => needs("bcachefs checksums".to_owned()),
        // Direct I/O on them is a copy to or from the page cache.
        "tmpfs" | "ramfs" => PageUse::Copies,
        // RPCSEC_GSS signs the pages that it sends.
        "nfs" | "nfs4" if found.has_option("sec=krb5i") || found.has_option("sec=krb5p") => {
            needs("NFS signatures".to_owned())
        }
        // Sent as read once, or copied to the program that serves the file system.
        "nfs" | "nfs4" | "fuseblk" | "fuse" => PageUse::Copies,
        _ if fs_type.starts_with("fuse.") => PageUse::Copies,
        "overlay" if found.has_upper() => PageUse::Passes,
        _ if PASSING.contains(&fs_type) => PageUse::Passes,
        _ => needs(format!("unknown file system {fs_type}")),
    }
}

fn btrfs_write(file: Option<&BtrfsFile>, name: &str) -> PageUse {
    let Some(BtrfsFile { no_cow: Some(true), data_profiles }) = file else {
        return PageUse::NeedsStable(format!("btrfs checksums on {name}"));
    };
    let single = ["single", "raid0"];
    match data_profiles {
        None => PageUse::NeedsStable(format!("unknown btrfs profile on {name}")),
        Some(profiles) => match profiles.iter().find(|found| !single.contains(&found.as_str())) {
            Some(profile) => PageUse::NeedsStable(format!("btrfs {profile} on {name}")),
            None => PageUse::Passes,
        },
    }
}

fn read_use(storey: &Storey) -> PageUse {
    let name = &storey.name;
    let needs = |what: &str| PageUse::NeedsStable(format!("{what} {name}"));
    let by_kind = match &storey.kind {
        StoreyKind::FileSystem(found) => return file_system_read(found, name),
        StoreyKind::Loop { direct: Some(false), .. } | StoreyKind::Volume(_) => {
            return PageUse::Copies;
        }
        StoreyKind::Dm { target: target @ (DmTarget::Integrity | DmTarget::Verity) } => {
            needs(&format!("dm {}", target.name()))
        }
        StoreyKind::Dm { target: DmTarget::Unknown } => needs("dm with an unknown target"),
        StoreyKind::Other => needs("unknown driver of"),
        StoreyKind::Unknown(_) => needs("unknown storage"),
        // RAID reads from one device and verifies nothing. dm-crypt decrypts in the caller's
        // pages.
        _ => PageUse::Passes,
    };
    match (&by_kind, storey.queue) {
        (PageUse::Passes, Some(QueueAttributes { verifies_reads: true, .. })) => {
            needs("integrity checks of")
        }
        _ => by_kind,
    }
}

fn file_system_read(found: &FileSystem, name: &str) -> PageUse {
    match (found.fs_type.as_str(), &found.btrfs) {
        ("btrfs", Some(BtrfsFile { no_cow: Some(true), .. })) => PageUse::Passes,
        ("btrfs", _) => PageUse::NeedsStable(format!("btrfs checksums on {name}")),
        // A NFS client that verifies signatures reads into pages of the caller, too.
        _ => file_system_write(found, name),
    }
}
