//! Drivers that modify memory or reset the device while requests are in flight.

use std::time::{Duration, Instant};

use driver::{Descriptor, Framing, Request, kind, status};
use fixtures::wait_for;

use super::dut::{DATA, DeviceUnderTest, HEADER, OK, usual_chain};

/// Waits until `count` requests are pushed to the backend.
#[track_caller]
fn wait_pushed(dut: &DeviceUnderTest, count: usize) {
    wait_for(|| (dut.backend.pushed() == count).then_some(())).expect("the requests are pushed");
}

/// Header, descriptors and ring are read once: later changes have no effect.
#[test]
fn ring_and_header_rewritten_after_kick() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(0x11);
    dut.backend.pause();
    let chain = usual_chain(&dut, &Request::read(5, 512));
    let head = dut.disk.rings[0].offer(&chain);
    let _ = dut.disk.rings[0].publish();
    dut.kick();
    wait_pushed(&dut, 1);

    dut.write(HEADER, &Request::write(SECTORS_AWAY, &[]).readable());
    for index in 0..16 {
        dut.disk.rings[0].set_descriptor(index, Descriptor::writable(0, 1 << 20).then(index));
        dut.disk.rings[0].set_available(index, 0xffff);
    }
    dut.backend.resume();
    let used = dut.disk.rings[0].wait_used();
    assert_eq!((used.id, used.len, dut.status()), (u32::from(head), 513, OK));
    assert_eq!(dut.read(DATA, 512), [0x11; 512]);
    assert_eq!(dut.backend.content(), vec![0x11; 1 << 16], "the request stays a read");
    dut.check_works_after_reset();
}

const SECTORS_AWAY: u64 = 64;

/// Data modified during a write is written in its old or new state, and nowhere else.
#[test]
fn data_rewritten_after_kick() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.pause();
    let chain = usual_chain(&dut, &Request::write(9, &[0x22; 512]));
    let _ = dut.disk.rings[0].offer(&chain);
    let _ = dut.disk.rings[0].publish();
    dut.kick();
    wait_pushed(&dut, 1);
    dut.write(HEADER + 16, &[0x33; 512]);
    dut.backend.resume();
    let _ = dut.disk.rings[0].wait_used();
    let content = dut.backend.content();
    assert_eq!(content[9 * 512..10 * 512], [0x33; 512]);
    assert!(content[..9 * 512].iter().chain(&content[10 * 512..]).all(|byte| *byte == 0));
    dut.check_works_after_reset();
}

/// Limit of a register access while the disk is paused.
const ACCESS_LIMIT: Duration = Duration::from_millis(500);

/// §4.1.4.3.2: device status reads non-zero until the reset is complete, and no vCPU waits for it.
/// Afterwards the device does not access guest memory.
#[test]
fn reset_with_requests_in_flight() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(0x44);
    dut.backend.pause();
    let pending: Vec<_> = (0..4).map(|at| dut.disk.submit(&Request::read(at, 512))).collect();
    wait_pushed(&dut, 4);
    let used = dut.disk.rings[0].used_index();

    let device = dut.disk.device.clone();
    let start = Instant::now();
    device.set_status(0);
    for _ in 0..100 {
        assert_ne!(device.status(), 0, "four requests are in flight");
    }
    // Writes of a driver that does not wait are ignored.
    device.set_status(status::ACKNOWLEDGE);
    assert_ne!(device.status(), status::ACKNOWLEDGE);
    dut.kick();
    assert!(start.elapsed() < ACCESS_LIMIT, "register accesses do not wait for the disk");
    assert_eq!(dut.backend.engines(), 1);

    dut.backend.resume();
    wait_for(|| (device.status() == 0).then_some(())).expect("the reset completes");
    assert_eq!((dut.backend.engines(), dut.backend.drained()), (0, 4));
    assert_eq!(dut.disk.rings[0].used_index(), used, "no chain is used after the reset");

    // The driver owns the memory again.
    for request in &pending {
        dut.write(request.writable, &[0; 513]);
    }
    dut.kick();
    std::thread::sleep(Duration::from_millis(20));
    for request in &pending {
        assert_eq!(dut.read(request.writable, 513), [0; 513]);
    }
    dut.check_works_after_reset();
}

/// Repeated resets, as at a power-off of the guest.
#[test]
fn resets_in_quick_succession() {
    let mut dut = DeviceUnderTest::new();
    for round in 0..200 {
        for at in 0..round % 5 {
            let _ = dut.disk.submit(&Request::write(at, &[1; 512]));
        }
        dut.disk.device.set_status(0);
        dut.disk.restart();
    }
    dut.check_works();
}

/// A reset during a reset has no further effect.
#[test]
fn reset_during_reset() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.pause();
    let _ = dut.disk.submit(&Request::bare(kind::FLUSH));
    wait_pushed(&dut, 1);
    dut.disk.device.set_status(0);
    dut.disk.device.set_status(0);
    assert_ne!(dut.disk.device.status(), 0);
    dut.backend.resume();
    dut.check_works_after_reset();
}

/// A malformed chain does not affect earlier requests.
#[test]
fn requests_before_malformed_chain_complete() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.pause();
    let request = Request::write(7, &[0x77; 512]);
    let pending = dut.disk.offer(0, &request, &Framing::usual(&request));
    dut.disk.kick(0);
    wait_pushed(&dut, 1);
    dut.disk.rings[0].offer_raw(99);
    dut.kick();
    wait_for(|| dut.disk.device.needs_reset().then_some(())).expect("the device needs a reset");
    dut.backend.resume();
    let used = dut.disk.rings[0].wait_used();
    assert_eq!(dut.disk.outcome(&pending, used).status, OK);
    assert_eq!(dut.backend.content()[7 * 512..8 * 512], [0x77; 512]);
    dut.check_works_after_reset();
}

/// Kicks after DEVICE_NEEDS_RESET cost no CPU time.
#[test]
fn kicks_after_needs_reset() {
    let mut dut = DeviceUnderTest::new();
    dut.disk.rings[0].offer_raw(99);
    dut.kick();
    wait_for(|| dut.disk.device.needs_reset().then_some(())).expect("the device needs a reset");
    for _ in 0..1000 {
        dut.kick();
    }
    std::thread::sleep(Duration::from_millis(20));
    let waits = dut.backend.waits();
    std::thread::sleep(Duration::from_millis(100));
    assert!(dut.backend.waits() <= waits + 1, "the worker sleeps");
    assert_eq!(dut.disk.rings[0].used_index(), 0);
    dut.check_needs_reset();
}

/// Requests completed out of order keep their chains.
#[test]
fn completions_out_of_order() {
    let mut dut = DeviceUnderTest::new();
    let content: Vec<u8> = (0..1u32 << 16).map(|at| at.to_le_bytes()[1]).collect();
    dut.backend.set_content(&content);
    dut.backend.pause();
    dut.backend.in_reverse(true);
    let pending: Vec<_> = (0..5).map(|at| dut.disk.submit(&Request::read(at * 7, 512))).collect();
    wait_pushed(&dut, 5);
    dut.backend.resume();
    for (outcome, at) in dut.disk.wait_all(&pending).into_iter().zip(0..) {
        assert_eq!(outcome.status, OK);
        assert_eq!(outcome.data, content[at * 7 * 512..][..512]);
    }
    assert_eq!(dut.disk.rings[0].used_entry(0).id, u32::from(pending[4].head), "in reverse order");
    dut.check_works();
}
