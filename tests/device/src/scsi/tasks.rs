//! Task management (§5.6.6.2, SAM-5 §7).

use driver::{Command, Descriptor, response};
use fixtures::wait_for;

use super::{read_10, start, write_10};

const ABORT_TASK: u32 = 0;
const ABORT_TASK_SET: u32 = 1;
const CLEAR_ACA: u32 = 2;
const CLEAR_TASK_SET: u32 = 3;
const I_T_NEXUS_RESET: u32 = 4;
const LOGICAL_UNIT_RESET: u32 = 5;
const QUERY_TASK: u32 = 6;
const QUERY_TASK_SET: u32 = 7;

const UNIT: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn what_waits_is_aborted_at_once() {
    for (function, expected) in [
        (ABORT_TASK, response::ABORTED),
        (ABORT_TASK_SET, response::ABORTED),
        (CLEAR_TASK_SET, response::ABORTED),
        (LOGICAL_UNIT_RESET, response::RESET),
        (I_T_NEXUS_RESET, response::RESET),
    ] {
        let (mut host, disk, _) = start(2);
        disk.allow_cancel(true);
        disk.pause();
        let sent = host.send(1, &Command::new(0, &read_10(0, 1)).with_data_in(512).with_id(77));
        wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
        assert_eq!(host.task_management(function, UNIT, 77), response::OK);
        // Before the function was answered.
        let used = host.rings[3].take_used().expect("the task has ended");
        let answer = host.response(&sent, used);
        assert_eq!((answer.response, answer.residual), (expected, 512), "{function}");
        disk.resume();
        let next = host.run(0, &Command::new(0, &[0; 6]));
        match function {
            LOGICAL_UNIT_RESET => assert_eq!(next.sense_triple(), (6, 0x29, 3)),
            I_T_NEXUS_RESET => assert_eq!(next.sense_triple(), (6, 0x29, 7)),
            _ => assert_eq!(next.status, 0),
        }
    }
}

/// What the host works on cannot be taken back: its end is waited for, and told as an abort.
#[test]
fn what_cannot_be_aborted_is_waited_for() {
    let (mut host, disk, _) = start(1);
    disk.pause();
    let sent = host.send(0, &Command::new(0, &write_10(0, 1)).with_data_out(&[1; 512]).with_id(5));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let (_, at) = host.send_task_management(ABORT_TASK, UNIT, 5);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(host.rings[0].take_used().is_none(), "the task has not ended");
    disk.resume();
    host.rings[0].wait_used();
    assert_eq!(host.device.machine().read(at, 1), [response::OK]);
    let used = host.rings[2].take_used().expect("the task has ended");
    assert_eq!(host.response(&sent, used).response, response::ABORTED);
}

/// A command of many steps ends after the one that is under way.
#[test]
fn no_further_step_is_taken_after_an_abort() {
    let (mut host, disk, _) = start(1);
    disk.pause();
    let mut unmap = vec![0, 22, 0, 48, 0, 0, 0, 0];
    for lba in [0u64, 8, 16] {
        unmap.extend(lba.to_be_bytes());
        unmap.extend([0, 0, 0, 4, 0, 0, 0, 0]);
    }
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 56, 0];
    let sent = host.send(0, &Command::new(0, &cdb).with_data_out(&unmap).with_id(5));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    host.send_task_management(ABORT_TASK, UNIT, 5);
    std::thread::sleep(std::time::Duration::from_millis(50));
    disk.resume();
    host.rings[0].wait_used();
    assert_eq!(host.wait(0, &sent).response, response::ABORTED);
    assert_eq!(disk.take_pushed().len(), 1);
}

