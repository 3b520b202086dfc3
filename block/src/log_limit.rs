//! A rate limit for one log line.
//!
//! A guest must not be able to fill the host's log. Every line that it can provoke has a
//! [`LogLimit`] of its own, one for each device and reason.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Allows a burst of lines per period and counts those it suppresses.
#[derive(Debug)]
pub struct LogLimit {
    period: Duration,
    burst: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    start: Option<Instant>,
    /// Lines allowed since `start`.
    allowed: u32,
    /// Lines suppressed since the last one that was allowed.
    suppressed: u64,
}

impl Default for LogLimit {
    /// One line per minute.
    fn default() -> Self {
        Self::once_per(Duration::from_secs(60))
    }
}

impl LogLimit {
    /// Allows one line per `period`.
    #[must_use]
    pub const fn once_per(period: Duration) -> Self {
        Self::new(1, period)
    }

    /// Allows `burst` lines per `period`.
    #[must_use]
    pub const fn new(burst: u32, period: Duration) -> Self {
        let window = Window { start: None, allowed: 0, suppressed: 0 };
        Self { period, burst, window: Mutex::new(window) }
    }

    /// Records an occurrence. Returns the number of lines suppressed before it if this one may be
    /// logged.
    pub fn check(&self) -> Option<u64> {
        self.check_at(Instant::now())
    }

    pub(crate) fn check_at(&self, now: Instant) -> Option<u64> {
        // Fields are plain numbers, valid after a panic elsewhere.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |start| now.saturating_duration_since(start) < self.period;
        if !window.start.is_some_and(is_open) {
            (window.start, window.allowed) = (Some(now), 0);
        }
        if window.allowed >= self.burst {
            window.suppressed += 1;
            return None;
        }
        window.allowed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_period_reports_how_many_were_suppressed() {
        let limit = LogLimit::once_per(Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(limit.check_at(start), Some(0));
        let mut soon = (1..1000).map(|ms| limit.check_at(start + Duration::from_millis(ms)));
        assert!(soon.all(|line| line.is_none()));
        assert_eq!(limit.check_at(start + Duration::from_secs(1)), Some(999));
        assert_eq!(limit.check_at(start + Duration::from_secs(1)), None);
    }

    #[test]
    fn a_burst_is_allowed_in_each_period() {
        let limit = LogLimit::new(3, Duration::from_secs(1));
        let start = Instant::now();
        let line = |ms| limit.check_at(start + Duration::from_millis(ms));
        assert_eq!([0, 1, 500, 501, 999].map(line), [Some(0), Some(0), Some(0), None, None]);
        assert_eq!([1000, 1001, 1002, 1003].map(line), [Some(2), Some(0), Some(0), None]);
    }
}
