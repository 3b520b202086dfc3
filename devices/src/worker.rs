//! Worker threads: each serves one queue from the driver's DRIVER_OK to a reset.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

/// Why a device could not start its workers.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk's engine could not be made.
    #[error(transparent)]
    Engine(#[from] ::block::OpenError),
    /// The host refused a thread.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[source] io::Error),
    /// The host refused another resource.
    #[error("cannot {what}: {source}")]
    Host {
        /// The operation that failed, as "cannot ...".
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// A request to a worker to stop. Making it kicks the worker's queue, so that a sleeping worker
/// notices.
#[derive(Clone)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    kick: Arc<EventFd>,
}

impl Stop {
    /// Whether the worker must stop now.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Asks the worker to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Fails only if the counter is full: the worker is then awake.
        let _ = self.kick.write(1);
    }
}

/// A running worker thread. Dropping it stops the thread and waits for its end.
pub struct Worker {
    /// `None` after the join.
    thread: Option<JoinHandle<()>>,
    stop: Stop,
}

impl Worker {
    /// Starts a thread called `name` that calls `start`, then `run` until the [`Stop`] is
    /// requested. `start` runs on the thread because an engine belongs to the thread that made it.
    /// Returns after `start`.
    ///
    /// # Errors
    ///
    /// The error of `start`, or [`StartError::Thread`].
    pub fn spawn<T: 'static>(
        name: String,
        kick: Arc<EventFd>,
        start: impl FnOnce() -> Result<T, StartError> + Send + 'static,
        run: impl FnOnce(T, &Stop) + Send + 'static,
    ) -> Result<Self, StartError> {
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
            .map_err(StartError::Thread)?;
        outcome
            .recv()
            .map_err(|_| StartError::Thread(io::Error::other("it ended immediately")))??;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Asks the worker to stop. Does not wait.
    pub fn request_stop(&self) {
        self.stop.request();
    }

    /// Whether the thread has ended. Its resources are then released.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end of the thread.
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

    /// A device whose second queue cannot start drops the worker of the first one.
    #[test]
    fn dropping_a_worker_ends_its_thread() {
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
