//! INQUIRY standard data (SPC-4 §6.6.2), REPORT LUNS (§6.33) and TEST UNIT READY.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bytes::{ascii, be16, len8, len32};
use super::cdb::Cdb;
use super::command::{Command, Outcome, data_in, good, with_header};
use super::identity::VENDOR;
use super::unit::LogicalUnit;
use super::vpd;

const PRODUCT: &str = "DISK";
/// The program's version without the patch level.
const REVISION: &str =
    concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
/// Peripheral qualifier 011b and type 1Fh: no unit is possible here.
const NO_UNIT: u8 = 0x7f;
/// VERSION: SPC-4.
const SPC_4: u8 = 6;
/// HISUP and RESPONSE DATA FORMAT 2.
const RESPONSE_DATA_FORMAT: u8 = 0x12;
/// CMDQUE: commands are queued.
const CMDQUE: u8 = 0x02;
/// Version descriptors (SPC-4 annex E): SAM-5, SPC-4, SBC-3.
const VERSIONS: [u16; 8] = [0x00a0, 0x0460, 0x04c0, 0, 0, 0, 0, 0];

/// Standard INQUIRY data (SPC-4 §6.6.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct StandardInquiry {
    peripheral: u8,
    removable: u8,
    version: u8,
    response_data_format: u8,
    additional_length: u8,
    flags: [u8; 3],
    t10_vendor_identification: [u8; 8],
    product_identification: [u8; 16],
    product_revision_level: [u8; 4],
    vendor_specific: [u8; 20],
    clocking: u8,
    reserved: u8,
    version_descriptors: [U16; 8],
}

/// The header of REPORT LUNS parameter data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ReportLunsHeader {
    lun_list_length: U32,
    reserved: U32,
}

/// INQUIRY of a unit.
pub(super) fn inquiry(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    match (cdb.bit(1, 0), cdb.byte(2)) {
        (true, page) => match vpd::page(unit, page) {
            Some(page) => data_in(page, cdb.be16(3).into()),
            None => Err(cdb.invalid(2).into()),
        },
        (false, 0) => data_in(standard_data(0), cdb.be16(3).into()),
        (false, _) => Err(cdb.invalid(2).into()),
    }
}

/// INQUIRY of a logical unit number without a unit, which has no VPD pages (SPC-4 §6.6.1).
pub(super) fn inquiry_without_unit(cdb: &Cdb) -> Outcome {
    if cdb.bit(1, 0) {
        return Err(cdb.invalid_bit(1, 0).into());
    }
    if cdb.byte(2) != 0 {
        return Err(cdb.invalid(2).into());
    }
    data_in(standard_data(NO_UNIT), cdb.be16(3).into())
}

fn standard_data(peripheral: u8) -> Vec<u8> {
    let data = StandardInquiry {
        peripheral,
        version: SPC_4,
        response_data_format: RESPONSE_DATA_FORMAT,
        additional_length: len8(size_of::<StandardInquiry>() - 5),
        flags: [0, 0, CMDQUE],
        t10_vendor_identification: ascii(VENDOR),
        product_identification: ascii(PRODUCT),
        product_revision_level: ascii(REVISION),
        version_descriptors: VERSIONS.map(U16::from),
        ..FromZeros::new_zeroed()
    };
    data.as_bytes().to_vec()
}

/// REPORT LUNS for any logical unit number of the target.
pub(super) fn report_luns(unit: Option<&LogicalUnit>, command: &Command<'_>) -> Outcome {
    let (cdb, allocation) = (command.cdb, command.cdb.be32(6));
    // SELECT REPORT: well known logical units do not exist.
    let luns = match cdb.byte(2) {
        0 | 2 => command.luns,
        1 => &[],
        _ => return Err(cdb.invalid(2).into()),
    };
    if allocation < 16 {
        return Err(cdb.invalid(6).into());
    }
    let entry = |lun: &u16| {
        let [high, low] = encode_lun(*lun);
        [high, low, 0, 0, 0, 0, 0, 0]
    };
    let list: Vec<u8> = luns.iter().flat_map(entry).collect();
    let header = ReportLunsHeader { lun_list_length: len32(list.len()).into(), reserved: 0.into() };
    if let Some(unit) = unit {
        unit.clear_luns_changed();
    }
    data_in(with_header(&header, &list), allocation.into())
}

/// Encodes a number below 16384: peripheral device addressing below 256, flat space addressing
/// above (SAM-5 §4.7.7).
pub(super) fn encode_lun(lun: u16) -> [u8; 2] {
    if lun < 0x100 { lun.to_be_bytes() } else { (0x4000 | lun).to_be_bytes() }
}

/// Decodes a single level structure; `None` for another addressing method or bus.
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

/// TEST UNIT READY: dispatch has checked that the unit is ready.
pub(super) fn test_unit_ready(_: &LogicalUnit, _: &Command<'_>) -> Outcome {
    good()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_luns_decode_to_themselves() {
        for lun in 0..0x4000 {
            assert_eq!(decode_lun(encode_lun(lun)), Some(lun));
        }
        for other in [0x0100_u16, 0x3fff, 0x8000, 0xc101] {
            assert_eq!(decode_lun(other.to_be_bytes()), None, "{other:#x}");
        }
        // Flat space addressing of a small number.
        assert_eq!(decode_lun([0x40, 5]), Some(5));
    }

    #[test]
    fn standard_data_has_the_length_in_its_header() {
        let data = standard_data(0);
        assert_eq!(data.len(), usize::from(data[4]) + 5);
        assert_eq!(data.get(8..36), Some(&b"BULKHEADDISK            0.1 "[..]));
    }
}
