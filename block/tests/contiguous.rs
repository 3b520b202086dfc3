//! Transfers that are pushed without a list of segments.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use block::{ByteOffset, CacheMode, DiskOptions, EngineKind, RawFile};

use common::{KIB, MIB, Memory, Rig, numbered, numbered_file};

/// Those that the host takes as they are, and with direct I/O one that has to be copied.
#[test]
fn contiguous_transfers_are_made_wherever_their_memory_is() {
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        for engine in [EngineKind::IoUring, EngineKind::Threads] {
            let file = numbered_file(MIB);
            let options = DiskOptions { engine, ..DiskOptions::new(mode) };
            let disk = RawFile::open(file.path(), &options).unwrap();
            let mut rig = Rig::new(&disk);
            let mut memory = Memory::filled(7, 12 * KIB);
            for (round, start) in [0, 1, 4096, 17].into_iter().enumerate() {
                let at = round as u64 * 16 * KIB;
                let segment = memory.segment(start, 4096);
                rig.engine.push_contiguous(0, segment, ByteOffset(at), true);
                rig.complete_all(1);
                assert_eq!(rig.read(at, 4 * KIB).unwrap(), [7; 4096], "{engine}, {start}");
                let mut found = Memory::filled(0, 12 * KIB);
                let segment = found.segment(start, 4096);
                rig.engine.push_contiguous(0, segment, ByteOffset(at + 8 * KIB), false);
                rig.complete_all(1);
                let bytes = found.bytes();
                assert_eq!(bytes[start..start + 4096], numbered(at + 8 * KIB, 4 * KIB));
            }
            let segment = memory.segment(0, 4096);
            rig.engine.push_contiguous(0, segment, ByteOffset(MIB - 512), false);
            assert!(rig.complete().result.is_err(), "{engine}: beyond the end");
        }
    }
}
