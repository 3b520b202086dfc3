//! The share of the files below a layer in the status of the disk, and the storage of each. Control
//! thread only.

use std::path::Path;
use std::sync::Arc;

use super::info::{level_paths, open};
use crate::{Backend, BaseFacts, DiskOptions, DiskStatus, HostErrors, RawFile, StoreFacts};

/// The status of a disk whose top has `status`: with the failed requests of its bases, and with
/// their storage.
pub(super) fn with_bases(mut status: DiskStatus, bases: &[Arc<RawFile>]) -> DiskStatus {
    for base in bases {
        status.host_errors = sum(status.host_errors, base.status().host_errors);
        status.store.bases.push(base.base_facts());
    }
    status
}

/// The failed requests of two files.
fn sum(one: Option<HostErrors>, other: Option<HostErrors>) -> Option<HostErrors> {
    let (Some(one), Some(other)) = (one, other) else { return one.or(other) };
    let requests = one.requests.saturating_add(other.requests);
    Some(HostErrors { requests, ..if one.last > other.last { one } else { other } })
}

/// The storage below `base`, which a layered disk with these options stands on, and below each file
/// under it. A file that cannot be opened is left out. Runs the programs of ZFS; may block.
#[must_use]
pub fn stores_below(base: &Path, options: &DiskOptions) -> Vec<BaseFacts> {
    let facts = level_paths(base).into_iter().map(|path| {
        let store = StoreFacts::of_base(&open(&path).ok()?, options).ok()?;
        Some(BaseFacts { path, store })
    });
    facts.flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{CacheMode, FlushPromise, LayeredDisk, create_layer};

    /// `/dev/shm` is a tmpfs everywhere.
    #[test]
    fn a_base_in_memory_is_part_of_the_status() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = tempfile::tempdir_in(fixtures::scratch()).unwrap();
        let (base, layer) = (memory.path().join("base"), folder.path().join("layer"));
        std::fs::File::create(&base).unwrap().set_len(1 << 20).unwrap();
        create_layer(&layer, &base, None).unwrap();
        for (cache, problems) in
            [(CacheMode::WriteBack, 1), (CacheMode::WriteThrough, 1), (CacheMode::Unsafe, 0)]
        {
            let options = DiskOptions::new(cache);
            for options in [options.clone(), options.read_only()] {
                let disk = LayeredDisk::open(&layer, &base, &options).unwrap();
                let bases = disk.status().store.bases;
                assert_eq!(bases, stores_below(&base, &options), "{cache}");
                assert_eq!((bases.len(), &bases[0].path), (1, &base));
                assert_eq!(bases[0].store.flush_problems.len(), problems, "{cache}");
                let is_lost = bases[0].store.flush_promise() == FlushPromise::NotKept;
                assert_eq!(is_lost, problems > 0, "{cache}");
            }
        }
        let on_disk = stores_below(&layer, &DiskOptions::new(CacheMode::WriteBack));
        assert_eq!(on_disk[0].store.flush_problems, [], "only what is in memory matters");
    }

    /// The engine of each file decides for itself which reads it copies.
    #[test]
    fn stable_copies_are_those_of_each_file() {
        let folder = tempfile::tempdir_in(fixtures::scratch()).unwrap();
        let (base, layer) = (folder.path().join("base"), folder.path().join("layer"));
        std::fs::File::create(&base).unwrap().set_len(1 << 20).unwrap();
        create_layer(&layer, &base, None).unwrap();
        let stable_copies = crate::StableCopyMode::On;
        let options = DiskOptions { stable_copies, ..DiskOptions::new(CacheMode::None) };
        let disk = LayeredDisk::open(&layer, &base, &options).unwrap();
        assert!(disk.status().store.bases[0].store.copied.reads.is_some());
    }

    #[test]
    fn failed_requests_of_all_files_are_counted() {
        let now = Instant::now();
        let errors = |requests, operation, last| {
            Some(HostErrors { requests, operation, errno: Some(libc::EIO), last })
        };
        let (old, new) = (errors(2, "write", now), errors(3, "read", now + Duration::from_secs(1)));
        let both = errors(5, "read", now + Duration::from_secs(1));
        assert_eq!((sum(old, new), sum(new, old)), (both, both));
        assert_eq!((sum(old, None), sum(None, new), sum(None, None)), (old, new, None));
    }
}
