//! The thread that serves one queue: how it starts, and how it is asked to end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::ActivateError;

/// Whether a worker was asked to end. Who asks also kicks the queue, so that a sleeping worker looks.
#[derive(Clone)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    kick: Arc<EventFd>,
}

impl Stop {
    /// Whether to end now.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Asks the worker to end.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Fails only if the counter is full, in which case the worker is awake.
        let _ = self.kick.write(1);
    }
}

/// A running worker thread. One that is dropped is asked to end and waited for.
pub struct Worker {
    /// `None` once joined.
    thread: Option<JoinHandle<()>>,
    stop: Stop,
}

impl Worker {
    /// Starts a thread named `name` that prepares itself with `start`, on itself because an engine
    /// belongs to the thread that made it, and then does `run` until the [`Stop`] says so. Returns
    /// once `start` has.
    ///
    /// # Errors
    ///
    /// What `start` returned, or the host's refusal of a thread.
    pub fn spawn<T: 'static>(
        name: String,
        kick: Arc<EventFd>,
        start: impl FnOnce() -> Result<T, ActivateError> + Send + 'static,
        run: impl FnOnce(T, &Stop) + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let stop = Stop { requested: Arc::new(AtomicBool::new(false)), kick };
        let own_stop = stop.clone();
        let (started, outcome) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || match start() {
                Ok(worker) => {
                    let _ = started.send(Ok(()));
                    run(worker, &own_stop);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(ActivateError::Thread)?;
        outcome
            .recv()
            .map_err(|_| ActivateError::Thread(io::Error::other("it ended at once")))??;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Asks the worker to end, without waiting for it.
    pub fn request_stop(&self) {
        self.stop.request();
    }

    /// Whether the thread has ended: nothing it was given is used any more.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread's end.
    pub fn join(mut self) {
        self.join_once();
    }

    fn join_once(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(target: "virtio", "a worker panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.request();
        self.join_once();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// A device whose second queue cannot start drops the first one's worker.
    #[test]
    fn a_worker_that_is_dropped_has_ended() {
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let ended = Arc::new(AtomicBool::new(false));
        let at_end = Arc::clone(&ended);
        let run = move |(), stop: &Stop| {
            while !stop.requested() {
                thread::yield_now();
            }
            at_end.store(true, Ordering::Release);
        };
        drop(Worker::spawn("test".into(), kick, || Ok(()), run).unwrap());
        assert!(ended.load(Ordering::Acquire));
    }
}
