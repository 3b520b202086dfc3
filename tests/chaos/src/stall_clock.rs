//! Time during which a disturbance keeps a process from completing requests.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Accumulated stalls of one process. Stalls may overlap.
#[derive(Debug, Default)]
pub(crate) struct StallClock(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    stalls: u32,
    since: Option<Instant>,
    total: Duration,
}

impl StallClock {
    /// A stall begins.
    pub(crate) fn begin(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.stalls += 1;
        state.since.get_or_insert_with(Instant::now);
    }

    /// A stall ends.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.stalls -= 1;
        if state.stalls == 0 {
            let stall = state.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            state.total += stall;
        }
    }

    /// Total length of all stalls up to now.
    pub(crate) fn total(&self) -> Duration {
        let state = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.total + state.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
