//! The effect of a storey on each operation of a disk, in a few words. Pure.

use super::queue::{QueueAttributes, QueueCache};
use super::storey::{BtrfsFile, DmTarget, FileSystem, Storey, StoreyKind, ZfsDataset};
use super::zfs;

/// The effect of one storey on the operations that reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreyEffects {
    /// A flush.
    pub flush: &'static str,
    /// A durable write.
    pub fua: &'static str,
    /// A discard.
    pub discard: &'static str,
    /// Zeroing of a range.
    pub zeroing: &'static str,
    /// Direct I/O.
    pub direct: &'static str,
    /// Atomicity of a write at a power failure, if it is not that of a number of bytes.
    pub atomic: &'static str,
    /// The longest write that is atomic at a power failure.
    pub atomic_bytes: Option<u64>,
}

const UNKNOWN: &str = "unknown";
const NONE: &str = "none";

impl StoreyEffects {
    /// The same effect on all operations.
    const fn all(effect: &'static str) -> Self {
        Self {
            flush: effect,
            fua: effect,
            discard: effect,
            zeroing: effect,
            direct: effect,
            atomic: effect,
            atomic_bytes: None,
        }
    }
}

impl Storey {
    /// Its effects.
    #[must_use]
    pub fn effects(&self) -> StoreyEffects {
        match (&self.kind, self.queue) {
            (StoreyKind::FileSystem(found), _) => file_system(found),
            (StoreyKind::Partition, _) => StoreyEffects::all("as its disk"),
            (kind, Some(queue)) => device(kind, queue, !self.below.is_empty()),
            (_, None) => StoreyEffects::all(UNKNOWN),
        }
    }
}

fn device(kind: &StoreyKind, queue: QueueAttributes, is_stacked: bool) -> StoreyEffects {
    let is_loop = matches!(kind, StoreyKind::Loop { .. });
    let is_volume = matches!(kind, StoreyKind::Volume(_));
    StoreyEffects {
        flush: match (kind, queue.cache) {
            (_, None) => UNKNOWN,
            (_, Some(QueueCache::WriteThrough)) => "not sent",
            (StoreyKind::Loop { .. }, _) => "syncs its file",
            (StoreyKind::Volume(volume), _) => zfs_flush(volume),
            (_, Some(QueueCache::WriteBack)) if is_stacked => "sent to all below",
            (_, Some(QueueCache::WriteBack)) => "sent",
        },
        fua: match (queue.cache, queue.fua) {
            (Some(QueueCache::WriteThrough), _) => "as any write",
            (_, Some(true)) => "sent",
            (_, Some(false)) => "write, then flush",
            (_, None) => UNKNOWN,
        },
        discard: match queue.discard_max_bytes {
            None => UNKNOWN,
            Some(0) => NONE,
            Some(_) if is_loop => "punches holes",
            Some(_) if is_volume => "frees blocks",
            Some(_) => "sent",
        },
        zeroing: match queue.write_zeroes_max_bytes {
            None => UNKNOWN,
            Some(0) => "writes zeroes",
            Some(_) if is_loop => "zeroes the range",
            Some(_) if is_volume => "frees blocks",
            Some(_) => "sent",
        },
        direct: match kind {
            StoreyKind::Loop { direct: Some(true), .. } => "direct on its file",
            StoreyKind::Loop { direct: Some(false), .. } => "its file's page cache",
            StoreyKind::Loop { direct: None, .. } | StoreyKind::Unknown(_) => UNKNOWN,
            StoreyKind::Volume(_) => "ARC",
            StoreyKind::Dm { target: DmTarget::Crypt } => "encrypted copies",
            _ => "yes",
        },
        atomic: match queue.atomic_write_max_bytes {
            None => UNKNOWN,
            Some(_) => NONE,
        },
        atomic_bytes: queue.atomic_write_max_bytes.filter(|bytes| *bytes > 0),
    }
}

fn zfs_flush(dataset: &ZfsDataset) -> &'static str {
    match dataset.property("sync") {
        Some("disabled") => "ignored",
        Some("standard" | "always") => "commits the ZIL",
        _ => UNKNOWN,
    }
}

