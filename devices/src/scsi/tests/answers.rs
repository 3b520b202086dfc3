//! The answers of commands about the unit, byte by byte.

use ::block::{ByteOffset, ByteRange, CacheMode, Extent};

use super::*;

#[test]
fn inquiry_identifies_disk_and_standards() {
    let rig = Rig::new();
    let data = rig.query(&hex("12 00 00 00 ff 00"));
    assert_eq!(data[..8], hex("00 00 06 12 45 00 00 02"));
    assert_eq!(&data[8..32], b"BULKHEADDISK            ");
    assert_eq!(data[58..64], hex("00a0 0460 04c0"));
    assert_eq!(rig.query(&hex("12 00 00 00 05 00")).len(), 5, "the allocation length");
    assert_eq!(rig.refusal(&hex("12 00 80 00 ff 00"), &[]), Sense::invalid_field_in_cdb(2, None));
}

#[test]
fn exactly_the_listed_vpd_pages_exist() {
    let rig = Rig::new();
    let listed = rig.query(&hex("12 01 00 00 ff 00"));
    assert_eq!(listed, hex("00 00 00 07 00 80 83 86 b0 b1 b2"));
    for code in 0..=255 {
        let cdb = [0x12, 1, code, 0, 0xff, 0];
        if listed[4..].contains(&code) {
            let page = rig.query(&cdb);
            assert_eq!(page[..2], [0, code]);
            assert_eq!(page.len(), 4 + usize::from(page[2]) * 256 + usize::from(page[3]));
        } else {
            assert_eq!(rig.refusal(&cdb, &[]), Sense::invalid_field_in_cdb(2, None));
        }
    }
    assert_eq!(&rig.query(&hex("12 01 80 00 ff 00"))[4..], b"serial");
}

/// Guests keep the identity in their configuration.
#[test]
fn the_identity_is_stable_and_unique() {
    let page = Rig::new().query(&hex("12 01 83 00 ff 00"));
    assert_eq!(page[4..8], hex("01 03 00 08"));
    assert_eq!(page[8..16], hex("3ea033fa c3f595df"));
    assert_eq!(page[16..20], hex("02 01 00 0e"));
    assert_eq!(&page[20..], b"BULKHEADserial");
    let naa = |serial, location| Identity::new(serial, location).naa;
    let all = [naa("a", "b"), naa("a", "c"), naa("ab", ""), naa("", "ab")];
    for (index, one) in all.iter().enumerate() {
        assert_eq!(one >> 60, 3, "locally assigned");
        assert!(!all[index + 1..].contains(one));
    }
}

#[test]
fn block_limits_match_the_checks_of_commands() {
    let page = Rig::new().query(&hex("12 01 b0 00 ff 00"));
    assert_eq!(page.len(), 64);
    assert_eq!(page[4..8], hex("01 80 0008"), "WSNZ, 64 KiB compare and write, 4 KiB granularity");
    assert_eq!(page[8..16], hex("00010000 00000080"), "32 MiB maximum, 64 KiB optimal");
    assert_eq!(page[16..20], [0; 4], "no limit of PRE-FETCH");
    assert_eq!(page[20..36], hex("00400000 00000100 00000008 80000000"));
    assert_eq!(page[36..44], hex("0000000000400000"));
    let page = Rig::with(DiskSetup { discard: false, ..DiskSetup::default() })
        .query(&hex("12 01 b0 00 ff 00"));
    assert_eq!(page[20..36], [0; 16], "no unmap");
}

#[test]
fn provisioning_is_reported() {
    let rig = Rig::new();
    assert_eq!(rig.query(&hex("12 01 b2 00 ff 00")), hex("00 b2 0004 0b e4 02 00"));
    let long = rig.query(&hex("9e10 0000000000000000 00000020 0000"));
    assert_eq!(long[..16], hex("00000000000007ff 00000200 00 03 c0 00"));
    let rig = Rig::with(DiskSetup { discard: false, ..DiskSetup::default() });
    assert_eq!(rig.query(&hex("12 01 b2 00 ff 00")), hex("00 b2 0004 00 00 00 00"));
    assert_eq!(rig.query(&hex("9e10 0000000000000000 00000020 0000"))[14], 0);
    assert_eq!(rig.refusal(&hex("42 00 00 00 00 00 00 0018 00"), &[]), Sense::INVALID_COMMAND);
}

