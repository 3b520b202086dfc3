//! A disk in memory that can pause, fail, reorder completions, and record its requests.
//!
//! Its engines run on the workers' threads; the test controls them through the shared
//! [`TestDisk`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use block::{
    Backend, BackingSpace, ByteOffset, ByteRange, CacheMode, Completion, Crossing, DiscardStats,
    DiskStatus, EngineChoice, EngineSetup, Extent, Geometry, IoEngine, Miscompare, OpenError,
    Operation, Request, ResizeError, Segment, Segments, Wake, gather, scatter, total_len,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Properties of a [`TestDisk`].
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Geometry.
    pub geometry: Geometry,
    /// Cache mode.
    pub mode: CacheMode,
    /// Whether the disk is read-only.
    pub read_only: bool,
}

impl Default for Shape {
    /// 64 KiB in blocks of 512 bytes, write-back, with discard.
    fn default() -> Self {
        let discard =
            Some(block::DiscardLimits { granularity: 4096, alignment: 0, reads_zero: false });
        let geometry = Geometry {
            capacity: 64 << 10,
            logical_block: 512,
            physical_block: 4096,
            optimal_io: 8192,
            discard,
        };
        Self { geometry, mode: CacheMode::WriteBack, read_only: false }
    }
}

#[derive(Default)]
struct State {
    content: Vec<u8>,
    pushed: Vec<Operation>,
    syncs: usize,
    failures: VecDeque<i32>,
    in_reverse: bool,
    can_cancel: bool,
    engines: usize,
    drained: usize,
    waits: usize,
    on_push: Option<Hook>,
    /// Whether queries of the store hang.
    store_hangs: bool,
    /// Queries that hang.
    hanging: usize,
    queries: usize,
    space: Option<BackingSpace>,
}

/// Code of a test that runs within a worker's round.
type Hook = Box<dyn FnMut() + Send>;

/// A disk in memory. Clones share the disk.
#[derive(Clone)]
pub struct TestDisk(Arc<Inner>);

struct Inner {
    shape: Shape,
    state: Mutex<State>,
    /// Readable while requests may complete.
    gate: OwnedFd,
    /// Notified of changes of `store_hangs`.
    store: Condvar,
}

