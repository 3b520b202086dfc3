//! Attacks on the ring: data over the ring, duplicate heads, endless submission.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::GuestMemory;
use driver::{Data, Descriptor, Request, Ring, kind};
use fixtures::wait_for;
use vm_memory::{Bytes, GuestAddress};

use super::dut::{DATA, DeviceUnderTest, HEADER, OK, STATUS, TABLE, UNTOUCHED};

/// Reads the first sector to `addr` and waits for the status byte.
fn read_over(dut: &mut DeviceUnderTest, addr: u64) {
    let _ = dut.write_request(&Request::read(0, 512));
    let chain = [
        Descriptor::readable(HEADER, 16),
        Descriptor::writable(addr, 512),
        Descriptor::writable(STATUS, 1),
    ];
    let _ = dut.disk.rings[0].offer(&chain);
    let _ = dut.disk.rings[0].publish();
    dut.kick();
    wait_for(|| (dut.status() == OK).then_some(())).expect("the read completes");
}

/// A read over its own descriptor table completes: the table was read before.
#[test]
fn data_over_descriptor_table() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(0xee);
    let table = dut.disk.rings[0].layout().descriptors;
    read_over(&mut dut, table);
    assert_eq!(dut.disk.rings[0].wait_used().len, 513);
    // The next chain uses the overwritten table and is malformed.
    dut.disk.rings[0].offer_raw(0);
    dut.kick();
    dut.check_needs_reset();
}

/// The available index is then 0xeeee, beyond the ring.
#[test]
fn data_over_available_ring() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(0xee);
    let available = dut.disk.rings[0].layout().available;
    read_over(&mut dut, available);
    dut.kick();
    dut.check_needs_reset();
}

/// The device does not read its used ring.
#[test]
fn data_over_used_ring() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(0xee);
    let used = dut.disk.rings[0].layout().used;
    read_over(&mut dut, used);
    wait_for(|| (dut.disk.rings[0].used_index() == 1).then_some(())).expect("one chain is used");
    assert!(!dut.disk.device.needs_reset());
    dut.check_works_after_reset();
}

/// A status byte over the available index: the device validates an index it wrote itself.
#[test]
fn status_byte_over_available_index() {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    let index = dut.disk.rings[0].layout().available + 2;
    // The upper byte: the index jumps from 1 to 0x0201.
    let request = Request { kind: 99, sector: 0, data: Data::Out(vec![]) };
    let _ = dut.write_request(&request);
    let chain = [Descriptor::readable(HEADER, 16), Descriptor::writable(index + 1, 1)];
    let _ = dut.disk.rings[0].offer(&chain);
    let _ = dut.disk.rings[0].publish();
    dut.kick();
    dut.check_needs_reset();
}

/// One head made available twice is two requests, which both complete.
#[test]
fn duplicate_head_in_flight() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.pause();
    let _ = dut.write_request(&Request::read(0, 512));
    let header = Descriptor::readable(HEADER, 16);
    let rest = [Descriptor::writable(DATA, 512).then(2), Descriptor::writable(STATUS, 1)];
    for (index, descriptor) in (0..).zip([header.then(1), rest[0], rest[1]]) {
        dut.disk.rings[0].set_descriptor(index, descriptor);
    }
    for _ in 0..16 {
        dut.disk.rings[0].offer_raw(0);
    }
    dut.kick();
    wait_for(|| (dut.backend.pushed() == 16).then_some(())).expect("all are pushed");
    dut.backend.resume();
    for _ in 0..16 {
        assert_eq!(dut.disk.rings[0].wait_used().id, 0);
    }
    assert!(dut.disk.rings[0].take_used().is_none(), "no further chain is used");
    dut.check_works_after_reset();
}

/// A full queue accepts a request once another has completed.
#[test]
fn more_requests_than_slots() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.pause();
    let _ = dut.write_request(&Request::bare(kind::FLUSH));
    dut.disk.rings[0].set_descriptor(0, Descriptor::readable(HEADER, 16).then(1));
    dut.disk.rings[0].set_descriptor(1, Descriptor::writable(STATUS, 1));
    for _ in 0..16 {
        dut.disk.rings[0].offer_raw(0);
    }
    dut.kick();
    wait_for(|| (dut.backend.pushed() == 16).then_some(())).expect("all are pushed");
    for _ in 0..16 {
        dut.disk.rings[0].offer_raw(0);
        dut.kick();
    }
    dut.backend.resume();
    for _ in 0..32 {
        let _ = dut.disk.rings[0].wait_used();
    }
    dut.check_works_after_reset();
}

