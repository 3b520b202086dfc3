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
fn parked_command_is_aborted_immediately() {
    for (function, expected) in [
        (ABORT_TASK, response::ABORTED),
        (ABORT_TASK_SET, response::ABORTED),
        (CLEAR_TASK_SET, response::ABORTED),
        (LOGICAL_UNIT_RESET, response::RESET),
        (I_T_NEXUS_RESET, response::RESET),
    ] {
        let (mut initiator, disk, _) = start(2);
        disk.allow_cancel(true);
        disk.pause();
        let sent =
            initiator.send(1, &Command::new(0, &read_10(0, 1)).with_data_in(512).with_id(77));
        wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
        assert_eq!(initiator.task_management(function, UNIT, 77), response::OK);
        // Before the response to the function.
        let used = initiator.rings[3].take_used().expect("the task is complete");
        let answer = initiator.response(&sent, used);
        assert_eq!((answer.response, answer.residual), (expected, 512), "{function}");
        disk.resume();
        let next = initiator.run(0, &Command::new(0, &[0; 6]));
        match function {
            LOGICAL_UNIT_RESET => assert_eq!(next.sense_triple(), (6, 0x29, 3)),
            I_T_NEXUS_RESET => assert_eq!(next.sense_triple(), (6, 0x29, 7)),
            _ => assert_eq!(next.status, 0),
        }
    }
}

/// A request in flight on the host cannot be cancelled: the abort waits for its completion.
#[test]
fn abort_waits_for_host_request() {
    let (mut initiator, disk, _) = start(1);
    disk.pause();
    let sent =
        initiator.send(0, &Command::new(0, &write_10(0, 1)).with_data_out(&[1; 512]).with_id(5));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let (_, at) = initiator.send_task_management(ABORT_TASK, UNIT, 5);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(initiator.rings[0].take_used().is_none(), "the task is not complete");
    disk.resume();
    initiator.rings[0].wait_used();
    assert_eq!(initiator.device.machine().read(at, 1), [response::OK]);
    let used = initiator.rings[2].take_used().expect("the task is complete");
    assert_eq!(initiator.response(&sent, used).response, response::ABORTED);
}

/// An aborted command of several steps ends after its current step.
#[test]
fn abort_ends_command_after_current_step() {
    let (mut initiator, disk, _) = start(1);
    disk.pause();
    let mut unmap = vec![0, 22, 0, 48, 0, 0, 0, 0];
    for lba in [0u64, 8, 16] {
        unmap.extend(lba.to_be_bytes());
        unmap.extend([0, 0, 0, 4, 0, 0, 0, 0]);
    }
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 56, 0];
    let sent = initiator.send(0, &Command::new(0, &cdb).with_data_out(&unmap).with_id(5));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    initiator.send_task_management(ABORT_TASK, UNIT, 5);
    std::thread::sleep(std::time::Duration::from_millis(50));
    disk.resume();
    initiator.rings[0].wait_used();
    assert_eq!(initiator.wait(0, &sent).response, response::ABORTED);
    assert_eq!(disk.take_pushed().len(), 1);
}

