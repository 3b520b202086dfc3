//! Whether memory of this host serves direct I/O nevertheless. Pure.

use super::storey::{BtrfsFile, FileSystem, Storey, StoreyKind};
use super::zfs;

/// A storey that serves direct I/O from memory of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCache {
    /// The storey, as in `btrfs on /srv` or `loop device /dev/loop0`.
    pub storey: String,
    /// Its cache: `page cache` or `ARC`.
    pub cache: &'static str,
    /// All direct I/O uses the cache; else a part of it may, or this host does not know.
    pub is_certain: bool,
}

const PAGES: &str = "page cache";
/// The adaptive replacement cache of ZFS.
const ARC: &str = "ARC";

impl HostCache {
    /// The first cache that all direct I/O on this storey uses, else the first that it may use.
    pub(super) fn below(storey: &Storey) -> Option<Self> {
        let own = own_cache(storey).map(|(cache, is_certain)| Self {
            storey: described(storey),
            cache,
            is_certain,
        });
        if own.as_ref().is_some_and(|found| found.is_certain) {
            return own;
        }
        let below: Vec<_> = storey.below.iter().filter_map(Self::below).collect();
        let certain = below.iter().find(|found| found.is_certain).cloned();
        certain.or(own).or_else(|| below.into_iter().next())
    }
}

fn described(storey: &Storey) -> String {
    let name = &storey.name;
    match &storey.kind {
        StoreyKind::FileSystem(found) => format!("{} on {name}", found.fs_type),
        StoreyKind::Loop { .. } => format!("loop device {name}"),
        StoreyKind::Volume(_) => format!("ZFS volume {name}"),
        _ => format!("unknown storage {name}"),
    }
}

/// The cache of one storey, and whether all direct I/O uses it.
fn own_cache(storey: &Storey) -> Option<(&'static str, bool)> {
    match &storey.kind {
        StoreyKind::FileSystem(found) => file_system(found),
        StoreyKind::Loop { direct: Some(true), .. } => None,
        StoreyKind::Loop { direct, .. } => Some((PAGES, direct.is_some())),
        StoreyKind::Volume(_) => Some((ARC, true)),
        StoreyKind::Unknown(_) => Some((PAGES, false)),
        _ => None,
    }
}

fn file_system(found: &FileSystem) -> Option<(&'static str, bool)> {
    match (found.fs_type.as_str(), &found.btrfs) {
        ("tmpfs" | "ramfs", _) => Some((PAGES, true)),
        ("zfs", _) => {
            Some((ARC, found.zfs.as_ref().and_then(zfs::always_uses_arc).unwrap_or(false)))
        }
        ("ext4", _) if found.has_option("data=journal") => Some((PAGES, true)),
        (_, Some(BtrfsFile { no_cow: Some(true), .. })) => None,
        // Depends on the kernel: "btrfs: always fallback to buffered write if the inode requires
        // checksum".
        (_, Some(_)) => Some((PAGES, false)),
        // Its program decides.
        (fs_type, _) if fs_type.starts_with("fuse") => Some((PAGES, false)),
        _ => None,
    }
}
