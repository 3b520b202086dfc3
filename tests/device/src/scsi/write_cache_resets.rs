//! The table "resets and the write cache" of docs/disks.md, virtio-scsi: a test for each cell.
//!
//! The durability of a write after the reset counts, because an initiator that does not read the
//! mode page again sends no flushes.

use std::sync::Arc;

use block::{Durability, Operation};
use devices::virtio::Address;
use driver::{Command, Initiator, TestDisk, response};
use fixtures::wait_for;

use super::{attach, start, write_10};

const I_T_NEXUS_RESET: u32 = 4;
const LOGICAL_UNIT_RESET: u32 = 5;
const UNIT: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
/// Page control of MODE SENSE.
const CURRENT: u8 = 0;
const DEFAULT: u8 = 2 << 6;

/// MODE SELECT (6) of the caching page.
fn select(wce: bool) -> Command {
    let mut list = [0; 24];
    (list[4], list[5], list[6]) = (8, 18, u8::from(wce) << 2);
    Command::new(0, &[0x15, 0x10, 0, 0, 24, 0]).with_data_out(&list)
}

/// WCE of MODE SENSE (6).
fn wce(initiator: &mut Initiator, page_control: u8) -> bool {
    let sense = Command::new(0, &[0x1a, 8, page_control | 8, 0, 24, 0]).with_data_in(24);
    initiator.succeed(&sense)[6] & 4 != 0
}

/// Writes a block and returns the durability that the host is asked for.
fn durability(initiator: &mut Initiator, disk: &TestDisk) -> Durability {
    let _ = disk.take_pushed();
    initiator.succeed(&Command::new(0, &write_10(0, 1)).with_data_out(&[1; 512]));
    let pushed = disk.take_pushed();
    let [Operation::Write { durability, .. }] = pushed[..] else { panic!("{pushed:?}") };
    durability
}

/// Runs `reset`, which raises 29h/`qualifier`, with the write cache `on` before, and checks that
/// the initiator's writes are as durable afterwards.
fn check(on: bool, qualifier: u8, reset: impl FnOnce(&mut Initiator)) {
    let (mut initiator, disk, _bus) = start(1);
    initiator.succeed(&select(on));
    reset(&mut initiator);
    let answer = initiator.run(0, &Command::new(0, &[0; 6]));
    assert_eq!(answer.sense_triple(), (6, 0x29, qualifier));
    let wanted = if on { Durability::Volatile } else { Durability::Durable };
    assert_eq!(durability(&mut initiator, &disk), wanted);
    assert_eq!(wce(&mut initiator, CURRENT), on);
}

fn lun_reset(initiator: &mut Initiator) {
    assert_eq!(initiator.task_management(LOGICAL_UNIT_RESET, UNIT, 0), response::OK);
}

fn nexus_reset(initiator: &mut Initiator) {
    assert_eq!(initiator.task_management(I_T_NEXUS_RESET, UNIT, 0), response::OK);
}

fn device_reset(initiator: &mut Initiator) {
    initiator.device.reset();
    *initiator = Initiator::start(initiator.device.clone(), initiator.features);
}

#[test]
fn lun_reset_keeps_cache_off() {
    check(false, 3, lun_reset);
}

#[test]
fn lun_reset_keeps_cache_on() {
    check(true, 3, lun_reset);
}

#[test]
fn nexus_reset_keeps_cache_off() {
    check(false, 7, nexus_reset);
}

#[test]
fn nexus_reset_keeps_cache_on() {
    check(true, 7, nexus_reset);
}

/// The reset of freeze and restore: Linux negotiates again, but `sd` does not read the page again.
#[test]
fn device_reset_keeps_cache_off() {
    check(false, 0, device_reset);
}

#[test]
fn device_reset_keeps_cache_on() {
    check(true, 0, device_reset);
}

/// A driver that is loaded again, or that of a kernel started by kexec: it reads the state and may
/// switch it.
#[test]
fn new_driver_reads_cache_off() {
    let (mut initiator, disk, _bus) = start(1);
    initiator.succeed(&select(false));
    device_reset(&mut initiator);
    initiator.clear_unit_attention(0);
    assert!(!wce(&mut initiator, CURRENT));
    assert!(!wce(&mut initiator, DEFAULT), "the default is the value that a reset leaves");
    initiator.succeed(&select(true));
    assert_eq!(durability(&mut initiator, &disk), Durability::Volatile);
}

#[test]
fn new_driver_reads_cache_on() {
    let (mut initiator, _disk, _bus) = start(1);
    device_reset(&mut initiator);
    initiator.clear_unit_attention(0);
    assert!(wce(&mut initiator, CURRENT) && wce(&mut initiator, DEFAULT));
}

/// The initiator cannot know whether its MODE SELECT took effect.
#[test]
fn device_reset_during_switch_off_leaves_cache_off() {
    let (mut initiator, disk, _bus) = start(1);
    disk.pause();
    initiator.send(0, &select(false));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    initiator.device.set_status(0);
    disk.resume();
    wait_for(|| (initiator.device.status() == 0).then_some(())).expect("the reset completes");
    initiator = Initiator::start(initiator.device.clone(), initiator.features);
    initiator.clear_unit_attention(0);
    assert_eq!(durability(&mut initiator, &disk), Durability::Durable);
    initiator.succeed(&select(true));
    assert_eq!(durability(&mut initiator, &disk), Durability::Volatile);
}

/// Linux keeps its view of a cache that is off when a second switch to off fails.
#[test]
fn failed_second_switch_off_keeps_cache_off() {
    let (mut initiator, disk, _bus) = start(1);
    initiator.succeed(&select(false));
    disk.fail_next(libc::EIO);
    assert_eq!(initiator.run(0, &select(false)).status, 2, "the flush failed");
    assert_eq!(durability(&mut initiator, &disk), Durability::Durable);
}

/// Detaches the disk and attaches `disk` at the same address, with a driver that does not notice.
fn reattach(on: bool) -> Durability {
    let (mut initiator, disk, bus) = start(1);
    initiator.succeed(&select(on));
    let detached = bus.detach(Address { target: 0, lun: 0 }).unwrap();
    detached.drain().unwrap();
    attach(&bus, 0, 0, Arc::new(disk.clone()));
    initiator.clear_unit_attention(0);
    durability(&mut initiator, &disk)
}

#[test]
fn reattach_keeps_cache_off() {
    assert_eq!(reattach(false), Durability::Durable);
}

#[test]
fn reattach_keeps_cache_on() {
    assert_eq!(reattach(true), Durability::Volatile);
}