/// Table and status byte of an unknown request of [`endless_submission_starves_nothing`].
fn unknown(head: u16) -> (Descriptor, u64) {
    (
        Descriptor::indirect(0x24_0000 + u64::from(head) * 0x100, 32),
        STATUS + 0x100 + u64::from(head),
    )
}

/// Lays out unknown requests at all heads except the first, a read.
fn lay_out_endless(dut: &DeviceUnderTest) {
    let _ = dut.write_request(&Request::read(0, 512));
    dut.write(HEADER + 0x100, &Request::bare(99).readable());
    dut.write(STATUS + 0x100, &[UNTOUCHED; 16]);
    let ring = &dut.disk.rings[0];
    for head in 0..16 {
        let (pointer, status) = unknown(head);
        let header = Descriptor::readable(HEADER + 0x100, 16).then(1);
        ring.set_table(pointer.addr, &[header, Descriptor::writable(status, 1)]);
        ring.set_descriptor(head, pointer);
        ring.set_available(head, head);
    }
    let data = Descriptor::writable(DATA, 512).then(2);
    let read = [Descriptor::readable(HEADER, 16).then(1), data, Descriptor::writable(STATUS, 1)];
    ring.set_table(TABLE, &read);
    ring.set_descriptor(0, Descriptor::indirect(TABLE, 48));
}

/// Submits a request for each used chain, so that the ring is never empty, until `stop`.
fn submit_without_end(ring: &Ring, memory: &GuestMemory, stop: &AtomicBool) {
    let status = |head| GuestAddress(unknown(head).1);
    let is_answered =
        |head| memory.load::<u8>(status(head), Ordering::Acquire).unwrap() != UNTOUCHED;
    while !is_answered(1) && !stop.load(Ordering::Relaxed) {}
    // The read is consumed: its entry becomes an unknown request.
    ring.set_descriptor(0, unknown(0).0);
    let mut index = 15u16;
    loop {
        index = index.wrapping_add(1);
        ring.set_available_index(index);
        let head = index % 16;
        while !is_answered(head) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
        memory.store(UNTOUCHED, status(head), Ordering::Relaxed).unwrap();
    }
}

/// During each round a vCPU submits another full ring. A round consumes at most one full ring,
/// pushes its read and publishes its used entries.
#[test]
fn round_consumes_at_most_one_full_ring() {
    let mut dut = DeviceUnderTest::new();
    lay_out_endless(&dut);
    dut.backend.pause();
    let layout = dut.disk.rings[0].layout();
    let ring = Ring::at(dut.disk.device.machine().memory.clone(), layout, 0);
    // The read is the first request of a full ring: at its push, there is room for another ring.
    let mut reads = 0;
    dut.backend.on_push(move || {
        reads += 1;
        if reads <= 3 {
            ring.set_available_index(reads * 16 + 1);
        }
    });
    dut.disk.rings[0].set_available_index(16);
    dut.kick();
    let answered = || (dut.disk.rings[0].used_index() == 45).then_some(());
    wait_for(answered).expect("three rings without their reads");
    let line = dut.disk.device.queue_line(0);
    let mut interrupts = 0;
    let three = || {
        interrupts += line.take();
        (interrupts == 3).then_some(())
    };
    wait_for(three).expect("three rounds that publish");
    dut.backend.resume();
    let all = || (dut.disk.rings[0].used_index() == 49).then_some(());
    wait_for(all).expect("the reads");
    dut.check_works_after_reset();
}

/// Endless submission of requests that complete at once delays neither other requests nor a reset.
#[test]
fn endless_submission_starves_nothing() {
    let mut dut = DeviceUnderTest::new();
    lay_out_endless(&dut);
    let (machine, stop) = (Arc::clone(dut.disk.device.machine()), AtomicBool::new(false));
    let ring = Ring::at(machine.memory.clone(), dut.disk.rings[0].layout(), 0);
    ring.set_available_index(15);
    std::thread::scope(|scope| {
        scope.spawn(|| submit_without_end(&ring, &machine.memory, &stop));
        dut.kick();
        let read = wait_for(|| (dut.status() == OK).then_some(()));
        let device = &dut.disk.device;
        device.set_status(0);
        let reset = wait_for(|| (device.status() == 0).then_some(()));
        stop.store(true, Ordering::Relaxed);
        read.expect("the read completes");
        reset.expect("the reset completes");
    });
    dut.check_works_after_reset();
}
