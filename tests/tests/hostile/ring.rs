//! A ring used against itself: data over the ring, one head twice, endless offers.

use std::sync::atomic::{AtomicBool, Ordering};

use tests::driver::{Data, Descriptor, Request, kind, wait_for};

use super::victim::{DATA, HEADER, OK, STATUS, Victim};

/// Offers a read of the first sector over `addr`, and waits until it is on the guest's side.
fn read_over(victim: &mut Victim, addr: u64) {
    let _ = victim.prepare(&Request::read(0, 512));
    let chain = [
        Descriptor::readable(HEADER, 16),
        Descriptor::writable(addr, 512),
        Descriptor::writable(STATUS, 1),
    ];
    let _ = victim.disk.rings[0].offer(&chain);
    let _ = victim.disk.rings[0].publish();
    victim.kick();
    wait_for(|| (victim.status() == OK).then_some(())).expect("the read is answered");
}

/// Whatever a read makes of its own descriptor table, it was read before.
#[test]
fn data_over_the_descriptor_table() {
    let mut victim = Victim::new();
    victim.backend.set_content(&[0xee; 1 << 16]);
    let table = victim.disk.rings[0].layout().descriptors;
    read_over(&mut victim, table);
    assert_eq!(victim.disk.rings[0].wait_used().len, 513);
    // The next chain follows the table as it is now: into nothing.
    victim.disk.rings[0].offer_raw(0);
    victim.kick();
    victim.needs_reset();
}

/// The available index then is 0xeeee, which is more than the ring holds.
#[test]
fn data_over_the_available_ring() {
    let mut victim = Victim::new();
    victim.backend.set_content(&[0xee; 1 << 16]);
    let available = victim.disk.rings[0].layout().available;
    read_over(&mut victim, available);
    victim.kick();
    victim.needs_reset();
}

/// The device never reads what it wrote into the used ring.
#[test]
fn data_over_the_used_ring() {
    let mut victim = Victim::new();
    victim.backend.set_content(&[0xee; 1 << 16]);
    let used = victim.disk.rings[0].layout().used;
    read_over(&mut victim, used);
    wait_for(|| (victim.disk.rings[0].used_index() == 1).then_some(())).expect("one used");
    assert!(!victim.disk.device.needs_reset());
    victim.works_after_reset();
}

/// A status byte in the available ring's index: the device must not trust its own write either.
#[test]
fn a_status_byte_over_the_available_index() {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    let index = victim.disk.rings[0].layout().available + 2;
    // Its upper byte: the index jumps from 1 to 0x0201.
    let request = Request { kind: 99, sector: 0, data: Data::Out(vec![]) };
    let _ = victim.prepare(&request);
    let chain = [Descriptor::readable(HEADER, 16), Descriptor::writable(index + 1, 1)];
    let _ = victim.disk.rings[0].offer(&chain);
    let _ = victim.disk.rings[0].publish();
    victim.kick();
    victim.needs_reset();
}

/// Two requests from one head are two requests: both complete, with their own slots.
#[test]
fn one_head_twice_in_flight() {
    let mut victim = Victim::new();
    victim.backend.hold();
    let _ = victim.prepare(&Request::read(0, 512));
    let header = Descriptor::readable(HEADER, 16);
    let rest = [Descriptor::writable(DATA, 512).then(2), Descriptor::writable(STATUS, 1)];
    for (index, descriptor) in (0..).zip([header.then(1), rest[0], rest[1]]) {
        victim.disk.rings[0].set_descriptor(index, descriptor);
    }
    for _ in 0..16 {
        victim.disk.rings[0].offer_raw(0);
    }
    victim.kick();
    wait_for(|| (victim.backend.asked() == 16).then_some(())).expect("all arrive at the disk");
    victim.backend.release();
    for _ in 0..16 {
        assert_eq!(victim.disk.rings[0].wait_used().id, 0);
    }
    assert!(victim.disk.rings[0].take_used().is_none(), "as many as were offered");
    victim.works_after_reset();
}

/// A queue that is full of requests takes more as soon as one has completed.
#[test]
fn more_requests_than_the_slab_holds() {
    let mut victim = Victim::new();
    victim.backend.hold();
    let _ = victim.prepare(&Request::bare(kind::FLUSH));
    victim.disk.rings[0].set_descriptor(0, Descriptor::readable(HEADER, 16).then(1));
    victim.disk.rings[0].set_descriptor(1, Descriptor::writable(STATUS, 1));
    for _ in 0..16 {
        victim.disk.rings[0].offer_raw(0);
    }
    victim.kick();
    wait_for(|| (victim.backend.asked() == 16).then_some(())).expect("all arrive");
    for _ in 0..16 {
        victim.disk.rings[0].offer_raw(0);
        victim.kick();
    }
    victim.backend.release();
    for _ in 0..32 {
        let _ = victim.disk.rings[0].wait_used();
    }
    victim.works_after_reset();
}

/// A vCPU that offers without end what is answered at once must neither keep requests from the disk
/// nor a reset from its end.
#[test]
fn endless_offers_starve_nobody() {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    let ring = &mut victim.disk.rings[0];
    // A read at entries 0 to 2, something unsupported at 3 and 4.
    let header = Descriptor::readable(HEADER, 16);
    ring.set_descriptor(0, header.then(1));
    ring.set_descriptor(1, Descriptor::writable(DATA, 512).then(2));
    ring.set_descriptor(2, Descriptor::writable(STATUS, 1));
    ring.set_descriptor(3, Descriptor::readable(HEADER + 0x100, 16).then(4));
    ring.set_descriptor(4, Descriptor::writable(STATUS + 0x100, 1));
    let machine = std::sync::Arc::clone(victim.disk.device.machine());
    machine.put(HEADER + 0x100, &Request::bare(99).readable());
    for at in 0..16 {
        victim.disk.rings[0].set_available(at, 3);
    }
    victim.disk.rings[0].set_available(0, 0);

    let (layout, stop) = (victim.disk.rings[0].layout(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Always 15 more than the device has used, without a pause.
            while !stop.load(Ordering::Relaxed) {
                let used = machine.get(layout.used + 2, 2);
                let ahead = u16::from_le_bytes([used[0], used[1]]).wrapping_add(15);
                machine.put(layout.available + 2, &ahead.to_le_bytes());
            }
        });
        let device = &victim.disk.device;
        victim.kick();
        let read = wait_for(|| (victim.status() == OK).then_some(()));
        device.set_status(0);
        let reset = wait_for(|| (device.status() == 0).then_some(()));
        stop.store(true, Ordering::Relaxed);
        read.expect("the read completes");
        reset.expect("the reset ends");
    });
    victim.works_after_reset();
}
