//! Mode pages, and MODE SENSE (6) and (10) (SPC-4 §6.13, §7.5; SBC-3 §6.5).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bytes::{len8, len16};
use super::cdb::{Cdb, CdbForm};
use super::command::{Command, Outcome, data_in};
use super::sense::Sense;
use super::unit::LogicalUnit;

/// The requested values of a page: PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    Current,
    Changeable,
    Default,
}

/// A page with its header; `None` if the unit does not have it.
type ModePage = fn(&LogicalUnit, Values) -> Option<Vec<u8>>;

/// Page code and subpage code.
pub(super) type PageCode = (u8, u8);

pub(super) const CACHING: PageCode = (0x08, 0);
pub(super) const CONTROL: PageCode = (0x0a, 0);
const PROVISIONING: PageCode = (0x1c, 0x02);
/// All pages, ascending.
const PAGES: [(PageCode, ModePage); 3] =
    [(CACHING, caching), (CONTROL, control), (PROVISIONING, provisioning)];
/// Page code and subpage code for all.
const ALL: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// Bits in byte 2 of their pages.
pub(super) const WCE: u8 = 0x04;
pub(super) const D_SENSE: u8 = 0x04;
const GLTSD: u8 = 0x02;

/// The page with its header.
pub(super) fn page(unit: &LogicalUnit, code: PageCode, values: Values) -> Option<Vec<u8>> {
    let (_, page) = PAGES.iter().find(|(known, _)| *known == code)?;
    page(unit, values)
}

/// The caching mode page (SBC-3 §6.5.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct CachingPage {
    page_code: u8,
    page_length: u8,
    /// WCE; the cache has no other property.
    flags: u8,
    unsupported: [u8; 17],
}

fn caching(unit: &LogicalUnit, values: Values) -> Option<Vec<u8>> {
    let enabled = match values {
        Values::Changeable => unit.has_write_cache(),
        // The default is the value after a reset, which keeps the current one (ADR 14).
        Values::Current | Values::Default => unit.write_cache().may_hold_data(),
    };
    let page = CachingPage {
        page_code: CACHING.0,
        page_length: len8(size_of::<CachingPage>() - 2),
        flags: if enabled { WCE } else { 0 },
        ..FromZeros::new_zeroed()
    };
    Some(page.as_bytes().to_vec())
}

/// The control mode page (SPC-4 §7.5.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct ControlPage {
    page_code: u8,
    page_length: u8,
    /// D_SENSE and GLTSD.
    flags: u8,
    /// QUEUE ALGORITHM MODIFIER in the upper half.
    queueing: u8,
    unsupported: [u8; 8],
}

fn control(unit: &LogicalUnit, values: Values) -> Option<Vec<u8>> {
    /// QUEUE ALGORITHM MODIFIER 0001b.
    const UNRESTRICTED_REORDERING: u8 = 0x10;
    let d_sense = match values {
        Values::Changeable => true,
        Values::Default => false,
        Values::Current => unit.descriptor_sense(),
    };
    let (gltsd, queueing) = match values {
        Values::Changeable => (0, 0),
        Values::Default | Values::Current => (GLTSD, UNRESTRICTED_REORDERING),
    };
    let page = ControlPage {
        page_code: CONTROL.0,
        page_length: len8(size_of::<ControlPage>() - 2),
        flags: gltsd | if d_sense { D_SENSE } else { 0 },
        queueing,
        ..FromZeros::new_zeroed()
    };
    Some(page.as_bytes().to_vec())
}

/// The logical block provisioning mode page of SBC-3 with one threshold descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct ProvisioningPage {
    page_code: u8,
    subpage_code: u8,
    page_length: U16,
    situa: u8,
    reserved: [u8; 11],
    /// ENABLED, THRESHOLD TYPE and THRESHOLD ARMING.
    threshold_flags: u8,
    threshold_resource: u8,
    threshold_reserved: [u8; 2],
    /// In threshold sets.
    threshold_count: U32,
}

/// The threshold is the soft limit of the disk, which the administrator of the host sets. Present
/// if VPD page B2h has a threshold exponent.
fn provisioning(unit: &LogicalUnit, values: Values) -> Option<Vec<u8>> {
    const SPF: u8 = 0x40;
    const ENABLED: u8 = 0x80;
    /// THRESHOLD TYPE 000b, a soft threshold, and THRESHOLD ARMING 001b: reached from below.
    const SOFT_INCREASING: u8 = 0x01;
    /// THRESHOLD RESOURCE: the parameter code of used resources in log page 0Ch.
    const USED: u8 = 0x02;
    if unit.threshold_exponent() == 0 {
        return None;
    }
    let mut page = ProvisioningPage {
        page_code: SPF | PROVISIONING.0,
        subpage_code: PROVISIONING.1,
        page_length: len16(size_of::<ProvisioningPage>() - 4).into(),
        ..FromZeros::new_zeroed()
    };
    if values != Values::Changeable {
        page.threshold_flags = SOFT_INCREASING;
        page.threshold_resource = USED;
        if let Some(count) = unit.report_threshold() {
            page.threshold_flags |= ENABLED;
            page.threshold_count = count.into();
        }
    }
    Some(page.as_bytes().to_vec())
}

