//! Queries of a disk's backing store that may block: its extents and its space.
//!
//! They run on a thread of the disk, which is started for a query and ends after the last one, and
//! never on the worker of a queue: a store that hangs delays its own queries only. The thread
//! accesses no guest memory, so that a query can be abandoned at any time.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ::block::{Backend, BackingSpace, ByteOffset, Extent, LogLimit};
use vmm_sys_util::eventfd::EventFd;

/// Age from which a measured space is measured again for the next command that reports it.
const SPACE_MAX_AGE: Duration = Duration::from_secs(2);

/// A query of a disk's extents.
#[derive(Debug)]
pub struct AllocationQuery {
    from: ByteOffset,
    limit: usize,
    /// Wakes the worker of the queue.
    kick: Arc<EventFd>,
    is_done: AtomicBool,
    result: Mutex<Option<io::Result<Vec<Extent>>>>,
}

impl AllocationQuery {
    /// See [`Backend::allocation`]. `kick` is signalled when the query is done.
    #[must_use]
    pub fn new(from: ByteOffset, limit: usize, kick: Arc<EventFd>) -> Self {
        Self { from, limit, kick, is_done: AtomicBool::new(false), result: Mutex::default() }
    }

    /// Whether the host has answered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    /// Takes the host's answer; `None` before it.
    pub fn take_result(&self) -> Option<io::Result<Vec<Extent>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn complete(&self, result: io::Result<Vec<Extent>>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.is_done.store(true, Ordering::Release);
        // Fails only if the counter is full: the worker is then awake.
        let _ = self.kick.write(1);
    }
}

/// The queries of one disk.
#[derive(Clone)]
pub(super) struct HostQueries(Arc<QueryState>);

struct QueryState {
    /// Name of the disk.
    name: Arc<str>,
    inner: Mutex<QueryQueue>,
    /// Notified when the space is measured and when a thread ends.
    changed: Condvar,
    /// Bounds the log of failed measurements.
    unknown_space: LogLimit,
}

#[derive(Default)]
struct QueryQueue {
    allocations: VecDeque<Arc<AllocationQuery>>,
    /// Whether the space is to be measured.
    measures: bool,
    space: Option<MeasuredSpace>,
    /// Whether a thread takes queries.
    is_served: bool,
    /// Number of threads that use the backend.
    threads: usize,
}

#[derive(Clone, Copy)]
struct MeasuredSpace {
    /// `None` if the host does not report it.
    space: Option<BackingSpace>,
    at: Instant,
}

enum NextQuery {
    Allocation(Arc<AllocationQuery>),
    Space,
}

impl HostQueries {
    /// Queries of the disk called `name`.
    pub(super) fn new(name: &Arc<str>) -> Self {
        Self(Arc::new(QueryState {
            name: Arc::clone(name),
            inner: Mutex::default(),
            changed: Condvar::new(),
            unknown_space: LogLimit::default(),
        }))
    }

    /// Starts a query of the extents.
    pub(super) fn push(&self, backend: &Arc<dyn Backend>, query: Arc<AllocationQuery>) {
        self.start(backend, |queue| queue.allocations.push_back(query));
    }

    /// Removes a query. If the host works on it, its answer is dropped.
    pub(super) fn abandon(&self, query: &Arc<AllocationQuery>) {
        self.0.lock().allocations.retain(|other| !Arc::ptr_eq(other, query));
    }

    /// The space as measured last; `None` if it is unknown. Starts a measurement if it is old.
    pub(super) fn space(&self, backend: &Arc<dyn Backend>) -> Option<BackingSpace> {
        let measured = self.0.lock().space;
        if measured.is_none_or(|measured| measured.at.elapsed() >= SPACE_MAX_AGE) {
            self.start(backend, |queue| queue.measures = true);
        }
        measured?.space
    }

    /// Measures the space. Blocks.
    pub(super) fn measure_space(&self, backend: &dyn Backend) {
        self.0.measure(backend);
    }

    /// Waits until the space was measured once, but at most for `limit`.
    pub(super) fn wait_for_space(&self, limit: Duration) {
        let queue = self.0.lock();
        let is_unknown = |queue: &mut QueryQueue| queue.space.is_none() && queue.threads > 0;
        drop(self.0.changed.wait_timeout_while(queue, limit, is_unknown));
    }

    /// Waits until no thread uses the backend. No query may be started meanwhile.
    pub(super) fn wait_idle(&self) {
        let queue = self.0.lock();
        drop(self.0.changed.wait_while(queue, |queue| queue.threads > 0));
    }

    /// Adds a query and starts the thread unless it runs.
    fn start(&self, backend: &Arc<dyn Backend>, add: impl FnOnce(&mut QueryQueue)) {
        let mut queue = self.0.lock();
        add(&mut queue);
        if std::mem::replace(&mut queue.is_served, true) {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let (state, backend) = (Arc::clone(&self.0), Arc::clone(backend));
        let spawned = thread::Builder::new()
            .name(format!("{}/query", self.0.name))
            .spawn(move || state.serve(backend));
        if let Err(error) = spawned {
            self.0.fail(&error);
        }
    }
}

impl QueryState {
    fn lock(&self) -> MutexGuard<'_, QueryQueue> {
        // Each change is complete before the lock is released.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes queries until none is left.
    fn serve(&self, backend: Arc<dyn Backend>) {
        while let Some(query) = self.next() {
            match query {
                NextQuery::Allocation(query) => {
                    query.complete(backend.allocation(query.from, query.limit));
                }
                NextQuery::Space => self.measure(&*backend),
            }
        }
        // The last reference closes the image: before the wait for idle threads ends.
        drop(backend);
        self.thread_ended();
    }

    fn next(&self) -> Option<NextQuery> {
        let mut queue = self.lock();
        if let Some(query) = queue.allocations.pop_front() {
            return Some(NextQuery::Allocation(query));
        }
        if std::mem::take(&mut queue.measures) {
            return Some(NextQuery::Space);
        }
        queue.is_served = false;
        None
    }

    fn measure(&self, backend: &dyn Backend) {
        let space = backend.backing_space().unwrap_or_else(|error| {
            if let Some(suppressed) = self.unknown_space.check() {
                let name = &self.name;
                tracing::warn!(
                    target: "scsi", suppressed,
                    "{name}: cannot query the space of its store: {error}"
                );
            }
            None
        });
        self.lock().space = Some(MeasuredSpace { space, at: Instant::now() });
        self.changed.notify_all();
    }

    /// Fails the queries for which no thread could be started.
    fn fail(&self, error: &io::Error) {
        let mut queue = self.lock();
        queue.is_served = false;
        queue.measures = false;
        let queries = std::mem::take(&mut queue.allocations);
        drop(queue);
        let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
        queries.iter().for_each(|query| query.complete(Err(io::Error::from_raw_os_error(errno))));
        self.thread_ended();
    }

    fn thread_ended(&self) {
        self.lock().threads -= 1;
        self.changed.notify_all();
    }
}
