//! LOG SENSE (SPC-4 §6.7): the supported log pages, and logical block provisioning (SBC-3 §6.4.6).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::bytes::len16;
use super::command::{Command, Outcome, data_in, with_header};
use super::unit::LogicalUnit;

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0c;
const ALL_SUBPAGES: u8 = 0xff;
/// PC 01b: current cumulative values.
const CUMULATIVE: u8 = 1;

/// The header of a log page (SPC-4 §7.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct LogHeader {
    /// SPF and PAGE CODE.
    page_code: u8,
    subpage_code: u8,
    page_length: U16,
}

/// A resource count log parameter (SBC-3 §6.4.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ResourceCount {
    parameter_code: U16,
    control: u8,
    parameter_length: u8,
    /// In threshold sets.
    resource_count: U32,
    scope: u8,
    reserved: [u8; 3],
}

/// LOG SENSE.
pub(super) fn log_sense(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    const SPF: u8 = 0x40;
    let cdb = command.cdb;
    if cdb.bit(1, 0) {
        return Err(cdb.invalid_bit(1, 0).into()); // SP: pages cannot be saved
    }
    let (control, page, subpage_code) = (cdb.byte(2) >> 6, cdb.byte(2) & 0x3f, cdb.byte(3));
    let pages: &[u8] =
        if unit.backing_space().is_some() { &[SUPPORTED, PROVISIONING] } else { &[SUPPORTED] };
    if !pages.contains(&page) {
        return Err(cdb.invalid_bit(2, 5).into());
    }
    let pointer = cdb.be16(5);
    let body = match (page, subpage_code) {
        (SUPPORTED, 0) if pointer == 0 => pages.to_vec(),
        (SUPPORTED, ALL_SUBPAGES) if pointer == 0 => {
            pages.iter().flat_map(|page| [*page, 0]).collect()
        }
        (SUPPORTED, 0 | ALL_SUBPAGES) => return Err(cdb.invalid(5).into()),
        (_, 0) if control != CUMULATIVE => return Err(cdb.invalid_bit(2, 7).into()),
        (_, 0) => resource_counts(unit, pointer).ok_or_else(|| cdb.invalid(5))?,
        _ => return Err(cdb.invalid(3).into()),
    };
    let page_code = page | if subpage_code == 0 { 0 } else { SPF };
    let header = LogHeader { page_code, subpage_code, page_length: len16(body.len()).into() };
    data_in(with_header(&header, &body), cdb.be16(7).into())
}

/// Available and used resources, from parameter code `pointer`; `None` if no parameter is left.
fn resource_counts(unit: &LogicalUnit, pointer: u16) -> Option<Vec<u8>> {
    const AVAILABLE: u16 = 1;
    const USED: u16 = 2;
    /// A binary list parameter.
    const BINARY_LIST: u8 = 0x03;
    /// SCOPE 10b: other units may use the same store.
    const SHARED: u8 = 2;
    let space = unit.backing_space()?;
    let set = unit.threshold_set_bytes();
    let counts = [(AVAILABLE, space.available / set), (USED, space.used.div_ceil(set))];
    let parameter = |(code, count): (u16, u64)| ResourceCount {
        parameter_code: code.into(),
        control: BINARY_LIST,
        parameter_length: 8,
        resource_count: u32::try_from(count).unwrap_or(u32::MAX).into(),
        scope: SHARED,
        reserved: [0; 3],
    };
    let selected = counts.into_iter().filter(|(code, _)| *code >= pointer).map(parameter);
    let parameters: Vec<u8> = selected.flat_map(|one| one.as_bytes().to_vec()).collect();
    (!parameters.is_empty()).then_some(parameters)
}
