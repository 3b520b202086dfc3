//! The timeouts of a ring: when held requests are to be tried again, and when discards are to go on.
//!
//! Armed only while there are such. One that is no longer wanted rings in vain, which costs a wake-up.

use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::ring::Ring;

/// Those of the alarms of a ring: no request's tags, and not the kick's.
pub(super) const HELD: u64 = u64::MAX - 1;
pub(super) const TRIMS: u64 = u64::MAX - 2;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Alarm {
    user_data: u64,
    /// When it rings.
    armed: Option<Instant>,
    /// What the armed timeout's entry points to.
    after: Box<types::Timespec>,
}

impl Alarm {
    /// One whose answer is known by `user_data`.
    pub(super) fn new(user_data: u64) -> Self {
        Self { user_data, armed: None, after: Box::default() }
    }

    /// Sees to it that the ring answers once `due` is reached, or before; it is `now`.
    pub(super) fn arm(&mut self, due: Instant, now: Instant, ring: &mut impl Ring) {
        if self.armed.is_some() {
            return;
        }
        // An alarm that is armed already may ring late for a request with less time left, by no more
        // than the longest wait.
        let after = due.saturating_duration_since(now) + Duration::from_millis(1);
        *self.after = types::Timespec::new().sec(after.as_secs()).nsec(after.subsec_nanos());
        let entry = opcode::Timeout::new(&raw const *self.after).build().user_data(self.user_data);
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
