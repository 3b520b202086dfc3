//! The log's bound on what happens again and again.
//!
//! What a guest can bring about at will must not fill the host's log: each such line has a [`Seldom`] of its own, for each
//! device and reason, which lets it through at first and then now and then, with how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module's documentation.
#[derive(Debug)]
pub struct Seldom {
    quiet: Duration,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

impl Default for Seldom {
    /// Once a minute.
    fn default() -> Self {
        Self::every(Duration::from_secs(60))
    }
}

impl Seldom {
    /// Once in this time.
    #[must_use]
    pub const fn every(quiet: Duration) -> Self {
        Self { quiet, told: Mutex::new(Told { last: None, since: 0 }) }
    }

    /// It has happened: how often it did without being told of since the last time, if it is to be told of now.
    pub fn news(&self) -> Option<u64> {
        self.news_at(Instant::now())
    }

    pub(crate) fn news_at(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| now.saturating_duration_since(last) < self.quiet) {
            told.since += 1;
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_of_once_in_its_time() {
        let seldom = Seldom::every(Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(seldom.news_at(start), Some(0));
        let mut soon = (1..1000).map(|ms| seldom.news_at(start + Duration::from_millis(ms)));
        assert!(soon.all(|news| news.is_none()));
        assert_eq!(seldom.news_at(start + Duration::from_secs(1)), Some(999));
        assert_eq!(seldom.news_at(start + Duration::from_secs(1)), None);
    }
}
