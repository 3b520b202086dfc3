//! Refused commands with the exact sense data.

use super::*;

/// A command, its data-out, and the expected failure.
type Row = (&'static str, &'static str, Failure);

const fn field(byte: u16, bit: Option<u8>) -> Failure {
    Failure::Check(Sense::invalid_field_in_cdb(byte, bit))
}

fn parameter(byte: usize, bit: Option<u8>) -> Failure {
    Failure::Check(Sense::invalid_parameter(byte, bit))
}

fn check(rig: &Rig, rows: &[Row]) {
    for (cdb, out, expected) in rows {
        let outcome = rig.execute(&hex(cdb), &hex(out));
        assert_eq!(outcome.err(), Some(*expected), "{cdb} {out}");
    }
    assert_eq!(rig.operations(), []);
}

#[test]
fn blocks_beyond_the_end_are_refused() {
    let range = Failure::Check(Sense::LBA_OUT_OF_RANGE);
    let unmap = "0016 0010 00000000 0000000000000000 00000001 00000000";
    check(
        &Rig::new(),
        &[
            ("08 00 07ff 02 00", "", range),
            ("28 00 00000800 00 0001 00", "", range),
            ("28 00 00000801 00 0000 00", "", range),
            ("2a 00 ffffffff 00 ffff 00", "", range),
            ("88 00 ffffffffffffffff 00000001 00 00", "", range),
            ("88 00 0080000000000000 00000001 00 00", "", range),
            ("8a 00 00000000000007ff 00000002 00 00", "", range),
            ("a8 00 000007ff 00000002 00 00", "", range),
            ("35 00 00000800 00 0001 00", "", range),
            ("91 00 0000000000000801 00000000 00 00", "", range),
            ("34 00 000007ff 00 0002 00", "", range),
            ("34 02 00000800 00 0001 00", "", range),
            ("34 00 00000800 00 0000 00", "", range),
            ("90 00 0000000000000001 00000800 00 00", "", range),
            ("90 02 0000000000000800 00000000 00 00", "", range),
            ("90 00 ffffffffffffffff 00000000 00 00", "", range),
            ("90 00 ffffffffffffffff 00000001 00 00", "", range),
            ("2f 00 00000800 00 0001 00", "", range),
            ("8e 00 0000000000000800 00000001 00 00", "", range),
            ("89 00 0000000000000800 000000 01 00 00", "", range),
            ("41 00 00000800 00 0001 00", "", range),
            ("93 00 0000000000000800 00000001 00 00", "", range),
            (
                "42 00 00000000 00 0018 00",
                "0016 0010 00000000 0000000000000800 00000001 00000000",
                range,
            ),
            (
                "42 00 00000000 00 0018 00",
                "0016 0010 00000000 ffffffffffffffff 00000002 00000000",
                range,
            ),
        ],
    );
    assert!(Rig::new().execute(&hex("42 00 00000000 00 0018 00"), &hex(unmap)).is_ok());
    assert!(Rig::new().execute(&hex("28 00 00000800 00 0000 00"), &[]).is_ok());
}

#[test]
fn invalid_cdb_fields_are_refused() {
    check(
        &Rig::with(DiskSetup { capacity: 64 * MIB, ..DiskSetup::default() }),
        &[
            ("48 01 00 00 00 00 00 0000 00", "", Failure::Check(Sense::INVALID_COMMAND)),
            ("ff 00 00 00 00 00", "", Failure::Check(Sense::INVALID_COMMAND)),
            ("9e 1f 0000000000000000 00000000 00 00", "", field(1, Some(4))),
            ("5e 04 00 00 00 00 00 0000 00", "", field(1, Some(4))),
            ("5f 07 00 00 00 00000018 00", "", field(1, Some(4))),
            ("28 20 00000000 00 0001 00", "", field(1, Some(7))),
            ("2a e0 00000000 00 0001 00", "", field(1, Some(7))),
            ("93 20 0000000000000000 00000001 00 00", "", field(1, Some(7))),
            ("28 00 00000000 00 0001 04", "", field(9, Some(2))),
            ("00 00 00 00 00 04", "", field(5, Some(2))),
            ("90 00 0000000000000000 00000001 00 04", "", field(15, Some(2))),
            ("88 00 0000000000000000 00010001 00 00", "", field(10, None)),
            ("a8 00 00000000 00010001 00 00", "", field(6, None)),
            ("89 00 0000000000000000 000000 81 00 00", "", field(13, None)),
            ("2f 04 00000000 00 0001 00", "", field(1, Some(2))),
            ("2e 06 00000000 00 0001 00", "", field(1, Some(2))),
            ("41 00 00000000 00 0000 00", "", field(7, None)),
            ("93 00 0000000000000000 00400001 00 00", "", field(10, None)),
            ("93 18 0000000000000000 00000001 00 00", "", field(1, Some(4))),
            ("93 02 0000000000000000 00000001 00 00", "", field(1, Some(1))),
            ("42 01 00000000 00 0018 00", "", field(1, Some(0))),
            ("1b 00 00 00 11 00", "", field(4, Some(7))),
            ("1b 00 00 00 02 00", "", field(4, Some(1))),
            ("1e 00 00 00 02 00", "", field(4, Some(1))),
            ("1d 20 00 0000 00", "", field(1, Some(7))),
            ("1d 00 00 0001 00", "", field(3, None)),
            ("15 00 00 00 04 00", "00000000", field(1, Some(4))),
            ("15 11 00 00 04 00", "00000000", field(1, Some(0))),
        ],
    );
    let rig = Rig::with(DiskSetup { discard: false, ..DiskSetup::default() });
    check(&rig, &[("93 08 0000000000000000 00000001 00 00", "", field(1, Some(3)))]);
    // A CDB that is shorter than its form.
    let short = rig.execute(&hex("88 00 00 00 00 00 00 00 00 00"), &[]);
    assert_eq!(short.err(), Some(field(10, None)));
}

