//! Death of the process: its memory and its descriptors are gone, its calls are not.
//!
//! The kernel cancels some calls, after any part of them, and completes the others at any later
//! time. A call pins its memory and refers to its open file description, which keeps the lock on
//! the image.

use block::simulation::RingResult;

use super::Host;
use crate::call::{Call, errno};

impl Host {
    /// Kills the process. Its engines, which are dropped next, see all of their calls cancelled.
    pub(crate) fn kill_process(&mut self) {
        self.rings.iter_mut().for_each(|ring| ring.dead = true);
        for mut call in std::mem::take(&mut self.calls) {
            if !call.orphaned {
                let (ring, user_data) = (call.ring, call.entry.user_data);
                self.post(ring, RingResult { user_data, result: -errno::CANCELED, more: false });
                if self.random.chance(200) {
                    continue;
                }
                call.entry.pin();
                call.orphaned = true;
            }
            self.calls.push(call);
        }
    }

    /// Closes the files of a dropped ring once no call refers to the description with the lock.
    pub(super) fn close_unused_files(&mut self, ring: usize) {
        let refers = |call: &Call| call.ring == ring && call.refers_to_locked_file();
        if !self.calls.iter().any(refers) {
            self.rings[ring].files = None;
        }
    }

    /// Whether a call of a dead process keeps the image locked.
    pub(crate) fn has_orphaned_calls(&self) -> bool {
        self.calls.iter().any(|call| call.orphaned && call.refers_to_locked_file())
    }

    /// The control plane has opened the image.
    pub(crate) fn open_image(&mut self) {
        self.reported_to_backend = self.reported_errors;
    }
}
