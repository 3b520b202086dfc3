//! Vital product data: pages about the unit (SPC-4 §7.8, SBC-3 §6.6).

use super::bytes::{ascii, len16, put};
use super::inquiry::VENDOR;
use super::unit::LogicalUnit;

type Page = fn(&LogicalUnit) -> Vec<u8>;

/// All pages, ascending.
const PAGES: [(u8, Page); 7] = [
    (0x00, supported),
    (0x80, serial_number),
    (0x83, identification),
    (0x86, extended_inquiry),
    (0xb0, block_limits),
    (0xb1, characteristics),
    (0xb2, provisioning),
];

/// The page, with its header; `None` if there is no such page.
pub(super) fn page(unit: &LogicalUnit, code: u8) -> Option<Vec<u8>> {
    let (_, body) = PAGES.iter().find(|(known, _)| *known == code)?;
    let body = body(unit);
    let mut page = vec![0, code, 0, 0];
    put(&mut page, 2, &len16(body.len()));
    page.extend(body);
    Some(page)
}

fn supported(_: &LogicalUnit) -> Vec<u8> {
    PAGES.iter().map(|(code, _)| *code).collect()
}

fn serial_number(unit: &LogicalUnit) -> Vec<u8> {
    unit.identity().serial.clone().into_bytes()
}

/// Two designators of the unit: an NAA identifier, and vendor with serial number (SPC-4 §7.8.6).
fn identification(unit: &LogicalUnit) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const T10_VENDOR: u8 = 1;
    const NAA: u8 = 3;
    let identity = unit.identity();
    let mut vendor = ascii::<8>(VENDOR).to_vec();
    vendor.extend(identity.serial.bytes().take(usize::from(u8::MAX) - 8));
    let designators =
        [(BINARY, NAA, identity.naa.to_be_bytes().to_vec()), (ASCII, T10_VENDOR, vendor)];
    let mut body = Vec::new();
    for (code_set, kind, designator) in designators {
        let len = u8::try_from(designator.len()).unwrap_or(u8::MAX);
        body.extend([code_set, kind, 0, len]);
        body.extend(designator);
    }
    body
}

/// SPC-4 §7.8.7.
fn extended_inquiry(unit: &LogicalUnit) -> Vec<u8> {
    let mut body = vec![0; 60];
    let volatile_cache = unit.has_write_cache();
    put(&mut body, 1, &[0x01]); // SIMPSUP: tasks are simple ones
    put(&mut body, 2, &[u8::from(volatile_cache)]); // V_SUP
    put(&mut body, 3, &[0x01]); // LUICLR: a reset of one nexus clears for that one
    body
}

/// SBC-3 §6.6.4.
fn block_limits(unit: &LogicalUnit) -> Vec<u8> {
    let (limits, geometry, block) = (unit.limits(), unit.geometry(), unit.block().max(1));
    // Places are those of the whole page, as in the standard.
    let mut page = vec![0; 64];
    let mut put32 = |at: usize, value: u64| {
        put(&mut page, at, &u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes());
    };
    put32(8, limits.transfer_blocks);
    put32(12, u64::from(geometry.optimal_io / block).min(limits.transfer_blocks));
    if let Some(discard) = unit.discard() {
        put32(20, limits.unmap_blocks);
        put32(24, limits.unmap_descriptors as u64);
        put32(28, u64::from(discard.granularity / block).max(1));
        put32(32, 1 << 31 | u64::from(discard.alignment / block)); // UGAVALID
    }
    put(&mut page, 36, &limits.write_same_blocks.to_be_bytes());
    let compare_and_write = u8::try_from(limits.compare_and_write_blocks).unwrap_or(u8::MAX);
    put(&mut page, 4, &[0x01, compare_and_write]); // WSNZ
    let granularity = u16::try_from(geometry.physical_block / block).unwrap_or(1);
    put(&mut page, 6, &granularity.to_be_bytes());
    page.split_off(4)
}

/// SBC-3 §6.6.2. What is behind the disk has no seek time that a guest could plan with.
fn characteristics(_: &LogicalUnit) -> Vec<u8> {
    let mut body = vec![0; 60];
    put(&mut body, 0, &1u16.to_be_bytes()); // non-rotating
    body
}

/// SBC-3 §6.6.7.
fn provisioning(unit: &LogicalUnit) -> Vec<u8> {
    const LBPU: u8 = 0x80;
    const LBPWS: u8 = 0x40;
    const LBPWS10: u8 = 0x20;
    const LBPRZ: u8 = 0x04;
    /// What reads zero where nothing is stored: a file or a ZFS volume. Of other devices the host does not say.
    const THIN: u8 = 2;
    let Some(discard) = unit.discard() else { return vec![0; 4] };
    let zero = if discard.reads_zero { LBPRZ } else { 0 };
    let kind = if discard.reads_zero { THIN } else { 0 };
    vec![unit.threshold_exponent(), LBPU | LBPWS | LBPWS10 | zero, kind, 0]
}
