//! The log of requests that the host failed.
//!
//! Each kind of failure is named when it first happens and then at most once a minute, with how many went
//! suppressed: what a guest can bring about at will must not flood the log.

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::{ByteOffset, LogLimit, Miscompare, Operation};

/// More kinds than the host has answers for; those beyond share the last.
const MOST_KINDS: usize = 64;

/// What failed, and what the host answered.
type Kind = (&'static str, i32);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct FailureLog {
    disk: String,
    seen: Mutex<Vec<(Kind, LogLimit)>>,
}

impl FailureLog {
    pub(crate) fn new(disk: String) -> Self {
        Self { disk, seen: Mutex::default() }
    }

    /// Takes note of a failed request.
    #[cold]
    pub(crate) fn note(&self, op: Operation, error: &io::Error) {
        if error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Miscompare>) {
            return; // An answer, and no failure of the host.
        }
        let (what, at) = describe(op);
        let kind = (what, error.raw_os_error().unwrap_or(0));
        if let Some(suppressed) = self.is_news(kind, Instant::now()) {
            tracing::error!(disk = self.disk, what, offset = at, %error, suppressed, "I/O failed");
        }
    }

    /// How many of its kind went suppressed, if it is to be named now.
    fn is_news(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let full = all.len() >= MOST_KINDS;
        if !full && !all.iter().any(|(seen, _)| *seen == kind) {
            all.push((kind, LogLimit::default()));
        }
        let (_, seldom) = all.iter().find(|(seen, _)| *seen == kind).or(all.last())?;
        seldom.check_at(now)
    }
}

fn describe(op: Operation) -> (&'static str, u64) {
    match op {
        Operation::Read { at: ByteOffset(at) } => ("read", at),
        Operation::Write { at: ByteOffset(at), .. } => ("write", at),
        Operation::CompareAndWrite { at: ByteOffset(at), .. } => ("compare and write", at),
        Operation::Flush => ("flush", 0),
        Operation::Discard { range, .. } => ("discard", range.start.0),
        Operation::WriteZeroes { range, .. } => ("write zeroes", range.start.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_is_named_once_a_minute() {
        let log = FailureLog::new("disk".into());
        let start = Instant::now();
        let (eio, nospc) = (("write", libc::EIO), ("write", libc::ENOSPC));
        assert_eq!(log.is_news(eio, start), Some(0));
        assert_eq!(log.is_news(nospc, start), Some(0), "another kind");
        for second in 1..60 {
            assert_eq!(log.is_news(eio, start + Duration::from_secs(second)), None);
        }
        assert_eq!(log.is_news(eio, start + Duration::from_secs(60)), Some(59));
        assert_eq!(log.is_news(eio, start + Duration::from_secs(60)), None);
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let log = FailureLog::new("disk".into());
        let start = Instant::now();
        let named = (0..1000).filter(|&errno| log.is_news(("read", errno), start).is_some());
        assert_eq!(named.count(), MOST_KINDS);
    }
}
