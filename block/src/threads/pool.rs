//! The threads of one engine, and the two lists between them and it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::EventfdFlags;

use super::calls::execute;
use crate::disk_state::OpenDisk;
use crate::host_file::EngineFiles;
use crate::host_io::HostCall;
use crate::requests::THREADS;

/// A tag, and a count of bytes or a negated errno.
pub(super) type CallResult = (u16, i32);

/// See the module's documentation. Dropping it waits for the threads, which complete what was
/// submitted.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<PoolShared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct PoolShared {
    files: EngineFiles,
    disk: Arc<OpenDisk>,
    lists: Mutex<PoolLists>,
    /// A call was submitted, or the pool ends.
    submitted: Condvar,
    /// A call has completed.
    completed: Condvar,
    /// An eventfd, signalled when the list of results ceases to be empty.
    signal: OwnedFd,
}

#[derive(Debug, Default)]
struct PoolLists {
    calls: VecDeque<(u16, HostCall)>,
    results: Vec<CallResult>,
    is_ending: bool,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// The host refuses a descriptor or a thread.
    pub(super) fn new(files: EngineFiles, disk: Arc<OpenDisk>) -> io::Result<Self> {
        let signal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(PoolShared {
            files,
            disk,
            lists: Mutex::default(),
            submitted: Condvar::new(),
            completed: Condvar::new(),
            signal,
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(THREADS) };
        let name = thread::current().name().unwrap_or("disk").to_owned();
        for number in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("{name}.{number}"));
            pool.threads.push(thread.spawn(move || shared.run())?);
        }
        Ok(pool)
    }

    /// Submits a call. Its result comes with [`Pool::take_results`].
    pub(super) fn submit(&self, tag: u16, call: HostCall) {
        self.shared.lock().calls.push_back((tag, call));
        self.shared.submitted.notify_one();
    }

    /// Becomes readable, edge by edge, when there are results.
    pub(super) fn result_signal(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }

    pub(super) fn take_results(&self) -> Vec<CallResult> {
        std::mem::take(&mut self.shared.lock().results)
    }

    pub(super) fn wait_for_results(&self) {
        let lists = self.shared.lock();
        let waited = self.shared.completed.wait_while(lists, |lists| lists.results.is_empty());
        drop(waited);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.shared.submitted.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an I/O thread has panicked");
            }
        }
    }
}

impl PoolShared {
    /// Makes calls until the pool ends.
    fn run(&self) {
        let files = self.files.with_ranges(&self.disk.file);
        while let Some((tag, call)) = self.next_call() {
            let result = execute(&call, &files);
            let mut lists = self.lock();
            let is_first = lists.results.is_empty();
            lists.results.push((tag, result));
            drop(lists);
            if is_first {
                self.signal();
            }
        }
    }

    fn next_call(&self) -> Option<(u16, HostCall)> {
        let is_idle = |lists: &mut PoolLists| lists.calls.is_empty() && !lists.is_ending;
        let waited = self.submitted.wait_while(self.lock(), is_idle);
        waited.unwrap_or_else(PoisonError::into_inner).calls.pop_front()
    }

    fn signal(&self) {
        self.completed.notify_one();
        // Fails only if the counter is full, and then the descriptor is readable.
        if let Err(error) = rustix::io::write(&self.signal, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "cannot wake an engine");
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolLists> {
        // Each change is complete when the lock is released, also by a panic.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
