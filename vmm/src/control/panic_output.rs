//! The output of a guest after the report of a panic of its kernel. Control thread.
//!
//! Linux reports a panic in the middle of it. Messages that it could not print until then, because
//! the panic is within an NMI or a breakpoint, or another processor had the console, follow the
//! report. So the machine runs on until its console is quiet.

use std::time::{Duration, Instant};

/// Interval between two looks at the output.
pub(super) const PERIOD: Duration = Duration::from_millis(100);
/// Without output for this long, the console is quiet.
const QUIET: Duration = Duration::from_secs(1);
/// Longest time between the report and the end of the machine.
const LIMIT: Duration = Duration::from_secs(10);

/// The output since the panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct PanicOutput {
    reported: Instant,
    sent_bytes: u64,
    last_sent: Instant,
}

impl PanicOutput {
    /// The guest has reported a panic by `now`, and has sent `sent_bytes` since its start.
    pub(super) fn new(sent_bytes: u64, now: Instant) -> Self {
        Self { reported: now, sent_bytes, last_sent: now }
    }

    /// The output by `now`.
    pub(super) fn updated(self, sent_bytes: u64, now: Instant) -> Self {
        let last_sent = if sent_bytes == self.sent_bytes { self.last_sent } else { now };
        Self { sent_bytes, last_sent, ..self }
    }

    /// Whether the machine may end.
    pub(super) fn is_over(self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_sent) >= QUIET
            || now.saturating_duration_since(self.reported) >= LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_over_when_it_stops_or_takes_too_long() {
        let start = Instant::now();
        let output = PanicOutput::new(7, start);
        let soon = start + QUIET / 2;
        assert!(!output.updated(7, soon).is_over(soon));
        assert!(output.updated(7, start + QUIET).is_over(start + QUIET), "quiet");
        let output = output.updated(8, soon);
        assert!(!output.updated(8, start + QUIET).is_over(start + QUIET), "it has gone on");
        assert!(output.updated(8, soon + QUIET).is_over(soon + QUIET), "quiet again");
        let late = start + LIMIT;
        assert!(!output.updated(9, late - PERIOD).is_over(late - PERIOD));
        assert!(output.updated(9, late).is_over(late), "endless");
    }
}