impl TestDisk {
    /// A zeroed disk that is not paused.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let gate = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let content = vec![0; usize::try_from(shape.geometry.capacity).unwrap()];
        let state = Mutex::new(State { content, ..State::default() });
        Self(Arc::new(Inner { shape, state, gate, store: Condvar::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds back all completions until [`TestDisk::resume`].
    pub fn pause(&self) {
        let _ = rustix::io::read(&self.0.gate, &mut [0; 8]);
    }

    /// Ends [`TestDisk::pause`].
    pub fn resume(&self) {
        rustix::io::write(&self.0.gate, &1u64.to_ne_bytes()).unwrap();
    }

    fn is_open(&self) -> bool {
        is_readable(self.0.gate.as_fd())
    }

    /// Sets whether queries of the store hang, as on a frozen file system:
    /// [`Backend::allocation`] and [`Backend::backing_space`].
    pub fn hang_store(&self, hangs: bool) {
        self.state().store_hangs = hangs;
        self.0.store.notify_all();
    }

    /// Number of queries of the store that hang.
    #[must_use]
    pub fn hanging_queries(&self) -> usize {
        self.state().hanging
    }

    /// Number of queries of the store so far.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.state().queries
    }

    /// Sets the space of the store.
    pub fn set_space(&self, space: BackingSpace) {
        self.state().space = Some(space);
    }

    /// A query of the store, which hangs until the store does not.
    fn query_store(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.queries += 1;
        state.hanging += 1;
        let hangs = |state: &mut State| state.store_hangs;
        let waited = self.0.store.wait_while(state, hangs);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.hanging -= 1;
        state
    }

    /// Fails the next completion, or the next [`Backend::sync`], with `errno`.
    pub fn fail_next(&self, errno: i32) {
        self.state().failures.push_back(errno);
    }

    /// Sets whether the latest request completes first.
    pub fn in_reverse(&self, yes: bool) {
        self.state().in_reverse = yes;
    }

    /// Sets whether pending requests can be cancelled.
    pub fn allow_cancel(&self, yes: bool) {
        self.state().can_cancel = yes;
    }

    /// Takes the operations pushed since the last call.
    #[must_use]
    pub fn take_pushed(&self) -> Vec<Operation> {
        std::mem::take(&mut self.state().pushed)
    }

    /// Number of operations pushed and not yet taken.
    #[must_use]
    pub fn pushed(&self) -> usize {
        self.state().pushed.len()
    }

    /// Number of calls of [`Backend::sync`].
    #[must_use]
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Number of live engines.
    #[must_use]
    pub fn engines(&self) -> usize {
        self.state().engines
    }

    /// Number of requests that were in flight when their engine was dropped.
    #[must_use]
    pub fn drained(&self) -> usize {
        self.state().drained
    }

    /// Number of calls of [`IoEngine::wait`].
    #[must_use]
    pub fn waits(&self) -> usize {
        self.state().waits
    }

    /// The content of the disk.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    /// Replaces the content of the disk.
    pub fn set_content(&self, content: &[u8]) {
        self.state().content.copy_from_slice(content);
    }

    /// Runs `hook` on the worker's thread at each push, where a vCPU could run concurrently.
    pub fn on_push(&self, hook: impl FnMut() + Send + 'static) {
        self.state().on_push = Some(Box::new(hook));
    }

    /// Fills the disk with `byte`.
    pub fn fill(&self, byte: u8) {
        self.state().content.fill(byte);
    }

    fn execute(&self, request: &Pushed) -> io::Result<()> {
        let mut state = self.state();
        if let Some(errno) = state.failures.pop_front() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let bytes = |start: u64, len: u64| {
            let start = usize::try_from(start).unwrap();
            start..start + usize::try_from(len).unwrap()
        };
        match request.op {
            Operation::Read { at } => {
                let content = state.content.get(bytes(at.0, total_len(&request.segments) as u64));
                scatter(content.expect("within the disk"), &request.segments);
            }
            Operation::Write { at, .. } => {
                assert!(!self.0.shape.read_only, "no write reaches a read-only disk");
                let content =
                    state.content.get_mut(bytes(at.0, total_len(&request.segments) as u64));
                gather(&request.segments, content.expect("within the disk"));
            }
            Operation::CompareAndWrite { at, .. } => {
                assert!(!self.0.shape.read_only, "no write reaches a read-only disk");
                let len = total_len(&request.segments) as u64 / 2;
                let content = state.content.get_mut(bytes(at.0, len)).expect("within the disk");
                let mut data = vec![0; content.len() * 2];
                gather(&request.segments, &mut data);
                let (expected, new) = data.split_at(content.len());
                if let Some(offset) = content.iter().zip(expected).position(|(a, b)| a != b) {
                    return Err(io::Error::other(Miscompare { offset: offset as u64 }));
                }
                content.copy_from_slice(new);
            }
            Operation::Flush => {}
            Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => {
                assert!(!self.0.shape.read_only, "no discard or zeroing reaches a read-only disk");
                let content = state.content.get_mut(bytes(range.start.0, range.len));
                content.expect("within the disk").fill(0);
            }
        }
        Ok(())
    }
}

impl Backend for TestDisk {
    fn geometry(&self) -> Geometry {
        self.0.shape.geometry
    }

    fn cache_mode(&self) -> CacheMode {
        self.0.shape.mode
    }

    fn read_only(&self) -> bool {
        self.0.shape.read_only
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        let kick = setup.kick.try_clone_to_owned().unwrap();
        self.state().engines += 1;
        Ok(Box::new(Engine {
            disk: self.clone(),
            kick,
            depth: setup.depth.into(),
            pushed: VecDeque::new(),
            submitted: VecDeque::new(),
            cancelled: Vec::new(),
        }))
    }

    fn status(&self) -> DiskStatus {
        DiskStatus {
            engine: EngineChoice { name: "memory", reason: "a test disk".into() },
            lost_writes: None,
            host_errors: None,
            enospc_hold: None,
            discards: DiscardStats::default(),
            store: block::StoreFacts::default(),
            soft_limit: None,
            ephemeral: None,
        }
    }

    fn stop_holding(&self) {}

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        drop(self.query_store());
        let len = self.geometry().capacity.saturating_sub(from.0);
        let all = Extent { range: ByteRange { start: from, len }, data: true };
        Ok([all].into_iter().filter(|_| len > 0).take(limit).collect())
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        Ok(self.query_store().space)
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        Ok(None)
    }

    fn resize(&self, _size: Option<u64>) -> Result<u64, ResizeError> {
        Err(ResizeError::NotAFile)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.syncs += 1;
        state.failures.pop_front().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The engine of one queue.
struct Engine {
    disk: TestDisk,
    kick: OwnedFd,
    depth: usize,
    pushed: VecDeque<Pushed>,
    submitted: VecDeque<Pushed>,
    cancelled: Vec<u16>,
}

/// A request owned by the engine.
struct Pushed {
    tag: u16,
    op: Operation,
    segments: Segments,
}

impl Engine {
    fn complete_next(&mut self) -> Option<Completion> {
        let in_reverse = self.disk.state().in_reverse;
        let request =
            if in_reverse { self.submitted.pop_back() } else { self.submitted.pop_front() }?;
        let result = self.disk.execute(&request);
        Some(Completion { tag: request.tag, result })
    }
}

impl IoEngine for Engine {
    fn push(&mut self, Request { tag, op, segments }: Request<'_>) {
        let mut in_flight = self.pushed.iter().chain(&self.submitted);
        assert!(in_flight.all(|other| other.tag != tag), "tags in flight are unique");
        let mut state = self.disk.state();
        state.pushed.push(op);
        if let Some(hook) = &mut state.on_push {
            hook();
        }
        drop(state);
        self.pushed.push_back(Pushed { tag, op, segments: std::mem::take(segments) });
        assert!(
            self.pushed.len() + self.submitted.len() <= self.depth,
            "no more requests than the queue depth"
        );
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        let op = Operation::volatile_transfer(at, is_write);
        self.push(Request { tag, op, segments: &mut vec![segment] });
    }

    fn submit(&mut self) -> io::Result<()> {
        self.submitted.append(&mut self.pushed);
        Ok(())
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        for tag in self.cancelled.drain(..) {
            let result = Err(io::Error::from(rustix::io::Errno::CANCELED));
            completed.push(Completion { tag, result });
        }
        assert!(self.pushed.is_empty(), "the worker submits before it reaps");
        while self.disk.is_open()
            && let Some(done) = self.complete_next()
        {
            completed.push(done);
        }
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let before = self.submitted.len() + self.pushed.len();
        if self.disk.state().can_cancel {
            self.submitted.retain(|request| request.tag != tag);
            self.pushed.retain(|request| request.tag != tag);
        }
        let cancelled = self.submitted.len() + self.pushed.len() < before;
        self.cancelled.extend(cancelled.then_some(tag));
        cancelled
    }

    fn parked(&self) -> usize {
        0
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn is_ready(&self) -> bool {
        false
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.disk.0.gate.as_fd())
    }

    fn clear_poll_fd(&mut self) {}

    fn wait(&mut self) -> io::Result<Wake> {
        self.submit()?;
        if !self.cancelled.is_empty() {
            return Ok(Wake { kicked: false });
        }
        self.disk.state().waits += 1;
        let gate = if self.submitted.is_empty() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = [
            PollFd::from_borrowed_fd(self.kick.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.disk.0.gate.as_fd(), gate),
        ];
        let _ = poll(&mut fds, None);
        let kicked = rustix::io::read(&self.kick, &mut [0; 8]).is_ok();
        Ok(Wake { kicked })
    }
}

impl Drop for Engine {
    /// Drains the requests in flight, like any engine. The wait is bounded: a device that waits
    /// where it must not fails its test instead of hanging.
    fn drop(&mut self) {
        self.submitted.append(&mut self.pushed);
        self.disk.state().drained += self.submitted.len();
        while !self.submitted.is_empty() {
            let patience = Timespec::try_from(fixtures::PATIENCE).unwrap();
            let _ = poll(&mut [PollFd::new(&self.disk.0.gate, PollFlags::IN)], Some(&patience));
            let _ = self.complete_next();
        }
        self.disk.state().engines -= 1;
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(1)
}
