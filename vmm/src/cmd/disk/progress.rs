//! How far a long task is, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::config::human_size;

/// Nothing is shown of a task that is done by then.
const SILENCE: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_millis(200);

/// A line on standard error that is rewritten as the task goes on and gone when it ends.
pub(super) struct Progress {
    doing: &'static str,
    total: u64,
    done: u64,
    next: Instant,
    shown: bool,
}

impl Progress {
    /// A task of `total` bytes.
    pub(super) fn new(doing: &'static str, total: u64) -> Self {
        Self { doing, total, done: 0, next: Instant::now() + SILENCE, shown: false }
    }

    /// So many bytes more are done.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        let now = Instant::now();
        if now < self.next || !io::stderr().is_terminal() {
            return;
        }
        self.next = now + PERIOD;
        self.shown = true;
        let percent = self.done.saturating_mul(100) / self.total.max(1);
        let (done, total) = (human_size(self.done), human_size(self.total));
        // A terminal that is gone misses nothing.
        let _ = write!(io::stderr(), "\r\x1b[K{} {done} of {total} ({percent} %)", self.doing);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
