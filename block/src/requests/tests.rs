//! Requests without a host: the tests inspect calls and give their results.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::kick::Kick;
use crate::simulation::{Clock, SimulatedDisk, SimulatedParameters};
use crate::{
    ByteOffset, ByteRange, CacheMode, DiscardLimits, DiskOptions, Durability, Geometry, OnEnospc,
    Segment,
};

const GRANULE: u32 = 4096;

/// A file of 1 GiB.
pub(crate) fn disk() -> SimulatedDisk {
    disk_with(Clock::simulated())
}

fn disk_with(clock: Clock) -> SimulatedDisk {
    disk_of(clock, DiskOptions::new(CacheMode::WriteBack))
}

fn disk_of(clock: Clock, options: DiskOptions) -> SimulatedDisk {
    let discard = DiscardLimits { granularity: GRANULE, alignment: 0, reads_zero: true };
    let parameters = SimulatedParameters {
        geometry: Geometry {
            capacity: 1 << 30,
            logical_block: 512,
            physical_block: GRANULE,
            optimal_io: 0,
            discard: Some(discard),
        },
        options,
        block_device: false,
        host_block: 512,
    };
    SimulatedDisk::new(parameters, clock, tempfile::tempfile().unwrap())
}

fn kick() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

fn push(requests: &mut Requests, tag: u16, op: Operation) {
    let call = requests.push(Request { tag, op, segments: &mut Segments::new() });
    assert!(call.is_none(), "not a transfer");
}