/// Aborting a MODE SELECT that disables the write cache does not abort its flush, which makes
/// completed writes durable; if the flush fails, the cache stays enabled.
#[test]
fn aborted_write_cache_switch_still_flushes() {
    for errno in [None, Some(libc::EIO)] {
        let (mut initiator, disk, _) = start(1);
        disk.allow_cancel(true);
        disk.pause();
        let wce_off = [0, 0, 0, 0, 8, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let select = [0x15, 0x10, 0, 0, 24, 0];
        let sent = initiator.send(0, &Command::new(0, &select).with_data_out(&wce_off).with_id(5));
        wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
        initiator.send_task_management(ABORT_TASK, UNIT, 5);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(initiator.rings[2].take_used().is_none(), "the flush is in flight");
        if let Some(errno) = errno {
            disk.fail_next(errno);
        }
        disk.resume();
        assert_eq!(initiator.wait(0, &sent).response, response::ABORTED);
        let sense = initiator.run(0, &Command::new(0, &[0x1a, 8, 8, 0, 24, 0]).with_data_in(24));
        assert_eq!(sense.data[6] & 4 != 0, errno.is_some(), "{errno:?}");
    }
}

#[test]
fn only_matching_tasks_are_aborted() {
    let (mut initiator, disk, _) = start(2);
    disk.allow_cancel(true);
    disk.pause();
    let named = |id| Command::new(0, &read_10(0, 1)).with_data_in(512).with_id(id);
    let (one, two) = (initiator.send(0, &named(1)), initiator.send(1, &named(2)));
    wait_for(|| (disk.pushed() == 2).then_some(())).unwrap();
    assert_eq!(initiator.task_management(QUERY_TASK, UNIT, 2), response::FUNCTION_SUCCEEDED);
    assert_eq!(initiator.task_management(QUERY_TASK, UNIT, 3), response::OK);
    assert_eq!(initiator.task_management(QUERY_TASK_SET, UNIT, 0), response::FUNCTION_SUCCEEDED);
    assert_eq!(initiator.task_management(ABORT_TASK, UNIT, 3), response::OK);
    assert_eq!(initiator.task_management(ABORT_TASK, UNIT, 2), response::OK);
    assert_eq!(initiator.wait(1, &two).response, response::ABORTED);
    assert!(initiator.rings[2].take_used().is_none());
    disk.resume();
    assert_eq!(initiator.wait(0, &one).response, response::OK);
    assert_eq!(
        initiator.task_management(QUERY_TASK_SET, UNIT, 0),
        response::OK,
        "the task set is empty"
    );
    assert_eq!(initiator.task_management(ABORT_TASK, UNIT, 1), response::OK);
}

#[test]
fn functions_for_nonexistent_units_are_rejected() {
    let (mut initiator, _, _) = start(1);
    assert_eq!(initiator.task_management(CLEAR_ACA, UNIT, 0), response::FUNCTION_REJECTED);
    assert_eq!(initiator.task_management(99, UNIT, 0), response::FUNCTION_REJECTED);
    assert_eq!(
        initiator.task_management(ABORT_TASK, [1, 3, 0, 0, 0, 0, 0, 0], 0),
        response::BAD_TARGET
    );
    assert_eq!(initiator.task_management(ABORT_TASK, [9; 8], 0), response::BAD_TARGET);
    assert_eq!(
        initiator.task_management(ABORT_TASK, [1, 0, 0, 1, 0, 0, 0, 0], 0),
        response::INCORRECT_LUN
    );
    assert_eq!(
        initiator.task_management(I_T_NEXUS_RESET, [1, 0, 9, 9, 0, 0, 0, 0], 0),
        response::OK
    );
}

#[test]
fn no_asynchronous_notifications() {
    let (mut initiator, _, _) = start(1);
    for (kind, lun, expected) in [
        (1u32, UNIT, response::OK),
        (2, UNIT, response::OK),
        (1, [1, 0, 0, 9, 0, 0, 0, 0], response::INCORRECT_LUN),
        (2, [1, 9, 0, 0, 0, 0, 0, 0], response::BAD_TARGET),
    ] {
        let request = [&kind.to_le_bytes()[..], &lun, &[0xff; 4]].concat();
        let readable = initiator.readable(&request);
        let at = initiator.writable_buffer(5, 0xa5);
        initiator.offer(0, &[readable, Descriptor::writable(at, 5)]);
        assert_eq!(initiator.rings[0].wait_used().len, 5);
        assert_eq!(initiator.device.machine().read(at, 5), [0, 0, 0, 0, expected]);
    }
    // An unknown request type.
    let readable = initiator.readable(&[7; 24]);
    let at = initiator.writable_buffer(1, 0xa5);
    initiator.offer(0, &[readable, Descriptor::writable(at, 1)]);
    initiator.rings[0].wait_used();
    assert_eq!(initiator.device.machine().read(at, 1), [response::FAILURE]);
}

/// A reset does not wait for a function that waits for a slow disk.
#[test]
fn reset_ends_pending_function() {
    let (mut initiator, disk, _) = start(1);
    disk.pause();
    initiator.send(0, &Command::new(0, &read_10(0, 1)).with_data_in(512).with_id(5));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    initiator.send_task_management(LOGICAL_UNIT_RESET, UNIT, 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    initiator.device.set_status(0);
    disk.resume();
    wait_for(|| (initiator.device.status() == 0).then_some(())).expect("the reset completes");
    assert_eq!(disk.engines(), 0);
}
