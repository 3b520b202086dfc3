//! Requests without a host: calls are looked at, and answered by the tests.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::simulation::{Clock, Look, SimulatedDisk};
use crate::{
    ByteOffset, ByteRange, CacheMode, DetectZeroes, DiscardLimits, Durability, Geometry, OnEnospc,
};

const GRANULE: u32 = 4096;

/// A file of 1 MiB.
fn disk() -> SimulatedDisk {
    disk_with(Clock::simulated())
}

fn disk_with(clock: Clock) -> SimulatedDisk {
    let discard = DiscardLimits { granularity: GRANULE, alignment: 0, reads_zero: true };
    let look = Look {
        geometry: Geometry {
            capacity: 1 << 20,
            logical_block: 512,
            physical_block: GRANULE,
            optimal_io: 0,
            discard: Some(discard),
        },
        mode: CacheMode::WriteBack,
        block_device: false,
        host_block: 512,
        on_enospc: OnEnospc::Report,
        detect_zeroes: DetectZeroes::Off,
    };
    SimulatedDisk::new(look, clock, tempfile::tempfile().unwrap())
}

fn kick() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

fn push(requests: &mut Requests, tag: u16, op: Operation) {
    let call = requests.push(Request { tag, op, segments: &mut Segments::new() });
    assert!(call.is_none(), "it is no transfer");
}

/// What begins to claim while a zeroing goes on says that it claims everything when that has ended, and not when
/// anything else has.
#[test]
fn an_engine_claims_all_once_what_began_without_a_claim_has_ended() {
    let durability = Durability::Volatile;
    let range = |start, len| ByteRange { start: ByteOffset(start), len };
    let piece = |at| Operation::Discard { range: range(at, 512), durability, more_follows: false };
    let disk = disk();
    let (kick, host) = (kick(), disk.host());
    let setup = EngineSetup { depth: 8, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(Arc::clone(&host), &setup).unwrap();
    push(
        &mut requests,
        0,
        Operation::WriteZeroes { range: range(0, 4096), unmap: false, durability },
    );
    assert!(requests.next_call().is_some(), "the host is asked");
    push(&mut requests, 1, piece(0x4000));
    push(&mut requests, 2, piece(0x8000));

    // Another engine compares there.
    let (other, _) = host.range_lock.enter(kick.as_fd()).unwrap();
    host.range_lock.require();
    host.range_lock.claims_all(&other);
    let (compares, _) = host.range_lock.claim(&other, &(0..512), true);
    requests.heed_claims();
    assert!(requests.cancel(1));
    // Lets the other piece go, which ends at once: there is no whole granule in it.
    push(&mut requests, 3, Operation::Flush);
    let mut ended = Vec::new();
    requests.take_finished(&mut ended);
    let before = host.range_lock.is_free(&compares);
    requests.settle(0, 0);
    let after = host.range_lock.is_free(&compares);
    let flush = requests.next_call().map(|(tag, _)| tag);
    requests.settle(3, 0);
    host.range_lock.release(&other, compares);
    host.range_lock.leave(&other);

    assert_eq!(ended.iter().map(|done| done.tag).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((before, after), (false, true), "free once the zeroing has ended");
    assert_eq!(flush, Some(3));
}

/// Of each kind there is one at a time, whatever the guest asks for.
#[test]
fn discards_zeroings_and_flushes_leave_a_thread_for_reads() {
    let durability = Durability::Volatile;
    let range = |tag: u16| ByteRange { start: ByteOffset(u64::from(tag) << 16), len: 1 << 16 };
    let kick = kick();
    let setup = EngineSetup { depth: 12, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(disk().host(), &setup).unwrap();
    for tag in 0..4 {
        let range = range(tag);
        push(&mut requests, tag, Operation::WriteZeroes { range, unmap: false, durability });
        push(&mut requests, tag + 4, Operation::Discard { range, durability, more_follows: false });
        push(&mut requests, tag + 8, Operation::Flush);
    }
    let mut asked = Vec::from_iter(std::iter::from_fn(|| requests.next_call()));
    assert!(asked.len() < THREADS, "{asked:?}");
    // One after the other they all end.
    let mut ended = Vec::new();
    while let Some((tag, _)) = asked.pop() {
        requests.settle(tag, 0);
        asked.extend(std::iter::from_fn(|| requests.next_call()));
    }
    requests.take_finished(&mut ended);
    assert_eq!(ended.len(), 12);
}

/// How long a command takes that discards so many ranges one after the other, while reads go on that are no hindrance to
/// resting after each. `follow` says whether the engine is told that there are more.
fn time_of_ranges(count: u16, follow: bool) -> Duration {
    const STEP: Duration = Duration::from_millis(5);
    let clock = Clock::simulated();
    let disk = disk_with(clock.clone());
    let kick = kick();
    let setup = EngineSetup { depth: 8, memory: &[], kick: kick.as_fd() };
    let mut requests = Requests::new(disk.host(), &setup).unwrap();
    let reads = disk.host().activity.join();
    reads.begin();
    let start = clock.now();
    for index in 0..count {
        let granule = u64::from(GRANULE);
        let range = ByteRange { start: ByteOffset(granule * u64::from(index)), len: granule };
        let more_follows = follow && index + 1 < count;
        push(
            &mut requests,
            0,
            Operation::Discard { range, durability: Durability::Volatile, more_follows },
        );
        while !requests.has_finished() {
            clock.advance(STEP);
            reads.end();
            reads.begin();
            requests.revive();
            while let Some((tag, _)) = requests.next_call() {
                requests.settle(tag, 0);
            }
        }
        requests.take_finished(&mut Vec::new());
    }
    clock.now() - start
}

/// A driver gives a command a time, whatever it is made of: 30 s is what Linux has.
#[test]
fn a_command_of_many_ranges_is_not_rested_from_for_ever() {
    let (one, each) = (time_of_ranges(256, true), time_of_ranges(256, false));
    assert!(one < Duration::from_secs(20), "{one:?}");
    assert!(
        each > Duration::from_secs(30),
        "guests that discard one by one are rested from: {each:?}"
    );
}
