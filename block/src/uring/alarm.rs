//! The one timeout of a ring: when held requests are to be tried again.
//!
//! Armed only while requests are held. One that is no longer wanted rings in vain, which costs a wake-up.

use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::ring::Ring;

/// No request's tag, and not the kick's.
pub(super) const USER_DATA: u64 = u64::MAX - 1;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    /// When it rings.
    armed: Option<Instant>,
    /// What the armed timeout's entry points to.
    after: Box<types::Timespec>,
}

impl Alarm {
    /// Sees to it that the ring answers once `due` is reached, or before; it is `now`.
    pub(super) fn arm(&mut self, due: Instant, now: Instant, ring: &mut impl Ring) {
        if self.armed.is_some() {
            return;
        }
        // An alarm that is armed already may ring late for a request with less time left, by no more
        // than the longest wait.
        let after = due.saturating_duration_since(now) + Duration::from_millis(1);
        *self.after = types::Timespec::new().sec(after.as_secs()).nsec(after.subsec_nanos());
        let entry = opcode::Timeout::new(&raw const *self.after).build().user_data(USER_DATA);
        // SAFETY: the entry names the boxed time, which is changed or freed only when the timeout has
        // answered or the ring is gone.
        if unsafe { ring.push(&entry) } {
            self.armed = Some(due);
        }
    }

    /// It has rung.
    pub(super) fn rang(&mut self) {
        self.armed = None;
    }
}