/// A zeroing started without a claim, and delayed discards claim when they are released.
#[test]
fn an_engine_reports_claiming_once_its_unclaimed_changes_have_completed() {
    let durability = Durability::Volatile;
    let range = |start, len| ByteRange { start: ByteOffset(start), len };
    let piece = |at| Operation::Discard { range: range(at, 512), durability, more_follows: false };
    let disk = disk();
    let (kick, disk) = (kick(), disk.open_disk());
    let setup = EngineSetup { depth: 8, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(Arc::clone(&disk), &setup).unwrap();
    push(
        &mut requests,
        0,
        Operation::WriteZeroes { range: range(0, 4096), unmap: false, durability },
    );
    assert!(requests.next_call().is_some(), "its call is submitted");
    push(&mut requests, 1, piece(0x4000));
    push(&mut requests, 2, piece(0x8000));

    // Another engine has a compare-and-write for the same blocks.
    let lock = &disk.state.range_lock;
    let other = Kick::new(kick.as_fd()).unwrap();
    lock.register(&other);
    lock.require();
    lock.report_claiming(&other);
    let (compares, _) = lock.claim(&other, &(0..512), true);
    requests.enable_claims_if_required();
    assert!(requests.cancel(1));
    // Releases the other discard, which completes: it covers no whole granule.
    push(&mut requests, 3, Operation::Flush);
    let mut completed = Vec::new();
    requests.take_completed(&mut completed);
    let before = lock.is_granted(&compares);
    requests.handle_result(0, 0);
    let after = lock.is_granted(&compares);
    let flush = requests.next_call().map(|(tag, _)| tag);
    requests.handle_result(3, 0);
    lock.release(&other, compares);
    lock.unregister(&other);

    assert_eq!(completed.iter().map(|done| done.tag).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((before, after), (false, true), "granted once the zeroing has completed");
    assert_eq!(flush, Some(3));
}

#[test]
fn a_flush_of_a_read_only_disk_completes_without_the_host() {
    let kick = kick();
    let setup = EngineSetup { depth: 1, memory: &[], kick: kick.as_fd() };
    for read_only in [true, false] {
        let options = DiskOptions { read_only, ..DiskOptions::new(CacheMode::WriteThrough) };
        let disk = disk_of(Clock::simulated(), options).open_disk();
        let mut requests = Requests::new(disk, &setup).unwrap();
        push(&mut requests, 0, Operation::Flush);
        let mut completed = Vec::new();
        requests.take_completed(&mut completed);
        let call = requests.next_call();
        if call.is_some() {
            requests.handle_result(0, 0);
        }
        assert_eq!((call.is_none(), completed.len() == 1), (read_only, read_only));
    }
}

#[test]
fn discards_zeroings_and_flushes_leave_a_thread_for_reads() {
    let durability = Durability::Volatile;
    let range = |tag: u16| ByteRange { start: ByteOffset(u64::from(tag) << 16), len: 1 << 16 };
    let kick = kick();
    let setup = EngineSetup { depth: 12, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(disk().open_disk(), &setup).unwrap();
    for tag in 0..4 {
        let range = range(tag);
        push(&mut requests, tag, Operation::WriteZeroes { range, unmap: false, durability });
        push(&mut requests, tag + 4, Operation::Discard { range, durability, more_follows: false });
        push(&mut requests, tag + 8, Operation::Flush);
    }
    let mut submitted = Vec::from_iter(std::iter::from_fn(|| requests.next_call()));
    assert!(submitted.len() < THREADS, "{submitted:?}");
    let mut completed = Vec::new();
    while let Some((tag, _)) = submitted.pop() {
        requests.handle_result(tag, 0);
        submitted.extend(std::iter::from_fn(|| requests.next_call()));
    }
    requests.take_completed(&mut completed);
    assert_eq!(completed.len(), 12, "one after the other");
}

/// Duration of a command that discards `count` ranges one after the other while reads go on.
/// `announces` says whether the requests announce that more ranges follow.
fn time_of_ranges(count: u16, announces: bool) -> Duration {
    const STEP: Duration = Duration::from_millis(5);
    let clock = Clock::simulated();
    let disk = disk_with(clock.clone());
    let kick = kick();
    let setup = EngineSetup { depth: 8, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(disk.open_disk(), &setup).unwrap();
    let reads = disk.open_disk().state.load.register();
    reads.submit();
    let start = clock.now();
    for index in 0..count {
        // No small discards.
        let len = 1 << 20;
        let range = ByteRange { start: ByteOffset(len * u64::from(index)), len };
        let more_follows = announces && index + 1 < count;
        push(
            &mut requests,
            0,
            Operation::Discard { range, durability: Durability::Volatile, more_follows },
        );
        while !requests.has_completed() {
            clock.advance(STEP);
            reads.complete();
            reads.submit();
            requests.revive();
            while let Some((tag, _)) = requests.next_call() {
                requests.handle_result(tag, 0);
            }
        }
        requests.take_completed(&mut Vec::new());
    }
    clock.now() - start
}

/// Drivers time a command out whatever its ranges: Linux after 30 s.
#[test]
fn a_command_of_many_ranges_completes_in_time() {
    let (one, each) = (time_of_ranges(256, true), time_of_ranges(256, false));
    assert!(one < Duration::from_secs(20), "{one:?}");
    assert!(each > Duration::from_secs(30), "separate discards are paced: {each:?}");
}

/// Whether another engine's compare-and-write is granted its claim (while, after) a fast-path
/// write of 4 KiB is at the host. `first_result` is the host's answer to a first attempt.
fn compare_is_granted(first_result: Option<i32>) -> (bool, bool) {
    let (kick, disk) = (kick(), disk().open_disk());
    let setup = EngineSetup { depth: 8, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(Arc::clone(&disk), &setup).unwrap();
    let mut memory = vec![1u8; 4096];
    let mut segments = Segments::new();
    // SAFETY: the memory outlives the requests.
    segments.push(unsafe { Segment::new(memory.as_mut_ptr(), 4096) });
    let op = Operation::Write { at: ByteOffset(0), durability: Durability::Volatile };
    let request = Request { tag: 0, op, segments: &mut segments };
    assert!(requests.push_fast(&request).is_some(), "the fast path takes the write");
    if let Some(result) = first_result {
        requests.handle_result(0, result);
        assert!(requests.next_call().is_some(), "the rest of the write is submitted");
    }
    let lock = &disk.state.range_lock;
    let other = Kick::new(kick.as_fd()).unwrap();
    lock.register(&other);
    lock.require();
    lock.report_claiming(&other);
    let (claim, _) = lock.claim(&other, &(0..4096), true);
    requests.enable_claims_if_required();
    let granted_before = lock.is_granted(&claim);
    requests.handle_result(0, 4096 - first_result.unwrap_or(0).max(0));
    let granted_after = lock.is_granted(&claim);
    lock.release(&other, claim);
    lock.unregister(&other);
    (granted_before, granted_after)
}

#[test]
fn a_compare_waits_for_fast_path_writes_also_after_a_short_or_refused_one() {
    for first_result in [None, Some(512), Some(-libc::EAGAIN)] {
        assert_eq!(compare_is_granted(first_result), (false, true), "{first_result:?}");
    }
}

/// An engine of a disk in a cache mode, on a block device or a file, with requests held for 10 s.
struct FullDisk {
    clock: Clock,
    disk: Arc<OpenDisk>,
    requests: Requests,
    _kick: OwnedFd,
}

const HOLD: OnEnospc = OnEnospc::Hold { deadline: Duration::from_secs(10) };

impl FullDisk {
    fn new(cache: CacheMode, block_device: bool, on_enospc: OnEnospc) -> Self {
        let clock = Clock::simulated();
        let geometry = disk().geometry();
        let options = DiskOptions { on_enospc, ..DiskOptions::new(cache) };
        let parameters =
            SimulatedParameters { geometry, options, block_device, host_block: GRANULE };
        let file = tempfile::tempfile().unwrap();
        let disk = SimulatedDisk::new(parameters, clock.clone(), file).open_disk();
        let kick = kick();
        let setup = EngineSetup { depth: 4, memory: &[], kick: kick.as_fd() };
        let requests = Requests::new(Arc::clone(&disk), &setup).unwrap();
        Self { clock, disk, requests, _kick: kick }
    }

    /// Pushes a flush whose `fdatasync` has this result.
    fn flush(&mut self, tag: u16, result: i32) {
        push(&mut self.requests, tag, Operation::Flush);
        self.answer(tag, result);
    }

    /// Gives the next call, an `fdatasync` of `tag`, its result.
    fn answer(&mut self, tag: u16, result: i32) {
        let call = self.requests.next_call().map(|(tag, call)| (tag, call.op));
        assert!(matches!(call, Some((found, HostOp::Sync)) if found == tag), "{call:?}");
        self.requests.handle_result(tag, result);
    }

    /// The completions since the last call, with their errno.
    fn completed(&mut self) -> Vec<(u16, Option<i32>)> {
        let mut completed = Vec::new();
        self.requests.take_completed(&mut completed);
        let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
        completed.into_iter().map(|done| (done.tag, errno(done.result))).collect()
    }

    fn held(&self) -> u32 {
        self.disk.status().enospc_hold.map_or(0, |hold| hold.requests)
    }

    fn wait(&mut self, time: Duration) {
        self.clock.advance(time);
        self.requests.revive();
    }
}

/// As a thin volume does whose first block is not allocated.
#[test]
fn a_flush_for_which_a_device_has_no_space_is_held() {
    let mut full = FullDisk::new(CacheMode::None, true, HOLD);
    full.flush(0, -libc::ENOSPC);
    full.flush(1, -libc::ENOSPC);
    assert_eq!((full.completed(), full.held()), (vec![], 2));
    full.wait(Duration::from_secs(1));
    full.answer(0, -libc::ENOSPC);
    full.answer(1, -libc::ENOSPC);
    assert_eq!((full.completed(), full.held()), (vec![], 2));
    // Both need their own call, or share that of the second.
    full.wait(Duration::from_secs(1));
    full.answer(0, 0);
    full.answer(1, 0);
    assert_eq!((full.completed(), full.held()), (vec![(0, None), (1, None)], 0));
    assert_eq!(full.disk.status().lost_writes, None);
}

#[test]
fn flushes_that_share_a_call_are_held_together() {
    let mut full = FullDisk::new(CacheMode::DirectSync, true, HOLD);
    for tag in 0..3 {
        push(&mut full.requests, tag, Operation::Flush);
    }
    full.answer(0, 0);
    full.answer(1, -libc::ENOSPC);
    assert_eq!((full.completed(), full.held()), (vec![(0, None)], 2));
    assert!(full.requests.cancel(2), "a held flush can be aborted");
    assert_eq!((full.completed(), full.held()), (vec![(2, Some(libc::ECANCELED))], 1));
    assert_eq!(full.disk.status().host_errors, None, "an abort is no error of the host");
    full.wait(Duration::from_secs(11));
    full.answer(1, -libc::ENOSPC);
    assert_eq!((full.completed(), full.held()), (vec![(1, Some(libc::ENOSPC))], 0));
    full.flush(0, 0);
    assert_eq!(full.completed(), [(0, None)], "nothing was lost");
}

#[test]
fn a_durable_zeroing_is_held_for_its_flush() {
    let mut full = FullDisk::new(CacheMode::None, true, HOLD);
    let range = ByteRange { start: ByteOffset(0), len: 1 << 20 };
    let durability = Durability::Durable;
    push(&mut full.requests, 0, Operation::WriteZeroes { range, unmap: false, durability });
    assert!(matches!(full.requests.next_call(), Some((0, _))));
    full.requests.handle_result(0, 0);
    full.answer(0, -libc::ENOSPC);
    assert_eq!((full.completed(), full.held()), (vec![], 1));
    full.wait(Duration::from_secs(1));
    full.answer(0, 0);
    assert_eq!((full.completed(), full.held()), (vec![(0, None)], 0));
}

#[test]
fn a_flush_that_reports_enospc_loses_nothing_on_a_device_with_direct_io() {
    for cache in [CacheMode::None, CacheMode::DirectSync] {
        let mut full = FullDisk::new(cache, true, OnEnospc::Report);
        full.flush(0, -libc::ENOSPC);
        full.flush(0, -libc::EDQUOT);
        full.flush(0, 0);
        let results = [(0, Some(libc::ENOSPC)), (0, Some(libc::EDQUOT)), (0, None)];
        assert_eq!(full.completed(), results, "{cache}");
        let error = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        full.disk.sync_with(error).unwrap_err();
        full.disk.sync_with(|| Ok(())).expect("nothing was lost");
    }
}

#[test]
fn any_other_failed_flush_is_a_loss() {
    let cases = [
        (CacheMode::None, true, libc::EIO),
        (CacheMode::None, false, libc::ENOSPC),
        (CacheMode::WriteBack, true, libc::ENOSPC),
        (CacheMode::WriteThrough, true, libc::ENOSPC),
        (CacheMode::WriteBack, false, libc::ENOSPC),
    ];
    for (cache, block_device, errno) in cases {
        let case = format!("{cache}, {block_device}, {errno}");
        let mut full = FullDisk::new(cache, block_device, HOLD);
        full.flush(0, -errno);
        assert_eq!((full.completed(), full.held()), (vec![(0, Some(errno))], 0), "{case}");
        push(&mut full.requests, 0, Operation::Flush);
        assert_eq!(full.completed(), [(0, Some(libc::EIO))], "{case}");
        assert_eq!(full.disk.status().lost_writes.map(|lost| lost.errno), Some(errno), "{case}");

        let full = FullDisk::new(cache, block_device, HOLD);
        let error = || Err(io::Error::from_raw_os_error(errno));
        full.disk.sync_with(error).unwrap_err();
        full.disk.sync_with(|| Ok(())).expect_err(&case);
    }
}
