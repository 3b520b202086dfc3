//! The log and the count of failed requests.
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

/// Requests of a disk that the host has failed, since the disk was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostErrors {
    /// Number of requests.
    pub requests: u64,
    /// The last request: `read`, `write`, `flush` and so on.
    pub operation: &'static str,
    /// The error number of the last one; `None` if it was no error of a system call.
    pub errno: Option<i32>,
    /// When the last one failed.
    pub last: Instant,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct FailureLog {
    disk: String,
    seen: Mutex<Vec<(FailureKind, LogLimit)>>,
    host_errors: Mutex<Option<HostErrors>>,
}

impl FailureLog {
    pub(crate) fn new(disk: String) -> Self {
        Self { disk, seen: Mutex::default(), host_errors: Mutex::default() }
    }

    /// The requests that failed.
    pub(crate) fn host_errors(&self) -> Option<HostErrors> {
        *self.host_errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a failed request.
    #[cold]
    pub(crate) fn log(&self, op: Operation, error: &io::Error) {
        if is_result(error) {
            return;
        }
        let (what, at) = describe(op);
        self.count(what, error.raw_os_error(), Instant::now());
        let kind = (what, error.raw_os_error().unwrap_or(0));
        if let Some(suppressed) = self.check(kind, Instant::now()) {
            tracing::error!(disk = self.disk, what, offset = at, %error, suppressed, "I/O failed");
        }
    }

    fn count(&self, operation: &'static str, errno: Option<i32>, last: Instant) {
        let mut errors = self.host_errors.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = errors.map_or(0, |errors| errors.requests).saturating_add(1);
        *errors = Some(HostErrors { requests, operation, errno, last });
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

/// Whether the host has not failed: the data did not match.
fn is_result(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Miscompare>)
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
    fn the_errors_of_the_host_are_counted() {
        let log = FailureLog::new("disk".into());
        let flush = Operation::Flush;
        log.log(flush, &io::Error::other(Miscompare { offset: 0 }));
        assert_eq!(log.host_errors(), None);
        let before = Instant::now();
        log.log(flush, &io::Error::from_raw_os_error(libc::EIO));
        let read = Operation::Read { at: ByteOffset(0) };
        log.log(read, &io::Error::from_raw_os_error(libc::ENXIO));
        let errors = log.host_errors().unwrap();
        let HostErrors { requests, operation, errno, last } = errors;
        assert_eq!((requests, operation, errno), (2, "read", Some(libc::ENXIO)));
        assert!(last >= before && last.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let log = FailureLog::new("disk".into());
        let start = Instant::now();
        let logged = (0..1000).filter(|&errno| log.check(("read", errno), start).is_some());
        assert_eq!(logged.count(), MAX_KINDS);
    }
}
