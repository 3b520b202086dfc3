//! Defects that other monitors have shipped: each with one test or more that fails with the defect.
//!
//! The tests drive the whole stack over files and devices of this host, with both engines where
//! they matter. Most need root.

mod slow;
mod stack;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block::{Backend, CacheMode, DiskOptions, EngineKind};
use driver::{Descriptor, Request, Shape, feature, kind};
use fixtures::{PATIENCE, scratch, wait_for};

use crate::hostile::dut;
use dut::{DATA, DeviceUnderTest, HEADER, STATUS, usual_chain};
use fixtures::Ext4;
use fixtures::host::{Loop, Mount};
use fixtures::needs;
use stack::{ENGINES, IO_ERROR, KIB, MIB, OK, Stack, UNSUPPORTED, overcommitted};

const UNMAP: u32 = 1;

fn kib_used(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() / 2
}

/// Defect 1: FLUSH without a sync (`File::flush` is a no-op). Here write-back fails, which only a
/// sync reports.
#[test]
fn d01_flush_syncs() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (_mount, device) = overcommitted();
        let mut stack = Stack::new(&device.0, CacheMode::WriteBack, engine);
        assert_eq!(stack.flush(), OK);
        assert_eq!(
            stack.fill(0, 4 * MIB, 1),
            [OK; 4],
            "{engine}: the page cache accepts the writes"
        );
        assert_eq!(stack.flush(), IO_ERROR, "{engine}");
    }
}

/// Defect 2: a short write completed as success. ENOSPC within a write is a short count; only the
/// continuation fails with ENOSPC.
#[test]
fn d02_short_transfer_is_continued() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let mount = Mount::new("tmpfs", "size=1M");
        let path = mount.file(8 * MIB);
        let mut stack = Stack::new(&path, CacheMode::WriteBack, engine);
        let two_mib = Request::write(0, &vec![1; 2 << 20]);
        assert_eq!(stack.status(&two_mib), IO_ERROR, "{engine}");
        assert_eq!(kib_used(&path), KIB, "{engine}: the host wrote the first half");
        mount.grow("32M");
        assert_eq!(stack.status(&two_mib), OK, "{engine}");
        assert!(stack.read(0, 2 * MIB).iter().all(|byte| *byte == 1));
        // A read of a truncated file is short as well.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap();
        assert_eq!(stack.status(&Request::read(0, 2 << 20)), IO_ERROR, "{engine}");
    }
}

/// Defect 3: the result of the sync in write-through is dropped.
#[test]
fn d03_write_through_reports_failed_sync() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (_mount, device) = overcommitted();
        let mut stack = Stack::new(&device.0, CacheMode::WriteThrough, engine);
        let statuses = stack.fill(0, 4 * MIB, 1);
        assert!(
            statuses.contains(&IO_ERROR),
            "{engine}: four writes, space for less than one: {statuses:?}"
        );
        assert_eq!(
            stack.fill(7 * MIB / 512, 4096, 1),
            [IO_ERROR],
            "{engine}: the error is latched"
        );
    }
}

/// Defect 4: WRITE_ZEROES with UNMAP leaves the unaligned ends of its range unchanged, on a host
/// that frees whole blocks only.
#[test]
fn d04_write_zeroes_with_unmap_zeroes_unaligned_ends() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        for mode in [CacheMode::WriteBack, CacheMode::None] {
            let image = Ext4::new(4096);
            let file = image.file(MIB, 7);
            let device = Loop::with_large_sectors(&file);
            let options = DiskOptions { engine, block_size: Some(512), ..DiskOptions::new(mode) };
            let mut stack = Stack::with(&device.0, &options);
            for (sector, sectors) in [(1, 62), (65, 1), (72, 9), (103, 17), (128, 128), (2047, 1)] {
                assert_eq!(stack.fill(0, MIB, 7), [OK]);
                let zeroed = stack.range(kind::WRITE_ZEROES, sector, sectors, UNMAP);
                assert_eq!(zeroed.status, OK, "{engine}, {mode}: {sector}, {sectors}");
                let range = sector..sector + u64::from(sectors);
                for (at, found) in (0..).zip(stack.read(0, MIB).chunks(512)) {
                    let expected = if range.contains(&at) { 0 } else { 7 };
                    assert_eq!(
                        found, [expected; 512],
                        "{engine}, {mode}: sector {at} of {range:?}"
                    );
                }
            }
        }
    }
}

