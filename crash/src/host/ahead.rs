//! Blocks that are the same in all states, given to the kernel's cache ahead of a read. Threads of
//! the FUSE session.
//!
//! A disk notes what a check reads, so that the kernel must not read ahead on its own. But blocks
//! that no recorded write touches are not noted, and most of a disk is of these: one that is read
//! in order is then given in few requests.
//!
//! Nothing is given while someone has the disk open for writing, as the kernel's cache could be
//! newer. An open for writing that comes meanwhile is answered afterwards. One thread at a time
//! gives: it may wait for a page that is read, which takes another thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use fuser::{FileHandle, FopenFlags, INodeNo, Notifier, ReplyOpen};

use crate::CheckedDisk;

/// Most bytes that are given at a time.
const MOST: usize = 128 << 10;

/// The file handle of those who may write.
pub(super) const WRITER: u64 = 1;

/// The kernel's cache of the mount.
#[derive(Default)]
pub(super) struct KernelCache {
    notifier: OnceLock<Notifier>,
    /// A thread gives.
    is_busy: AtomicBool,
}

/// The reads of a disk.
#[derive(Default)]
pub(super) struct Reads {
    inner: Mutex<Sequence>,
}

#[derive(Default)]
struct Sequence {
    /// The end of what was read and given last.
    end: u64,
    /// Those who have it open for writing.
    writers: u64,
    is_given: bool,
    /// Opens for writing that wait.
    opens: Vec<ReplyOpen>,
}

impl KernelCache {
    /// Lets it be given blocks.
    pub(super) fn serve(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// After a read of `disk`, which is the file `inode`, from byte `at` to byte `end`: gives the
    /// blocks that follow, if this read followed the last.
    pub(super) fn read(
        &self,
        disk: &dyn CheckedDisk,
        reads: &Reads,
        inode: INodeNo,
        at: u64,
        end: u64,
    ) {
        let Some(notifier) = self.notifier.get() else { return };
        if !reads.begin(at, end) {
            return;
        }
        let mut given = 0;
        if !self.is_busy.swap(true, Ordering::Acquire) {
            let mut buffer = vec![0; MOST];
            let same = disk.read_same(end, &mut buffer).unwrap_or_default();
            let blocks = buffer.get(..same).filter(|blocks| !blocks.is_empty());
            // Without it the kernel asks for each block.
            if blocks.is_some_and(|blocks| notifier.store(inode, end, blocks).is_ok()) {
                given = same as u64;
            }
            self.is_busy.store(false, Ordering::Release);
        }
        reads.finish(end + given).into_iter().for_each(answer_writer);
    }
}

impl Reads {
    /// Whether blocks may be given, which the caller then [finishes](Reads::finish).
    fn begin(&self, at: u64, end: u64) -> bool {
        let mut inner = self.lock();
        let follows = inner.end == at && at > 0;
        inner.end = end;
        if !follows || inner.writers > 0 || inner.is_given {
            return false;
        }
        inner.is_given = true;
        true
    }

    /// The opens for writing that waited.
    fn finish(&self, end: u64) -> Vec<ReplyOpen> {
        let mut inner = self.lock();
        inner.end = end;
        inner.is_given = false;
        std::mem::take(&mut inner.opens)
    }

    /// Answers an open for writing once nothing is given.
    pub(super) fn open_for_writing(&self, reply: ReplyOpen) {
        let mut inner = self.lock();
        inner.writers += 1;
        if inner.is_given {
            inner.opens.push(reply);
            return;
        }
        drop(inner);
        answer_writer(reply);
    }

    /// One of them has closed it.
    pub(super) fn close_writer(&self) {
        let mut inner = self.lock();
        inner.writers = inner.writers.saturating_sub(1);
    }

    fn lock(&self) -> MutexGuard<'_, Sequence> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer_writer(reply: ReplyOpen) {
    reply.opened(FileHandle(WRITER), FopenFlags::FOPEN_KEEP_CACHE);
}
