//! The storeys at which a flush ends without effect, as far as that shows without a write.

use super::queue::QueueCache;
use super::storey::{DmTarget, FileSystem, Storey, StoreyKind, ZfsDataset};
use super::zfs::{self, ZfsVersion};
use crate::shell::shell_word;

/// Whether flushed data survives a power failure. Ordered from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlushPromise {
    /// As far as the host reports.
    Kept,
    /// The host does not report it: another host or a program decides.
    Unknown,
    /// A flush succeeds without any effect.
    NotKept,
}

/// A storey that does not keep what a flush promises, or may not keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the storey.
    pub storey: String,
    /// The problem, as a sentence whose subject is the storey or a part of it.
    pub what: String,
    /// The change that removes the problem, if there is one. It never loses data.
    pub remedy: Option<String>,
    /// The consequence for a flush.
    pub flush: FlushPromise,
    /// It is only supposed, by a version or without knowledge: an observation can refute it.
    pub is_supposed: bool,
}

/// The cache below a file system or a stacked device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CacheBelow {
    Volatile,
    Unknown,
    NotVolatile,
}

impl Storey {
    /// The problems of this storey without those below.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = match &self.kind {
            StoreyKind::FileSystem(found) => file_system(self, found),
            StoreyKind::Volume(volume) => self.volume(volume),
            StoreyKind::Memory => vec![self.problem(
                "is in the memory of this host: a power failure empties it",
                Some("keep the image on a disk".to_owned()),
                FlushPromise::NotKept,
            )],
            StoreyKind::Drbd => vec![self.uncertain(
                "is replicated: its configuration and the other host decide about flushes",
            )],
            StoreyKind::Nbd | StoreyKind::Rbd => {
                vec![self.uncertain("is served by another host, which decides about flushes")]
            }
            StoreyKind::Dm { target: DmTarget::Unknown } => {
                vec![self.supposed(
                    "has a target of the device mapper that is not known",
                    None,
                    FlushPromise::Unknown,
                )]
            }
            StoreyKind::Unknown(reason) => vec![self.uncertain(reason)],
            _ => Vec::new(),
        };
        problems.extend(self.disabled_flush());
        problems
    }

    fn problem(&self, what: &str, remedy: Option<String>, flush: FlushPromise) -> Problem {
        Problem {
            storey: self.name.clone(),
            what: what.to_owned(),
            remedy,
            flush,
            is_supposed: false,
        }
    }

    fn supposed(&self, what: &str, remedy: Option<String>, flush: FlushPromise) -> Problem {
        Problem { is_supposed: true, ..self.problem(what, remedy, flush) }
    }

    fn uncertain(&self, what: &str) -> Problem {
        self.problem(what, None, FlushPromise::Unknown)
    }

    /// A queue to which the kernel sends no flush although a volatile cache is known.
    fn disabled_flush(&self) -> Option<Problem> {
        let queue = self.queue?;
        match queue.cache {
            Some(QueueCache::WriteBack) => return None,
            Some(QueueCache::WriteThrough) => {}
            None => {
                return Some(self.uncertain("does not report whether its cache is volatile"));
            }
        }
        let evidence = match &self.kind {
            // The content is lost in any case.
            StoreyKind::Memory => return None,
            StoreyKind::Scsi { cache: Some(cache) } | StoreyKind::Virtio { cache: Some(cache) }
                if cache.starts_with("write back") =>
            {
                format!("its own cache is \"{cache}\"")
            }
            StoreyKind::Loop { .. } if queue.read_only != Some(true) => {
                "the file below it has to be synced".to_owned()
            }
            // The kernel clears FUA where the driver reports no volatile cache.
            _ if queue.fua == Some(true) => "its driver reports a volatile cache".to_owned(),
            StoreyKind::Scsi { cache: None } => {
                return Some(self.uncertain("reports no type of its cache"));
            }
            _ if cache_below(self) == CacheBelow::Volatile => {
                "a device below it has a volatile cache".to_owned()
            }
            _ => return None,
        };
        let name = self.device.as_deref().unwrap_or("DEVICE");
        let what = format!("is set to \"write through\" and gets no flush, but {evidence}");
        let remedy = format!("echo \"write back\" >/sys/block/{name}/queue/write_cache");
        Some(self.problem(&what, Some(remedy), FlushPromise::NotKept))
    }

    fn volume(&self, volume: &ZfsDataset) -> Vec<Problem> {
        let mut problems = self.dataset(volume);
        let version = ZfsVersion::of(volume);
        // A distribution may have fixed its version.
        let flush = match version {
            Some(_) if !zfs::is_vendor_build(volume) => FlushPromise::NotKept,
            _ => FlushPromise::Unknown,
        };
        if version.is_some_and(ZfsVersion::ignores_volume_flushes) {
            let what = "ignores flushes: a bug of OpenZFS 2.2.7, 2.3.0 and 2.3.1";
            let remedy = "upgrade OpenZFS to 2.2.8, 2.3.2 or newer".to_owned();
            problems.push(self.supposed(what, Some(remedy), flush));
        }
        if volume.blk_mq && version.is_none_or(ZfsVersion::ignores_blk_mq_flushes) {
            let what = "uses blk-mq, which ignores flushes before OpenZFS 2.2.9, 2.3.5 and 2.4.0";
            let remedy = "upgrade OpenZFS, or load its module with zvol_use_blk_mq=0".to_owned();
            problems.push(self.supposed(what, Some(remedy), flush));
        }
        problems
    }

    /// Problems of any ZFS dataset.
    fn dataset(&self, dataset: &ZfsDataset) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (dataset.property("sync"), &dataset.name) {
            (Some("disabled"), name) => {
                let name = name.as_deref().unwrap_or("DATASET");
                let what =
                    "completes flushes and durable writes without storing them: sync=disabled";
                let remedy = Some(format!("zfs set sync=standard {}", shell_word(name)));
                problems.push(self.problem(what, remedy, FlushPromise::NotKept));
            }
            (Some(_), _) => {}
            (None, _) => problems.push(self.uncertain("does not report its property `sync`")),
        }
        if dataset.no_cache_flush {
            let what = "is in a pool that flushes no device (zfs_nocacheflush or zil_nocacheflush)";
            let flush = match cache_below(self) {
                CacheBelow::Volatile => FlushPromise::NotKept,
                CacheBelow::Unknown => FlushPromise::Unknown,
                CacheBelow::NotVolatile => FlushPromise::Kept,
            };
            let folder = "/sys/module/zfs/parameters";
            let remedy =
                format!("echo 0 >{folder}/zfs_nocacheflush; echo 0 >{folder}/zil_nocacheflush");
            problems.push(self.problem(what, Some(remedy), flush));
        }
        problems
    }
}

