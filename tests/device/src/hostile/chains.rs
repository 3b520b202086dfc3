//! Malformed chains: the device sets DEVICE_NEEDS_RESET (Virtio 1.2 §2.1.2, §2.7.5).

use driver::{Descriptor, HOLE, LOW_BYTES, Request};

use super::dut::{DATA, DeviceUnderTest, HEADER, OK, STATUS, TABLE};

fn header() -> Descriptor {
    Descriptor::readable(HEADER, 16)
}

fn data() -> Descriptor {
    Descriptor::writable(DATA, 512)
}

fn status() -> Descriptor {
    Descriptor::writable(STATUS, 1)
}

/// Writes the descriptors to the table from entry 0, makes `head` available, and expects
/// DEVICE_NEEDS_RESET.
#[track_caller]
fn check_needs_reset(head: u16, table: &[Descriptor]) {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    for (index, descriptor) in (0..).zip(table) {
        dut.disk.rings[0].set_descriptor(index, *descriptor);
    }
    dut.disk.rings[0].offer_raw(head);
    dut.kick();
    dut.check_needs_reset();
}

/// As [`check_needs_reset`], with the chain in an indirect table.
#[track_caller]
fn check_indirect_needs_reset(pointer: Descriptor, table: &[Descriptor]) {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    dut.disk.rings[0].set_table(TABLE, table);
    dut.disk.rings[0].set_descriptor(0, pointer);
    dut.disk.rings[0].set_descriptor(1, status());
    dut.disk.rings[0].offer_raw(0);
    dut.kick();
    dut.check_needs_reset();
}

#[test]
fn chain_with_loop() {
    check_needs_reset(0, &[header().then(1), data().then(2), data().then(1)]);
}

#[test]
fn descriptor_chained_to_itself() {
    check_needs_reset(0, &[header().then(0)]);
}

/// Empty buffers are dropped from a chain, but count for loop detection.
#[test]
fn loop_of_empty_buffers() {
    check_needs_reset(
        0,
        &[Descriptor::readable(HEADER, 0).then(1), Descriptor::writable(DATA, 0).then(1)],
    );
}

#[test]
fn head_outside_table() {
    for head in [16, 17, 0x7fff, 0xffff] {
        check_needs_reset(head, &[]);
    }
}

#[test]
fn next_outside_table() {
    for next in [16, 0xffff] {
        check_needs_reset(0, &[header().then(next)]);
    }
}

#[test]
fn readable_buffer_after_writable() {
    check_needs_reset(0, &[header().then(1), data().then(2), header().then(3), status()]);
}

#[test]
fn empty_readable_buffer_after_writable() {
    check_needs_reset(
        0,
        &[header().then(1), data().then(2), Descriptor::readable(0, 0).then(3), status()],
    );
}

#[test]
fn chain_without_status_byte() {
    check_needs_reset(0, &[header()]);
    check_needs_reset(0, &[header().then(1), Descriptor::writable(STATUS, 0)]);
    check_needs_reset(0, &[Descriptor::readable(0, 0)]);
}

#[test]
fn status_byte_outside_memory() {
    for addr in [HOLE, LOW_BYTES, u64::MAX, 1 << 63] {
        check_needs_reset(0, &[header().then(1), data().then(2), Descriptor::writable(addr, 1)]);
    }
    // A buffer that starts in memory and ends outside.
    check_needs_reset(0, &[header().then(1), Descriptor::writable(LOW_BYTES - 512, 513)]);
    // The address of the last byte wraps around into memory.
    check_needs_reset(0, &[header().then(1), Descriptor::writable(u64::MAX, 0x1000)]);
}

#[test]
fn more_chains_than_ring_entries() {
    for index in [17, 0x8000, 0xffff] {
        let dut = DeviceUnderTest::new();
        dut.disk.rings[0].set_available_index(index);
        dut.kick();
        dut.check_needs_reset();
    }
}