#[test]
fn large_capacities_need_the_long_form() {
    let rig = Rig::with(DiskSetup { capacity: 3 << 40, ..DiskSetup::default() });
    assert_eq!(rig.query(&hex("25 00 00000000 0000 00 00")), hex("ffffffff 00000200"));
    let long = rig.query(&hex("9e10 0000000000000000 0000000c 0000"));
    assert_eq!(long, hex("000000017fffffff 00000200"));
    let rig = Rig::with(DiskSetup { block: 4096, ..DiskSetup::default() });
    assert_eq!(rig.query(&hex("25 00 00000000 0000 00 00")), hex("000000ff 00001000"));
    assert_eq!(rig.query(&hex("9e10 0000000000000000 00000020 0000"))[13], 0, "4 KiB in 4 KiB");
}

#[test]
fn mode_sense_answers_in_both_forms() {
    let rig = Rig::new();
    let caching = hex("08 12 04 00 0000 0000 0000 0000 00 00 0000 00 000000");
    let control = hex("0a 0a 02 10 00 00 0000 0000 0000");
    let short = rig.query(&hex("1a 00 3f 00 ff 00"));
    assert_eq!(short[..12], hex("2b 00 10 08 00000800 00000200"));
    assert_eq!(short[12..], [caching.clone(), control].concat());
    let long = rig.query(&hex("5a 10 08 00 00 00 00 00ff 00"));
    assert_eq!(long[..24], hex("002a 00 10 01 00 0010 0000000000000800 00000000 00000200"));
    assert_eq!(long[24..], caching);
    let changeable = rig.query(&hex("1a 08 7f 00 ff 00"));
    assert_eq!((changeable[6], changeable[26]), (0x04, 0x04), "only WCE and D_SENSE");
    assert_eq!(changeable.iter().map(|byte| byte.count_ones()).sum::<u32>(), {
        let headers = [changeable[0], changeable[2], 0x08, 0x12, 0x0a, 0x0a];
        2 + headers.iter().map(|byte| byte.count_ones()).sum::<u32>()
    });
    assert_eq!(rig.refusal(&hex("1a 00 c8 00 ff 00"), &[]), Sense::SAVING_NOT_SUPPORTED);
    assert_eq!(
        rig.refusal(&hex("1a 00 01 00 ff 00"), &[]),
        Sense::invalid_field_in_cdb(2, Some(5))
    );
    assert_eq!(rig.refusal(&hex("1a 00 08 01 ff 00"), &[]), Sense::invalid_field_in_cdb(3, None));
}

/// The logical block provisioning page: a soft threshold on used resources, armed for a rise.
#[test]
fn the_soft_limit_is_a_threshold() {
    let rig = Rig::new();
    let query = |values: u8| rig.query(&[0x1a, 8, values << 6 | 0x1c, 2, 0xff, 0]);
    let header = hex("1b 00 10 00");
    let page = |descriptor: &str| {
        let fixed = hex("5c 02 0014 00 0000000000 0000000000 00");
        [header.clone(), fixed, hex(descriptor)].concat()
    };
    let [current, changeable, default] = [0, 1, 2];
    assert_eq!(query(current), page("01 02 0000 00000000"), "not enabled without a soft limit");
    *rig.disk.soft_limit.lock().unwrap() = Some(80);
    // 80 % of 10 MiB and 6 bytes, in sets of 1 MiB, rounded up.
    assert_eq!(query(current), page("81 02 0000 00000009"));
    assert_eq!(query(default), page("81 02 0000 00000009"));
    assert_eq!(query(changeable), page("00 00 0000 00000000"));

    // Reported among all subpages of its page and of all pages; not among pages without subpage.
    assert_eq!(rig.query(&hex("1a 08 1c ff ff 00")), query(current));
    let all = rig.query(&hex("5a 08 3f ff 00 00 00 00ff 00"));
    assert_eq!(all[..2], hex("003e"));
    assert_eq!(all[8..10], hex("08 12"));
    assert_eq!(all[28..30], hex("0a 0a"));
    assert_eq!(all[40..], query(current)[4..]);
    assert_eq!(rig.query(&hex("1a 08 3f 00 ff 00")).len(), 4 + 20 + 12);
    for (cdb, at) in [
        ("1a 08 1c 00 ff 00", (3, None)),
        ("1a 08 1c 01 ff 00", (3, None)),
        ("1a 08 3f 02 ff 00", (3, None)),
        ("1a 08 1d 02 ff 00", (2, Some(5))),
    ] {
        assert_eq!(rig.refusal(&hex(cdb), &[]), Sense::invalid_field_in_cdb(at.0, at.1), "{cdb}");
    }
    let rig = Rig::with(DiskSetup { discard: false, ..DiskSetup::default() });
    *rig.disk.soft_limit.lock().unwrap() = Some(80);
    let refusal = rig.refusal(&hex("1a 08 1c 02 ff 00"), &[]);
    assert_eq!(refusal, Sense::invalid_field_in_cdb(3, None), "no thresholds in VPD page B2h");
}