fn file_system(storey: &Storey, found: &FileSystem) -> Vec<Problem> {
    let fs_type = found.fs_type.as_str();
    let problem = match fs_type {
        "tmpfs" | "ramfs" => {
            let what = format!("is a {fs_type}, in memory: a power failure empties it");
            let remedy = Some("copy the image to a file system on a disk".to_owned());
            Some(storey.problem(&what, remedy, FlushPromise::NotKept))
        }
        "zfs" => {
            let dataset = found.zfs.as_ref();
            return dataset.map(|dataset| storey.dataset(dataset)).unwrap_or_default();
        }
        // Overlayfs then omits all syncs of its upper layer.
        "overlay" if found.is_volatile() => {
            let remedy = Some("mount it without the option `volatile`".to_owned());
            Some(storey.problem(
                "is a volatile overlay, without fsync",
                remedy,
                FlushPromise::NotKept,
            ))
        }
        "overlay" => None,
        "bcachefs" if found.has_option("journal_flush_disabled") => {
            let remedy = Some("mount it without `journal_flush_disabled`".to_owned());
            Some(storey.problem(
                "syncs no file: journal_flush_disabled",
                remedy,
                FlushPromise::NotKept,
            ))
        }
        "bcachefs" => None,
        _ if found.sends_no_flush() => Some(without_barriers(storey, found)),
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "virtiofs" | "afs" => {
            Some(storey.uncertain("is served by another host, which decides about flushes"))
        }
        _ if fs_type.starts_with("fuse") => {
            Some(storey.uncertain("is served by a program, which decides about flushes"))
        }
        _ if storey.below.is_empty() => {
            Some(storey.uncertain(&format!("is a {fs_type} on a device that is not known")))
        }
        _ => None,
    };
    problem.into_iter().collect()
}

/// The problem of a mount that sends no flush to its device.
fn without_barriers(storey: &Storey, found: &FileSystem) -> Problem {
    let (what, flush) = match cache_below(storey) {
        CacheBelow::Volatile => (
            "is mounted without barriers over a volatile cache, and flushes nothing",
            FlushPromise::NotKept,
        ),
        CacheBelow::Unknown => (
            "is mounted without barriers, and the cache below it is not known",
            FlushPromise::Unknown,
        ),
        CacheBelow::NotVolatile => (
            "is mounted without barriers; the devices below report no volatile cache",
            FlushPromise::Kept,
        ),
    };
    let option =
        if found.has_option("fsync_mode=nobarrier") { "fsync_mode=posix" } else { "barrier" };
    let remedy = format!("mount -o remount,{option} {}", shell_word(&storey.name));
    storey.problem(what, Some(remedy), flush)
}

/// The cache that a flush to the storeys below would reach.
fn cache_below(storey: &Storey) -> CacheBelow {
    let mut found = CacheBelow::NotVolatile;
    if storey.below.is_empty() {
        found = CacheBelow::Unknown;
    }
    for below in &storey.below {
        match cache(below) {
            CacheBelow::Volatile => return CacheBelow::Volatile,
            CacheBelow::Unknown => found = CacheBelow::Unknown,
            CacheBelow::NotVolatile => {}
        }
    }
    found
}

fn cache(storey: &Storey) -> CacheBelow {
    let Some(queue) = storey.queue else { return cache_below(storey) };
    match queue.cache {
        Some(QueueCache::WriteBack) => CacheBelow::Volatile,
        _ if storey.disabled_flush().is_some_and(|found| found.flush == FlushPromise::NotKept) => {
            CacheBelow::Volatile
        }
        Some(QueueCache::WriteThrough) if storey.below.is_empty() => CacheBelow::NotVolatile,
        Some(QueueCache::WriteThrough) => cache_below(storey),
        None => CacheBelow::Unknown,
    }
}