/// Defect 4: EOPNOTSUPP of a zeroing completed as success. Here the host supports neither holes nor
/// zeroing.
#[test]
fn d04_unsupported_zeroing_falls_back_to_writes() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let mount = Mount::new("ramfs", "mode=700");
        let path = mount.file(0);
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mut stack = Stack::new(&path, CacheMode::WriteBack, engine);
        for flags in [UNMAP, 0] {
            assert_eq!(stack.fill(0, MIB, 7), [OK]);
            assert_eq!(stack.range(kind::WRITE_ZEROES, 1, 300, flags).status, OK);
            let found = stack.read(0, MIB);
            assert!(found[512..301 * 512].iter().all(|byte| *byte == 0), "{engine}");
            assert!(found[..512].iter().chain(&found[301 * 512..]).all(|byte| *byte == 7));
        }
        // Discard is not offered: it would free nothing.
        assert_eq!(stack.disk.device.offered_features() & feature::BLK_DISCARD, 0);
        assert_eq!(stack.range(kind::DISCARD, 0, 8, 0).status, UNSUPPORTED);
    }
}

/// Defect 6: a discard granularity other than the host's, with which the guest frees nothing.
#[test]
fn d06_discard_granularity_is_the_hosts() {
    if !needs::root() {
        return;
    }
    for block in [1024, 4096] {
        let image = Ext4::new(block);
        let file = image.file(MIB, 7);
        let sectors_of = |stack: &Stack| {
            u32::from_le_bytes(stack.disk.device.config(44)) // discard_sector_alignment
        };
        let mut stack = Stack::new(&file, CacheMode::WriteBack, EngineKind::Auto);
        assert_eq!(sectors_of(&stack), block / 512, "a file has its file system's block size");
        let before = kib_used(&file);
        assert_eq!(stack.range(kind::DISCARD, u64::from(block / 512), block / 512, 0).status, OK);
        assert_eq!(
            kib_used(&file),
            before - u64::from(block) / KIB,
            "one block of {block} is free"
        );
        drop(stack);

        let device = Loop::new(&file);
        let queue = Path::new("/sys/block").join(device.0.file_name().unwrap()).join("queue");
        let granularity = std::fs::read_to_string(queue.join("discard_granularity")).unwrap();
        let stack = Stack::new(&device.0, CacheMode::WriteBack, EngineKind::Auto);
        assert_eq!(
            (sectors_of(&stack) * 512).to_string(),
            granularity.trim(),
            "a device has its queue's"
        );
    }
}

/// Defect 7: a sync succeeds after a failed one. Linux reports a lost write once and drops the
/// pages.
#[test]
fn d07_lost_write_is_latched() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (mount, device) = overcommitted();
        let mut stack = Stack::new(&device.0, CacheMode::WriteBack, engine);
        assert_eq!(stack.fill(0, 4 * MIB, 1), [OK; 4]);
        assert_eq!(stack.flush(), IO_ERROR);
        mount.grow("32M"); // A further sync of the host would succeed.
        assert_eq!([stack.flush(), stack.flush()], [IO_ERROR; 2], "{engine}");
        stack.disk.restart();
        assert_eq!(stack.flush(), IO_ERROR, "{engine}: also after a reset of the device");
        assert!(stack.backend.status().lost_writes.is_some());
        let path = device.0.clone();
        drop(stack);
        assert_eq!(
            Stack::new(&path, CacheMode::WriteBack, engine).flush(),
            OK,
            "until the disk is reopened"
        );
    }
}

/// Defect 8: overflow check by `checked_shl(9)`, which checks the shift amount only: sector 2^55
/// becomes byte 0.
#[test]
fn d08_overflowing_sector_is_refused() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(7);
    for sector in [1 << 55, (1 << 55) + 1, u64::MAX >> 9, u64::MAX - 1, u64::MAX] {
        let requests = [
            Request::read(sector, 512),
            Request::write(sector, &[0; 512]),
            Request::ranges(kind::DISCARD, &[(sector, 1, 0)]),
            Request::ranges(kind::WRITE_ZEROES, &[(sector, 1, UNMAP)]),
        ];
        for request in requests {
            assert_eq!(dut.disk.run(&request).status, IO_ERROR, "{request:?}");
        }
    }
    assert_eq!(dut.backend.pushed(), 0, "no request reaches the backend");
    assert!(dut.backend.content().iter().all(|byte| *byte == 7));
    dut.check_works();
}

