//! The threads of one engine, and the two lists between them and it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::EventfdFlags;

use super::calls::answer;
use crate::host_file::{EngineFiles, HostFile};
use crate::steps::Call;

/// Threads of a queue: enough to keep a disk busy, few enough for many queues.
pub(crate) const THREADS: usize = 4;

/// A tag, and a count of bytes or a negated errno.
type Answer = (u16, i32);

/// See the module's documentation. Dropping it waits for the threads, which finish what they were asked.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    files: EngineFiles,
    host: Arc<HostFile>,
    lists: Mutex<Lists>,
    /// There is a question, or the end.
    asked: Condvar,
    /// There is an answer.
    answered: Condvar,
    /// The same as a descriptor: signalled when the list of answers ceases to be empty.
    signal: OwnedFd,
}

#[derive(Debug, Default)]
struct Lists {
    questions: VecDeque<(u16, Call)>,
    answers: Vec<Answer>,
    ending: bool,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// The host refuses a descriptor or a thread.
    pub(super) fn new(files: EngineFiles, host: Arc<HostFile>) -> io::Result<Self> {
        let signal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            files,
            host,
            lists: Mutex::default(),
            asked: Condvar::new(),
            answered: Condvar::new(),
            signal,
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(THREADS) };
        let name = thread::current().name().unwrap_or("disk").to_owned();
        for number in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("{name}.{number}"));
            pool.threads.push(thread.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Asks the host. The answer comes with [`Pool::take_answers`].
    ///
    /// # Safety
    ///
    /// The memory that the call names stays valid until its answer was taken.
    pub(super) unsafe fn ask(&self, tag: u16, call: Call) {
        self.shared.lock().questions.push_back((tag, call));
        self.shared.asked.notify_one();
    }

    /// Becomes readable, edge by edge, when there are answers.
    pub(super) fn answered(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }

    pub(super) fn take_answers(&self) -> Vec<Answer> {
        std::mem::take(&mut self.shared.lock().answers)
    }

    pub(super) fn wait_for_answers(&self) {
        let lists = self.shared.lock();
        let waited = self.shared.answered.wait_while(lists, |lists| lists.answers.is_empty());
        drop(waited);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.asked.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an I/O thread has panicked");
            }
        }
    }
}

impl Shared {
    /// The life of a thread.
    fn serve(&self) {
        let files = self.files.with_ranges(&self.host);
        while let Some((tag, call)) = self.next_question() {
            // SAFETY: whoever asked keeps the memory until the answer was taken (`Pool::ask`).
            let answer = unsafe { answer(&call.ask, &files) };
            let mut lists = self.lock();
            let first = lists.answers.is_empty();
            lists.answers.push((tag, answer));
            drop(lists);
            if first {
                self.signal();
            }
        }
    }

    fn next_question(&self) -> Option<(u16, Call)> {
        let nothing = |lists: &mut Lists| lists.questions.is_empty() && !lists.ending;
        let waited = self.asked.wait_while(self.lock(), nothing);
        waited.unwrap_or_else(PoisonError::into_inner).questions.pop_front()
    }

    fn signal(&self) {
        self.answered.notify_one();
        // It fails only when the counter is full, and then the descriptor is readable anyway.
        if let Err(error) = rustix::io::write(&self.signal, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "cannot wake an engine");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        // Lists are pushed to and popped from whole, so that a panic elsewhere leaves nothing broken.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
