//! The defects that others have shipped, one test or more each: what goes wrong, and that it does
//! not go wrong here.
//!
//! Through the whole stack, as a driver sees it, over real files and devices of hosts made for the
//! purpose; over both engines where the engine may matter. Most need root: without it they say so
//! and check nothing.

mod slow;
mod stack;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block::{Backend, CacheMode, DiskOptions, EngineKind};
use driver::{Descriptor, Request, Shape, feature, kind};
use fixtures::{PATIENCE, scratch, wait_for};

use crate::hostile::victim;
use fixtures::host::{Loop, Mount, is_root};
use stack::{ENGINES, Ext4, IO_ERROR, KIB, MIB, OK, Stack, UNSUPPORTED, overcommitted};
use victim::{DATA, HEADER, STATUS, Victim, usual_chain};

const UNMAP: u32 = 1;

fn kib_used(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() / 2
}

/// Defect 1: A FLUSH that writes nothing back (`File::flush` is a no-op). Here the host cannot
/// write back what its page cache took: only who asks it learns of that.
#[test]
fn d01_a_flush_asks_the_host_to_write_back() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let (_mount, device) = overcommitted();
        let mut stack = Stack::new(&device.0, CacheMode::WriteBack, engine);
        assert_eq!(stack.flush(), OK);
        assert_eq!(stack.fill(0, 4 * MIB, 1), [OK; 4], "{engine}: the page cache takes it");
        assert_eq!(stack.flush(), IO_ERROR, "{engine}");
    }
}

/// Defect 2: A short write taken as a success: what ENOSPC in the middle of a write looks like. The
/// host takes the first half, says so, and only when asked to go on says why not.
#[test]
fn d02_a_short_transfer_is_no_success() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let mount = Mount::new("tmpfs", "size=1M");
        let path = mount.file(8 * MIB);
        let mut stack = Stack::new(&path, CacheMode::WriteBack, engine);
        let two_mib = Request::write(0, &vec![1; 2 << 20]);
        assert_eq!(stack.status(&two_mib), IO_ERROR, "{engine}");
        assert_eq!(kib_used(&path), KIB, "{engine}: the host did take the first half");
        mount.grow("32M");
        assert_eq!(stack.status(&two_mib), OK, "{engine}");
        assert!(stack.read(0, 2 * MIB).iter().all(|byte| *byte == 1));
        // A read of a file that somebody cut short ends in the middle as well.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap();
        assert_eq!(stack.status(&Request::read(0, 2 << 20)), IO_ERROR, "{engine}");
    }
}

/// Defect 3: The result of write-through's sync dropped.
#[test]
fn d03_write_through_tells_of_a_failed_sync() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let (_mount, device) = overcommitted();
        let mut stack = Stack::new(&device.0, CacheMode::WriteThrough, engine);
        let told = stack.fill(0, 4 * MIB, 1);
        assert!(
            told.contains(&IO_ERROR),
            "{engine}: four writes, and room for less than one: {told:?}"
        );
        assert_eq!(
            stack.fill(7 * MIB / 512, 4096, 1),
            [IO_ERROR],
            "{engine}: and it is not forgotten"
        );
    }
}

/// Defect 4: WRITE_ZEROES with UNMAP on a host that frees only whole blocks: the ends of the range
/// keep what they held.
#[test]
fn d04_zeroing_with_unmap_zeroes_its_unaligned_ends() {
    if !is_root() {
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

/// Defect 4, too: "Not supported" mapped to success: here the host can neither punch holes nor
/// zero.
#[test]
fn d04_zeroing_that_the_host_cannot_do_is_done() {
    if !is_root() {
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
        // And no discard is offered where it frees nothing.
        assert_eq!(stack.disk.device.offered_features() & feature::BLK_DISCARD, 0);
        assert_eq!(stack.range(kind::DISCARD, 0, 8, 0).status, UNSUPPORTED);
    }
}

/// Defect 6: A granularity that is not the host's: the guest then frees nothing. Here it is what
/// the host says, and what is freed in that unit is free.
#[test]
fn d06_the_discard_granularity_is_the_hosts() {
    if !is_root() {
        return;
    }
    for block in [1024, 4096] {
        let image = Ext4::new(block);
        let file = image.file(MIB, 7);
        let sectors_of = |stack: &Stack| {
            u32::from_le_bytes(stack.disk.device.config(44)) // discard_sector_alignment
        };
        let mut stack = Stack::new(&file, CacheMode::WriteBack, EngineKind::Auto);
        assert_eq!(sectors_of(&stack), block / 512, "a file's: its file system's block");
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
        let said = std::fs::read_to_string(queue.join("discard_granularity")).unwrap();
        let stack = Stack::new(&device.0, CacheMode::WriteBack, EngineKind::Auto);
        assert_eq!((sectors_of(&stack) * 512).to_string(), said.trim(), "a device's: its queue's");
    }
}

/// Defect 7: A failed sync forgotten by the next: Linux reports a lost write once, and drops the
/// pages.
#[test]
fn d07_a_lost_write_is_never_acknowledged_later() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let (mount, device) = overcommitted();
        let mut stack = Stack::new(&device.0, CacheMode::WriteBack, engine);
        assert_eq!(stack.fill(0, 4 * MIB, 1), [OK; 4]);
        assert_eq!(stack.flush(), IO_ERROR);
        mount.grow("32M"); // The host is well again, and would say so.
        assert_eq!([stack.flush(), stack.flush()], [IO_ERROR; 2], "{engine}");
        stack.disk.restart();
        assert_eq!(stack.flush(), IO_ERROR, "{engine}: also after the driver has reset the device");
        assert!(stack.backend.status().lost_writes);
        let path = device.0.clone();
        drop(stack);
        assert_eq!(
            Stack::new(&path, CacheMode::WriteBack, engine).flush(),
            OK,
            "until it is reopened"
        );
    }
}

