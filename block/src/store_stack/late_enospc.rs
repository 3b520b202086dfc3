//! Whether a disk may learn only at write-back that its store is full.
//!
//! Linux copies a buffered write to the page cache and completes it. A file system reserves space
//! for it first, so that a full one refuses the write. A block device reserves none, and neither
//! does a thin storey below a file system: they allocate at write-back. The error then meets writes
//! that were acknowledged, and the kernel drops their pages.

use super::storey::{BtrfsFile, DmTarget, FileSystem, Storey, StoreyKind, ZfsDataset};

/// The storey that may report ENOSPC for buffered writes after they have completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateEnospc {
    /// It allocates when data is written. Otherwise that cannot be known.
    pub is_certain: bool,
    /// Its kind and name, as in `dm thin /dev/mapper/vg-data`.
    pub storey: String,
}

/// File systems whose server or program decides when it allocates.
const SERVED: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "afs"];

impl LateEnospc {
    /// For buffered writes to the disk that `root` is, or to a file on it.
    pub(super) fn below(root: &Storey) -> Option<Self> {
        let certain = |storey| Self { is_certain: true, storey };
        let uncertain = |kind: &str| {
            let storey = format!("{kind} {}", root.name);
            Some(Self { is_certain: false, storey })
        };
        match &root.kind {
            StoreyKind::FileSystem(found) => {
                let thin = root.below.iter().find_map(thin_storey).map(certain);
                thin.or_else(|| if is_served(found) { uncertain(&found.fs_type) } else { None })
            }
            _ => thin_storey(root).map(certain).or_else(|| uncertain("block device")),
        }
    }
}

/// The dataset whose quota limits a sparse ZFS volume of the stack. ZFS fails a write at that quota
/// with EIO, also if the pool has space.
pub(super) fn quota_below(storey: &Storey) -> Option<&str> {
    match &storey.kind {
        StoreyKind::Volume(volume) if is_sparse(volume) => volume.quota_of.as_deref(),
        _ => storey.below.iter().find_map(quota_below),
    }
}

fn is_served(found: &FileSystem) -> bool {
    let fs_type = found.fs_type.as_str();
    SERVED.contains(&fs_type) || fs_type.starts_with("fuse")
}

/// The first storey that is known to allocate when data is written.
fn thin_storey(storey: &Storey) -> Option<String> {
    let name = &storey.name;
    let thin = match &storey.kind {
        StoreyKind::Dm { target: target @ (DmTarget::Thin | DmTarget::Vdo) } => {
            Some(format!("dm {} {name}", target.name()))
        }
        StoreyKind::Volume(volume) if is_sparse(volume) => {
            Some(format!("sparse ZFS volume {name}"))
        }
        StoreyKind::Loop { has_holes: Some(true), file, .. } => {
            Some(format!("loop device {name} of the sparse file {file}"))
        }
        StoreyKind::Loop { .. } => copying_file_system(storey)
            .map(|fs_type| format!("loop device {name} of a file on {fs_type}")),
        _ => None,
    };
    thin.or_else(|| storey.below.iter().find_map(thin_storey))
}

/// Whether space is reserved for less than all of the volume.
fn is_sparse(volume: &ZfsDataset) -> bool {
    let number = |name: &str| volume.property(name)?.parse::<u64>().ok();
    matches!((number("refreservation"), number("volsize")), (Some(reserved), Some(size)) if reserved < size)
}

/// The type of the file system of a loop device's file if it allocates for overwrites, too.
fn copying_file_system(device: &Storey) -> Option<&str> {
    let StoreyKind::FileSystem(found) = &device.below.first()?.kind else { return None };
    let copies = match (found.fs_type.as_str(), &found.btrfs) {
        ("btrfs", Some(BtrfsFile { no_cow, .. })) => *no_cow == Some(false),
        (fs_type, _) => matches!(fs_type, "zfs" | "bcachefs"),
    };
    copies.then_some(found.fs_type.as_str())
}