/// The driver may have been told of writes that the flush of a switched-off cache makes durable:
/// who aborts the switch does not abort that, and where it fails, the cache is on as before.
#[test]
fn an_aborted_switch_of_the_write_cache_leaves_nothing_volatile() {
    for errno in [None, Some(libc::EIO)] {
        let (mut host, disk, _) = start(1);
        disk.allow_cancel(true);
        disk.pause();
        let wce_off = [0, 0, 0, 0, 8, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let select = [0x15, 0x10, 0, 0, 24, 0];
        let sent = host.send(0, &Command::new(0, &select).with_data_out(&wce_off).with_id(5));
        wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
        host.send_task_management(ABORT_TASK, UNIT, 5);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(host.rings[2].take_used().is_none(), "the flush goes on");
        if let Some(errno) = errno {
            disk.fail_next(errno);
        }
        disk.resume();
        assert_eq!(host.wait(0, &sent).response, response::ABORTED);
        let sense = host.run(0, &Command::new(0, &[0x1a, 8, 8, 0, 24, 0]).with_data_in(24));
        assert_eq!(sense.data[6] & 4 != 0, errno.is_some(), "{errno:?}");
    }
}

#[test]
fn only_the_tasks_that_are_meant_end() {
    let (mut host, disk, _) = start(2);
    disk.allow_cancel(true);
    disk.pause();
    let named = |id| Command::new(0, &read_10(0, 1)).with_data_in(512).with_id(id);
    let (one, two) = (host.send(0, &named(1)), host.send(1, &named(2)));
    wait_for(|| (disk.pushed() == 2).then_some(())).unwrap();
    assert_eq!(host.task_management(QUERY_TASK, UNIT, 2), response::FUNCTION_SUCCEEDED);
    assert_eq!(host.task_management(QUERY_TASK, UNIT, 3), response::OK);
    assert_eq!(host.task_management(QUERY_TASK_SET, UNIT, 0), response::FUNCTION_SUCCEEDED);
    assert_eq!(host.task_management(ABORT_TASK, UNIT, 3), response::OK);
    assert_eq!(host.task_management(ABORT_TASK, UNIT, 2), response::OK);
    assert_eq!(host.wait(1, &two).response, response::ABORTED);
    assert!(host.rings[2].take_used().is_none());
    disk.resume();
    assert_eq!(host.wait(0, &one).response, response::OK);
    assert_eq!(host.task_management(QUERY_TASK_SET, UNIT, 0), response::OK, "nothing is left");
    assert_eq!(host.task_management(ABORT_TASK, UNIT, 1), response::OK);
}

#[test]
fn functions_for_nobody_are_refused() {
    let (mut host, _, _) = start(1);
    assert_eq!(host.task_management(CLEAR_ACA, UNIT, 0), response::FUNCTION_REJECTED);
    assert_eq!(host.task_management(99, UNIT, 0), response::FUNCTION_REJECTED);
    assert_eq!(host.task_management(ABORT_TASK, [1, 3, 0, 0, 0, 0, 0, 0], 0), response::BAD_TARGET);
    assert_eq!(host.task_management(ABORT_TASK, [9; 8], 0), response::BAD_TARGET);
    assert_eq!(
        host.task_management(ABORT_TASK, [1, 0, 0, 1, 0, 0, 0, 0], 0),
        response::INCORRECT_LUN
    );
    assert_eq!(host.task_management(I_T_NEXUS_RESET, [1, 0, 9, 9, 0, 0, 0, 0], 0), response::OK);
}

#[test]
fn nothing_can_be_subscribed_to() {
    let (mut host, _, _) = start(1);
    for (kind, lun, expected) in [
        (1u32, UNIT, response::OK),
        (2, UNIT, response::OK),
        (1, [1, 0, 0, 9, 0, 0, 0, 0], response::INCORRECT_LUN),
        (2, [1, 9, 0, 0, 0, 0, 0, 0], response::BAD_TARGET),
    ] {
        let request = [&kind.to_le_bytes()[..], &lun, &[0xff; 4]].concat();
        let readable = host.readable(&request);
        let at = host.writable_buffer(5, 0xa5);
        host.offer(0, &[readable, Descriptor::writable(at, 5)]);
        assert_eq!(host.rings[0].wait_used().len, 5);
        assert_eq!(host.device.machine().read(at, 5), [0, 0, 0, 0, expected]);
    }
    // No type of request.
    let readable = host.readable(&[7; 24]);
    let at = host.writable_buffer(1, 0xa5);
    host.offer(0, &[readable, Descriptor::writable(at, 1)]);
    host.rings[0].wait_used();
    assert_eq!(host.device.machine().read(at, 1), [response::FAILURE]);
}

/// A reset of the device does not wait for a function that waits for a slow disk.
#[test]
fn a_reset_ends_a_function_that_waits() {
    let (mut host, disk, _) = start(1);
    disk.pause();
    host.send(0, &Command::new(0, &read_10(0, 1)).with_data_in(512).with_id(5));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    host.send_task_management(LOGICAL_UNIT_RESET, UNIT, 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    host.device.set_status(0);
    disk.resume();
    wait_for(|| (host.device.status() == 0).then_some(())).expect("the reset ends");
    assert_eq!(disk.engines(), 0);
}
