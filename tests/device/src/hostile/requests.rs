//! Invalid requests: each completes with its error status (Virtio 1.2 §5.2.6.2), and the queue
//! keeps working.

use driver::{
    Data, Descriptor, Framing, HIGH_MEMORY, HOLE, LOW_BYTES, Request, Shape, feature, kind,
};

use super::dut::{
    DATA, DeviceUnderTest, HEADER, IO_ERROR, OK, SECTOR, SECTORS, STATUS, UNSUPPORTED, usual_chain,
};

/// Checks that each request completes with its status, in the usual framing and with one byte per
/// buffer, and that none reaches the disk.
#[track_caller]
fn check_refused(dut: &mut DeviceUnderTest, cases: &[(u8, Request)]) {
    let before = dut.backend.content();
    for (status, request) in cases {
        let outcome = dut.disk.run(request);
        assert_eq!(outcome.status, *status, "{request:?}");
        if request.readable().len() <= 14 * 3 {
            let cuts = Framing {
                readable: vec![3; request.readable().len() / 3],
                writable: vec![1],
                indirect: true,
            };
            assert_eq!(dut.disk.run_framed(0, request, &cuts).status, *status, "{request:?}");
        }
    }
    assert_eq!(dut.backend.content(), before);
    assert!(dut.backend.take_pushed().is_empty(), "no request is pushed");
    dut.check_works();
    dut.check_works_after_reset();
}

#[test]
fn sectors_beyond_capacity() {
    let sectors = [SECTORS, SECTORS + 1, 1 << 54, 1 << 55, (1 << 55) + 1, u64::MAX >> 9, u64::MAX];
    let reads = sectors.map(|sector| (IO_ERROR, Request::read(sector, SECTOR)));
    let writes = sectors.map(|sector| (IO_ERROR, Request::write(sector, &[1; 512])));
    let across = [
        (IO_ERROR, Request::read(SECTORS - 1, 2 * SECTOR)),
        (IO_ERROR, Request::write(SECTORS - 1, &[1; 1024])),
    ];
    check_refused(&mut DeviceUnderTest::new(), &[&reads[..], &writes[..], &across[..]].concat());
}

#[test]
fn partial_sectors() {
    let cases = [1, 511, 513].map(|len| (IO_ERROR, Request::read(0, len)));
    check_refused(&mut DeviceUnderTest::new(), &cases);
    let cases = [1usize, 511, 513].map(|len| (IO_ERROR, Request::write(0, &vec![1; len])));
    check_refused(&mut DeviceUnderTest::new(), &cases);
}

#[test]
fn partial_blocks() {
    let mut shape = Shape::default();
    shape.geometry.logical_block = 4096;
    let cases = [
        (IO_ERROR, Request::read(0, 512)),
        (IO_ERROR, Request::read(1, 4096)),
        (IO_ERROR, Request::write(7, &[1; 4096])),
        (IO_ERROR, Request::ranges(kind::WRITE_ZEROES, &[(1, 8, 0)])),
    ];
    let mut dut = DeviceUnderTest::with(shape, feature::INDIRECT_DESC);
    let before = dut.backend.content();
    for (status, request) in cases {
        assert_eq!(dut.disk.run(&request).status, status, "{request:?}");
    }
    assert_eq!(dut.backend.content(), before);
}

#[test]
fn unknown_types() {
    let types = [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x8000_0000, u32::MAX];
    check_refused(
        &mut DeviceUnderTest::new(),
        &types.map(|kind| (UNSUPPORTED, Request::bare(kind))),
    );
    let with_data = Request { kind: 99, sector: 0, data: Data::In(512) };
    check_refused(&mut DeviceUnderTest::new(), &[(UNSUPPORTED, with_data)]);
}

#[test]
fn invalid_ranges() {
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        let one = |sector, sectors, flags| Request::ranges(kind, &[(sector, sectors, flags)]);
        let cases = [
            (IO_ERROR, one(SECTORS, 1, 0)),
            (IO_ERROR, one(SECTORS - 1, 2, 0)),
            (IO_ERROR, one(0, u32::MAX, 0)),
            (IO_ERROR, one(u64::MAX, u32::MAX, 0)),
            (IO_ERROR, one(1 << 55, 1, 0)),
            (UNSUPPORTED, one(0, 1, 2)),
            (UNSUPPORTED, one(0, 1, 0x8000_0000)),
            // Unknown flags take precedence (§5.2.6.2).
            (UNSUPPORTED, one(u64::MAX, u32::MAX, 2)),
            (IO_ERROR, Request::ranges(kind, &[])),
            (IO_ERROR, Request::ranges(kind, &[(0, 1, 0), (1, 1, 0)])),
            (IO_ERROR, Request { kind, sector: 0, data: Data::Out(vec![0; 15]) }),
            (IO_ERROR, Request { kind, sector: 0, data: Data::Out(vec![0; 17]) }),
            (IO_ERROR, Request { kind, sector: 0, data: Data::In(16) }),
        ];
        check_refused(&mut DeviceUnderTest::new(), &cases);
    }
    check_refused(
        &mut DeviceUnderTest::new(),
        &[(UNSUPPORTED, Request::ranges(kind::DISCARD, &[(0, 1, 1)]))],
    );
}

