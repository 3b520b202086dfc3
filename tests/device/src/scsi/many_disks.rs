//! Many disks on one request queue: one worker with an engine per disk.

use std::sync::Arc;

use block::{Backend as _, CacheMode, DiskOptions, EngineKind, RawFile};
use devices::storage::OperationKind;
use driver::{Command, Initiator};

use super::{attach, controller, file_disk, read_10, write_10};

/// Concurrent requests to all disks return each disk's data, with either engine.
#[test]
fn one_queue_serves_many_disks() {
    const DISKS: u8 = 9;
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let (device, bus) = controller(2);
        let mut files = Vec::new();
        let mut controls = Vec::new();
        for lun in 0..DISKS {
            let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
            drop(disk);
            let mode = if lun % 2 == 0 { CacheMode::WriteBack } else { CacheMode::None };
            let options = DiskOptions { engine, ..DiskOptions::new(mode) };
            let disk = RawFile::open(file.path(), &options).unwrap();
            controls.push(attach(&bus, 0, lun.into(), Arc::new(disk)));
            files.push(file);
        }
        let mut initiator = Initiator::start(device, u64::MAX);
        (0..DISKS).for_each(|lun| initiator.clear_unit_attention(lun));
        for turn in 0..50u8 {
            let lba = u32::from(turn) * 8;
            let byte = |lun: u8| lun.wrapping_mul(31).wrapping_add(turn);
            for (cdb, reads) in [(write_10(lba, 8), false), (read_10(lba, 8), true)] {
                let command = |lun: u8| {
                    let command = Command::new(lun, &cdb);
                    if reads {
                        command.with_data_in(4096)
                    } else {
                        command.with_data_out(&[byte(lun); 4096])
                    }
                };
                let sent: Vec<_> = (0..DISKS).map(|lun| initiator.send(0, &command(lun))).collect();
                let mut used: Vec<_> =
                    sent.iter().map(|_| initiator.rings[2].wait_used()).collect();
                for (lun, sent) in (0..).zip(&sent) {
                    let mine = used.iter().position(|used| u64::from(used.id) == sent.head_id());
                    let answer = initiator.response(sent, used.remove(mine.unwrap()));
                    assert_eq!((answer.response, answer.status), (0, 0));
                    if reads {
                        assert_eq!(answer.data, [byte(lun); 4096], "{engine}, LUN {lun}");
                    }
                }
            }
        }
        for control in &controls {
            let stats = &control.stats()[0];
            for kind in [OperationKind::Read, OperationKind::Write] {
                let of_kind = stats.kind(kind);
                assert_eq!((of_kind.requests.get(), of_kind.bytes.get()), (50, 50 * 4096));
            }
            assert!(stats.rounds.get() > 0 && stats.answered.get() >= 1);
            assert_eq!(control.stats().len(), 2);
        }
        let idle = || controls.iter().all(|disk| disk.stats()[0].in_flight.get() == 0);
        fixtures::wait_for(|| idle().then_some(())).expect("no request is in flight");
        for control in &controls {
            assert_eq!(control.stats()[0].completion.counts().sum::<u64>(), 100);
        }
        initiator.device.reset();
        assert!(controls.iter().all(|control| control.stats()[0].in_flight.get() == 0));
    }
}

/// A discard parked for a merge wakes its worker, even one that sleeps in poll with nothing else to
/// do.
#[test]
fn partial_granule_completes_with_many_disks() {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let (device, bus) = controller(1);
        let mut files = Vec::new();
        for lun in 0..3 {
            let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
            drop(disk);
            let options = DiskOptions { engine, ..DiskOptions::new(CacheMode::WriteBack) };
            let disk = RawFile::open(file.path(), &options).unwrap();
            assert!(disk.geometry().discard.unwrap().granularity > 512);
            attach(&bus, 0, lun, Arc::new(disk));
            files.push(file);
        }
        let mut initiator = Initiator::start(device, u64::MAX);
        (0..3).for_each(|lun| initiator.clear_unit_attention(lun));
        for lun in 0..3 {
            initiator.succeed(&Command::new(lun, &read_10(0, 8)).with_data_in(4096));
        }
        let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
        unmap.extend(1_u64.to_be_bytes());
        unmap.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        for lun in 0..3 {
            initiator.succeed(
                &Command::new(lun, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]).with_data_out(&unmap),
            );
        }
    }
}

/// Paced discards resume after each cooldown during reads, with nothing else to wake the worker.
#[test]
fn paced_discards_resume_with_many_disks() {
    const UNMAP: [u8; 10] = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let (device, bus) = controller(1);
        let mut files = Vec::new();
        for lun in 0..2 {
            let (file, disk) = file_disk(8 << 30, CacheMode::WriteBack);
            drop(disk);
            let options = DiskOptions { engine, ..DiskOptions::new(CacheMode::WriteBack) };
            let disk = RawFile::open(file.path(), &options).unwrap();
            attach(&bus, 0, lun, Arc::new(disk));
            files.push(file);
        }
        let mut initiator = Initiator::start(device, u64::MAX);
        (0..2).for_each(|lun| initiator.clear_unit_attention(lun));
        let read = |lun| Command::new(lun, &read_10(0, 8)).with_data_in(4096);
        (0..2).for_each(|lun| assert_eq!(initiator.succeed(&read(lun)), [0; 4096]));
        let blocks = 1_u32 << 21;
        for _ in 0..10 {
            let mut sent = 0;
            for piece in 0..8_u64 {
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend((piece * u64::from(blocks)).to_be_bytes());
                list.extend(blocks.to_be_bytes());
                list.extend([0; 4]);
                initiator.send(0, &Command::new(1, &UNMAP).with_data_out(&list));
                initiator.send(0, &read(1));
                sent += 2;
            }
            for _ in 0..sent {
                initiator.rings[2].wait_used();
            }
        }
    }
}

/// The first COMPARE AND WRITE on a disk enables claims in the engines of all its queues, including
/// sleeping ones.
#[test]
fn compare_and_write_completes_with_sleeping_queues() {
    let (device, bus) = controller(3);
    let (_file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let (_other_file, other) = file_disk(1 << 20, CacheMode::WriteBack);
    attach(&bus, 0, 0, Arc::new(disk));
    attach(&bus, 0, 1, Arc::new(other));
    let mut initiator = Initiator::start(device, u64::MAX);
    (0..2).for_each(|lun| initiator.clear_unit_attention(lun));
    // Queue 0 sleeps in its one engine, queue 1 in poll of two, queue 2 has none.
    assert_eq!(initiator.run(0, &Command::new(0, &read_10(0, 1)).with_data_in(512)).status, 0);
    for lun in [1, 0] {
        assert_eq!(
            initiator.run(1, &Command::new(lun, &read_10(0, 1)).with_data_in(512)).status,
            0
        );
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let command = Command::new(0, &cdb).with_data_out(&[[0; 512], [1; 512]].concat());
    assert_eq!(initiator.run(2, &command).status, 0);
    assert_eq!(initiator.run(1, &Command::new(0, &read_10(0, 1)).with_data_in(512)).data, [1; 512]);
}
