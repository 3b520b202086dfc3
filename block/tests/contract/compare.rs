//! Compare-and-write.

use std::io;

use block::Durability::{Durable, Volatile};
use block::{ByteOffset, CacheMode, Durability, Miscompare, Operation};

use crate::common::{KIB, MIB, Memory, Rig, numbered, numbered_file};
use crate::contract::open;

fn compare_and_write(at: u64, durability: Durability) -> Operation {
    Operation::CompareAndWrite { at: ByteOffset(at), durability }
}

fn offset(result: io::Result<()>) -> Option<u64> {
    let error = result.expect_err("it does not compare");
    error.get_ref()?.downcast_ref::<Miscompare>().map(|miscompare| miscompare.offset)
}

/// Memory with `expected` and as many bytes of `new` behind it.
fn halves(expected: &[u8], new: u8) -> Memory {
    let mut memory = Memory::filled(new, expected.len() as u64 * 2);
    for (at, byte) in expected.iter().enumerate() {
        memory.set(at, *byte);
    }
    memory
}

#[test]
fn what_compares_is_written_in_every_mode() {
    for mode in CacheMode::ALL {
        let file = numbered_file(MIB);
        let disk = open(file.path(), mode);
        let mut rig = Rig::new(&disk);
        for (at, len, durability) in [(4 * KIB, 4 * KIB, Volatile), (64 * KIB, 12 * KIB, Durable)] {
            let mut memory = halves(&numbered(at, len), 0xa5);
            // Pieces as a guest may cut them: the first of them reaches into the second half.
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
fn what_does_not_compare_stays_as_it_is() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(&disk);
    for place in [0, 511, 4096, 12 * 1024 - 1] {
        let mut memory = halves(&numbered(8 * KIB, 12 * KIB), 0xa5);
        memory.set(place, 0);
        let result = rig.run(compare_and_write(8 * KIB, Volatile), memory.whole());
        assert_eq!(offset(result), Some(place as u64));
        assert_eq!(rig.read(8 * KIB, 12 * KIB).unwrap(), numbered(8 * KIB, 12 * KIB));
    }
}

#[test]
fn it_is_kept_within_the_disk() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(&disk);
    let mut memory = halves(&numbered(MIB - KIB, KIB), 1);
    rig.run(compare_and_write(MIB - KIB, Volatile), memory.whole()).unwrap();
    let mut memory = halves(&[0; 1024], 1);
    assert!(rig.run(compare_and_write(MIB - 512, Volatile), memory.whole()).is_err());
}
