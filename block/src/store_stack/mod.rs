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
mod host_cache;
mod host_view;
mod late_enospc;
mod mounts;
mod problems;
mod queue;
mod stable_copies;
mod storey;
#[cfg(test)]
mod tests;
mod volume_link;
mod walk;
mod zfs;

use std::fs::File;
use std::io;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

pub use self::effects::StoreyEffects;
pub use self::host_cache::HostCache;
pub use self::late_enospc::LateEnospc;
pub use self::problems::{FlushPromise, Problem};
pub use self::queue::{QueueAttributes, QueueCache};
pub use self::stable_copies::StableCopies;
pub use self::storey::{BtrfsFile, DmTarget, FileSystem, Storey, StoreyKind, ZfsDataset};
pub use self::volume_link::{WrongLink, wrong_link};

use self::host_view::{FileFacts, HostView};
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
        Self::seen_by(&HostView::real(), file)
    }

    /// As [`StoreStack::of`], but properties of ZFS are unknown, and so is whether it keeps a
    /// flush, if its programs take longer than `limit`, because they hang with any suspended pool
    /// of the host, or if the host is out of threads. Neither keeps a disk from being opened.
    ///
    /// # Errors
    ///
    /// As [`StoreStack::of`].
    pub(crate) fn of_within(file: &File, limit: Duration) -> io::Result<Self> {
        let host = HostView::real();
        let facts = host.facts_of(file)?;
        Ok(Self::walked_within(host, &facts, limit, spawn))
    }

    /// As [`StoreStack::of`], but without the programs of ZFS: properties of ZFS are unknown.
    ///
    /// # Errors
    ///
    /// As [`StoreStack::of`].
    pub(crate) fn without_programs(file: &File) -> io::Result<Self> {
        Self::seen_by(&HostView { zfs: None, ..HostView::real() }, file)
    }

    /// Walks the storage on a thread that `spawn` starts, and here without the programs of ZFS if
    /// that does not answer in time. The thread has no descriptor of the disk, whose lock it would
    /// keep.
    fn walked_within(
        host: HostView,
        facts: &FileFacts,
        limit: Duration,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
    ) -> Self {
        let fallback = HostView { zfs: None, ..host.clone() };
        let (answer, answered) = channel();
        let asked = facts.clone();
        // The receiver may have stopped waiting.
        let query = move || drop(answer.send(Walk::new(&host).file(&asked)));
        let found = spawn(Box::new(query)).ok().and_then(|()| answered.recv_timeout(limit).ok());
        let root = found.unwrap_or_else(|| Walk::new(&fallback).file(facts));
        Self { root }
    }

    fn seen_by(host: &HostView, file: &File) -> io::Result<Self> {
        let facts = host.facts_of(file)?;
        Ok(Self { root: Walk::new(host).file(&facts) })
    }

    /// All storeys: each before those below it, and these in order.
    #[must_use]
    pub fn storeys(&self) -> Vec<&Storey> {
        let (mut found, mut next) = (Vec::new(), vec![&self.root]);
        while let Some(storey) = next.pop() {
            found.push(storey);
            next.extend(storey.below.iter().rev());
        }
        found
    }

    /// The storeys that do not keep flushed data, or may not, as far as that shows without a write.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.storeys().into_iter().flat_map(Storey::problems).collect()
    }

    /// The problems of storeys that are in the memory of this host: data that is only read is lost
    /// there, too.
    #[must_use]
    pub fn memory_problems(&self) -> Vec<Problem> {
        let in_memory = self.storeys().into_iter().filter(|storey| storey.is_in_memory());
        in_memory.flat_map(Storey::problems).collect()
    }

    /// The worst consequence of the problems. The best one is no proof, but the absence of known
    /// problems.
    #[must_use]
    pub fn flush_promise(&self) -> FlushPromise {
        let promises = self.problems().into_iter().map(|problem| problem.flush);
        promises.max().unwrap_or(FlushPromise::Kept)
    }

    /// The storey that serves direct I/O from memory of this host, if one does or may.
    #[must_use]
    pub fn host_cache(&self) -> Option<HostCache> {
        HostCache::below(&self.root)
    }

    /// Whether direct I/O needs copies of its data that nothing else can change.
    #[must_use]
    pub fn stable_copies(&self) -> StableCopies {
        StableCopies::below(&self.root)
    }

    /// The storey that may report ENOSPC for buffered writes after they have completed; `None` if
    /// the file system refuses writes for which it has no space.
    #[must_use]
    pub fn late_enospc(&self) -> Option<LateEnospc> {
        LateEnospc::below(&self.root)
    }

    /// The dataset whose quota limits a sparse ZFS volume of the stack. At that quota ZFS fails
    /// writes to the volume with EIO instead of EDQUOT.
    #[must_use]
    pub fn volume_quota(&self) -> Option<&str> {
        late_enospc::quota_below(&self.root)
    }
}

fn spawn(query: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name("storage".to_owned()).spawn(query).map(drop)
}
