//! Recordings whose log fails, is slow or hangs: the guest's requests all succeed.

mod ends;
mod engines;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::chunk::CHUNK;
use super::engine::RecordedEngine;
use super::format::{LOG_SECTOR, LogEntry, LogKind, LogSuper};
use super::log_file::LogStore;
use super::recording::Start;
use super::writer::SizeLimit;
use super::{RecordedDisk, Recording};
use crate::{
    Backend, ByteOffset, CacheMode, Completion, Durability, EngineSetup, Geometry, IoEngine,
    MemoryDisk, Operation, Request, Segment, Wake,
};

/// A log in memory that takes `space` bytes, and waits while it is `blocked`.
#[derive(Default)]
struct TestStore {
    bytes: Mutex<Vec<u8>>,
    space: AtomicU64,
    blocked: Mutex<bool>,
    unblocked: Condvar,
    /// A write waits.
    is_waiting: AtomicBool,
    /// Of each call only a part is written.
    is_short: AtomicBool,
}

impl TestStore {
    fn with_space(space: u64) -> Arc<Self> {
        Arc::new(Self { space: space.into(), ..Self::default() })
    }

    fn block(&self, blocked: bool) {
        *self.blocked.lock().unwrap() = blocked;
        self.unblocked.notify_all();
    }

    fn entries(&self) -> Vec<LogEntry> {
        let bytes = self.bytes.lock().unwrap();
        let mut left = &bytes[LOG_SECTOR..];
        let mut entries = Vec::new();
        while !left.is_empty() {
            let entry = LogEntry::decode(&left[..LOG_SECTOR]).unwrap();
            left = &left[LOG_SECTOR * (1 + usize::try_from(entry.data_sectors()).unwrap())..];
            entries.push(entry);
        }
        entries
    }
}

impl LogStore for Arc<TestStore> {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let blocked = self.blocked.lock().unwrap();
        self.is_waiting.store(*blocked, Ordering::Relaxed);
        drop(self.unblocked.wait_while(blocked, |blocked| *blocked).unwrap());
        let most = if self.is_short.load(Ordering::Relaxed) { 700 } else { usize::MAX };
        let space = usize::try_from(self.space.load(Ordering::Relaxed)).unwrap();
        let at = usize::try_from(at).unwrap();
        let data = &bytes[..bytes.len().min(most).min(space.saturating_sub(at))];
        if data.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut bytes = self.bytes.lock().unwrap();
        let end = bytes.len().max(at + data.len());
        bytes.resize(end, 0);
        bytes[at..at + data.len()].copy_from_slice(data);
        Ok(data.len())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().truncate(usize::try_from(length).unwrap());
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.space.load(Ordering::Relaxed) - self.bytes.lock().unwrap().len() as u64)
    }
}

/// A recorded disk in memory with one engine.
struct Rig {
    engine: Box<dyn IoEngine>,
    recording: Arc<Recording>,
    disk: MemoryDisk,
    memory: Vec<u8>,
    kick: OwnedFd,
}

const DEPTH: u16 = 64;

impl Rig {
    fn new(store: &Arc<TestStore>, chunks: u32) -> Self {
        Self::with_limit(store, chunks, SizeLimit::Bytes(u64::MAX))
    }