#[test]
fn nested_indirect_table() {
    // As a direct buffer it would hold the status.
    let inner = Descriptor { flags: 4 | 2, ..Descriptor::indirect(STATUS, 16) };
    check_indirect_needs_reset(Descriptor::indirect(TABLE, 32), &[header().then(1), inner]);
}

#[test]
fn indirect_descriptor_with_next() {
    let table = [header().then(1), data().then(2), status()];
    check_indirect_needs_reset(Descriptor::indirect(TABLE, 48).then(1), &table);
}

#[test]
fn indirect_table_of_invalid_length() {
    for len in [0, 1, 15, 17, 24, 33, 47, u32::MAX] {
        check_indirect_needs_reset(Descriptor::indirect(TABLE, len), &[header().then(1), status()]);
    }
}

#[test]
fn indirect_table_outside_memory() {
    let at = [HOLE, LOW_BYTES - 16, LOW_BYTES, u64::MAX - 15, u64::MAX];
    for addr in at {
        check_indirect_needs_reset(Descriptor::indirect(addr, 32), &[]);
    }
    check_indirect_needs_reset(
        Descriptor::indirect(TABLE, 0xffff_fff0),
        &[header().then(1), status()],
    );
}

#[test]
fn loop_in_indirect_table() {
    let table = [header().then(1), data().then(2), data().then(1)];
    check_indirect_needs_reset(Descriptor::indirect(TABLE, 48), &table);
}

#[test]
fn next_outside_indirect_table() {
    for next in [2, 0xffff] {
        check_indirect_needs_reset(Descriptor::indirect(TABLE, 32), &[header().then(next)]);
    }
}

/// The number of buffers in an indirect table is limited.
#[test]
fn indirect_table_over_the_limit() {
    let mut table: Vec<_> = (1..2048).map(|next| header().then(next)).collect();
    table.push(status());
    check_indirect_needs_reset(Descriptor::indirect(TABLE, 2048 * 16), &table);
}

/// The limit includes buffers in the queue's table.
#[test]
fn chain_in_both_tables_over_the_limit() {
    let mut table: Vec<_> = (1..1024).map(|next| header().then(next)).collect();
    table.push(status());
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    dut.disk.rings[0].set_table(TABLE, &table);
    dut.disk.rings[0].set_descriptor(0, header().then(1));
    dut.disk.rings[0].set_descriptor(1, Descriptor::indirect(TABLE, 1024 * 16));
    dut.disk.rings[0].offer_raw(0);
    dut.kick();
    dut.check_needs_reset();
}

#[test]
fn indirect_table_without_feature() {
    let mut dut = DeviceUnderTest::with(driver::Shape::default(), 0);
    let _ = dut.write_request(&Request::read(0, 512));
    dut.disk.rings[0].set_table(TABLE, &[header().then(1), data().then(2), status()]);
    dut.disk.rings[0].set_descriptor(0, Descriptor::indirect(TABLE, 48));
    dut.disk.rings[0].offer_raw(0);
    dut.kick();
    dut.check_needs_reset();
}

/// §2.7.5.3.2: direct descriptors may precede the indirect one, whose WRITE flag is ignored.
#[test]
fn direct_header_before_indirect_table_is_accepted() {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    dut.disk.rings[0].set_table(TABLE, &[data().then(1), status()]);
    let pointer = Descriptor { flags: 4 | 2, ..Descriptor::indirect(TABLE, 32) };
    let answer = dut.run_chain(&[header(), pointer]);
    assert_eq!(answer, (OK, 513));
    dut.check_works();
}

/// An indirect table needs no alignment.
#[test]
fn unaligned_indirect_table_is_accepted() {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    dut.disk.rings[0].set_table(TABLE + 3, &[header().then(1), data().then(2), status()]);
    assert_eq!(dut.run_chain(&[Descriptor::indirect(TABLE + 3, 48)]), (OK, 513));
    dut.check_works();
}