/// The mode parameter header of the six byte form (SPC-4 §7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ModeHeader6 {
    mode_data_length: u8,
    medium_type: u8,
    device_specific_parameter: u8,
    block_descriptor_length: u8,
}

/// The mode parameter header of the ten byte form (SPC-4 §7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ModeHeader10 {
    mode_data_length: U16,
    medium_type: u8,
    device_specific_parameter: u8,
    longlba: u8,
    reserved: u8,
    block_descriptor_length: U16,
}

/// MODE SENSE (6) and (10).
pub(super) fn mode_sense(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    /// FUA is supported, DPO is accepted.
    const DPOFUA: u8 = 0x10;
    let cdb = command.cdb;
    let values = match cdb.byte(2) >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::SAVING_NOT_SUPPORTED.into()),
    };
    let pages = requested_pages(unit, cdb, values)?;
    let is_long = cdb.form() == CdbForm::Ten;
    let descriptor = match (cdb.bit(1, 3), is_long && cdb.bit(1, 4)) {
        (true, _) => Vec::new(),
        (false, false) => short_descriptor(unit),
        (false, true) => long_descriptor(unit),
    };
    let device_specific_parameter = u8::from(unit.backend().read_only()) << 7 | DPOFUA;
    let following = descriptor.len() + pages.len();
    let (header, allocation) = if is_long {
        let header = ModeHeader10 {
            mode_data_length: len16(size_of::<ModeHeader10>() - 2 + following).into(),
            medium_type: 0,
            device_specific_parameter,
            longlba: (descriptor.len() == size_of::<LongDescriptor>()).into(),
            reserved: 0,
            block_descriptor_length: len16(descriptor.len()).into(),
        };
        (header.as_bytes().to_vec(), cdb.be16(7).into())
    } else {
        let header = ModeHeader6 {
            mode_data_length: len8(size_of::<ModeHeader6>() - 1 + following),
            medium_type: 0,
            device_specific_parameter,
            block_descriptor_length: len8(descriptor.len()),
        };
        (header.as_bytes().to_vec(), cdb.byte(4).into())
    };
    data_in([header, descriptor, pages].concat(), allocation)
}

fn requested_pages(unit: &LogicalUnit, cdb: &Cdb, values: Values) -> Result<Vec<u8>, Sense> {
    let (code, subpage) = (cdb.byte(2) & 0x3f, cdb.byte(3));
    if code == ALL && !matches!(subpage, 0 | ALL_SUBPAGES) {
        return Err(cdb.invalid(3));
    }
    let has_code = |known: &PageCode| code == ALL || known.0 == code;
    let is_requested =
        |known: &PageCode| has_code(known) && (subpage == ALL_SUBPAGES || known.1 == subpage);
    let pages: Vec<u8> = PAGES
        .iter()
        .filter(|(known, _)| is_requested(known))
        .filter_map(|(_, page)| page(unit, values))
        .flatten()
        .collect();
    match pages.is_empty() {
        false => Ok(pages),
        true if PAGES.iter().any(|(known, _)| has_code(known)) => Err(cdb.invalid(3)),
        true => Err(cdb.invalid_bit(2, 5)),
    }
}

/// The short LBA mode parameter block descriptor (SBC-3 §6.5.2.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ShortDescriptor {
    number_of_logical_blocks: U32,
    /// In the lower 24 bits.
    logical_block_length: U32,
}

fn short_descriptor(unit: &LogicalUnit) -> Vec<u8> {
    let descriptor = ShortDescriptor {
        number_of_logical_blocks: u32::try_from(unit.last_block() + 1).unwrap_or(u32::MAX).into(),
        logical_block_length: unit.block_bytes().into(),
    };
    descriptor.as_bytes().to_vec()
}

/// The long LBA mode parameter block descriptor (SBC-3 §6.5.2.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct LongDescriptor {
    number_of_logical_blocks: U64,
    reserved: U32,
    logical_block_length: U32,
}

fn long_descriptor(unit: &LogicalUnit) -> Vec<u8> {
    let descriptor = LongDescriptor {
        number_of_logical_blocks: (unit.last_block() + 1).into(),
        reserved: 0.into(),
        logical_block_length: unit.block_bytes().into(),
    };
    descriptor.as_bytes().to_vec()
}
