//! Commands that access the medium.

use ::block::{ByteOffset, ByteRange, Durability};

use super::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from(index % 251 + 1).unwrap()).collect()
}

const VOLATILE: Durability = Durability::Volatile;
const DURABLE: Durability = Durability::Durable;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange { start: ByteOffset(start), len }
}

#[test]
fn all_forms_read_and_write_the_same_blocks() {
    let rig = Rig::new();
    let writes = [
        "0a 00 0001 02 00",
        "2a 00 00000001 00 0002 00",
        "aa 00 00000001 00000002 00 00",
        "8a 00 0000000000000001 00000002 00 00",
    ];
    let reads = [
        "08 00 0001 02 00",
        "28 00 00000001 00 0002 00",
        "a8 00 00000001 00000002 00 00",
        "88 00 0000000000000001 00000002 00 00",
    ];
    for (turn, write) in writes.iter().enumerate() {
        let mut data = pattern(1024);
        data[0] = u8::try_from(turn).unwrap();
        assert_eq!(rig.run(&hex(write), &data), Ok(vec![]));
        assert_eq!(
            rig.operations(),
            [Operation::Write { at: ByteOffset(512), durability: VOLATILE }]
        );
        for read in reads {
            assert_eq!(rig.run(&hex(read), &[]), Ok(data.clone()));
        }
        rig.operations();
    }
    // A count of zero means 256 blocks in the six byte form, and none in the others.
    assert_eq!(rig.run(&hex("08 00 0000 00 00"), &[]).map(|data| data.len()), Ok(256 * 512));
    assert_eq!(rig.run(&hex("28 00 00000000 00 0000 00"), &[]), Ok(vec![]));
    assert_eq!(rig.operations().len(), 1);
}

#[test]
fn fua_accesses_the_medium() {
    let rig = Rig::new();
    assert!(rig.run(&hex("2a 08 00000000 00 0001 00"), &pattern(512)).is_ok());
    assert_eq!(rig.operations(), [Operation::Write { at: ByteOffset(0), durability: DURABLE }]);
    assert_eq!(rig.run(&hex("28 08 00000000 00 0001 00"), &[]), Ok(pattern(512)));
    let read_and_flush = [Operation::Read { at: ByteOffset(0) }, Operation::Flush];
    assert_eq!(rig.operations(), read_and_flush, "the flush covers the data that was read");
    let rig = Rig::with(DiskSetup { mode: CacheMode::WriteThrough, ..DiskSetup::default() });
    assert!(rig.run(&hex("28 08 00000000 00 0001 00"), &[]).is_ok());
    assert_eq!(rig.operations(), read_and_flush, "the data may be that of a write in flight");
    let rig = Rig::with(DiskSetup { read_only: true, ..DiskSetup::default() });
    assert!(rig.run(&hex("28 08 00000000 00 0001 00"), &[]).is_ok());
    assert_eq!(rig.operations(), read_and_flush[..1], "nothing to flush");
}

/// Until the flush has succeeded, completed writes may be volatile, although new ones are durable.
#[test]
fn a_write_cache_that_is_being_switched_off_holds_data() {
    let rig = Rig::new();
    let mut page = rig.query(&hex("1a 08 08 00 ff 00"));
    (page[0], page[2], page[6]) = (0, 0, 0);
    let select = || match rig.execute(&hex("15 10 00 00 18 00"), &page) {
        Ok(Answer::Work(job)) => job,
        other => panic!("{other:?}"),
    };
    let reports_cache = || rig.query(&hex("1a 08 08 00 ff 00"))[6] == 4;
    let read_flushes = || {
        assert!(rig.run(&hex("28 08 00000000 00 0001 00"), &[]).is_ok());
        rig.operations().contains(&Operation::Flush)
    };
    let mut failed = select();
    assert!(reports_cache() && read_flushes(), "the flush is in flight");
    let error = io::Error::from_raw_os_error(libc::EIO);
    assert!(matches!(failed.next(&rig.unit, Err(error), &&[][..]), Next::Done(Err(_))));
    assert!(reports_cache() && read_flushes(), "the flush failed");
    let _ended = select();
    rig.unit.write_cache().device_reset();
    assert!(reports_cache() && read_flushes(), "a reset ended the switch");
    assert!(matches!(select().next(&rig.unit, Ok(()), &&[][..]), Next::Done(Ok(()))));
    assert!(!reports_cache());
}

