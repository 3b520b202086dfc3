//! Requests that cannot be done: each gets the status byte that says so (Virtio 1.2 §5.2.6.2), and
//! the queue goes on.

use driver::{
    Data, Descriptor, Framing, HIGH_MEMORY, HOLE, LOW_BYTES, Request, Shape, feature, kind,
};

use super::victim::{
    DATA, HEADER, IO_ERROR, OK, SECTOR, SECTORS, STATUS, UNSUPPORTED, Victim, usual_chain,
};

/// Each request gets its status, in the usual framing and with every byte in a buffer of its own,
/// and nothing changes on the disk.
#[track_caller]
fn refuses(victim: &mut Victim, cases: &[(u8, Request)]) {
    let before = victim.backend.content();
    for (status, request) in cases {
        let outcome = victim.disk.run(request);
        assert_eq!(outcome.status, *status, "{request:?}");
        if request.readable().len() <= 14 * 3 {
            let cuts = Framing {
                readable: vec![3; request.readable().len() / 3],
                writable: vec![1],
                indirect: true,
            };
            assert_eq!(victim.disk.run_framed(0, request, &cuts).status, *status, "{request:?}");
        }
    }
    assert_eq!(victim.backend.content(), before);
    assert!(victim.backend.take_pushed().is_empty(), "the disk is not asked");
    victim.works();
    victim.works_after_reset();
}

#[test]
fn sectors_beyond_the_end() {
    let sectors = [SECTORS, SECTORS + 1, 1 << 54, 1 << 55, (1 << 55) + 1, u64::MAX >> 9, u64::MAX];
    let reads = sectors.map(|sector| (IO_ERROR, Request::read(sector, SECTOR)));
    let writes = sectors.map(|sector| (IO_ERROR, Request::write(sector, &[1; 512])));
    let across = [
        (IO_ERROR, Request::read(SECTORS - 1, 2 * SECTOR)),
        (IO_ERROR, Request::write(SECTORS - 1, &[1; 1024])),
    ];
    refuses(&mut Victim::new(), &[&reads[..], &writes[..], &across[..]].concat());
}

#[test]
fn parts_of_sectors() {
    let cases = [1, 511, 513].map(|len| (IO_ERROR, Request::read(0, len)));
    refuses(&mut Victim::new(), &cases);
    let cases = [1usize, 511, 513].map(|len| (IO_ERROR, Request::write(0, &vec![1; len])));
    refuses(&mut Victim::new(), &cases);
}

#[test]
fn parts_of_blocks() {
    let mut shape = Shape::default();
    shape.geometry.logical_block = 4096;
    let cases = [
        (IO_ERROR, Request::read(0, 512)),
        (IO_ERROR, Request::read(1, 4096)),
        (IO_ERROR, Request::write(7, &[1; 4096])),
        (IO_ERROR, Request::ranges(kind::WRITE_ZEROES, &[(1, 8, 0)])),
    ];
    let mut victim = Victim::with(shape, feature::INDIRECT_DESC);
    let before = victim.backend.content();
    for (status, request) in cases {
        assert_eq!(victim.disk.run(&request).status, status, "{request:?}");
    }
    assert_eq!(victim.backend.content(), before);
}

#[test]
fn unknown_types() {
    let types = [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x8000_0000, u32::MAX];
    refuses(&mut Victim::new(), &types.map(|kind| (UNSUPPORTED, Request::bare(kind))));
    let with_data = Request { kind: 99, sector: 0, data: Data::In(512) };
    refuses(&mut Victim::new(), &[(UNSUPPORTED, with_data)]);
}

#[test]
fn ranges_that_cannot_be() {
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
            // Unknown flags come first: §5.2.6.2 knows no exception.
            (UNSUPPORTED, one(u64::MAX, u32::MAX, 2)),
            (IO_ERROR, Request::ranges(kind, &[])),
            (IO_ERROR, Request::ranges(kind, &[(0, 1, 0), (1, 1, 0)])),
            (IO_ERROR, Request { kind, sector: 0, data: Data::Out(vec![0; 15]) }),
            (IO_ERROR, Request { kind, sector: 0, data: Data::Out(vec![0; 17]) }),
            (IO_ERROR, Request { kind, sector: 0, data: Data::In(16) }),
        ];
        refuses(&mut Victim::new(), &cases);
    }
    refuses(&mut Victim::new(), &[(UNSUPPORTED, Request::ranges(kind::DISCARD, &[(0, 1, 1)]))]);
}