fn file_system(found: &FileSystem) -> StoreyEffects {
    let fs_type = found.fs_type.as_str();
    match fs_type {
        "tmpfs" | "ramfs" => StoreyEffects {
            flush: "ignored",
            fua: "ignored",
            discard: "punches holes",
            zeroing: "writes zeroes",
            direct: "page cache",
            atomic: NONE,
            atomic_bytes: None,
        },
        "zfs" => zfs_files(found.zfs.as_ref()),
        "overlay" => StoreyEffects {
            flush: if found.is_volatile() { "ignored" } else { "as its upper layer" },
            fua: if found.is_volatile() { "ignored" } else { "as its upper layer" },
            ..StoreyEffects::all("as its upper layer")
        },
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "virtiofs" | "afs" => {
            StoreyEffects::all("as its server")
        }
        _ if fs_type.starts_with("fuse") => StoreyEffects::all("as its program"),
        _ => block_file_system(found),
    }
}

/// A file system on block devices of this host.
fn block_file_system(found: &FileSystem) -> StoreyEffects {
    let fs_type = found.fs_type.as_str();
    let has_holes = ["ext4", "xfs", "f2fs", "btrfs", "bcachefs", "ocfs2", "gfs2"];
    let has_unwritten_extents = ["ext4", "xfs", "f2fs", "btrfs", "bcachefs"];
    let if_listed = |list: &[&str], effect| if list.contains(&fs_type) { effect } else { UNKNOWN };
    let flush = match found.sends_no_flush() {
        true => "syncs the file only",
        false => "syncs, then flushes",
    };
    let direct = match &found.btrfs {
        Some(BtrfsFile { no_cow: Some(true), .. }) => "yes",
        // Newer kernels write through the page cache ("btrfs: always fallback to buffered write if
        // the inode requires checksum"), older ones from the pages of the caller.
        Some(_) => "checksums, perhaps page cache",
        None if fs_type == "ext4" && found.has_option("data=journal") => "page cache",
        None => "yes",
    };
    StoreyEffects {
        flush,
        fua: flush,
        discard: if_listed(&has_holes, "punches holes"),
        zeroing: if_listed(&has_unwritten_extents, "unwritten extents"),
        direct,
        atomic: "as its device",
        atomic_bytes: None,
    }
}

fn zfs_files(dataset: Option<&ZfsDataset>) -> StoreyEffects {
    let Some(dataset) = dataset else { return StoreyEffects::all(UNKNOWN) };
    let direct = match zfs::always_uses_arc(dataset) {
        None => UNKNOWN,
        Some(true) => "ARC",
        Some(false) => "checksums, or ARC",
    };
    StoreyEffects {
        flush: zfs_flush(dataset),
        fua: zfs_flush(dataset),
        discard: "punches holes",
        zeroing: "punches holes",
        direct,
        atomic: NONE,
        atomic_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(option: &str) -> StoreyEffects {
        file_system(&FileSystem {
            fs_type: "ext4".to_owned(),
            options: vec![option.to_owned()],
            btrfs: None,
            zfs: None,
        })
    }

    #[test]
    fn mount_options_change_effects() {
        assert_eq!(ext4("noatime").flush, "syncs, then flushes");
        assert_eq!(ext4("nobarrier").flush, "syncs the file only");
        assert_eq!(ext4("data=journal").direct, "page cache");
        assert_eq!(ext4("data=ordered").direct, "yes");
    }

    #[test]
    fn attributes_of_the_queue_change_effects() {
        let queue = QueueAttributes {
            cache: Some(QueueCache::WriteBack),
            fua: Some(false),
            discard_max_bytes: Some(0),
            atomic_write_max_bytes: Some(16384),
            ..QueueAttributes::default()
        };
        let effects = device(&StoreyKind::Nvme, queue, false);
        assert_eq!((effects.flush, effects.fua), ("sent", "write, then flush"));
        assert_eq!((effects.discard, effects.zeroing), ("none", "unknown"));
        assert_eq!(effects.atomic_bytes, Some(16384));
        let through = QueueAttributes { cache: Some(QueueCache::WriteThrough), ..queue };
        let effects = device(&StoreyKind::Nvme, through, false);
        assert_eq!((effects.flush, effects.fua), ("not sent", "as any write"));
    }

    #[test]
    fn properties_change_effects() {
        let dataset = |version: &str, direct: &str, sync: &str| {
            let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let effects = zfs_files(Some(&ZfsDataset {
                version: Some(version.to_owned()),
                properties: vec![property("sync", sync), property("direct", direct)],
                ..ZfsDataset::default()
            }));
            (effects.flush, effects.direct)
        };
        assert_eq!(dataset("2.2.7-1", "standard", "always"), ("commits the ZIL", "ARC"));
        assert_eq!(dataset("2.3.3-1", "standard", "disabled"), ("ignored", "checksums, or ARC"));
        assert_eq!(dataset("2.3.3-1", "disabled", "x"), ("unknown", "ARC"));
    }
}
