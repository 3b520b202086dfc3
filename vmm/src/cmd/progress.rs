//! Progress of a long task, on a terminal.

use std::time::{Duration, Instant};

use crate::config::human_size;
use crate::log::StatusLine;

/// A task that ends earlier shows no progress.
const DELAY: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_millis(200);

/// A status line that shows how many bytes of a task are done.
pub(crate) struct ProgressLine {
    task: &'static str,
    total: u64,
    done: u64,
    next_update: Instant,
    line: StatusLine,
}

impl ProgressLine {
    /// A task of `total` bytes.
    pub(crate) fn new(task: &'static str, total: u64) -> Self {
        let next_update = Instant::now() + DELAY;
        Self { task, total, done: 0, next_update, line: StatusLine::default() }
    }

    /// Adds `bytes` to the progress.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        let now = Instant::now();
        if now < self.next_update {
            return;
        }
        self.next_update = now + PERIOD;
        let percent = self.done.saturating_mul(100) / self.total.max(1);
        let (done, total) = (human_size(self.done), human_size(self.total));
        self.line.show(format_args!("{} {done} of {total} ({percent} %)", self.task));
    }
}
