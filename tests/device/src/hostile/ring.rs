//! A ring used against itself: data over the ring, one head twice, endless offers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::GuestMemory;
use driver::{Data, Descriptor, Request, Ring, kind};
use fixtures::wait_for;
use vm_memory::{Bytes, GuestAddress};

use super::victim::{DATA, HEADER, OK, STATUS, TABLE, UNTOUCHED, Victim};

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
    victim.backend.fill(0xee);
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
    victim.backend.fill(0xee);
    let available = victim.disk.rings[0].layout().available;
    read_over(&mut victim, available);
    victim.kick();
    victim.needs_reset();
}

/// The device never reads what it wrote into the used ring.
#[test]
fn data_over_the_used_ring() {
    let mut victim = Victim::new();
    victim.backend.fill(0xee);
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
    victim.backend.pause();
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
    wait_for(|| (victim.backend.pushed() == 16).then_some(())).expect("all arrive at the disk");
    victim.backend.resume();
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
    victim.backend.pause();
    let _ = victim.prepare(&Request::bare(kind::FLUSH));
    victim.disk.rings[0].set_descriptor(0, Descriptor::readable(HEADER, 16).then(1));
    victim.disk.rings[0].set_descriptor(1, Descriptor::writable(STATUS, 1));
    for _ in 0..16 {
        victim.disk.rings[0].offer_raw(0);
    }
    victim.kick();
    wait_for(|| (victim.backend.pushed() == 16).then_some(())).expect("all arrive");
    for _ in 0..16 {
        victim.disk.rings[0].offer_raw(0);
        victim.kick();
    }
    victim.backend.resume();
    for _ in 0..32 {
        let _ = victim.disk.rings[0].wait_used();
    }
    victim.works_after_reset();
}

/// Where the unknown requests of [`endless_offers_starve_nobody`] are, a table and a status byte
/// each.
fn unknown(head: u16) -> (Descriptor, u64) {
    (
        Descriptor::indirect(0x24_0000 + u64::from(head) * 0x100, 32),
        STATUS + 0x100 + u64::from(head),
    )
}

/// All heads are unknown requests, but the first, which is a read.
fn lay_out_endless(victim: &Victim) {
    let _ = victim.prepare(&Request::read(0, 512));
    victim.write(HEADER + 0x100, &Request::bare(99).readable());
    victim.write(STATUS + 0x100, &[UNTOUCHED; 16]);
    let ring = &victim.disk.rings[0];
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

/// Offers for each answer the next request at once, so that the ring never runs dry, until told to
/// stop.
fn offer_without_end(ring: &Ring, memory: &GuestMemory, stop: &AtomicBool) {
    let status = |head| GuestAddress(unknown(head).1);
    let is_answered =
        |head| memory.load::<u8>(status(head), Ordering::Acquire).unwrap() != UNTOUCHED;
    while !is_answered(1) && !stop.load(Ordering::Relaxed) {}
    // The read was taken: its place is free for something unknown.
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

/// The same to the point: during each round a vCPU offers another ring full. A round takes no more
/// than the ring holds, and each hands its read to the disk and shows the driver what it answered.
#[test]
fn a_round_takes_one_ring_full() {
    let mut victim = Victim::new();
    lay_out_endless(&victim);
    victim.backend.pause();
    let layout = victim.disk.rings[0].layout();
    let ring = Ring::at(victim.disk.device.machine().memory.clone(), layout, 0);
    // Each read is the first of a ring full; at that moment there is room for as many again.
    let mut reads = 0;
    victim.backend.on_push(move || {
        reads += 1;
        if reads <= 3 {
            ring.set_available_index(reads * 16 + 1);
        }
    });
    victim.disk.rings[0].set_available_index(16);
    victim.kick();
    let answered = || (victim.disk.rings[0].used_index() == 45).then_some(());
    wait_for(answered).expect("three times all but the read");
    let line = victim.disk.device.queue_line(0);
    let mut interrupts = 0;
    let three = || {
        interrupts += line.take();
        (interrupts == 3).then_some(())
    };
    wait_for(three).expect("three rounds with an answer to show");
    victim.backend.resume();
    let all = || (victim.disk.rings[0].used_index() == 49).then_some(());
    wait_for(all).expect("the reads as well");
    victim.works_after_reset();
}

/// A vCPU that offers without end what is answered at once must neither keep requests from the disk
/// nor a reset from its end.
#[test]
fn endless_offers_starve_nobody() {
    let mut victim = Victim::new();
    lay_out_endless(&victim);
    let (machine, stop) = (Arc::clone(victim.disk.device.machine()), AtomicBool::new(false));
    let ring = Ring::at(machine.memory.clone(), victim.disk.rings[0].layout(), 0);
    ring.set_available_index(15);
    std::thread::scope(|scope| {
        scope.spawn(|| offer_without_end(&ring, &machine.memory, &stop));
        victim.kick();
        let read = wait_for(|| (victim.status() == OK).then_some(()));
        let device = &victim.disk.device;
        device.set_status(0);
        let reset = wait_for(|| (device.status() == 0).then_some(()));
        stop.store(true, Ordering::Relaxed);
        read.expect("the read completes");
        reset.expect("the reset ends");
    });
    victim.works_after_reset();
}