const LENGTH_ERROR: Failure = Failure::Check(Sense::PARAMETER_LIST_LENGTH_ERROR);

#[test]
fn invalid_parameter_lists_are_refused() {
    let length = LENGTH_ERROR;
    check(
        &Rig::new(),
        &[
            ("42 00 00000000 00 0007 00", "00000000000000", length),
            ("42 00 00000000 00 0018 00", "0016", Failure::Overrun),
            (
                "42 00 00000000 00 0018 00",
                "0016 0010 00000000 0000000000000000 00400001 00000000",
                Failure::Check(Sense::LBA_OUT_OF_RANGE),
            ),
            ("15 10 00 00 03 00", "000000", length),
            ("15 10 00 00 04 00", "00000008", length),
            ("15 10 00 00 0c 00", "00000008 00000001 00000200", parameter(4, None)),
            ("15 10 00 00 0c 00", "00000008 00000800 00001000", parameter(9, None)),
            ("15 10 00 00 05 00", "00000000 08", length),
            ("15 10 00 00 06 00", "00000000 0812", length),
            ("15 10 00 00 06 00", "00000000 0813", parameter(5, None)),
            ("15 10 00 00 06 00", "00000000 0100", parameter(4, Some(5))),
            ("15 10 00 00 06 00", "00000000 4812", parameter(4, Some(6))),
            (
                "15 10 00 00 18 00",
                "00000000 08 12 01 00 0000 0000 0000 0000 00 00 0000 00 000000",
                parameter(6, Some(0)),
            ),
            (
                "15 10 00 00 18 00",
                "00000000 08 12 04 00 0000 0000 0000 0000 00 80 0000 00 000000",
                parameter(17, Some(7)),
            ),
            (
                "15 10 00 00 10 00",
                "00000000 0a 0a 00 10 00 00 0000 0000 0000",
                parameter(6, Some(1)),
            ),
            ("15 10 00 00 18 00", "", Failure::Overrun),
            ("5f 00 00 0000 00000017 00", "", length),
            ("5f 00 00 0000 00000018 00", "00", Failure::Overrun),
            ("93 00 0000000000000000 00000001 00 00", "00", Failure::Overrun),
        ],
    );
}

#[test]
fn a_mode_list_with_an_error_changes_nothing() {
    let rig = Rig::new();
    let caching = "00000000 08 12 00 00 0000 0000 0000 0000 00 00 0000 00 000000";
    let both = format!("{caching} 0a 0a 06 00 00 00 0000 0000 0000");
    assert_eq!(
        rig.execute(&hex("15 10 00 00 24 00"), &hex(&both)).err(),
        Some(parameter(27, Some(4)))
    );
    assert!(rig.unit.write_cache().is_on());
}

/// The initiator may send the page unchanged.
#[test]
fn the_soft_limit_is_read_only() {
    let rig = Rig::new();
    *rig.disk.soft_limit.lock().unwrap() = Some(80);
    let limit = "00000000 5c 02 0014 00 0000000000 0000000000 00 81 02 0000 00000009";
    assert!(rig.execute(&hex("15 10 00 00 1c 00"), &hex(limit)).is_ok());
    for (from, to, at, bit) in [
        ("0014 00", "0014 01", 8, Some(0)),
        ("81 02", "01 02", 20, Some(7)),
        ("81 02", "80 02", 20, Some(0)),
        ("81 02", "81 01", 21, Some(1)),
        ("00000009", "00000008", 27, Some(0)),
        ("0014 00", "0013 00", 6, None),
        ("5c 02", "5c 01", 4, Some(6)),
        ("5c 02 0014", "1c 02 0014", 4, Some(5)),
    ] {
        let outcome = rig.execute(&hex("15 10 00 00 1c 00"), &hex(&limit.replace(from, to)));
        assert_eq!(outcome.err(), Some(parameter(at, bit)), "{to}");
    }
    for (cdb, list) in
        [("15 10 00 00 07 00", "00000000 5c 02 00"), ("15 10 00 00 08 00", &limit[..20])]
    {
        assert_eq!(rig.execute(&hex(cdb), &hex(list)).err(), Some(LENGTH_ERROR), "{list}");
    }
}