    fn with_limit(store: &Arc<TestStore>, chunks: u32, limit: SizeLimit) -> Self {
        let geometry = Geometry {
            capacity: 1 << 20,
            logical_block: 512,
            physical_block: 512,
            optimal_io: 0,
            discard: None,
        };
        let disk = MemoryDisk::new(geometry, CacheMode::WriteBack, false);
        let start =
            Start { name: "disk", path: Path::new("log"), head: LogSuper::new(0, None), limit };
        let recording = Recording::start_in(&start, Box::new(Arc::clone(store)), chunks).unwrap();
        let recorded = RecordedDisk::new(Arc::new(disk.clone()), Arc::clone(&recording));
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let setup = EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() };
        let engine = recorded.engine(&setup).unwrap();
        Self { engine, recording, disk, memory: vec![7; 1 << 20], kick }
    }

    fn push(&mut self, tag: u16, op: Operation, len: usize) {
        // SAFETY: the memory outlives the requests, and nothing refers to it.
        let segment = unsafe { Segment::new(self.memory.as_mut_ptr(), len) };
        self.engine.push(Request { tag, op, segments: &mut vec![segment] });
    }

    /// A write of one chunk for each tag below `count`.
    fn push_writes(&mut self, count: u16) {
        for tag in 0..count {
            self.push(tag, write(u64::from(tag) * CHUNK as u64), CHUNK);
        }
    }

    fn reap(&mut self) -> Vec<Completion> {
        let mut completed = Vec::new();
        self.engine.reap(&mut completed);
        completed
    }

    /// Lets the log thread wait for the store, with a flush that it has taken.
    fn hang(&mut self, store: &TestStore) {
        store.block(true);
        self.push(DEPTH - 1, Operation::Flush, 0);
        self.complete(1);
        while !store.is_waiting.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for `count` completions, all without an error.
    fn complete(&mut self, count: usize) {
        let mut completed = 0;
        while completed < count {
            self.engine.wait().unwrap();
            for done in self.reap() {
                done.result.unwrap();
                completed += 1;
            }
        }
        assert_eq!(completed, count);
    }

    /// The reason of a recording that fails.
    fn wait_end(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(end) = self.recording.status().end {
                assert!(end.is_failure);
                return end.reason;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the recording continues");
    }
}

/// The errno of the last entry, which is the end.
fn end_errno(store: &TestStore) -> i32 {
    let last = store.entries().pop().unwrap();
    assert_eq!(last.kind, LogKind::End);
    last.stamp.unwrap().errno
}

fn write(at: u64) -> Operation {
    Operation::Write { at: ByteOffset(at), durability: Durability::Volatile }
}

#[test]
fn a_full_log_ends_the_recording_and_not_the_guest() {
    // The fourth write is cut in its data; what is left suffices for the last entry.
    let entry = (LOG_SECTOR + CHUNK) as u64;
    let store = TestStore::with_space(LOG_SECTOR as u64 + 3 * entry + 2000);
    let mut rig = Rig::new(&store, 64);
    rig.push_writes(10);
    rig.complete(10);
    assert_eq!(rig.wait_end(), "cannot write the log: No space left on device (os error 28)");
    rig.push_writes(DEPTH);
    rig.complete(DEPTH.into());
    assert_eq!(rig.disk.content()[CHUNK * 63], 7);
    let Rig { engine, recording, .. } = rig;
    drop(engine);
    assert!(recording.stop("later"));
    let status = recording.status();
    let entries = store.entries();
    let last = entries.last().unwrap();
    assert_eq!((last.kind, last.text), (LogKind::End, status.end.unwrap().reason.len() as u64));
    assert_eq!(end_errno(&store), libc::EIO);
    assert_eq!(status.entries, entries.len() as u64);
    assert_eq!(status.bytes, store.bytes.lock().unwrap().len() as u64);
    // A batch is whole or not there.
    let writes = entries.iter().filter(|entry| entry.kind == LogKind::Write).count();
    assert!(writes <= 3, "{writes}");
}

#[test]
fn parts_that_are_written_in_pieces_are_continued() {
    let store = TestStore::with_space(1 << 30);
    store.is_short.store(true, Ordering::Relaxed);
    let mut rig = Rig::new(&store, 64);
    for _ in 0..5 {
        rig.push_writes(30);
        rig.complete(30);
    }
    let Rig { engine, recording, .. } = rig;
    drop(engine);
    assert!(recording.stop("done"));
    assert_eq!(recording.status().end.unwrap().reason, "done");
    assert_eq!((store.entries().len(), end_errno(&store)), (151, 0));
    let bytes = store.bytes.lock().unwrap();
    assert_eq!(bytes[2 * LOG_SECTOR..][..CHUNK], [7; CHUNK]);
}

#[test]
fn a_slow_log_holds_writes_and_loses_none() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    rig.hang(&store);
    rig.push_writes(20);
    assert_eq!(rig.reap().len(), 8);
    assert!(rig.reap().is_empty());
    assert!(rig.engine.due().is_some());
    // Reads pass, changes wait for their turn, and a held request can be cancelled.
    rig.push(30, Operation::Read { at: ByteOffset(0) }, 512);
    rig.push(31, Operation::Flush, 0);
    assert!(rig.engine.cancel(19));
    assert!(rig.engine.is_ready());
    let tags: Vec<_> = rig.reap().iter().map(|done| (done.tag, done.result.is_ok())).collect();
    assert_eq!(tags, [(30, true), (19, false)]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            store.block(false);
        });
        let start = Instant::now();
        rig.complete(12);
        assert!(start.elapsed() < Duration::from_millis(900), "woken by the log thread");
    });
    assert!(rig.engine.due().is_none());
    let Rig { engine, recording, .. } = rig;
    drop(engine);
    assert!(recording.stop("done"));
    assert_eq!(recording.status().end.unwrap().reason, "done");
    let entries = store.entries();
    assert_eq!(entries.len(), 22);
    assert_eq!(entries[20].kind, LogKind::Flush);
}

#[test]
fn a_log_that_hangs_delays_the_guest_once() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    rig.hang(&store);
    rig.push_writes(20);
    let start = Instant::now();
    rig.complete(20);
    assert!(start.elapsed() > Duration::from_millis(1900));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(rig.wait_end(), "the storage of the log is too slow for the guest's writes");
    let start = Instant::now();
    rig.push_writes(DEPTH);
    assert_eq!(rig.reap().len(), usize::from(DEPTH));
    assert!(start.elapsed() < Duration::from_millis(500));
    store.block(false);
    drop(rig);
    // The requests that the log thread had are there, and the reason.
    assert_eq!(store.entries().last().unwrap().kind, LogKind::End);
}

/// As a queue of several disks serves them, whose sleep knows descriptors and due times only.
#[test]
fn a_caller_that_polls_is_told_when_held_requests_are_due() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    rig.hang(&store);
    rig.push_writes(20);
    assert_eq!(rig.reap().len(), 8);
    assert_eq!(rig.engine.parked(), 0, "they are not left behind by a drain");
    let due = rig.engine.due().unwrap();
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
    rig.engine.submit().unwrap();
    assert_eq!(rig.reap().len(), 12);
    assert!(rig.engine.due().is_none());
    store.block(false);
}