#[test]
fn changes_of_a_read_only_disk() {
    let shape = Shape { read_only: true, ..Shape::default() };
    let cases = [
        (IO_ERROR, Request::write(0, &[1; 512])),
        (IO_ERROR, Request::write(SECTORS, &[1; 512])),
        (IO_ERROR, Request::ranges(kind::DISCARD, &[(0, 1, 0)])),
        (IO_ERROR, Request::ranges(kind::WRITE_ZEROES, &[(0, 1, 0)])),
        (UNSUPPORTED, Request::ranges(kind::DISCARD, &[(0, 1, 1)])),
        (UNSUPPORTED, Request::ranges(kind::WRITE_ZEROES, &[(0, 1, 2)])),
    ];
    refuses(&mut Victim::with(shape, feature::INDIRECT_DESC), &cases);
}

#[test]
fn discards_where_nothing_is_freed() {
    let mut shape = Shape::default();
    shape.geometry.discard = None;
    let cases = [(UNSUPPORTED, Request::ranges(kind::DISCARD, &[(0, 1, 0)]))];
    refuses(&mut Victim::with(shape, feature::INDIRECT_DESC), &cases);
}

#[test]
fn a_header_that_is_missing_or_short() {
    let mut victim = Victim::new();
    for len in [0, 1, 4, 15] {
        let _ = victim.prepare(&Request::read(0, 512));
        let chain = [Descriptor::readable(HEADER, len), Descriptor::writable(STATUS, 1)];
        assert_eq!(victim.answer(&chain).0, IO_ERROR, "{len} bytes of header");
    }
    assert_eq!(victim.answer(&[Descriptor::writable(STATUS, 1)]).0, IO_ERROR);
    victim.works_after_reset();
}

#[test]
fn a_header_outside_of_memory() {
    let mut victim = Victim::new();
    for addr in [HOLE, LOW_BYTES - 8, HIGH_MEMORY + LOW_BYTES, HIGH_MEMORY - 8, u64::MAX - 7] {
        let chain = [Descriptor::readable(addr, 16), Descriptor::writable(STATUS, 1)];
        assert_eq!(victim.answer(&chain).0, IO_ERROR, "{addr:#x}");
    }
    victim.works_after_reset();
}

#[test]
fn data_outside_of_memory() {
    let mut victim = Victim::new();
    let before = victim.backend.content();
    for addr in [HOLE, LOW_BYTES - 256, LOW_BYTES, HIGH_MEMORY - 256, u64::MAX - 255, u64::MAX] {
        let _ = victim.prepare(&Request::read(0, 512));
        let header = Descriptor::readable(HEADER, 16);
        let status = Descriptor::writable(STATUS, 1);
        let read = [header, Descriptor::writable(addr, 512), status];
        assert_eq!(victim.answer(&read).0, IO_ERROR, "read to {addr:#x}");
        // Half of the data is fine, which does not make it half a request.
        let fine = Descriptor::writable(DATA, 512);
        assert_eq!(victim.answer(&[header, fine, Descriptor::writable(addr, 512), status]).0, 1);
        let _ = victim.prepare(&Request::write(0, &[]));
        let write = [header, Descriptor::readable(addr, 512), status];
        assert_eq!(victim.answer(&write).0, IO_ERROR, "write from {addr:#x}");
        let _ = victim.prepare(&Request::bare(kind::GET_ID));
        let id = [header, Descriptor::writable(addr, 20), status];
        if addr != LOW_BYTES - 256 && addr != HIGH_MEMORY - 256 {
            assert_eq!(victim.answer(&id).0, IO_ERROR, "id to {addr:#x}");
        }
    }
    assert_eq!(victim.backend.content(), before);
    victim.works_after_reset();
}

/// Lengths whose sum does not fit 32 bits, and would be a small number if it wrapped.
#[test]
fn lengths_that_overflow() {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    let part = Descriptor::writable(0, 0x8000_0000);
    let mut chain = vec![Descriptor::readable(HEADER, 16), part, part];
    chain.extend([Descriptor::writable(DATA, 512), Descriptor::writable(STATUS, 1)]);
    assert_eq!(victim.answer(&chain).0, IO_ERROR);
    victim.works_after_reset();
}

/// Data larger than a request may move, all of it in memory: the same buffer again and again.
#[test]
fn more_data_than_a_request_may_move() {
    let mut victim = Victim::new();
    let _ = victim.prepare(&Request::read(0, 512));
    let part = Descriptor::writable(0x40_0000, 4 << 20);
    let mut table = vec![Descriptor::readable(HEADER, 16)];
    table.extend([part; 300]);
    table.push(Descriptor::writable(STATUS, 1));
    let at = super::victim::TABLE;
    victim.write(STATUS, &[0xff]);
    let _ = victim.disk.rings[0].offer_indirect(at, &table);
    let _ = victim.disk.rings[0].publish();
    victim.kick();
    let _ = victim.disk.rings[0].wait_used();
    assert_eq!(victim.status(), IO_ERROR);
    victim.works_after_reset();
}

