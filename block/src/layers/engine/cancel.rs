//! Cancellation of a request. See [`crate::IoEngine::cancel`].

use std::io;

use super::slot::{ChangeStage, Slot, SlotWork};
use super::{LayerEngine, LevelEngine};

impl LayerEngine {
    /// Has a request that a level works on end with `ECANCELED` after the present step: the next
    /// one might be held for space, which the level's engine can prevent for the present one only.
    pub(super) fn cancel_steps(&mut self, tag: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.is_canceled = true;
        }
    }

    /// Whether a request that waits may leave. The last one that waits for a map stays while a
    /// write-back runs: an engine without requests is not reaped, and other engines may wait for
    /// its write-back. Those that wait for something else may be cancelled later.
    fn may_leave(&self, tag: u16) -> bool {
        let waits_for_map = |tag: &&u16| {
            let slot = self.slots.get(usize::from(**tag));
            slot.is_some_and(|slot| match &slot.work {
                SlotWork::Sync(_) => true,
                SlotWork::Change(change) => matches!(change.stage, ChangeStage::Noting(_)),
                _ => false,
            })
        };
        self.running_writers() == 0
            || !waits_for_map(&&tag)
            || self.waiting.iter().filter(waits_for_map).count() > 1
    }

    /// Completes a request that waits for a claim, for the map or for the end of a hold with
    /// `ECANCELED`. Returns `false` for any other.
    pub(super) fn cancel_waiting(&mut self, tag: u16) -> bool {
        let Some(index) = self.waiting.iter().position(|waiting| *waiting == tag) else {
            return false;
        };
        let canceled = Err(canceled());
        match self.slots.get(usize::from(tag)).map(|slot| &slot.work) {
            Some(SlotWork::Change(_)) if self.may_leave(tag) => {
                self.waiting.swap_remove(index);
                self.end_change(tag, canceled);
                self.revive();
            }
            Some(SlotWork::Held(_)) => {
                self.waiting.swap_remove(index);
                self.take_work(tag);
                self.complete(tag, canceled);
            }
            Some(SlotWork::Sync(_)) if self.may_leave(tag) => {
                self.waiting.swap_remove(index);
                self.take_work(tag);
                self.complete(tag, canceled);
            }
            Some(SlotWork::Sync(_)) => {
                self.map_writer.give_way_for(tag);
                self.cancel_map_write();
                return false;
            }
            _ => return false,
        }
        true
    }

    /// Has the present request of a write-back fail if it would be held for space.
    pub(super) fn cancel_map_write(&mut self) {
        if let Some(LevelEngine { engine, .. }) = self.engines.first_mut() {
            engine.cancel(self.map_tag);
        }
    }

    /// Ends the cancelled request that a write-back has given way for.
    pub(super) fn end_given_way(&mut self, tag: u16) {
        let is_sync = |slot: &Slot| matches!(slot.work, SlotWork::Sync(_));
        let waits = self.slots.get(usize::from(tag)).is_some_and(is_sync);
        let index = self.waiting.iter().position(|waiting| waits && *waiting == tag);
        if let Some(index) = index {
            self.waiting.swap_remove(index);
            self.take_work(tag);
            self.complete(tag, Err(canceled()));
        }
    }
}

/// The error of a request that was cancelled.
pub(super) fn canceled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}
