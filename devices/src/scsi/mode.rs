//! Mode pages, and MODE SENSE (6) and (10) (SPC-4 §6.13, §7.5; SBC-3 §6.5).

use super::bytes::{len16, put};
use super::cdb::Form;
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{Cdb, Command, Outcome, data_in};

/// Which values of a page are asked for: PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    Current,
    Changeable,
    Default,
}

/// A page with its header, where the unit has it.
type Page = fn(&LogicalUnit, Values) -> Option<Vec<u8>>;

/// Page and subpage code.
pub(super) type Code = (u8, u8);

/// The caching page, the control page, and the logical block provisioning page.
pub(super) const CACHING: Code = (0x08, 0);
pub(super) const CONTROL: Code = (0x0a, 0);
const PROVISIONING: Code = (0x1c, 0x02);
/// All pages, ascending.
const PAGES: [(Code, Page); 3] =
    [(CACHING, caching), (CONTROL, control), (PROVISIONING, provisioning)];
/// Page and subpage codes that stand for all.
const ALL: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// Bits of the third byte of their pages.
pub(super) const WCE: u8 = 0x04;
pub(super) const D_SENSE: u8 = 0x04;
const GLTSD: u8 = 0x02;

/// The page with its header.
pub(super) fn page(unit: &LogicalUnit, code: Code, values: Values) -> Option<Vec<u8>> {
    let (_, page) = PAGES.iter().find(|(known, _)| *known == code)?;
    page(unit, values)
}

/// SBC-3 §6.5.5.
fn caching(unit: &LogicalUnit, values: Values) -> Option<Vec<u8>> {
    let enabled = match values {
        Values::Current => unit.write_cache().is_on(),
        Values::Changeable | Values::Default => unit.has_write_cache(),
    };
    let mut page = vec![0; 20];
    put(&mut page, 0, &[CACHING.0, 18, if enabled { WCE } else { 0 }]);
    Some(page)
}

/// SPC-4 §7.5.8. Tasks may be reordered, and nothing is saved.
fn control(unit: &LogicalUnit, values: Values) -> Option<Vec<u8>> {
    let mut page = vec![0; 12];
    put(&mut page, 0, &[CONTROL.0, 10]);
    match values {
        Values::Changeable => put(&mut page, 2, &[D_SENSE]),
        Values::Default => put(&mut page, 2, &[GLTSD, 0x10]),
        Values::Current => {
            let d_sense = if unit.descriptor_sense() { D_SENSE } else { 0 };
            put(&mut page, 2, &[GLTSD | d_sense, 0x10]);
        }
    }
    Some(page)
}

/// SBC-3's logical block provisioning page, where there are thresholds (VPD page B2h): one, which is the soft limit of the
/// disk. The host's administrator sets it, and nobody else.
fn provisioning(unit: &LogicalUnit, values: Values) -> Option<Vec<u8>> {
    const SPF: u8 = 0x40;
    const DESCRIPTOR_AT: usize = 16;
    const ENABLED: u8 = 0x80;
    /// THRESHOLD TYPE 000b, a soft one, and THRESHOLD ARMING 001b: reached from below.
    const SOFT_INCREASING: u8 = 0x01;
    /// THRESHOLD RESOURCE: the parameter code in log page 0Ch of what is used.
    const USED: u8 = 0x02;
    if unit.threshold_exponent() == 0 {
        return None;
    }
    let mut page = vec![0; 24];
    put(&mut page, 0, &[SPF | PROVISIONING.0, PROVISIONING.1, 0, 20]);
    if values == Values::Changeable {
        return Some(page);
    }
    put(&mut page, DESCRIPTOR_AT, &[SOFT_INCREASING, USED]);
    if let Some(count) = unit.tell_threshold() {
        put(&mut page, DESCRIPTOR_AT, &[ENABLED | SOFT_INCREASING]);
        put(&mut page, DESCRIPTOR_AT + 4, &count.to_be_bytes());
    }
    Some(page)
}

/// MODE SENSE (6) and (10).
pub(super) fn mode_sense(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    let values = match cdb.byte(2) >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::SAVING_NOT_SUPPORTED.into()),
    };
    let pages = asked_pages(unit, cdb, values)?;
    let long = cdb.form() == Form::Ten;
    let descriptor = match (cdb.bit(1, 3), long && cdb.bit(1, 4)) {
        (true, _) => Vec::new(),
        (false, false) => short_descriptor(unit),
        (false, true) => long_descriptor(unit),
    };
    let device_specific = u8::from(unit.backend().read_only()) << 7 | DPOFUA;
    let mut answer = if long {
        let mut header = vec![0, 0, 0, device_specific, u8::from(descriptor.len() == 16), 0, 0, 0];
        put(&mut header, 6, &len16(descriptor.len()));
        header
    } else {
        vec![0, 0, device_specific, u8::try_from(descriptor.len()).unwrap_or(0)]
    };
    answer.extend(descriptor);
    answer.extend(pages);
    let allocation = if long {
        let following = answer.len() - 2;
        put(&mut answer, 0, &len16(following));
        u64::from(cdb.be16(7))
    } else {
        let following = answer.len() - 1;
        put(&mut answer, 0, &[u8::try_from(following).unwrap_or(u8::MAX)]);
        u64::from(cdb.byte(4))
    };
    data_in(answer, allocation)
}

/// FUA is obeyed, and DPO may be given.
const DPOFUA: u8 = 0x10;

fn asked_pages(unit: &LogicalUnit, cdb: &Cdb, values: Values) -> Result<Vec<u8>, Sense> {
    let (code, subpage) = (cdb.byte(2) & 0x3f, cdb.byte(3));
    if code == ALL && !matches!(subpage, 0 | ALL_SUBPAGES) {
        return Err(cdb.wrong(3));
    }
    let of_code = |known: &Code| code == ALL || known.0 == code;
    let asked = |known: &Code| of_code(known) && (subpage == ALL_SUBPAGES || known.1 == subpage);
    let pages: Vec<u8> = PAGES
        .iter()
        .filter(|(known, _)| asked(known))
        .filter_map(|(_, page)| page(unit, values))
        .flatten()
        .collect();
    match pages.is_empty() {
        false => Ok(pages),
        true if PAGES.iter().any(|(known, _)| of_code(known)) => Err(cdb.wrong(3)),
        true => Err(cdb.wrong_bit(2, 5)),
    }
}

/// SBC-3 §6.5.2.2.
fn short_descriptor(unit: &LogicalUnit) -> Vec<u8> {
    let blocks = u32::try_from(unit.last_block() + 1).unwrap_or(u32::MAX);
    [blocks.to_be_bytes(), unit.block().to_be_bytes()].concat()
}

/// SBC-3 §6.5.2.3.
fn long_descriptor(unit: &LogicalUnit) -> Vec<u8> {
    let mut descriptor = (unit.last_block() + 1).to_be_bytes().to_vec();
    descriptor.extend([0; 4]);
    descriptor.extend(unit.block().to_be_bytes());
    descriptor
}