/// A store that grows moves the threshold. An initiator that read it is notified once, and again
/// after the next read.
#[test]
fn a_moved_threshold_is_reported() {
    let rig = Rig::new();
    *rig.disk.soft_limit.lock().unwrap() = Some(50);
    let grow = |available| {
        rig.disk.space.lock().unwrap().available = available;
        rig.unit.measure_space();
        rig.unit.check_threshold();
    };
    let read = || rig.query(&hex("1a 08 1c 02 ff 00"))[24..28].to_vec();
    grow(9 * MIB);
    assert_eq!(read(), hex("00000007"), "not read before");
    rig.unit.check_threshold();
    for (available, count) in [(29, "00000011"), (49, "0000001b")] {
        grow(available * MIB);
        rig.unit.check_threshold();
        let sense = rig.refusal(&hex("00 00 00 00 00 00"), &[]);
        assert_eq!(sense.triple(), (Key::UnitAttention, 0x2a, 0x01));
        rig.unit.check_threshold();
        assert_eq!(rig.query(&hex("00 00 00 00 00 00")), [], "once");
        assert_eq!(read(), hex(count));
    }
}

#[test]
fn without_write_cache_wce_is_fixed() {
    for mode in [CacheMode::DirectSync, CacheMode::WriteThrough] {
        let rig = Rig::with(DiskSetup { mode, ..DiskSetup::default() });
        for values in ["1a 08 08 00 ff 00", "1a 08 48 00 ff 00", "1a 08 88 00 ff 00"] {
            assert_eq!(rig.query(&hex(values))[6], 0, "{mode}, {values}");
        }
    }
    let rig = Rig::with(DiskSetup { read_only: true, ..DiskSetup::default() });
    assert_eq!(rig.query(&hex("1a 08 08 00 ff 00"))[2], 0x90, "WP and DPOFUA");
}

#[test]
fn every_lun_reports_all_luns() {
    let mut rig = Rig::new();
    for lun in [300, 7] {
        assert!(rig.target.add(lun, Arc::clone(&rig.unit)));
    }
    assert!(!rig.target.add(7, Arc::clone(&rig.unit)), "taken");
    assert!(!rig.target.add(0x4000, Arc::clone(&rig.unit)), "too high");
    let expected = hex("00000018 00000000 0000000000000000 0007000000000000 412c000000000000");
    for lun in [Some(0), Some(7), Some(9), None] {
        let cdb = Cdb::new(&hex("a0 00 00 000000 00000100 00 00"));
        let Ok(Answer::Good { data, .. }) = rig.target.execute(lun, &cdb, &&[0; 0][..]) else {
            panic!("{lun:?}");
        };
        assert_eq!(data, expected);
    }
    assert_eq!(rig.query(&hex("a0 00 01 000000 00000100 00 00")), hex("0000000000000000"));
    assert_eq!(
        rig.refusal(&hex("a0 00 00 000000 0000000f 00 00"), &[]),
        Sense::invalid_field_in_cdb(6, None)
    );
}

#[test]
fn luns_without_unit_answer_three_commands() {
    let rig = Rig::new();
    let query = |text: &str| rig.target.execute(Some(1), &Cdb::new(&hex(text)), &&[0; 0][..]);
    let Ok(Answer::Good { data, .. }) = query("12 00 00 00 24 00") else { panic!() };
    assert_eq!((data[0], data.len()), (0x7f, 36));
    let Ok(Answer::Good { data, .. }) = query("03 00 00 00 ff 00") else { panic!() };
    assert_eq!((data[2], data[12], data[13]), (5, 0x25, 0));
    for other in ["00 00 00 00 00 00", "28 00 00000000 00 0001 00", "12 01 00 00 ff 00"] {
        assert!(matches!(query(other), Err(Failure::Check(_))), "{other}");
    }
    let Err(Failure::Check(sense)) = query("00 00 00 00 00 00") else { panic!() };
    assert_eq!(sense, Sense::NO_SUCH_UNIT);
}

#[test]
fn lba_status_follows_the_host_allocation() {
    let rig = Rig::new();
    let extent = |start: u64, len: u64, allocated| Extent {
        range: ByteRange { start: ByteOffset(start), len },
        data: allocated,
    };
    *rig.disk.extents.lock().unwrap() = vec![
        extent(0, 4096, true),
        extent(4096, MIB - 8192, false),
        extent(MIB - 4096, 4096, true),
    ];
    let all = rig.query(&hex("9e12 0000000000000000 00000100 00 00"));
    assert_eq!(
        all,
        hex(
            "00000034 00000000 0000000000000000 00000008 00000000 0000000000000008 000007f0 01000000 \
             00000000000007f8 00000008 00000000"
        )
    );
    let one = rig.query(&hex("9e12 0000000000000008 00000018 00 00"));
    assert_eq!(one, hex("00000014 00000000 0000000000000008 000007f0 01000000"));
    let end = hex("9e12 0000000000000800 00000018 00 00");
    assert_eq!(rig.refusal(&end, &[]), Sense::LBA_OUT_OF_RANGE);
}