/// Defect 8: `checked_shl(9)` as a check for overflow: it checks the shift, and sector 2^55 becomes
/// byte 0.
#[test]
fn d08_a_sector_that_overflows_is_refused() {
    let mut victim = Victim::new();
    victim.backend.fill(7);
    for sector in [1 << 55, (1 << 55) + 1, u64::MAX >> 9, u64::MAX - 1, u64::MAX] {
        let requests = [
            Request::read(sector, 512),
            Request::write(sector, &[0; 512]),
            Request::ranges(kind::DISCARD, &[(sector, 1, 0)]),
            Request::ranges(kind::WRITE_ZEROES, &[(sector, 1, UNMAP)]),
        ];
        for request in requests {
            assert_eq!(victim.disk.run(&request).status, IO_ERROR, "{request:?}");
        }
    }
    assert_eq!(victim.backend.pushed(), 0, "none reaches the disk");
    assert!(victim.backend.content().iter().all(|byte| *byte == 7));
    victim.works();
}

/// Defect 9: A malformed chain that is completed without a status byte, or ends the worker.
#[test]
fn d09_a_malformed_chain_gets_its_status_or_asks_for_a_reset() {
    let mut victim = Victim::new();
    let status = || Descriptor::writable(STATUS, 1);
    let header = usual_chain(&victim, &Request::read(0, 512))[0];
    for (what, chain) in [
        ("no header", vec![status()]),
        ("half a header", vec![Descriptor::readable(HEADER, 8), status()]),
        ("part of a sector", vec![header, Descriptor::writable(DATA, 100), status()]),
        ("data outside of memory", vec![header, Descriptor::writable(1 << 60, 512), status()]),
    ] {
        assert_eq!(victim.answer(&chain).0, IO_ERROR, "{what}");
        victim.works();
    }
    // Where no status can be written, the device says that it cannot go on, and lives.
    for chain in [vec![header], vec![header, Descriptor::writable(1 << 60, 1)]] {
        let mut victim = Victim::new();
        let _ = victim.disk.rings[0].offer(&chain);
        let _ = victim.disk.rings[0].publish();
        victim.kick();
        victim.needs_reset();
    }
}

/// Defect 10: Guest memory parsed again at completion, when the guest may have changed it: header,
/// descriptors, indirect table, ring and the length of the data are all something else by then.
#[test]
fn d10_guest_memory_is_not_parsed_again_at_completion() {
    for indirect in [false, true] {
        let mut victim = Victim::with(Shape::default(), feature::INDIRECT_DESC);
        victim.backend.fill(0x11);
        victim.backend.pause();
        let chain = usual_chain(&victim, &Request::read(5, 512));
        let ring = &mut victim.disk.rings[0];
        let head =
            if indirect { ring.offer_indirect(victim::TABLE, &chain) } else { ring.offer(&chain) };
        let _ = ring.publish();
        victim.kick();
        wait_for(|| (victim.backend.pushed() == 1).then_some(())).expect("it is in flight");

        const ELSEWHERE: u64 = DATA + 0x1000;
        victim.write(ELSEWHERE, &[0xee; 4096]);
        victim.write(HEADER, &Request::write(64, &[]).readable());
        let other = [
            Descriptor::readable(ELSEWHERE, 16).then(1),
            Descriptor::writable(ELSEWHERE, 4096 - 1).then(2),
            Descriptor::writable(ELSEWHERE + 4095, 1),
        ];
        victim.disk.rings[0].set_table(victim::TABLE, &other);
        for index in 0..16 {
            victim.disk.rings[0].set_descriptor(index, other[usize::from(index) % 3]);
            victim.disk.rings[0].set_available(index, 0xffff);
        }
        victim.backend.resume();
        let used = victim.disk.rings[0].wait_used();
        assert_eq!((used.id, used.len, victim.status()), (u32::from(head), 513, OK));
        assert_eq!(victim.read(DATA, 512), [0x11; 512], "the data goes where it was asked for");
        assert_eq!(victim.read(ELSEWHERE, 4096), [0xee; 4096], "and nothing anywhere else");
        assert_eq!(victim.backend.content(), vec![0x11; 1 << 16], "a read stays a read");
        victim.works_after_reset();
    }
}

/// Defect 11: A discard accepted on a read-only disk.
#[test]
fn d11_a_read_only_disk_is_not_discarded() {
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

/// Defect 12: An interrupt for each chain rather than for each batch.
#[test]
fn d12_a_batch_has_one_interrupt() {
    for features in [0, feature::EVENT_IDX] {
        let mut victim = Victim::with(Shape::default(), features);
        let line = victim.disk.device.queue_line(0);
        victim.backend.pause();
        let pending: Vec<_> =
            (0..5).map(|at| victim.disk.submit(&Request::read(at, 512))).collect();
        wait_for(|| (victim.backend.pushed() == 5).then_some(())).expect("all are in flight");
        let _ = line.take();
        victim.backend.resume();
        let outcomes = victim.disk.wait_all(&pending);
        assert!(outcomes.iter().all(|outcome| outcome.status == OK));
        assert_eq!(line.wait(PATIENCE), 1, "five chains, one interrupt");
        victim.works();
    }
}
