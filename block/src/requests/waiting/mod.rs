//! Every reason for which a request waits before the host is asked.
//!
//! A request passes the queues in the order of [`Waiting::queues`]; each keeps it or lets it pass.
//! A new reason, such as a throttle, is a file here and an entry in that list.

mod claims;
mod enospc;
mod memory;
mod merge;
mod queue;
mod serialized;

use std::io;
use std::time::Instant;

use self::claims::ClaimWait;
use self::enospc::EnospcWait;
use self::memory::MemoryWait;
use self::merge::MergeWait;
use self::queue::WaitQueue;
pub(super) use self::queue::{Machines, QueueContext};
pub(super) use self::serialized::MAX_ZEROING;
use self::serialized::{DiscardWait, SyncWait, ZeroWait};
use crate::EngineSetup;
use crate::discard::DiscardQueue;
use crate::disk_state::OpenDisk;
use crate::kick::Kick;

/// Number of queues.
const QUEUES: usize = 7;

/// The queues of one engine.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) merge: MergeWait,
    pub(super) enospc: EnospcWait,
    pub(super) claims: ClaimWait,
    pub(super) memory: MemoryWait,
    pub(super) discards: DiscardWait,
    pub(super) syncs: SyncWait,
    pub(super) zeroing: ZeroWait,
    /// A request may wait. Kept so that the data path has one flag to test.
    is_active: bool,
}

/// Where a request starts to pass the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A new request.
    New = 0,
    /// A request that the host has answered: it has its claim if it needs one, but may need memory.
    Answered = 3,
}

impl Waiting {
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub(super) fn new(disk: &OpenDisk, setup: &EngineSetup<'_>) -> io::Result<Self> {
        let depth = usize::from(setup.depth);
        let engine = Kick::new(setup.kick)?;
        let discard = disk.file.limits.geometry.discard;
        Ok(Self {
            merge: MergeWait::new(discard),
            enospc: EnospcWait::new(depth),
            claims: ClaimWait::new(&disk.state.range_lock, engine.clone(), depth),
            memory: MemoryWait::new(engine, depth),
            discards: DiscardWait(DiscardQueue::new(discard.map_or(1, |d| d.granularity))),
            syncs: SyncWait::new(depth),
            zeroing: ZeroWait::new(depth),
            is_active: false,
        })
    }

    /// The queues, in the order in which a request passes them. A retry after ENOSPC claims its
    /// blocks again, because a held request keeps no claim.
    fn queues(&self) -> [&dyn WaitQueue; QUEUES] {
        let Self { merge, enospc, claims, memory, discards, syncs, zeroing, is_active: _ } = self;
        [merge, enospc, claims, memory, discards, syncs, zeroing]
    }

    /// The same queues in the same order.
    fn queues_mut(&mut self) -> [&mut dyn WaitQueue; QUEUES] {
        let Self { merge, enospc, claims, memory, discards, syncs, zeroing, is_active: _ } = self;
        [merge, enospc, claims, memory, discards, syncs, zeroing]
    }

    /// Passes a request through the queues from `stage` on. Returns whether it has passed all of
    /// them: the host can be asked now.
    pub(super) fn pass(&mut self, tag: u16, stage: Stage, cx: &mut QueueContext<'_>) -> bool {
        self.pass_from(tag, stage as usize, cx)
    }

    fn pass_from(&mut self, tag: u16, first: usize, cx: &mut QueueContext<'_>) -> bool {
        let is_kept = self.queues_mut().into_iter().skip(first).any(|queue| queue.keep(tag, cx));
        self.is_active |= is_kept;
        !is_kept
    }

    /// Holds a request that the host has refused for lack of space; `false` if it has to fail.
    pub(super) fn hold(&mut self, tag: u16, error: &io::Error, disk: &OpenDisk) -> bool {
        let is_held = self.enospc.hold(tag, error, disk);
        self.is_active |= is_held;
        is_held
    }

    /// Takes out a request that waited and has passed all queues now.
    pub(super) fn release(&mut self, cx: &mut QueueContext<'_>) -> Option<u16> {
        if !self.is_active {
            return None;
        }
        for index in 0..QUEUES {
            while let Some(tag) = self.release_from(index, cx) {
                if self.pass_from(tag, index + 1, cx) {
                    return Some(tag);
                }
            }
        }
        let is_active = self.queues().into_iter().any(|queue| !queue.is_empty());
        self.is_active = is_active;
        None
    }

    fn release_from(&mut self, index: usize, cx: &mut QueueContext<'_>) -> Option<u16> {
        self.queues_mut().into_iter().nth(index)?.release(cx)
    }

    /// Removes a request; `false` if it does not wait.
    pub(super) fn remove(&mut self, tag: u16) -> bool {
        self.queues_mut().into_iter().any(|queue| queue.remove(tag))
    }

    /// Whether [`Waiting::release`] may find a request.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.is_active
    }

    /// Number of requests that wait for a point in time.
    pub(super) fn parked(&self) -> usize {
        self.queues().into_iter().map(WaitQueue::parked).sum()
    }

    /// When to call [`Waiting::release`] again, if nothing else happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        if !self.is_active {
            return None;
        }
        self.queues().into_iter().filter_map(WaitQueue::due).min()
    }
}