#[test]
fn log_pages_report_the_space() {
    let rig = Rig::new();
    assert_eq!(rig.query(&hex("4d 00 40 00 00 0000 00ff 00")), hex("00 00 0002 00 0c"));
    assert_eq!(rig.query(&hex("4d 00 40 ff 00 0000 00ff 00")), hex("40 ff 0004 0000 0c00"));
    let page = rig.query(&hex("4d 00 4c 00 00 0000 00ff 00"));
    assert_eq!(page[..4], hex("0c 00 0018"));
    assert_eq!(page[4..16], hex("0001 03 08 00000007 02 000000"), "7 MiB available, shared");
    assert_eq!(page[16..], hex("0002 03 08 00000004 02 000000"), "3 MiB used, rounded up");
    assert_eq!(rig.query(&hex("4d 00 4c 00 00 0002 00ff 00")).len(), 16, "from parameter 2");
    for (cdb, at) in [
        ("4d 01 40 00 00 0000 00ff 00", (1, Some(0))),
        ("4d 00 41 00 00 0000 00ff 00", (2, Some(5))),
    ] {
        assert_eq!(rig.refusal(&hex(cdb), &[]), Sense::invalid_field_in_cdb(at.0, at.1));
    }
    assert_eq!(
        rig.refusal(&hex("4d 00 4c 00 00 0003 00ff 00"), &[]),
        Sense::invalid_field_in_cdb(5, None)
    );
}

/// The counts of a huge disk must fit their fields.
#[test]
fn threshold_sets_grow_with_the_disk() {
    for (capacity, exponent) in [(MIB, 11), (1 << 50, 11), (1 << 53, 13), (1 << 60, 20)] {
        let rig = Rig::with(DiskSetup { capacity, ..DiskSetup::default() });
        assert_eq!(rig.query(&hex("12 01 b2 00 ff 00"))[4], exponent, "{capacity}");
    }
}

#[test]
fn every_reported_command_is_executed() {
    let rig = Rig::new();
    let all = rig.query(&hex("a3 0c 80 00 0000 00010000 00 00"));
    let descriptors: Vec<_> = all[4..].chunks(20).collect();
    assert_eq!(
        all.len() - 4,
        usize::try_from(u32::from_be_bytes(*all.first_chunk().unwrap())).unwrap()
    );
    assert!(descriptors.len() > 40);
    for descriptor in descriptors {
        let (opcode, action, servactv) = (descriptor[0], descriptor[3], descriptor[5] & 1);
        let options = 1 + servactv;
        let one = rig.query(&[0xa3, 0x0c, options, opcode, 0, action, 0, 0, 1, 0, 0, 0]);
        assert_eq!(one[..2], [0, 3]);
        assert_eq!(one[2..4], descriptor[6..8]);
        assert_eq!(one.len(), 4 + usize::from(one[3]));
        assert_eq!(one[4], opcode);
        let mut cdb = vec![0; usize::from(one[3])];
        cdb[0] = opcode;
        cdb[1] = if servactv == 1 { action } else { 0 };
        let refused = rig
            .execute(&cdb, &[])
            .is_err_and(|error| error == Failure::Check(Sense::INVALID_COMMAND));
        assert!(!refused, "{opcode:#x}");
    }
    for (opcode, name) in
        [(0x48, "SANITIZE"), (0x04, "FORMAT UNIT"), (0x16, "RESERVE"), (0x7f, "variable")]
    {
        let one = rig.query(&[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(one, [0, 1, 0, 0], "{name}");
        assert_eq!(rig.refusal(&[opcode, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[]), Sense::INVALID_COMMAND);
    }
    let wrong = Sense::invalid_field_in_cdb(2, Some(2));
    assert_eq!(rig.refusal(&hex("a3 0c 01 9e 0000 00000100 00 00"), &[]), wrong, "has actions");
    assert_eq!(rig.refusal(&hex("a3 0c 02 28 0000 00000100 00 00"), &[]), wrong, "has none");
    assert_eq!(rig.query(&hex("a3 0c 03 9e 0013 00000100 00 00")), [0, 1, 0, 0], "no such action");
    assert_eq!(rig.query(&hex("a3 0d 00 00 0000 00000100 00 00")), hex("dc 03 00 00"));
    assert_eq!(rig.query(&hex("a3 0d 80 00 0000 00000100 00 00")).len(), 16);
}
