//! Queries of the host by commands that must not hang.
//!
//! Each query runs on a thread of its own, and the caller waits for a limited time. A query that
//! hangs is abandoned: its thread ends with the process. It must change nothing; `disk prove` alone
//! writes, as its user wants.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a command waits for the host.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);

/// A query in progress, with one answer or several.
#[derive(Debug)]
pub(crate) struct HostQuery<T> {
    answers: io::Result<Receiver<T>>,
    limit: Duration,
    /// When the query started or last answered.
    last: Instant,
}

impl<T: Send + 'static> HostQuery<T> {
    /// Starts a query with one answer.
    pub(crate) fn start(query: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::stream(LIMIT, |answers| {
            // The caller may have stopped waiting.
            let _ = answers.send(query());
        })
    }

    /// Starts a query with any number of answers, of which each takes at most `limit`.
    pub(crate) fn stream(limit: Duration, query: impl FnOnce(&Sender<T>) + Send + 'static) -> Self {
        let (sender, answers) = channel();
        Self::spawn(limit, answers, move || query(&sender))
    }

    /// As [`HostQuery::stream`], for a query that waits while `ahead` answers were not taken: for
    /// any number of answers it takes the memory of some.
    pub(crate) fn bounded(
        limit: Duration,
        ahead: usize,
        query: impl FnOnce(&SyncSender<T>) + Send + 'static,
    ) -> Self {
        let (sender, answers) = sync_channel(ahead);
        Self::spawn(limit, answers, move || query(&sender))
    }

    fn spawn(limit: Duration, answers: Receiver<T>, query: impl FnOnce() + Send + 'static) -> Self {
        let thread = thread::Builder::new().name("query".to_owned());
        let started = thread.spawn(query);
        Self { answers: started.map(|_| answers), limit, last: Instant::now() }
    }

    /// The next answer, or `None` after the last one.
    ///
    /// # Errors
    ///
    /// `TimedOut`, or the thread was not started.
    pub(crate) fn next(&mut self) -> io::Result<Option<T>> {
        let answers = self.answers.as_ref().map_err(copy)?;
        let left = (self.last + self.limit).saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok(answer) => {
                self.last = Instant::now();
                Ok(Some(answer))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let limit = self.limit.as_secs();
                let message = format!("the host did not answer within {limit} s");
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }

    /// The answer of a query with one.
    ///
    /// # Errors
    ///
    /// As [`HostQuery::next`].
    pub(crate) fn answer(mut self) -> io::Result<T> {
        self.next()?.ok_or_else(|| io::Error::other("the query ended without an answer"))
    }
}

/// An error is not `Clone`.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_query_that_hangs_is_abandoned() {
        let start = Instant::now();
        let hung = HostQuery::start(|| thread::sleep(Duration::from_secs(60)));
        let error = hung.answer().unwrap_err();
        assert_eq!(error.to_string(), "the host did not answer within 1 s");
        assert!((LIMIT..3 * LIMIT).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert_eq!(HostQuery::start(|| 7).answer().unwrap(), 7);
    }

    #[test]
    fn a_bounded_query_waits_for_its_caller() {
        let made = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&made);
        let mut query = HostQuery::bounded(LIMIT, 2, move |answers| {
            for answer in 0..100 {
                count.store(answer, Ordering::Relaxed);
                let _ = answers.send(answer);
            }
        });
        assert_eq!(query.next().unwrap(), Some(0));
        thread::sleep(Duration::from_millis(100));
        // Two wait to be taken, and one more was made.
        assert_eq!(made.load(Ordering::Relaxed), 3);
        for answer in 1..100 {
            assert_eq!(query.next().unwrap(), Some(answer));
        }
        assert_eq!(query.next().unwrap(), None);
    }

    #[test]
    fn the_limit_holds_for_each_answer() {
        let mut slow = HostQuery::stream(Duration::from_millis(200), |answers| {
            for answer in 0..4 {
                thread::sleep(Duration::from_millis(100));
                let _ = answers.send(answer);
            }
        });
        for answer in 0..4 {
            assert_eq!(slow.next().unwrap(), Some(answer));
        }
        assert_eq!(slow.next().unwrap(), None);
    }
}
