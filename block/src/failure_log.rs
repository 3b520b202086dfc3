//! The log of failed requests.
//!
//! Each kind of failure is logged when it first happens and then at most once a minute, with the
//! number suppressed: a guest must not be able to flood the log.

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::{ByteOffset, LogLimit, Miscompare, Operation};

/// Limits the memory of the log. Kinds beyond it share the limit of the last one.
const MAX_KINDS: usize = 64;

/// The operation and the errno.
type FailureKind = (&'static str, i32);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct FailureLog {
    disk: String,
    seen: Mutex<Vec<(FailureKind, LogLimit)>>,
}

impl FailureLog {
    pub(crate) fn new(disk: String) -> Self {
        Self { disk, seen: Mutex::default() }
    }

    /// Logs a failed request.
    #[cold]
    pub(crate) fn log(&self, op: Operation, error: &io::Error) {
        if error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Miscompare>) {
            return; // A result, not a failure of the host.
        }
        let (what, at) = describe(op);
        let kind = (what, error.raw_os_error().unwrap_or(0));
        if let Some(suppressed) = self.check(kind, Instant::now()) {
            tracing::error!(disk = self.disk, what, offset = at, %error, suppressed, "I/O failed");
        }
    }

    /// The number of failures of this kind suppressed so far, if this one may be logged.
    fn check(&self, kind: FailureKind, now: Instant) -> Option<u64> {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let full = all.len() >= MAX_KINDS;
        if !full && !all.iter().any(|(seen, _)| *seen == kind) {
            all.push((kind, LogLimit::default()));
        }
        let (_, limit) = all.iter().find(|(seen, _)| *seen == kind).or(all.last())?;
        limit.check_at(now)
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
    fn each_kind_is_logged_once_a_minute() {
        let log = FailureLog::new("disk".into());
        let start = Instant::now();
        let (eio, nospc) = (("write", libc::EIO), ("write", libc::ENOSPC));
        assert_eq!(log.check(eio, start), Some(0));
        assert_eq!(log.check(nospc, start), Some(0), "another kind");
        for second in 1..60 {
            assert_eq!(log.check(eio, start + Duration::from_secs(second)), None);
        }
        assert_eq!(log.check(eio, start + Duration::from_secs(60)), Some(59));
        assert_eq!(log.check(eio, start + Duration::from_secs(60)), None);
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let log = FailureLog::new("disk".into());
        let start = Instant::now();
        let logged = (0..1000).filter(|&errno| log.check(("read", errno), start).is_some());
        assert_eq!(logged.count(), MAX_KINDS);
    }
}
