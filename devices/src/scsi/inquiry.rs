//! INQUIRY, standard data (SPC-4 §6.6.2), and REPORT LUNS (§6.33).

use super::bytes::{ascii, be16, len32, put};
use super::unit::LogicalUnit;
use super::{Answer, Cdb, Command, Outcome, data_in, vpd};

/// What a disk calls itself.
pub(super) const VENDOR: &str = "BULKHEAD";
const PRODUCT: &str = "DISK";
/// The program's version, without its last number.
const REVISION: &str =
    concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
/// Bytes of standard data.
const STANDARD: usize = 74;
/// A peripheral qualifier and type that say: there can be no unit here.
const NO_UNIT: u8 = 0x7f;
/// Standards that the unit follows (SPC-4 annex E): SAM-5, SPC-4, SBC-3.
const VERSIONS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];

/// INQUIRY of a unit.
pub(super) fn inquiry(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    match (cdb.bit(1, 0), cdb.byte(2)) {
        (true, page) => match vpd::page(unit, page) {
            Some(page) => data_in(page, cdb.be16(3).into()),
            None => Err(cdb.wrong(2).into()),
        },
        (false, 0) => data_in(standard(0), cdb.be16(3).into()),
        (false, _) => Err(cdb.wrong(2).into()),
    }
}

/// INQUIRY of a number without a unit. It has no pages (SPC-4 §6.6.1).
pub(super) fn inquiry_without_unit(cdb: &Cdb) -> Outcome {
    if cdb.bit(1, 0) {
        return Err(cdb.wrong_bit(1, 0).into());
    }
    if cdb.byte(2) != 0 {
        return Err(cdb.wrong(2).into());
    }
    data_in(standard(NO_UNIT), cdb.be16(3).into())
}

fn standard(peripheral: u8) -> Vec<u8> {
    let mut data = vec![0; STANDARD];
    // SPC-4; HISUP and response data format 2; commands are queued.
    put(&mut data, 0, &[peripheral, 0, 6, 0x12, 0, 0, 0, 0x02]);
    let additional = u8::try_from(STANDARD - 5).unwrap_or(0);
    put(&mut data, 4, &[additional]);
    put(&mut data, 8, &ascii::<8>(VENDOR));
    put(&mut data, 16, &ascii::<16>(PRODUCT));
    put(&mut data, 32, &ascii::<4>(REVISION));
    for (index, version) in VERSIONS.iter().enumerate() {
        put(&mut data, 58 + 2 * index, &version.to_be_bytes());
    }
    data
}

/// REPORT LUNS, of any number of the target.
pub(super) fn report_luns(unit: Option<&LogicalUnit>, command: &Command<'_>) -> Outcome {
    let (cdb, allocation) = (command.cdb, command.cdb.be32(6));
    // Well-known units there are none of; all others are in every other report.
    let luns = match cdb.byte(2) {
        0 | 2 => command.luns,
        1 => &[],
        _ => return Err(cdb.wrong(2).into()),
    };
    if allocation < 16 {
        return Err(cdb.wrong(6).into());
    }
    let mut list = vec![0; 8];
    put(&mut list, 0, &len32(luns.len() * 8));
    for lun in luns {
        let mut entry = [0; 8];
        put(&mut entry, 0, &encode_lun(*lun));
        list.extend(entry);
    }
    if let Some(unit) = unit {
        unit.luns_were_reported();
    }
    data_in(list, allocation.into())
}

/// A number below 16384 by the peripheral device addressing method, or by the flat space one (SAM-5 §4.7.7).
pub(super) fn encode_lun(lun: u16) -> [u8; 2] {
    if lun < 0x100 { lun.to_be_bytes() } else { (0x4000 | lun).to_be_bytes() }
}

/// The number in a single level structure; `None` for any other addressing method or bus.
pub(super) fn decode_lun(bytes: [u8; 2]) -> Option<u16> {
    let word = be16(&bytes, 0);
    match word >> 14 {
        0 if word < 0x100 => Some(word),
        1 => Some(word & 0x3fff),
        _ => None,
    }
}

/// REPORT LUNS as a command of a unit.
pub(super) fn report_luns_of(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    report_luns(Some(unit), command)
}

/// TEST UNIT READY; that the unit is ready was seen before.
pub(super) fn test_unit_ready(_: &LogicalUnit, _: &Command<'_>) -> Outcome {
    Ok(Answer::Good { data: Vec::new(), taken: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were() {
        for lun in 0..0x4000 {
            assert_eq!(decode_lun(encode_lun(lun)), Some(lun));
        }
        for strange in [0x0100_u16, 0x3fff, 0x8000, 0xc101] {
            assert_eq!(decode_lun(strange.to_be_bytes()), None, "{strange:#x}");
        }
        // The flat space method may also name small numbers.
        assert_eq!(decode_lun([0x40, 5]), Some(5));
    }

    #[test]
    fn standard_data_is_as_long_as_it_says() {
        let data = standard(0);
        assert_eq!(data.len(), usize::from(data[4]) + 5);
        assert_eq!(data.get(8..36), Some(&b"BULKHEADDISK            0.1 "[..]));
    }
}
