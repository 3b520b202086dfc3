//! Requests on regular files.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use block::Durability::{Durable, Volatile};
use block::{CacheMode, Named, Operation};
use rustix::fs::MemfdFlags;

use crate::common::{
    DEPTH, KIB, MIB, Memory, Rig, discard, errno, numbered, numbered_file, read, write, zero,
};
use crate::contract::{open, open_with, options};

#[test]
fn written_data_is_read_in_every_mode() {
    for &mode in CacheMode::ALL {
        let file = numbered_file(MIB);
        let disk = open(file.path(), mode);
        let mut rig = Rig::new(disk.as_ref());
        for (at, durability) in [(64 * KIB, Volatile), (256 * KIB, Durable)] {
            rig.fill(at, 8 * KIB, 0xa5, durability).unwrap();
            rig.flush().unwrap();
            assert_eq!(rig.read(at, 8 * KIB).unwrap(), vec![0xa5; 8 << 10], "{mode}");
            let after = rig.read(at + 8 * KIB, 4 * KIB).unwrap();
            assert_eq!(after, numbered(at + 8 * KIB, 4 * KIB), "{mode}");
        }
        disk.sync().unwrap();
    }
}

#[test]
fn an_ignored_flush_makes_no_host_call() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::Unsafe);
    let mut rig = Rig::new(disk.as_ref());
    rig.push(3, Operation::Flush, vec![]);
    let done = rig.reap().expect("completed without a submit");
    assert_eq!(done.tag, 3);
    done.result.unwrap();
}

/// The host transfers 1024 segments per call: more of them make a short transfer.
#[test]
fn a_short_transfer_is_continued() {
    const SEGMENTS: usize = 2500;
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let file = numbered_file(2 * MIB);
        let disk = open(file.path(), mode);
        let mut rig = Rig::new(disk.as_ref());
        let len = 512 * SEGMENTS as u64;
        let mut memory = Memory::filled(0, len);
        let segments =
            |memory: &mut Memory| (0..SEGMENTS).map(|n| memory.segment(n * 512, 512)).collect();
        rig.run(read(512), segments(&mut memory)).unwrap();
        assert!(memory.bytes() == numbered(512, len), "{mode}");

        rig.run(write(0, Volatile), segments(&mut memory)).unwrap();
        assert!(rig.read(0, len).unwrap() == numbered(512, len), "{mode}");
    }
}

#[test]
fn reads_beyond_the_end_of_a_truncated_file_fail() {
    for (mode, end) in [
        (CacheMode::WriteBack, 16 * KIB),
        (CacheMode::WriteBack, 16 * KIB + 100),
        (CacheMode::None, 16 * KIB),
        (CacheMode::None, 16 * KIB + 100),
    ] {
        let file = numbered_file(MIB);
        let disk = open(file.path(), mode);
        let mut rig = Rig::new(disk.as_ref());
        file.as_file().set_len(end).unwrap();
        for at in [0, 12 * KIB, 512 * KIB] {
            let error = rig.read(at, 32 * KIB).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{mode}, {end}: {error}");
        }
        assert_eq!(rig.read(8 * KIB, 4 * KIB).unwrap(), numbered(8 * KIB, 4 * KIB));
    }
}

#[test]
fn invalid_requests_are_refused_and_change_nothing() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    let einval = Some(libc::EINVAL);
    assert_eq!(errno(rig.fill(MIB - 512, 1024, 1, Volatile)), einval, "beyond the end");
    assert_eq!(errno(rig.fill(u64::MAX - 511, 512, 1, Volatile)), einval, "overflow");
    assert_eq!(errno(rig.fill(100, 512, 1, Volatile)), einval, "misaligned start");
    assert_eq!(errno(rig.fill(0, 100, 1, Volatile)), einval, "misaligned length");
    assert_eq!(errno(rig.run(discard(0, 2 * MIB, Volatile), vec![])), einval);
    assert_eq!(errno(rig.run(zero(512, u64::MAX - 511, true, Volatile), vec![])), einval);
    assert_eq!(fs::read(file.path()).unwrap(), numbered(0, MIB));
    drop(rig);
    drop(disk);

    let disk = open_with(file.path(), &options(CacheMode::WriteBack).read_only()).unwrap();
    let mut rig = Rig::new(disk.as_ref());
    let erofs = Some(libc::EROFS);
    assert_eq!(errno(rig.fill(0, 512, 1, Volatile)), erofs);
    assert_eq!(errno(rig.run(discard(0, 4096, Volatile), vec![])), erofs);
    assert_eq!(errno(rig.run(zero(0, 4096, true, Volatile), vec![])), erofs);
    rig.flush().unwrap();
    assert_eq!(rig.read(0, 4096).unwrap(), numbered(0, 4096));
}