#[test]
fn switching_the_write_cache_off_flushes_it() {
    let rig = Rig::new();
    let mut page = rig.query(&hex("1a 08 08 00 ff 00"));
    (page[0], page[2], page[6]) = (0, 0, 0);
    assert_eq!(rig.run(&hex("15 10 00 00 18 00"), &page), Ok(vec![]));
    assert_eq!(rig.operations(), [Operation::Flush]);
    assert_eq!(rig.query(&hex("1a 08 08 00 ff 00"))[6], 0);
    assert!(rig.run(&hex("2a 00 00000000 00 0001 00"), &pattern(512)).is_ok());
    assert_eq!(rig.operations(), [Operation::Write { at: ByteOffset(0), durability: DURABLE }]);
    page[6] = 4;
    assert_eq!(rig.run(&hex("15 10 00 00 18 00"), &page), Ok(vec![]));
    assert!(rig.unit.write_cache().is_on());
    page[6] = 0;
    *rig.disk.errno.lock().unwrap() = Some(libc::EIO);
    assert_eq!(rig.run(&hex("15 10 00 00 18 00"), &page), Err(Sense::WRITE_ERROR));
    assert!(rig.unit.write_cache().is_on(), "the flush failed");
}

/// The second of two switches must not complete before the flush of the first one.
#[test]
fn a_second_switch_to_off_flushes_as_well() {
    let rig = Rig::new();
    let mut page = rig.query(&hex("1a 08 08 00 ff 00"));
    (page[0], page[2], page[6]) = (0, 0, 0);
    let select = || rig.execute(&hex("15 10 00 00 18 00"), &page);
    let Ok(Answer::Work(_first)) = select() else { panic!() };
    let Ok(Answer::Work(second)) = select() else { panic!("no flush") };
    assert_eq!(second.step().op, Operation::Flush);
}

/// The flush of the switch does not cover a write in flight.
#[test]
fn a_write_in_flight_during_the_switch_is_flushed() {
    for (cdb, out) in [
        ("2a 00 00000000 00 0001 00", 512),
        ("93 00 0000000000000000 00000001 00 00", 512),
        ("89 00 0000000000000000 000000 01 00 00", 1024),
    ] {
        let rig = Rig::new();
        let out = pattern(out);
        let Ok(Answer::Work(mut job)) = rig.execute(&hex(cdb), &out) else { panic!() };
        rig.unit.write_cache().begin_switch_off();
        let Next::Step(step) = job.next(&rig.unit, Ok(()), &&out[..]) else { panic!("{cdb}") };
        assert_eq!(step.op, Operation::Flush);
        assert!(matches!(job.next(&rig.unit, Ok(()), &&out[..]), Next::Done(Ok(()))));
    }
}

#[test]
fn the_control_page_selects_descriptor_sense() {
    let rig = Rig::new();
    assert!(!rig.unit.descriptor_sense());
    let list = hex("0000000000000000 0a 0a 06 10 00 00 0000 0000 0000");
    assert_eq!(rig.run(&hex("55 10 00 00 00 00 00 0014 00"), &list), Ok(vec![]));
    assert!(rig.unit.descriptor_sense());
    rig.unit.reset(Attention::UnitReset);
    assert!(!rig.unit.descriptor_sense());
}