/// The same buffer for several parts of the data is odd but allowed; a read fills it with the last.
#[test]
fn data_buffers_that_overlap() {
    let mut victim = Victim::new();
    let content: Vec<u8> = (0..1 << 16).map(|at: u32| at.to_le_bytes()[1]).collect();
    victim.backend.set_content(&content);
    let _ = victim.prepare(&Request::read(0, 1024));
    let data = Descriptor::writable(DATA, 512);
    let status = Descriptor::writable(STATUS, 1);
    assert_eq!(victim.answer(&[Descriptor::readable(HEADER, 16), data, data, status]).0, OK);
    assert_eq!(victim.read(DATA, 512), content[512..1024]);
    victim.works_after_reset();
}

/// A read over its own header and status: the header was read before, the status comes last.
#[test]
fn data_over_header_and_status() {
    let mut victim = Victim::new();
    victim.backend.fill(0xee);
    let _ = victim.prepare(&Request::read(0, 512));
    let header = Descriptor::readable(HEADER, 16);
    let chain = [header, Descriptor::writable(HEADER, 512), Descriptor::writable(STATUS, 1)];
    assert_eq!(victim.answer(&chain), (OK, 513));
    assert_eq!(victim.read(HEADER, 512), [0xee; 512]);

    let _ = victim.prepare(&Request::read(0, 512));
    let over = Descriptor::writable(STATUS - 256, 512);
    assert_eq!(victim.answer(&[header, over, Descriptor::writable(STATUS, 1)]).0, OK);
    assert_eq!(victim.read(STATUS - 1, 1), [0xee]);
    victim.works_after_reset();
}

/// Device-writable bytes that a request has no use for, and readable ones, change nothing.
#[test]
fn bytes_too_many() {
    let mut victim = Victim::new();
    let status = Descriptor::writable(STATUS, 1);
    for request in [Request::bare(kind::FLUSH), Request::write(0, &[7; 512])] {
        victim.write(DATA, &[0xab; 64]);
        let mut chain = usual_chain(&victim, &request);
        chain.insert(chain.len() - 1, Descriptor::writable(DATA, 64));
        // None of those bytes is written, so that none may be reported (§2.7.8.2).
        assert_eq!(victim.answer(&chain), (OK, 0));
        assert_eq!(victim.read(DATA, 64), [0xab; 64]);
    }
    let _ = victim.prepare(&Request::read(0, 512));
    let header_and_more = Descriptor::readable(HEADER, 4096);
    let chain = [header_and_more, Descriptor::writable(DATA, 512), status];
    assert_eq!(victim.answer(&chain), (OK, 513));
    victim.works_after_reset();
}

#[test]
fn data_of_no_length() {
    let mut victim = Victim::new();
    for request in [Request::read(0, 0), Request::write(0, &[])] {
        assert_eq!(victim.disk.run(&request).status, OK);
    }
    for request in [Request::read(SECTORS + 1, 0), Request::write(u64::MAX, &[])] {
        assert_eq!(victim.disk.run(&request).status, IO_ERROR);
    }
    victim.works_after_reset();
}

#[test]
fn a_place_for_the_id_of_another_size() {
    let mut victim = Victim::new();
    let id = |len| Request { kind: kind::GET_ID, sector: 0, data: Data::In(len) };
    for len in [0, 1, 19] {
        assert_eq!(victim.disk.run(&id(len)).status, IO_ERROR, "{len} bytes");
    }
    assert_eq!(victim.disk.run(&id(20)).status, OK);
    let outcome = victim.disk.run(&id(64));
    assert_eq!((outcome.status, outcome.written), (OK, 20));
    assert_eq!(outcome.data[20..], [0xa5; 44]);
    // Half of the place is memory: nothing is written there either.
    let _ = victim.prepare(&id(20));
    victim.write(DATA, &[0xa5; 10]);
    let halves = [Descriptor::writable(DATA, 10), Descriptor::writable(HOLE, 10)];
    let header = Descriptor::readable(HEADER, 16);
    let chain = [header, halves[0], halves[1], Descriptor::writable(STATUS, 1)];
    assert_eq!(victim.answer(&chain), (IO_ERROR, 0));
    assert_eq!(victim.read(DATA, 10), [0xa5; 10]);
    victim.works_after_reset();
}
