//! Requests that may wait for the host, each on a thread of its own, so that the other
//! clients are answered. Threads are never joined: the host may hold one up until the program ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;

use super::http::{Problem, Response};
use crate::notifier::Notifier;

/// Requests at a time. Fewer than the clients, so that the others are served.
const JOBS_MAX: usize = 4;
/// Opening an image needs little stack.
const STACK_BYTES: usize = 512 << 10;

/// The requests of one socket that wait for the host.
pub(super) struct Jobs {
    /// Readable when a job has ended.
    ended: Notifier,
    running: Arc<AtomicUsize>,
}

/// The answer of a job.
pub(super) struct PendingResponse(Receiver<Response>);

impl Jobs {
    /// No jobs.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { ended: Notifier::new()?, running: Arc::default() })
    }

    /// The notifier of ended jobs.
    pub(super) fn ended(&self) -> &Notifier {
        &self.ended
    }

    /// Starts a job.
    ///
    /// # Errors
    ///
    /// Too many wait for the host already, or the host is out of threads.
    pub(super) fn start(
        &self,
        job: impl FnOnce() -> Response + Send + 'static,
    ) -> Result<PendingResponse, Problem> {
        if self.running.fetch_add(1, Ordering::AcqRel) >= JOBS_MAX {
            self.running.fetch_sub(1, Ordering::AcqRel);
            let detail = format!("{JOBS_MAX} requests wait for the host");
            return Err(Problem::new(503, detail, "look for a hung file system, and try again"));
        }
        let (sender, response) = sync_channel(1);
        let (ended, running) = (self.ended.clone(), Arc::clone(&self.running));
        let builder = thread::Builder::new().name("control/job".into()).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || {
            // Fails if the client is gone.
            let _ = sender.send(job());
            running.fetch_sub(1, Ordering::AcqRel);
            if let Err(error) = ended.notify() {
                tracing::error!(%error, "an answer of the control socket is not sent");
            }
        });
        match thread {
            Ok(_) => Ok(PendingResponse(response)),
            Err(error) => {
                self.running.fetch_sub(1, Ordering::AcqRel);
                let detail = format!("cannot start a thread: {error}");
                Err(Problem::new(500, detail, "try again when the host has threads"))
            }
        }
    }
}

impl PendingResponse {
    /// The answer, once the job has ended.
    pub(super) fn take(&self) -> Option<Response> {
        match self.0.try_recv() {
            Ok(response) => Some(response),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                let detail = "the request failed";
                Some(Problem::new(500, detail, "see the log of the machine").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn done() -> Response {
        Problem::new(418, "done", "").into()
    }

    #[test]
    fn the_number_of_jobs_is_bounded_and_an_ended_one_makes_room() {
        let jobs = Jobs::new().unwrap();
        let (release, released) = channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let mut pending = Vec::new();
        for _ in 0..JOBS_MAX {
            let released = Arc::clone(&released);
            pending.push(jobs.start(move || {
                released.lock().unwrap().recv().unwrap();
                done()
            }));
        }
        assert!(pending.iter().all(|job| job.as_ref().is_ok_and(|job| job.take().is_none())));
        assert_eq!(jobs.start(done).err().unwrap().status, 503);
        release.send(()).unwrap();
        let started = std::time::Instant::now();
        while jobs.running.load(Ordering::Acquire) == JOBS_MAX {
            assert!(started.elapsed() < Duration::from_secs(60));
            thread::yield_now();
        }
        let answers = pending.iter().flatten().filter_map(PendingResponse::take);
        assert_eq!(answers.map(|answer| answer.status).collect::<Vec<_>>(), [418]);
        let next = jobs.start(done).unwrap();
        while next.take().is_none() {
            thread::yield_now();
        }
        drop(release);
    }

    #[test]
    fn a_job_that_panics_is_answered() {
        let jobs = Jobs::new().unwrap();
        let job = jobs.start(|| panic!("of the test")).unwrap();
        let answer = loop {
            if let Some(answer) = job.take() {
                break answer;
            }
            thread::yield_now();
        };
        assert_eq!(answer.status, 500);
    }
}
