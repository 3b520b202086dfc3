//! A disk in memory that can be slow, fail, answer out of order, and tell what it was asked.
//!
//! Its engines run on the workers' threads like any other; the test holds the shared [`MemoryDisk`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{
    Backend, BackingSpace, ByteOffset, ByteRange, CacheMode, Completion, Crossing, DiscardStats,
    DiskStatus, EngineChoice, EngineSetup, Extent, Geometry, IoEngine, Miscompare, OpenError,
    Operation, Request, ResizeError, Segments, Wake, gather, scatter, total_len,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// What a [`MemoryDisk`] looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its geometry.
    pub geometry: Geometry,
    /// Its cache mode.
    pub mode: CacheMode,
    /// Whether it refuses writes.
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
    asked: Vec<Operation>,
    syncs: usize,
    failures: VecDeque<i32>,
    last_first: bool,
    cancels: bool,
    engines: usize,
    drained: usize,
    waits: usize,
    on_push: Option<Hook>,
}

/// What a test does in the middle of a worker's round.
type Hook = Box<dyn FnMut() + Send>;

/// See the module's documentation. Clones are the same disk.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Inner>);

struct Inner {
    shape: Shape,
    state: Mutex<State>,
    /// Readable while requests may complete.
    gate: OwnedFd,
}

impl MemoryDisk {
    /// A zeroed disk, with its gate open.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let gate = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let content = vec![0; usize::try_from(shape.geometry.capacity).unwrap()];
        let state = Mutex::new(State { content, ..State::default() });
        Self(Arc::new(Inner { shape, state, gate }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing completes.
    pub fn hold(&self) {
        let _ = rustix::io::read(&self.0.gate, &mut [0; 8]);
    }

    /// Lets requests complete again.
    pub fn release(&self) {
        rustix::io::write(&self.0.gate, &1u64.to_ne_bytes()).unwrap();
    }

    fn is_open(&self) -> bool {
        is_readable(self.0.gate.as_fd())
    }

    /// Fails the next request that completes, or the next [`Backend::sync`], with this errno.
    pub fn fail_next(&self, errno: i32) {
        self.state().failures.push_back(errno);
    }

    /// Completes the latest request first, or the earliest.
    pub fn last_first(&self, yes: bool) {
        self.state().last_first = yes;
    }

    /// Whether requests that have not completed can be cancelled.
    pub fn cancels(&self, yes: bool) {
        self.state().cancels = yes;
    }

    /// What was asked since the last call.
    #[must_use]
    pub fn take_asked(&self) -> Vec<Operation> {
        std::mem::take(&mut self.state().asked)
    }

    /// What was asked so far and not yet taken.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.state().asked.len()
    }

    /// How often [`Backend::sync`] was called.
    #[must_use]
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// How many engines there are now.
    #[must_use]
    pub fn engines(&self) -> usize {
        self.state().engines
    }

    /// How many requests engines had in flight when they were dropped.
    #[must_use]
    pub fn drained(&self) -> usize {
        self.state().drained
    }

    /// How often engines went to sleep or looked whether they should.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.state().waits
    }

    /// What is on the disk.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    /// Changes what is on the disk.
    pub fn set_content(&self, content: &[u8]) {
        self.state().content.copy_from_slice(content);
    }

    /// Runs `hook` on the worker's thread whenever a request arrives, as a vCPU might at that moment.
    pub fn on_push(&self, hook: impl FnMut() + Send + 'static) {
        self.state().on_push = Some(Box::new(hook));
    }

    /// Puts the same byte everywhere on the disk.
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
                assert!(!self.0.shape.read_only, "no change reaches a read-only disk");
                let content = state.content.get_mut(bytes(range.start.0, range.len));
                content.expect("within the disk").fill(0);
            }
        }
        Ok(())
    }
}

impl Backend for MemoryDisk {
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
            lost_writes: false,
            enospc_hold: None,
            discards: DiscardStats::default(),
            soft_limit: None,
        }
    }

    fn stop_holding(&self) {}

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let len = self.geometry().capacity.saturating_sub(from.0);
        let all = Extent { range: ByteRange { start: from, len }, data: true };
        Ok([all].into_iter().filter(|_| len > 0).take(limit).collect())
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        Ok(None)
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
}

/// One queue's share of the disk.
struct Engine {
    disk: MemoryDisk,
    kick: OwnedFd,
    depth: usize,
    pushed: VecDeque<Pushed>,
    submitted: VecDeque<Pushed>,
    cancelled: Vec<u16>,
}

/// A request that the engine has.
struct Pushed {
    tag: u16,
    op: Operation,
    segments: Segments,
}

impl Engine {
    fn finish(&mut self) -> Option<Completion> {
        let last_first = self.disk.state().last_first;
        let request =
            if last_first { self.submitted.pop_back() } else { self.submitted.pop_front() }?;
        let result = self.disk.execute(&request);
        Some(Completion { tag: request.tag, result })
    }
}

impl IoEngine for Engine {
    fn push(&mut self, Request { tag, op, segments }: Request<'_>) {
        let mut in_flight = self.pushed.iter().chain(&self.submitted);
        assert!(in_flight.all(|other| other.tag != tag), "a tag is used twice");
        let mut state = self.disk.state();
        state.asked.push(op);
        if let Some(hook) = &mut state.on_push {
            hook();
        }
        drop(state);
        self.pushed.push_back(Pushed { tag, op, segments: std::mem::take(segments) });
        assert!(self.pushed.len() + self.submitted.len() <= self.depth, "more than the depth");
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
        assert!(self.pushed.is_empty(), "a worker that looks for completions submits first");
        while self.disk.is_open()
            && let Some(done) = self.finish()
        {
            completed.push(done);
        }
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let before = self.submitted.len() + self.pushed.len();
        if self.disk.state().cancels {
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

    fn is_ready(&self) -> bool {
        false
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        Err(io::ErrorKind::Unsupported.into())
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
    /// Like a host's: waits for what is in flight. Not for ever, so that a device which waits for it where
    /// it must not fails its test rather than hangs.
    fn drop(&mut self) {
        self.submitted.append(&mut self.pushed);
        self.disk.state().drained += self.submitted.len();
        while !self.submitted.is_empty() {
            let patience = Timespec::try_from(fixtures::PATIENCE).unwrap();
            let _ = poll(&mut [PollFd::new(&self.disk.0.gate, PollFlags::IN)], Some(&patience));
            let _ = self.finish();
        }
        self.disk.state().engines -= 1;
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(1)
}
