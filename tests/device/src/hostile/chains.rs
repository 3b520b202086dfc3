//! Chains that cannot be: the device asks for a reset (Virtio 1.2 §2.1.2, §2.7.5).

use driver::{Descriptor, HOLE, LOW_BYTES, Request};

use super::victim::{DATA, HEADER, OK, STATUS, TABLE, Victim};

fn header() -> Descriptor {
    Descriptor::readable(HEADER, 16)
}

fn data() -> Descriptor {
    Descriptor::writable(DATA, 512)
}

fn status() -> Descriptor {
    Descriptor::writable(STATUS, 1)
}

/// Writes the descriptors into the table from entry 0, offers entry `head`, and expects a reset.
#[track_caller]
fn breaks(head: u16, table: &[Descriptor]) {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    for (index, descriptor) in (0..).zip(table) {
        victim.disk.rings[0].set_descriptor(index, *descriptor);
    }
    victim.disk.rings[0].offer_raw(head);
    victim.kick();
    victim.needs_reset();
}

/// As [`breaks`], with the chain in an indirect table.
#[track_caller]
fn breaks_indirect(pointer: Descriptor, table: &[Descriptor]) {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    victim.disk.rings[0].set_table(TABLE, table);
    victim.disk.rings[0].set_descriptor(0, pointer);
    victim.disk.rings[0].set_descriptor(1, status());
    victim.disk.rings[0].offer_raw(0);
    victim.kick();
    victim.needs_reset();
}

#[test]
fn a_chain_that_loops() {
    breaks(0, &[header().then(1), data().then(2), data().then(1)]);
}

#[test]
fn a_descriptor_that_follows_itself() {
    breaks(0, &[header().then(0)]);
}

/// Empty buffers are left out of a chain, but not of the count that finds loops.
#[test]
fn a_loop_of_empty_buffers() {
    breaks(0, &[Descriptor::readable(HEADER, 0).then(1), Descriptor::writable(DATA, 0).then(1)]);
}

#[test]
fn a_head_outside_of_the_table() {
    for head in [16, 17, 0x7fff, 0xffff] {
        breaks(head, &[]);
    }
}

#[test]
fn a_next_outside_of_the_table() {
    for next in [16, 0xffff] {
        breaks(0, &[header().then(next)]);
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one() {
    breaks(0, &[header().then(1), data().then(2), header().then(3), status()]);
}

#[test]
fn an_empty_readable_buffer_after_a_writable_one() {
    breaks(0, &[header().then(1), data().then(2), Descriptor::readable(0, 0).then(3), status()]);
}

#[test]
fn a_chain_without_a_status_byte() {
    breaks(0, &[header()]);
    breaks(0, &[header().then(1), Descriptor::writable(STATUS, 0)]);
    breaks(0, &[Descriptor::readable(0, 0)]);
}

#[test]
fn a_status_byte_outside_of_memory() {
    for addr in [HOLE, LOW_BYTES, u64::MAX, 1 << 63] {
        breaks(0, &[header().then(1), data().then(2), Descriptor::writable(addr, 1)]);
    }
    // The buffer begins in memory; its last byte is not.
    breaks(0, &[header().then(1), Descriptor::writable(LOW_BYTES - 512, 513)]);
    // The last byte's address wraps around to memory.
    breaks(0, &[header().then(1), Descriptor::writable(u64::MAX, 0x1000)]);
}

#[test]
fn more_chains_than_the_ring_holds() {
    for index in [17, 0x8000, 0xffff] {
        let victim = Victim::new();
        victim.disk.rings[0].set_available_index(index);
        victim.kick();
        victim.needs_reset();
    }
}

#[test]
fn an_indirect_table_within_an_indirect_table() {
    // As a plain buffer it would do for the status.
    let inner = Descriptor { flags: 4 | 2, ..Descriptor::indirect(STATUS, 16) };
    breaks_indirect(Descriptor::indirect(TABLE, 32), &[header().then(1), inner]);
}

#[test]
fn an_indirect_descriptor_with_a_next() {
    let table = [header().then(1), data().then(2), status()];
    breaks_indirect(Descriptor::indirect(TABLE, 48).then(1), &table);
}

#[test]
fn an_indirect_table_of_a_bad_length() {
    for len in [0, 1, 15, 17, 24, 33, 47, u32::MAX] {
        breaks_indirect(Descriptor::indirect(TABLE, len), &[header().then(1), status()]);
    }
}

#[test]
fn an_indirect_table_outside_of_memory() {
    let at = [HOLE, LOW_BYTES - 16, LOW_BYTES, u64::MAX - 15, u64::MAX];
    for addr in at {
        breaks_indirect(Descriptor::indirect(addr, 32), &[]);
    }
    breaks_indirect(Descriptor::indirect(TABLE, 0xffff_fff0), &[header().then(1), status()]);
}

#[test]
fn a_loop_in_an_indirect_table() {
    let table = [header().then(1), data().then(2), data().then(1)];
    breaks_indirect(Descriptor::indirect(TABLE, 48), &table);
}

#[test]
fn a_next_outside_of_an_indirect_table() {
    for next in [2, 0xffff] {
        breaks_indirect(Descriptor::indirect(TABLE, 32), &[header().then(next)]);
    }
}

/// A chain in a table may have more buffers than any driver needs, but not without end.
#[test]
fn an_endless_indirect_table() {
    let mut table: Vec<_> = (1..2048).map(|next| header().then(next)).collect();
    table.push(status());
    breaks_indirect(Descriptor::indirect(TABLE, 2048 * 16), &table);
}

/// The same with some of the buffers in the queue's own table.
#[test]
fn a_chain_of_both_tables_has_the_same_limit() {
    let mut table: Vec<_> = (1..1024).map(|next| header().then(next)).collect();
    table.push(status());
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    victim.disk.rings[0].set_table(TABLE, &table);
    victim.disk.rings[0].set_descriptor(0, header().then(1));
    victim.disk.rings[0].set_descriptor(1, Descriptor::indirect(TABLE, 1024 * 16));
    victim.disk.rings[0].offer_raw(0);
    victim.kick();
    victim.needs_reset();
}

#[test]
fn an_indirect_table_that_was_not_negotiated() {
    let mut victim = Victim::with(driver::Shape::default(), 0);
    let _ = victim.prepare(&Request::read(0, 512));
    victim.disk.rings[0].set_table(TABLE, &[header().then(1), data().then(2), status()]);
    victim.disk.rings[0].set_descriptor(0, Descriptor::indirect(TABLE, 48));
    victim.disk.rings[0].offer_raw(0);
    victim.kick();
    victim.needs_reset();
}

/// §2.7.5.3.2: chained descriptors may precede the one that points to the table, and the WRITE flag
/// of the latter means nothing.
#[test]
fn a_header_before_an_indirect_table_is_fine() {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    victim.disk.rings[0].set_table(TABLE, &[data().then(1), status()]);
    let pointer = Descriptor { flags: 4 | 2, ..Descriptor::indirect(TABLE, 32) };
    let answer = victim.answer(&[header(), pointer]);
    assert_eq!(answer, (OK, 513));
    victim.works();
}

/// A table need not be aligned.
#[test]
fn an_odd_indirect_table_is_fine() {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    victim.disk.rings[0].set_table(TABLE + 3, &[header().then(1), data().then(2), status()]);
    assert_eq!(victim.answer(&[Descriptor::indirect(TABLE + 3, 48)]), (OK, 513));
    victim.works();
}