#[test]
fn changes_of_read_only_disk() {
    let shape = Shape { read_only: true, ..Shape::default() };
    let cases = [
        (IO_ERROR, Request::write(0, &[1; 512])),
        (IO_ERROR, Request::write(SECTORS, &[1; 512])),
        (IO_ERROR, Request::ranges(kind::DISCARD, &[(0, 1, 0)])),
        (IO_ERROR, Request::ranges(kind::WRITE_ZEROES, &[(0, 1, 0)])),
        (UNSUPPORTED, Request::ranges(kind::DISCARD, &[(0, 1, 1)])),
        (UNSUPPORTED, Request::ranges(kind::WRITE_ZEROES, &[(0, 1, 2)])),
    ];
    check_refused(&mut DeviceUnderTest::with(shape, feature::INDIRECT_DESC), &cases);
}

#[test]
fn discards_without_backend_support() {
    let mut shape = Shape::default();
    shape.geometry.discard = None;
    let cases = [(UNSUPPORTED, Request::ranges(kind::DISCARD, &[(0, 1, 0)]))];
    check_refused(&mut DeviceUnderTest::with(shape, feature::INDIRECT_DESC), &cases);
}

#[test]
fn missing_or_short_header() {
    let mut dut = DeviceUnderTest::new();
    for len in [0, 1, 4, 15] {
        let _ = dut.write_request(&Request::read(0, 512));
        let chain = [Descriptor::readable(HEADER, len), Descriptor::writable(STATUS, 1)];
        assert_eq!(dut.run_chain(&chain).0, IO_ERROR, "{len} bytes of header");
    }
    assert_eq!(dut.run_chain(&[Descriptor::writable(STATUS, 1)]).0, IO_ERROR);
    dut.check_works_after_reset();
}

#[test]
fn header_outside_memory() {
    let mut dut = DeviceUnderTest::new();
    for addr in [HOLE, LOW_BYTES - 8, HIGH_MEMORY + LOW_BYTES, HIGH_MEMORY - 8, u64::MAX - 7] {
        let chain = [Descriptor::readable(addr, 16), Descriptor::writable(STATUS, 1)];
        assert_eq!(dut.run_chain(&chain).0, IO_ERROR, "{addr:#x}");
    }
    dut.check_works_after_reset();
}

#[test]
fn data_outside_memory() {
    let mut dut = DeviceUnderTest::new();
    let before = dut.backend.content();
    for addr in [HOLE, LOW_BYTES - 256, LOW_BYTES, HIGH_MEMORY - 256, u64::MAX - 255, u64::MAX] {
        let _ = dut.write_request(&Request::read(0, 512));
        let header = Descriptor::readable(HEADER, 16);
        let status = Descriptor::writable(STATUS, 1);
        let read = [header, Descriptor::writable(addr, 512), status];
        assert_eq!(dut.run_chain(&read).0, IO_ERROR, "read to {addr:#x}");
        // With only part of the data in memory, the whole request fails.
        let fine = Descriptor::writable(DATA, 512);
        assert_eq!(dut.run_chain(&[header, fine, Descriptor::writable(addr, 512), status]).0, 1);
        let _ = dut.write_request(&Request::write(0, &[]));
        let write = [header, Descriptor::readable(addr, 512), status];
        assert_eq!(dut.run_chain(&write).0, IO_ERROR, "write from {addr:#x}");
        let _ = dut.write_request(&Request::bare(kind::GET_ID));
        let id = [header, Descriptor::writable(addr, 20), status];
        if addr != LOW_BYTES - 256 && addr != HIGH_MEMORY - 256 {
            assert_eq!(dut.run_chain(&id).0, IO_ERROR, "id to {addr:#x}");
        }
    }
    assert_eq!(dut.backend.content(), before);
    dut.check_works_after_reset();
}

/// Lengths whose sum exceeds 32 bits and would wrap to a small number.
#[test]
fn lengths_that_overflow() {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    let part = Descriptor::writable(0, 0x8000_0000);
    let mut chain = vec![Descriptor::readable(HEADER, 16), part, part];
    chain.extend([Descriptor::writable(DATA, 512), Descriptor::writable(STATUS, 1)]);
    assert_eq!(dut.run_chain(&chain).0, IO_ERROR);
    dut.check_works_after_reset();
}