#[test]
fn a_tag_in_use_or_out_of_range_is_refused() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    let mut memory = Memory::filled(0, 4096);
    rig.push(1, read(0), memory.whole());
    for tag in [1, DEPTH] {
        rig.push(tag, read(4096), vec![]);
        rig.push(tag, read(4096), memory.whole());
    }
    let results: Vec<_> = (0..5).map(|_| rig.complete()).collect();
    assert_eq!(results.iter().filter(|done| done.result.is_err()).count(), 2);
    assert_eq!(memory.bytes(), numbered(0, 4096));
}

#[test]
fn empty_requests_complete() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    rig.run(read(0), vec![]).unwrap();
    rig.run(write(MIB, Durable), vec![]).unwrap();
    rig.run(discard(0, 0, Durable), vec![]).unwrap();
    rig.run(zero(0, 0, true, Volatile), vec![]).unwrap();
    let mut memory = Memory::filled(0, 1024);
    let with_gaps = [(0, 0), (0, 512), (512, 0), (512, 512), (1024, 0)];
    let segments = with_gaps.into_iter().map(|(at, len)| memory.segment(at, len)).collect();
    rig.run(read(512), segments).unwrap();
    assert_eq!(memory.bytes(), numbered(512, 1024));

    // More empty segments than one call takes do not look like the end of the file.
    let mut segments = vec![memory.segment(0, 0); 1500];
    segments.push(memory.segment(0, 1024));
    rig.run(read(0), segments).unwrap();
    assert_eq!(memory.bytes(), numbered(0, 1024));
}

#[test]
fn direct_io_accepts_any_segment() {
    let file = numbered_file(2 * MIB);
    let disk = open(file.path(), CacheMode::None);
    let mut rig = Rig::new(disk.as_ref());
    // Unaligned addresses and lengths, more bytes than a bounce buffer holds.
    let cuts = [0, 1, 514, 4096, 70_001, 300_000, 600_064];
    let len = 600_064;
    let mut memory = Memory::filled(0, 700_000);
    let segments = |memory: &mut Memory| {
        cuts.windows(2).map(|cut| memory.segment(3 + cut[0], cut[1] - cut[0])).collect()
    };
    rig.run(read(4096), segments(&mut memory)).unwrap();
    assert!(memory.bytes()[3..3 + 600_064] == numbered(4096, len)[..]);
    assert!(memory.bytes()[3 + 600_064..].iter().all(|&byte| byte == 0));

    rig.run(write(MIB, Volatile), segments(&mut memory)).unwrap();
    assert!(rig.read(MIB, len).unwrap() == numbered(4096, len));
    // Aligned addresses, unaligned lengths.
    let segments = vec![memory.segment(0, 101), memory.segment(8192, 411)];
    rig.run(read(2048), segments).unwrap();
    assert_eq!(
        [&memory.bytes()[..101], &memory.bytes()[8192..8192 + 411]].concat(),
        numbered(2048, 512)
    );

    let after = MIB + len;
    assert_eq!(rig.read(after, 4096).unwrap(), numbered(after, 4096));
}

#[test]
fn a_discard_frees_space_and_keeps_adjacent_data() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let granularity = disk.geometry().discard.expect("the file system punches holes").granularity;
    assert_eq!(u64::from(granularity), file.as_file().metadata().unwrap().blksize());
    let mut rig = Rig::new(disk.as_ref());
    let blocks = || file.as_file().metadata().unwrap().blocks();
    let before = blocks();
    rig.run(discard(128 * KIB, 512 * KIB, Durable), vec![]).unwrap();
    assert_eq!(before - blocks(), 512 * 2);
    assert_eq!(file.as_file().metadata().unwrap().len(), MIB);
    assert!(rig.read(0, 128 * KIB).unwrap() == numbered(0, 128 * KIB));
    assert!(rig.read(640 * KIB, 384 * KIB).unwrap() == numbered(640 * KIB, 384 * KIB));
}

#[test]
fn zeroing_frees_space_only_with_unmap() {
    for (unmap, durability) in [(true, Volatile), (false, Durable)] {
        let file = numbered_file(MIB);
        let disk = open(file.path(), CacheMode::WriteBack);
        let mut rig = Rig::new(disk.as_ref());
        let before = file.as_file().metadata().unwrap().blocks();
        // Unaligned to the file system's blocks at both ends.
        rig.run(zero(512, 256 * KIB, unmap, durability), vec![]).unwrap();
        let freed = before - file.as_file().metadata().unwrap().blocks();
        assert_eq!(freed > 0, unmap, "{freed} sectors");
        assert!(rig.read(512, 256 * KIB).unwrap().iter().all(|&byte| byte == 0));
        assert_eq!(rig.read(0, 512).unwrap(), numbered(0, 512));
        let after = 512 + 256 * KIB;
        assert_eq!(rig.read(after, 4096).unwrap(), numbered(after, 4096));
    }
}