#[test]
fn unmap_discards_in_order_and_marks_all_but_the_last() {
    let rig = Rig::new();
    rig.disk.content.lock().unwrap().fill(7);
    let list = hex(
        "0036 0030 00000000 0000000000000008 00000008 00000000 0000000000000000 00000000 00000000 \
                    0000000000000020 00000010 00000000",
    );
    assert_eq!(rig.run(&hex("42 00 00000000 00 0038 00"), &list), Ok(vec![]));
    let discard = |start, len, more_follows| Operation::Discard {
        range: range(start, len),
        durability: VOLATILE,
        more_follows,
    };
    assert_eq!(rig.operations(), [discard(4096, 4096, true), discard(16384, 8192, false)]);
    // Unsorted, adjacent, nested and separate ranges.
    let list = hex(
        "0056 0050 00000000 0000000000000010 00000004 00000000 000000000000000c 00000004 00000000 \
                    0000000000000008 00000004 00000000 0000000000000009 00000001 00000000 \
                    0000000000000000 00000001 00000000",
    );
    assert_eq!(rig.run(&hex("42 00 00000000 00 0058 00"), &list), Ok(vec![]));
    assert_eq!(rig.operations(), [discard(0, 512, true), discard(4096, 6144, false)]);
    // No list, no ranges, and an incomplete descriptor.
    for (cdb, list) in [
        ("42 00 00000000 00 0000 00", ""),
        ("42 00 00000000 00 0008 00", "0006 0000 00000000"),
        ("42 00 00000000 00 0010 00", "000e 0008 00000000 0000000000000000"),
    ] {
        assert_eq!(rig.run(&hex(cdb), &hex(list)), Ok(vec![]));
        assert_eq!(rig.operations(), []);
    }
}

#[test]
fn write_same_zeroes_or_repeats() {
    let rig = Rig::new();
    let zero =
        |len, unmap| Operation::WriteZeroes { range: range(512, len), unmap, durability: VOLATILE };
    let rows = [("93 00", false), ("93 08", true)];
    for (start, unmap) in rows {
        let cdb = format!("{start} 0000000000000001 00000010 00 00");
        assert_eq!(rig.run(&hex(&cdb), &[0; 512]), Ok(vec![]));
        assert_eq!(rig.operations(), [zero(8192, unmap)]);
        let ndob = format!("93 0{} 0000000000000001 00000010 00 00", if unmap { 9 } else { 1 });
        assert_eq!(rig.run(&hex(&ndob), &[]), Ok(vec![]));
        assert_eq!(rig.operations(), [zero(8192, unmap)]);
    }
    assert_eq!(rig.run(&hex("41 08 00000001 00 0010 00"), &[0; 512]), Ok(vec![]));
    assert_eq!(rig.operations(), [zero(8192, true)]);
    // Unmapped blocks do not read as this data, so it is written: 300 blocks in chunks of 64 KiB.
    let block = pattern(512);
    assert_eq!(rig.run(&hex("93 08 0000000000000001 0000012c 00 00"), &block), Ok(vec![]));
    assert_eq!(rig.operations().len(), 3);
    let content = rig.disk.content.lock().unwrap();
    assert!(content[512..301 * 512].chunks(512).all(|found| found == block));
    assert!(content[..512].iter().chain(&content[301 * 512..]).all(|byte| *byte == 0));
}

#[test]
fn verify_reads_and_compares() {
    let rig = Rig::new();
    let data = pattern(200 * 512);
    rig.disk.content.lock().unwrap()[512..201 * 512].copy_from_slice(&data);
    assert_eq!(rig.run(&hex("2f 00 00000001 00 00c8 00"), &[]), Ok(vec![]));
    assert_eq!(rig.operations().len(), 3, "a flush and two reads");
    assert_eq!(rig.run(&hex("2f 02 00000001 00 00c8 00"), &data), Ok(vec![]));
    let mut other = data.clone();
    other[100_000] ^= 1;
    assert_eq!(
        rig.run(&hex("8f 02 0000000000000001 000000c8 00 00"), &other),
        Err(Sense::miscompare(100_000))
    );
    // One block compared with many.
    rig.disk.content.lock().unwrap()[..1024]
        .copy_from_slice(&[pattern(512), pattern(512)].concat());
    assert_eq!(rig.run(&hex("af 06 00000000 00000002 00 00"), &pattern(512)), Ok(vec![]));
    let found = rig.run(&hex("af 06 00000000 00000003 00 00"), &pattern(512));
    assert_eq!(found, Err(Sense::miscompare(0)));
    *rig.disk.errno.lock().unwrap() = Some(libc::EIO);
    assert!(rig.run(&hex("2f 00 00000001 00 00c8 00"), &[]).is_err());
}

