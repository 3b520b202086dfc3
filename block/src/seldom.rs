//! The log's bound on what happens again and again.
//!
//! What a guest can bring about at will must not fill the host's log: each such line has a [`Seldom`] of its own, for each
//! device and reason, which lets it through at first and then now and then, with how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module's documentation.
#[derive(Debug)]
pub struct Seldom {
    period: Duration,
    /// How often it may be told of in a period.
    most: u32,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    /// The period that goes on.
    start: Option<Instant>,
    /// How often it was told of in that.
    times: u32,
    /// How often it was not since it was told of last.
    unnamed: u64,
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
    pub const fn every(period: Duration) -> Self {
        Self::some(1, period)
    }

    /// So many times, and no more before this time is over.
    #[must_use]
    pub const fn some(most: u32, period: Duration) -> Self {
        Self { period, most, told: Mutex::new(Told { start: None, times: 0, unnamed: 0 }) }
    }

    /// It has happened: how often it did without being told of since the last time, if it is to be told of now.
    pub fn news(&self) -> Option<u64> {
        self.news_at(Instant::now())
    }

    pub(crate) fn news_at(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |start| now.saturating_duration_since(start) < self.period;
        if !told.start.is_some_and(goes_on) {
            (told.start, told.times) = (Some(now), 0);
        }
        if told.times >= self.most {
            told.unnamed += 1;
            return None;
        }
        told.times += 1;
        Some(std::mem::take(&mut told.unnamed))
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

    #[test]
    fn it_is_told_of_some_times() {
        let seldom = Seldom::some(3, Duration::from_secs(1));
        let start = Instant::now();
        let news = |ms| seldom.news_at(start + Duration::from_millis(ms));
        assert_eq!([0, 1, 500, 501, 999].map(news), [Some(0), Some(0), Some(0), None, None]);
        assert_eq!([1000, 1001, 1002, 1003].map(news), [Some(2), Some(0), Some(0), None]);
    }
}
