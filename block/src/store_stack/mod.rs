//! The storage below a disk, down to the devices: file systems, loop devices, md, dm, ZFS volumes,
//! drives, and the effect of each on flushes and direct writes.
//!
//! Control plane only. It reads sysfs, procfs and the attributes of files, and never writes, opens
//! a device or contacts another host. A query may block on a store that hangs, so that callers
//! bound it by a thread that they can abandon.

mod device_number;
mod devices;
mod effects;
mod file_systems;
mod host_view;
mod mounts;
mod problems;
mod queue;
mod stable_copies;
mod storey;
#[cfg(test)]
mod tests;
mod walk;
mod zfs;

use std::fs::File;
use std::io;

pub use self::effects::StoreyEffects;
pub use self::problems::{FlushPromise, Problem};
pub use self::queue::{QueueAttributes, QueueCache};
pub use self::stable_copies::StableCopies;
pub use self::storey::{BtrfsFile, DmTarget, FileSystem, Storey, StoreyKind, ZfsDataset};

use self::host_view::HostView;
use self::walk::Walk;

/// The storage below one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStack {
    /// The file system of an image, or the device that the disk is.
    pub root: Storey,
}

impl StoreStack {
    /// The stack below `file`. Runs the program `zfs` for a ZFS dataset.
    ///
    /// # Errors
    ///
    /// The attributes of `file` itself cannot be read. Any other failure is a storey of the kind
    /// [`StoreyKind::Unknown`].
    pub fn of(file: &File) -> io::Result<Self> {
        let host = HostView::real();
        let facts = host.facts_of(file)?;
        Ok(Self { root: Walk::new(&host).file(&facts) })
    }

    /// The storeys that do not keep flushed data, or may not, as far as that shows without a write.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut storeys = vec![&self.root];
        while let Some(storey) = storeys.pop() {
            problems.extend(storey.problems());
            storeys.extend(storey.below.iter().rev());
        }
        problems
    }

    /// The worst consequence of the problems. The best one is no proof, but the absence of known
    /// problems.
    #[must_use]
    pub fn flush_promise(&self) -> FlushPromise {
        let promises = self.problems().into_iter().map(|problem| problem.flush);
        promises.max().unwrap_or(FlushPromise::Kept)
    }

    /// Whether direct I/O needs copies of its data that nothing else can change.
    #[must_use]
    pub fn stable_copies(&self) -> StableCopies {
        StableCopies::below(&self.root)
    }
}
