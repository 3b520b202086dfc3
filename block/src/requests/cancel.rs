//! Cancellation of a request, for a function of its protocol that aborts it.

use std::io;

use super::Requests;
use super::fast_slot::FastSlot;
use super::waiting::Stage;

impl Requests {
    /// Completes a request that the host does not work on with `ECANCELED`. Returns `false` if the
    /// host does, or there is no such request.
    #[cold]
    pub(crate) fn cancel(&mut self, tag: u16) -> bool {
        if !self.waiting.remove(tag) {
            self.forbid_hold(tag);
            return false;
        }
        let riders: Vec<u16> = std::iter::from_fn(|| self.waiting.merge.pop_rider(tag)).collect();
        // An abort is no failure of the host, which has to be reported.
        let was_draining = std::mem::replace(&mut self.is_draining, true);
        self.complete(tag, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        self.is_draining = was_draining;
        for rider in riders {
            if let Some(machine) = self.machines.get_mut(rider) {
                machine.set_merged(false);
            }
            self.pass(rider, Stage::New);
        }
        self.release();
        true
    }

    /// Has a request that the host works on fail if there is no space for it: nothing would cancel
    /// it while it is held.
    fn forbid_hold(&mut self, tag: u16) {
        let op = self.fast.get(usize::from(tag)).and_then(FastSlot::transfer);
        if let Some(op) = op {
            self.demote(tag, op);
        }
        if let Some(machine) = self.machines.get_mut(tag) {
            machine.forbid_hold();
        }
    }
}