#[test]
fn write_and_verify_writes_durably() {
    let rig = Rig::new();
    let data = pattern(1024);
    assert_eq!(rig.run(&hex("2e 02 00000004 00 0002 00"), &data), Ok(vec![]));
    let at = ByteOffset(2048);
    assert_eq!(
        rig.operations(),
        [Operation::Write { at, durability: DURABLE }, Operation::Read { at }]
    );
    assert_eq!(rig.run(&hex("28 00 00000004 00 0002 00"), &[]), Ok(data));
}

#[test]
fn compare_and_write_writes_only_what_compares() {
    let rig = Rig::new();
    let cdb = hex("89 00 0000000000000003 000000 02 00 00");
    let new = pattern(1024);
    assert_eq!(rig.run(&cdb, &[vec![0; 1024], new.clone()].concat()), Ok(vec![]));
    assert_eq!(
        rig.operations(),
        [Operation::CompareAndWrite { at: ByteOffset(1536), durability: VOLATILE }]
    );
    assert_eq!(rig.run(&hex("28 00 00000003 00 0002 00"), &[]), Ok(new.clone()));
    let mut wrong = new.clone();
    wrong[700] ^= 0x80;
    assert_eq!(rig.run(&cdb, &[wrong, vec![0; 1024]].concat()), Err(Sense::miscompare(700)));
    assert_eq!(rig.run(&hex("28 00 00000003 00 0002 00"), &[]), Ok(new));
}

/// SBC-3 §5.9, §5.10: GOOD instead of CONDITION MET, because nothing is kept in a cache.
#[test]
fn prefetch_checks_its_range_and_reads_nothing() {
    let rig = Rig::new();
    for cdb in [
        "34 00 00000000 00 0001 00",
        "34 02 00000000 00 0001 00", // IMMED
        "34 00 00000000 1f 0001 00", // GROUP NUMBER
        "34 00 00000000 00 0800 00",
        "34 00 000007ff 00 0001 00",
        "34 00 00000000 00 0000 00", // to the end
        "34 02 000007ff 00 0000 00",
        "90 00 0000000000000000 00000800 00 00",
        "90 02 00000000000007ff 00000001 00 00",
        "90 00 0000000000000000 00000000 1f 00",
        "90 02 00000000000007ff 00000000 00 00",
    ] {
        let outcome = rig.execute(&hex(cdb), &[]);
        let Ok(Answer::Good { data, taken }) = outcome else { panic!("{cdb}: {outcome:?}") };
        assert_eq!((data, taken), (vec![], 0), "{cdb}");
    }
    assert_eq!(rig.operations(), []);
    // Longer than the limit of transfers, and on a disk that cannot be written.
    let rig = Rig::with(DiskSetup { capacity: 3 << 40, read_only: true, ..DiskSetup::default() });
    assert_eq!(rig.run(&hex("90 00 0000000000000000 ffffffff 00 00"), &[]), Ok(vec![]));
}

#[test]
fn host_errors_map_to_sense_data() {
    let rig = Rig::new();
    for (errno, cdb, expected) in [
        (libc::EIO, "28 00 00000000 00 0001 00", Sense::UNRECOVERED_READ_ERROR),
        (libc::EIO, "2a 00 00000000 00 0001 00", Sense::WRITE_ERROR),
        (libc::ENOSPC, "2a 00 00000000 00 0001 00", Sense::NO_SPACE),
        (libc::EDQUOT, "93 00 0000000000000000 00000001 00 00", Sense::NO_SPACE),
        (libc::EROFS, "2a 00 00000000 00 0001 00", Sense::WRITE_PROTECTED),
        (libc::EIO, "35 00 00000000 00 0000 00", Sense::WRITE_ERROR),
        (libc::EIO, "89 00 0000000000000000 000000 01 00 00", Sense::WRITE_ERROR),
        (libc::ENOSPC, "2e 00 00000000 00 0001 00", Sense::NO_SPACE),
    ] {
        *rig.disk.errno.lock().unwrap() = Some(errno);
        assert_eq!(rig.run(&hex(cdb), &pattern(1024)), Err(expected), "{cdb}");
    }
}

/// The disk's `sync` panics.
#[test]
fn a_read_only_unit_is_not_flushed_when_it_is_closed() {
    let rig = Rig::with(DiskSetup { read_only: true, ..DiskSetup::default() });
    assert!(rig.unit.sync().is_ok());
}