/// On a disk with more blocks than the limit.
#[test]
fn unmap_is_limited_in_blocks() {
    let rig = Rig::with(DiskSetup { capacity: 64 << 30, ..DiskSetup::default() });
    let two =
        "0026 0020 00000000 0000000000000000 00400000 00000000 0000000000000000 00000001 00000000";
    let outcome = rig.execute(&hex("42 00 00000000 00 0028 00"), &hex(two));
    assert_eq!(outcome.err(), Some(parameter(32, None)));
}

#[test]
fn read_only_disks_refuse_changes() {
    let rig = Rig::with(DiskSetup { read_only: true, ..DiskSetup::default() });
    let protected = Failure::Check(Sense::WRITE_PROTECTED);
    check(
        &rig,
        &[
            ("0a 00 0000 01 00", "", protected),
            ("2a 00 00000000 00 0001 00", "", protected),
            ("8a 00 0000000000000000 00000001 00 00", "", protected),
            ("aa 00 00000000 00000001 00 00", "", protected),
            ("2e 00 00000000 00 0001 00", "", protected),
            ("89 00 0000000000000000 000000 01 00 00", "", protected),
            ("41 00 00000000 00 0001 00", "", protected),
            ("93 00 0000000000000000 00000001 00 00", "", protected),
            ("42 00 00000000 00 0018 00", "", Failure::Check(Sense::INVALID_COMMAND)),
        ],
    );
}

#[test]
fn all_but_three_commands_report_unit_attention() {
    let rig = Rig::fresh(DiskSetup::default());
    assert_eq!(rig.query(&hex("12 00 00 00 24 00")).len(), 36);
    assert_eq!(rig.query(&hex("a0 00 00 000000 00000010 00 00")).len(), 16);
    let sense = rig.refusal(&hex("ff 00 00 00 00 00"), &[]);
    assert_eq!(sense.triple(), (Key::UnitAttention, 0x29, 0));
    assert_eq!(
        rig.refusal(&hex("ff 00 00 00 00 00"), &[]),
        Sense::INVALID_COMMAND,
        "reported once"
    );
    assert!(rig.unit.set_capacity(2 * MIB));
    assert!(!rig.unit.set_capacity(2 * MIB));
    let data = rig.query(&hex("03 00 00 00 ff 00"));
    assert_eq!((data[2], data[12], data[13]), (6, 0x2a, 9), "data of REQUEST SENSE");
    assert_eq!(rig.query(&hex("03 01 00 00 ff 00")), hex("72 00 0000 00000000"));
    assert_eq!(rig.query(&hex("25 00 00000000 0000 00 00"))[..4], hex("00000fff"));
}

#[test]
fn a_soft_threshold_is_reported_once() {
    let rig = Rig::new();
    rig.unit.raise(Attention::SoftThreshold);
    rig.unit.raise(Attention::SoftThreshold);
    let sense = rig.refusal(&hex("2a 00 00000000 00 0001 00"), &[7; 512]);
    assert_eq!(sense.triple(), (Key::UnitAttention, 0x38, 0x07));
    assert_eq!(rig.operations(), [], "the initiator repeats the write");
    assert_eq!(rig.run(&hex("2a 00 00000000 00 0001 00"), &[7; 512]), Ok(vec![]));
}

#[test]
fn a_stopped_unit_is_not_ready() {
    let rig = Rig::new();
    assert_eq!(rig.run(&hex("1b 00 00 00 00 00"), &[]), Ok(vec![]));
    assert_eq!(rig.operations(), [Operation::Flush]);
    for cdb in [
        "00 00 00 00 00 00",
        "28 00 00000000 00 0001 00",
        "25 00 00000000 0000 00 00",
        "34 00 00000000 00 0001 00",
        "90 00 0000000000000000 00000001 00 00",
    ] {
        assert_eq!(rig.refusal(&hex(cdb), &[]), Sense::STOPPED, "{cdb}");
    }
    assert_eq!(rig.query(&hex("03 00 00 00 ff 00"))[12..14], [4, 2]);
    assert_eq!(rig.run(&hex("1b 00 00 00 01 00"), &[]), Ok(vec![]));
    assert_eq!(rig.query(&hex("00 00 00 00 00 00")), []);
    *rig.disk.errno.lock().unwrap() = Some(libc::EIO);
    assert_eq!(rig.run(&hex("1b 00 00 00 00 00"), &[]), Err(Sense::WRITE_ERROR));
    assert_eq!(rig.query(&hex("00 00 00 00 00 00")), [], "a failed flush does not stop the unit");
}