/// Defect 9: a malformed chain is completed without a status byte, or ends the worker.
#[test]
fn d09_malformed_chain_gets_status_or_needs_reset() {
    let mut dut = DeviceUnderTest::new();
    let status = || Descriptor::writable(STATUS, 1);
    let header = usual_chain(&dut, &Request::read(0, 512))[0];
    for (case, chain) in [
        ("no header", vec![status()]),
        ("half a header", vec![Descriptor::readable(HEADER, 8), status()]),
        ("partial sector", vec![header, Descriptor::writable(DATA, 100), status()]),
        ("data outside memory", vec![header, Descriptor::writable(1 << 60, 512), status()]),
    ] {
        assert_eq!(dut.run_chain(&chain).0, IO_ERROR, "{case}");
        dut.check_works();
    }
    // Without a writable status byte, the device sets DEVICE_NEEDS_RESET and its worker lives.
    for chain in [vec![header], vec![header, Descriptor::writable(1 << 60, 1)]] {
        let mut dut = DeviceUnderTest::new();
        let _ = dut.disk.rings[0].offer(&chain);
        let _ = dut.disk.rings[0].publish();
        dut.kick();
        dut.check_needs_reset();
    }
}

/// Defect 10: guest memory is parsed again at completion, after the guest has changed header,
/// descriptors, indirect table, ring and data length.
#[test]
fn d10_guest_memory_is_parsed_once() {
    for indirect in [false, true] {
        let mut dut = DeviceUnderTest::with(Shape::default(), feature::INDIRECT_DESC);
        dut.backend.fill(0x11);
        dut.backend.pause();
        let chain = usual_chain(&dut, &Request::read(5, 512));
        let ring = &mut dut.disk.rings[0];
        let head =
            if indirect { ring.offer_indirect(dut::TABLE, &chain) } else { ring.offer(&chain) };
        let _ = ring.publish();
        dut.kick();
        wait_for(|| (dut.backend.pushed() == 1).then_some(())).expect("the request is in flight");

        const OTHER: u64 = DATA + 0x1000;
        dut.write(OTHER, &[0xee; 4096]);
        dut.write(HEADER, &Request::write(64, &[]).readable());
        let other = [
            Descriptor::readable(OTHER, 16).then(1),
            Descriptor::writable(OTHER, 4096 - 1).then(2),
            Descriptor::writable(OTHER + 4095, 1),
        ];
        dut.disk.rings[0].set_table(dut::TABLE, &other);
        for index in 0..16 {
            dut.disk.rings[0].set_descriptor(index, other[usize::from(index) % 3]);
            dut.disk.rings[0].set_available(index, 0xffff);
        }
        dut.backend.resume();
        let used = dut.disk.rings[0].wait_used();
        assert_eq!((used.id, used.len, dut.status()), (u32::from(head), 513, OK));
        assert_eq!(dut.read(DATA, 512), [0x11; 512], "the data is in the requested buffer");
        assert_eq!(dut.read(OTHER, 4096), [0xee; 4096], "and nowhere else");
        assert_eq!(dut.backend.content(), vec![0x11; 1 << 16], "the request stays a read");
        dut.check_works_after_reset();
    }
}

/// Defect 11: a discard of a read-only disk is accepted.
#[test]
fn d11_read_only_disk_refuses_discard() {
    for engine in ENGINES {
        let file = tempfile::NamedTempFile::new_in(scratch()).unwrap();
        std::fs::write(file.path(), vec![7; 1 << 20]).unwrap();
        let before = kib_used(file.path());
        let options = DiskOptions { engine, ..DiskOptions::new(CacheMode::WriteBack) };
        let mut stack = Stack::with(file.path(), &options.read_only());
        let changes = feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES;
        assert_eq!(
            stack.disk.device.offered_features() & (changes | feature::BLK_RO),
            feature::BLK_RO
        );
        for (kind, flags) in
            [(kind::DISCARD, 0), (kind::WRITE_ZEROES, UNMAP), (kind::WRITE_ZEROES, 0)]
        {
            assert_ne!(stack.range(kind, 0, 2048, flags).status, OK, "{engine}: {kind}");
        }
        assert_eq!(stack.status(&Request::write(0, &[0; 512])), IO_ERROR);
        assert_eq!(kib_used(file.path()), before);
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![7; 1 << 20]);
    }
}

/// Defect 12: an interrupt per chain instead of per batch.
#[test]
fn d12_one_interrupt_per_batch() {
    for features in [0, feature::EVENT_IDX] {
        let mut dut = DeviceUnderTest::with(Shape::default(), features);
        let line = dut.disk.device.queue_line(0);
        dut.backend.pause();
        let pending: Vec<_> = (0..5).map(|at| dut.disk.submit(&Request::read(at, 512))).collect();
        wait_for(|| (dut.backend.pushed() == 5).then_some(())).expect("all are in flight");
        let _ = line.take();
        dut.backend.resume();
        let outcomes = dut.disk.wait_all(&pending);
        assert!(outcomes.iter().all(|outcome| outcome.status == OK));
        assert_eq!(line.wait(PATIENCE), 1, "five chains, one interrupt");
        dut.check_works();
    }
}