/// More data than the limit, in one buffer repeated.
#[test]
fn data_over_the_limit() {
    let mut dut = DeviceUnderTest::new();
    let _ = dut.write_request(&Request::read(0, 512));
    let part = Descriptor::writable(0x40_0000, 4 << 20);
    let mut table = vec![Descriptor::readable(HEADER, 16)];
    table.extend([part; 300]);
    table.push(Descriptor::writable(STATUS, 1));
    let at = super::dut::TABLE;
    dut.write(STATUS, &[0xff]);
    let _ = dut.disk.rings[0].offer_indirect(at, &table);
    let _ = dut.disk.rings[0].publish();
    dut.kick();
    let _ = dut.disk.rings[0].wait_used();
    assert_eq!(dut.status(), IO_ERROR);
    dut.check_works_after_reset();
}

/// Overlapping data buffers are allowed; a read leaves the last part in them.
#[test]
fn overlapping_data_buffers() {
    let mut dut = DeviceUnderTest::new();
    let content: Vec<u8> = (0..1 << 16).map(|at: u32| at.to_le_bytes()[1]).collect();
    dut.backend.set_content(&content);
    let _ = dut.write_request(&Request::read(0, 1024));
    let data = Descriptor::writable(DATA, 512);
    let status = Descriptor::writable(STATUS, 1);
    assert_eq!(dut.run_chain(&[Descriptor::readable(HEADER, 16), data, data, status]).0, OK);
    assert_eq!(dut.read(DATA, 512), content[512..1024]);
    dut.check_works_after_reset();
}

/// A read over its own header and status: the header is read before, the status written last.
#[test]
fn data_over_header_and_status() {
    let mut dut = DeviceUnderTest::new();
    dut.backend.fill(0xee);
    let _ = dut.write_request(&Request::read(0, 512));
    let header = Descriptor::readable(HEADER, 16);
    let chain = [header, Descriptor::writable(HEADER, 512), Descriptor::writable(STATUS, 1)];
    assert_eq!(dut.run_chain(&chain), (OK, 513));
    assert_eq!(dut.read(HEADER, 512), [0xee; 512]);

    let _ = dut.write_request(&Request::read(0, 512));
    let over = Descriptor::writable(STATUS - 256, 512);
    assert_eq!(dut.run_chain(&[header, over, Descriptor::writable(STATUS, 1)]).0, OK);
    assert_eq!(dut.read(STATUS - 1, 1), [0xee]);
    dut.check_works_after_reset();
}

/// Unused writable and readable bytes have no effect.
#[test]
fn excess_bytes() {
    let mut dut = DeviceUnderTest::new();
    let status = Descriptor::writable(STATUS, 1);
    for request in [Request::bare(kind::FLUSH), Request::write(0, &[7; 512])] {
        dut.write(DATA, &[0xab; 64]);
        let mut chain = usual_chain(&dut, &request);
        chain.insert(chain.len() - 1, Descriptor::writable(DATA, 64));
        // Bytes that are not written are not counted in the used length (§2.7.8.2).
        assert_eq!(dut.run_chain(&chain), (OK, 0));
        assert_eq!(dut.read(DATA, 64), [0xab; 64]);
    }
    let _ = dut.write_request(&Request::read(0, 512));
    let header_and_more = Descriptor::readable(HEADER, 4096);
    let chain = [header_and_more, Descriptor::writable(DATA, 512), status];
    assert_eq!(dut.run_chain(&chain), (OK, 513));
    dut.check_works_after_reset();
}

#[test]
fn data_of_zero_length() {
    let mut dut = DeviceUnderTest::new();
    for request in [Request::read(0, 0), Request::write(0, &[])] {
        assert_eq!(dut.disk.run(&request).status, OK);
    }
    for request in [Request::read(SECTORS + 1, 0), Request::write(u64::MAX, &[])] {
        assert_eq!(dut.disk.run(&request).status, IO_ERROR);
    }
    dut.check_works_after_reset();
}

#[test]
fn id_buffer_of_another_size() {
    let mut dut = DeviceUnderTest::new();
    let id = |len| Request { kind: kind::GET_ID, sector: 0, data: Data::In(len) };
    for len in [0, 1, 19] {
        assert_eq!(dut.disk.run(&id(len)).status, IO_ERROR, "{len} bytes");
    }
    assert_eq!(dut.disk.run(&id(20)).status, OK);
    let outcome = dut.disk.run(&id(64));
    assert_eq!((outcome.status, outcome.written), (OK, 20));
    assert_eq!(outcome.data[20..], [0xa5; 44]);
    // With only half of the buffer in memory, nothing is written.
    let _ = dut.write_request(&id(20));
    dut.write(DATA, &[0xa5; 10]);
    let halves = [Descriptor::writable(DATA, 10), Descriptor::writable(HOLE, 10)];
    let header = Descriptor::readable(HEADER, 16);
    let chain = [header, halves[0], halves[1], Descriptor::writable(STATUS, 1)];
    assert_eq!(dut.run_chain(&chain), (IO_ERROR, 0));
    assert_eq!(dut.read(DATA, 10), [0xa5; 10]);
    dut.check_works_after_reset();
}