/// A memfd supports `FALLOC_FL_PUNCH_HOLE` and not `FALLOC_FL_ZERO_RANGE`.
#[test]
fn zeroes_are_written_if_the_host_cannot_zero_a_range() {
    let memfd = rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", memfd.as_raw_fd()));
    fs::write(&path, numbered(0, MIB)).unwrap();
    let disk = open(&path, CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    let blocks = || File::open(&path).unwrap().metadata().unwrap().blocks();
    let before = blocks();
    rig.run(zero(512, 300 * KIB, false, Durable), vec![]).unwrap();
    assert_eq!(blocks(), before, "no hole");
    assert!(rig.read(512, 300 * KIB).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(rig.read(0, 512).unwrap(), numbered(0, 512));
    let after = 512 + 300 * KIB;
    assert_eq!(rig.read(after, 4096).unwrap(), numbered(after, 4096));
}

#[test]
fn each_kick_ends_a_wait() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(disk.as_ref());
    for _ in 0..3 {
        let kick = rig.kick.try_clone().unwrap();
        let kicker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        });
        assert!(rig.wait().kicked);
        assert!(rig.reap().is_none());
        kicker.join().unwrap();
    }
    // A kick before the wait is not lost, and is reported once.
    rustix::io::write(&rig.kick, &1u64.to_ne_bytes()).unwrap();
    assert!(rig.wait().kicked);
    let mut memory = Memory::filled(0, 512);
    rig.push(0, read(0), memory.whole());
    assert!(!rig.wait().kicked);
    rig.complete().result.unwrap();
}

#[test]
fn a_full_engine_completes_each_request_once() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::None);
    let mut rig = Rig::new(disk.as_ref());
    let mut memories: Vec<_> = (0..DEPTH).map(|_| Memory::filled(0, 4096)).collect();
    for _ in 0..20 {
        for (tag, memory) in (0..).zip(&mut memories) {
            rig.push(tag, read(u64::from(tag) * 4096), memory.whole());
        }
        let mut tags: Vec<_> = (0..DEPTH).map(|_| rig.complete()).map(|done| done.tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..DEPTH));
        assert!(rig.reap().is_none());
    }
    for (tag, memory) in (0..).zip(&memories) {
        assert_eq!(memory.bytes(), numbered(tag * 4096, 4096));
    }
}

#[test]
fn dropping_an_engine_waits_for_requests_in_flight() {
    let file = numbered_file(32 * MIB);
    let disk = open(file.path(), CacheMode::None);
    let mut rig = Rig::new(disk.as_ref());
    let mut memories: Vec<_> = (0..DEPTH).map(|_| Memory::filled(0, MIB)).collect();
    for (tag, memory) in (0..).zip(&mut memories) {
        rig.push(tag, read(u64::from(tag) * MIB), memory.whole());
        if tag == DEPTH / 2 {
            rig.submit(); // The others are pushed and not submitted.
        }
    }
    drop(rig);
    for (tag, memory) in (0..).zip(&memories) {
        assert!(memory.bytes() == numbered(tag * MIB, MIB), "request {tag} has completed");
    }
}

#[test]
fn dropping_an_idle_engine_does_not_wait_for_a_kick() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let rig = Rig::new(disk.as_ref());
    let start = Instant::now();
    drop(rig);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn two_engines_share_a_disk() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::None);
    thread::scope(|scope| {
        for half in 0..2 {
            let disk = &disk;
            scope.spawn(move || {
                let mut rig = Rig::new(disk.as_ref());
                for block in 0..128 {
                    let at = half * MIB / 2 + block * 4 * KIB;
                    let byte = 100 + u8::try_from(half).unwrap();
                    rig.fill(at, 4 * KIB, byte, Volatile).unwrap();
                }
                rig.flush().unwrap();
            });
        }
    });
    let mut rig = Rig::new(disk.as_ref());
    for half in 0..2 {
        let byte = 100 + u8::try_from(half).unwrap();
        assert!(rig.read(half * MIB / 2, MIB / 2).unwrap().iter().all(|&found| found == byte));
    }
}

/// For a caller that polls several engines.
#[test]
fn poll_fd_signals_completions_and_kicks_only() {
    let file = numbered_file(MIB);
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let disk = open(file.path(), mode);
        let mut rig = Rig::new(disk.as_ref());
        assert!(rig.reap().is_none());
        rig.poll(0);
        assert!(!rig.poll(50), "{mode}: there was no event");
        for turn in 0..100 {
            let mut memory = Memory::filled(0, 4 * KIB);
            rig.push(1, read(turn * 4 * KIB), memory.whole());
            rig.submit();
            let completion = loop {
                if let Some(completion) = rig.reap() {
                    break completion;
                }
                assert!(rig.poll(10_000), "{mode}: the completion is not signalled");
                rig.submit();
            };
            completion.result.unwrap();
            assert_eq!(memory.bytes(), numbered(turn * 4 * KIB, 4 * KIB));
        }
        // A completion that was reaped without a poll is still signalled.
        rig.poll(0);
        rig.submit();
        assert!(rig.reap().is_none());
        rig.poll(0);
        assert!(!rig.poll(50), "{mode}: there was no event");
        rustix::io::write(&rig.kick, &1u64.to_ne_bytes()).unwrap();
        assert!(rig.poll(10_000), "{mode}: the kick is not signalled");
    }
}