#[test]
fn a_write_larger_than_the_memory_ends_the_recording() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    rig.push(0, write(0), 8 * CHUNK);
    rig.complete(1);
    rig.push(0, write(0), 8 * CHUNK + 512);
    rig.complete(1);
    assert_eq!(rig.wait_end(), "a write of 33280 bytes came; one of 32768 bytes can be recorded");
    assert_eq!(rig.disk.content()[8 * CHUNK], 7);
    drop(rig);
    let kinds: Vec<_> = store.entries().iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [LogKind::Write, LogKind::End]);
    assert_eq!(end_errno(&store), libc::EIO);
}

/// Without a log thread that keeps up, requests without data are bounded as well.
#[test]
fn flushes_are_held_as_well() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 1);
    store.block(true);
    let mut completed = 0;
    let mut pushed = 0;
    // More than the rows of a channel and a buffer of the log.
    while completed == pushed {
        assert!(pushed < 100_000, "no bound");
        rig.push(0, Operation::Flush, 0);
        pushed += 1;
        completed += rig.reap().len();
    }
    store.block(false);
    rig.complete(1);
    drop(rig);
    assert_eq!(store.entries().len(), pushed + 1);
}

#[test]
fn an_idle_log_thread_sleeps_and_is_woken_without_a_call_for_each_request() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 64);
    rig.push_writes(1);
    rig.complete(1);
    let deadline = Instant::now() + Duration::from_secs(10);
    while rig.recording.status().entries < 1 {
        assert!(Instant::now() < deadline, "it was not woken");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(rustix::io::read(&rig.kick, &mut [0; 8]).is_err(), "no kick without need");
}

/// The disk has all memory, and the log thread none.
#[test]
fn a_disk_that_stalls_does_not_end_the_recording() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    rig.hang(&store);
    rig.push_writes(9);
    std::thread::sleep(Duration::from_millis(2100));
    // The queue sleeps no longer than it has to, and does not spin.
    assert!(rig.engine.due().unwrap() <= Instant::now());
    rig.engine.submit().unwrap();
    assert!(rig.engine.due().unwrap() > Instant::now());
    assert_eq!(rig.recording.status().end, None);
    std::thread::sleep(Duration::from_millis(2100));
    // The time of the log begins when the disk completes.
    assert_eq!(rig.reap().len(), 8);
    assert_eq!(rig.recording.status().end, None);
    rig.complete(1);
    assert_eq!(rig.wait_end(), "the storage of the log is too slow for the guest's writes");
    store.block(false);
}

/// A queue that was not served for long finds memory that is free by then.
#[test]
fn memory_that_is_free_in_the_end_is_used() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    rig.hang(&store);
    rig.push_writes(9);
    assert_eq!(rig.reap().len(), 8);
    std::thread::sleep(Duration::from_millis(2100));
    store.block(false);
    let most = Timespec { tv_sec: 10, tv_nsec: 0 };
    let kicked = poll(&mut [PollFd::new(&rig.kick, PollFlags::IN)], Some(&most));
    assert_eq!(kicked, Ok(1), "the log thread has given it back");
    rig.engine.submit().unwrap();
    rig.complete(1);
    assert_eq!(rig.recording.status().end, None);
}

/// An engine whose requests complete just before its descriptor is asked for, which tells only of
/// what completes later.
struct EarlyEngine {
    inner: Box<dyn IoEngine>,
    events: OwnedFd,
    has_completed: bool,
}

impl IoEngine for EarlyEngine {
    fn push(&mut self, request: Request<'_>) {
        self.inner.push(request);
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        self.inner.push_contiguous(tag, segment, at, is_write);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.inner.submit()
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        self.inner.reap(completed);
    }

    fn parked(&self) -> usize {
        0
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn cancel(&mut self, _: u16) -> bool {
        false
    }

    fn is_ready(&self) -> bool {
        self.has_completed
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.has_completed = true;
        Ok(self.events.as_fd())
    }

    fn clear_poll_fd(&mut self) {}

    fn wait(&mut self) -> io::Result<Wake> {
        unreachable!("a request is held")
    }
}

#[test]
fn a_completion_before_the_sleep_is_not_slept_over() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    let setup = EngineSetup { depth: DEPTH, memory: &[], kick: rig.kick.as_fd() };
    let recorder = rig.recording.record_queue(&setup).unwrap().unwrap();
    let events = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let inner = rig.disk.engine(&setup).unwrap();
    let inner = Box::new(EarlyEngine { inner, events, has_completed: false });
    let engine = RecordedEngine::new(inner, recorder, Arc::clone(&rig.recording));
    rig.engine = Box::new(engine);
    rig.push_writes(9);
    let start = Instant::now();
    assert!(!rig.engine.wait().unwrap().kicked);
    assert!(start.elapsed() < Duration::from_millis(900));
    assert_eq!(rig.reap().len(), 8);
}
