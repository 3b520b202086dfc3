//! Compare-and-write.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use block::Durability::{Durable, Volatile};
use block::{Backend, ByteOffset, CacheMode, Completion, Durability, Miscompare, Named, Operation};

use crate::common::{KIB, MIB, Memory, Rig, numbered, numbered_file};
use crate::contract::open;

fn compare_and_write(at: u64, durability: Durability) -> Operation {
    Operation::CompareAndWrite { at: ByteOffset(at), durability }
}

fn miscompare_offset(result: io::Result<()>) -> Option<u64> {
    let error = result.expect_err("a miscompare");
    error.get_ref()?.downcast_ref::<Miscompare>().map(|miscompare| miscompare.offset)
}

/// Memory with `expected`, followed by the same number of bytes `new`.
fn halves(expected: &[u8], new: u8) -> Memory {
    let mut memory = Memory::filled(new, expected.len() as u64 * 2);
    for (at, byte) in expected.iter().enumerate() {
        memory.set(at, *byte);
    }
    memory
}

#[test]
fn equal_data_is_replaced_in_every_mode() {
    for &mode in CacheMode::ALL {
        let file = numbered_file(MIB);
        let disk = open(file.path(), mode);
        let mut rig = Rig::new(disk.as_ref());
        for (at, len, durability) in [(4 * KIB, 4 * KIB, Volatile), (64 * KIB, 12 * KIB, Durable)] {
            let mut memory = halves(&numbered(at, len), 0xa5);
            // A driver may use any framing: the first segment extends into the second half.
            let first = usize::try_from(len).unwrap() + 512;
            let rest = usize::try_from(len).unwrap() - 512;
            let segments = vec![memory.segment(0, first), memory.segment(first, rest)];
            rig.run(compare_and_write(at, durability), segments).unwrap();
            let expected = vec![0xa5; usize::try_from(len).unwrap()];
            assert_eq!(rig.read(at, len).unwrap(), expected, "{mode}");
            assert_eq!(rig.read(at + len, 4 * KIB).unwrap(), numbered(at + len, 4 * KIB), "{mode}");
        }
    }
}

#[test]
fn a_miscompare_writes_nothing() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    for differs_at in [0, 511, 4096, 12 * 1024 - 1] {
        let mut memory = halves(&numbered(8 * KIB, 12 * KIB), 0xa5);
        memory.set(differs_at, 0);
        let result = rig.run(compare_and_write(8 * KIB, Volatile), memory.whole());
        assert_eq!(miscompare_offset(result), Some(differs_at as u64));
        assert_eq!(rig.read(8 * KIB, 12 * KIB).unwrap(), numbered(8 * KIB, 12 * KIB));
    }
}

#[test]
fn the_range_ends_within_the_disk() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    let mut memory = halves(&numbered(MIB - KIB, KIB), 1);
    rig.run(compare_and_write(MIB - KIB, Volatile), memory.whole()).unwrap();
    let mut memory = halves(&[0; 1024], 1);
    assert!(rig.run(compare_and_write(MIB - 512, Volatile), memory.whole()).is_err());
}

/// Increments the number in the first sector `times` times.
fn increment(disk: &dyn Backend, times: u32) {
    let mut rig = Rig::new(disk);
    for _ in 0..times {
        loop {
            let found = rig.read(0, 512).unwrap();
            let number = u32::from_le_bytes(*found.first_chunk().unwrap());
            let mut memory = halves(&found, 0);
            for (at, byte) in (512..).zip((number + 1).to_le_bytes()) {
                memory.set(at, byte);
            }
            match rig.run(compare_and_write(0, Volatile), memory.whole()) {
                Ok(()) => break,
                error => assert!(miscompare_offset(error).is_some()),
            }
        }
    }
}

/// No increment is lost while other threads increment, and write the rest of the block.
#[test]
fn comparison_and_write_are_atomic() {
    const TIMES: u32 = 300;
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let file = numbered_file(MIB);
        let disk = open(file.path(), mode);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Writes of another queue next to the number are in flight at the first comparison.
            let neighbour = scope.spawn(|| {
                let mut rig = Rig::new(disk.as_ref());
                while !done.load(Ordering::Acquire) {
                    rig.fill(512, 4 * KIB - 512, 1, Volatile).unwrap();
                }
            });
            Rig::new(disk.as_ref()).fill(0, 512, 0, Volatile).unwrap();
            let counters: Vec<_> =
                (0..3).map(|_| scope.spawn(|| increment(disk.as_ref(), TIMES))).collect();
            counters.into_iter().for_each(|counter| counter.join().unwrap());
            done.store(true, Ordering::Release);
            neighbour.join().unwrap();
        });
        let found = Rig::new(disk.as_ref()).read(0, 512).unwrap();
        assert_eq!(u32::from_le_bytes(*found.first_chunk().unwrap()), 3 * TIMES, "{mode}");
    }
}

/// Another queue's write that was pushed before completes first.
#[test]
fn compare_and_write_waits_for_writes_of_other_queues() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let (mut one, mut two) = (Rig::new(disk.as_ref()), Rig::new(disk.as_ref()));
    let mut write_memory = Memory::filled(7, 4 * KIB);
    // Pushed and not submitted: the host does not work on it yet.
    two.push(5, crate::common::write(0, Volatile), write_memory.whole());
    let mut memory = halves(&[7; 512], 8);
    one.push(0, compare_and_write(0, Volatile), memory.whole());
    one.submit();
    assert!(one.reap().is_none(), "the other engine does not claim its writes yet");
    let Completion { tag, result } = two.complete();
    assert!(tag == 5 && result.is_ok());
    // Kicked by the first, the other engine claims from now on.
    let Completion { result, .. } = loop {
        two.submit();
        assert!(two.reap().is_none());
        one.submit();
        if let Some(completion) = one.reap() {
            break completion;
        }
    };
    result.unwrap();
    assert_eq!(two.read(0, 512).unwrap(), vec![8; 512]);
}

#[test]
fn a_request_that_waits_for_a_claim_can_be_cancelled() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let (mut one, two) = (Rig::new(disk.as_ref()), Rig::new(disk.as_ref()));
    let mut memory = halves(&numbered(0, 512), 8);
    one.push(3, compare_and_write(0, Volatile), memory.whole());
    assert!(one.cancel(3), "it waits for the other engine");
    assert!(!one.cancel(3) && !one.cancel(4));
    let Completion { tag, result } = one.complete();
    assert_eq!((tag, result.unwrap_err().raw_os_error()), (3, Some(libc::ECANCELED)));
    assert!(one.reap().is_none());
    drop(two);
    assert_eq!(one.read(0, 512).unwrap(), numbered(0, 512));
    let mut memory = halves(&numbered(0, 512), 8);
    one.run(compare_and_write(0, Volatile), memory.whole()).unwrap();
}
