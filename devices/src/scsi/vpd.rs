//! Vital product data pages (SPC-4 §7.8, SBC-3 §6.6).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bytes::{ascii, len8, len16};
use super::command::with_header;
use super::identity::VENDOR;
use super::unit::LogicalUnit;

/// The content of a page after its header.
type PageBody = fn(&LogicalUnit) -> Vec<u8>;

/// All pages, ascending.
const PAGES: [(u8, PageBody); 7] = [
    (0x00, supported_pages),
    (0x80, unit_serial_number),
    (0x83, device_identification),
    (0x86, extended_inquiry),
    (0xb0, block_limits),
    (0xb1, block_device_characteristics),
    (0xb2, logical_block_provisioning),
];

#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct VpdHeader {
    peripheral: u8,
    page_code: u8,
    page_length: U16,
}

/// The page with its header; `None` if the unit does not have it.
pub(super) fn page(unit: &LogicalUnit, page_code: u8) -> Option<Vec<u8>> {
    let (_, body) = PAGES.iter().find(|(known, _)| *known == page_code)?;
    let body = body(unit);
    let page_length = len16(body.len()).into();
    Some(with_header(&VpdHeader { peripheral: 0, page_code, page_length }, &body))
}

fn supported_pages(_: &LogicalUnit) -> Vec<u8> {
    PAGES.iter().map(|(code, _)| *code).collect()
}

fn unit_serial_number(unit: &LogicalUnit) -> Vec<u8> {
    unit.identity().serial.clone().into_bytes()
}

/// The header of a designation descriptor (SPC-4 §7.8.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct DesignatorHeader {
    code_set: u8,
    designator_type: u8,
    reserved: u8,
    designator_length: u8,
}

/// Two designators of the unit: an NAA identifier, and vendor with serial number.
fn device_identification(unit: &LogicalUnit) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const T10_VENDOR: u8 = 1;
    const NAA: u8 = 3;
    let identity = unit.identity();
    let mut vendor = ascii::<8>(VENDOR).to_vec();
    vendor.extend(identity.serial.bytes().take(usize::from(u8::MAX) - 8));
    let designator = |code_set, designator_type, designator: &[u8]| {
        let designator_length = len8(designator.len());
        let header = DesignatorHeader { code_set, designator_type, reserved: 0, designator_length };
        with_header(&header, designator)
    };
    let naa = designator(BINARY, NAA, &identity.naa.to_be_bytes());
    [naa, designator(ASCII, T10_VENDOR, &vendor)].concat()
}

/// Extended INQUIRY data (SPC-4 §7.8.7) from byte 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct ExtendedInquiry {
    protection: u8,
    /// SIMPSUP: the task attribute SIMPLE.
    task_attributes: u8,
    /// V_SUP: a volatile cache.
    cache: u8,
    /// LUICLR: unit attention conditions are cleared per I_T nexus.
    attention: u8,
    reserved: [u8; 56],
}

fn extended_inquiry(unit: &LogicalUnit) -> Vec<u8> {
    const SIMPSUP: u8 = 0x01;
    const LUICLR: u8 = 0x01;
    let page = ExtendedInquiry {
        task_attributes: SIMPSUP,
        cache: unit.has_write_cache().into(),
        attention: LUICLR,
        ..FromZeros::new_zeroed()
    };
    page.as_bytes().to_vec()
}

/// Block limits (SBC-3 §6.6.4) from byte 4. All lengths in logical blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct BlockLimits {
    /// WSNZ: WRITE SAME does not accept a length of zero.
    wsnz: u8,
    maximum_compare_and_write_length: u8,
    optimal_transfer_length_granularity: U16,
    maximum_transfer_length: U32,
    optimal_transfer_length: U32,
    maximum_prefetch_length: U32,
    maximum_unmap_lba_count: U32,
    maximum_unmap_block_descriptor_count: U32,
    optimal_unmap_granularity: U32,
    /// UGAVALID and UNMAP GRANULARITY ALIGNMENT.
    unmap_granularity_alignment: U32,
    maximum_write_same_length: U64,
    reserved: [u8; 20],
}

fn block_limits(unit: &LogicalUnit) -> Vec<u8> {
    const UGAVALID: u32 = 1 << 31;
    let (limits, geometry, block) = (unit.limits(), unit.geometry(), unit.block_bytes().max(1));
    let word = |value: u64| U32::new(u32::try_from(value).unwrap_or(u32::MAX));
    let optimal_transfer = u64::from(geometry.optimal_io / block).min(limits.transfer_blocks);
    let compare_and_write = u8::try_from(limits.compare_and_write_blocks).unwrap_or(u8::MAX);
    let granularity = u16::try_from(geometry.physical_block / block).unwrap_or(1);
    let mut page = BlockLimits {
        wsnz: 1,
        maximum_compare_and_write_length: compare_and_write,
        optimal_transfer_length_granularity: granularity.into(),
        maximum_transfer_length: word(limits.transfer_blocks),
        optimal_transfer_length: word(optimal_transfer),
        maximum_write_same_length: limits.write_same_blocks.into(),
        ..FromZeros::new_zeroed()
    };
    if let Some(discard) = unit.discard() {
        page.maximum_unmap_lba_count = word(limits.unmap_blocks);
        page.maximum_unmap_block_descriptor_count = word(limits.unmap_descriptors as u64);
        page.optimal_unmap_granularity = (discard.granularity / block).max(1).into();
        page.unmap_granularity_alignment = (UGAVALID | (discard.alignment / block)).into();
    }
    page.as_bytes().to_vec()
}

/// Block device characteristics (SBC-3 §6.6.2) from byte 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct BlockDeviceCharacteristics {
    medium_rotation_rate: U16,
    reserved: [u8; 58],
}

/// Guests should not schedule for seek times, whatever the backing device is.
fn block_device_characteristics(_: &LogicalUnit) -> Vec<u8> {
    const NON_ROTATING: u16 = 1;
    let page = BlockDeviceCharacteristics {
        medium_rotation_rate: NON_ROTATING.into(),
        ..FromZeros::new_zeroed()
    };
    page.as_bytes().to_vec()
}

/// Logical block provisioning (SBC-3 §6.6.7) from byte 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct LogicalBlockProvisioning {
    threshold_exponent: u8,
    flags: u8,
    provisioning_type: u8,
    reserved: u8,
}

fn logical_block_provisioning(unit: &LogicalUnit) -> Vec<u8> {
    const LBPU: u8 = 0x80;
    const LBPWS: u8 = 0x40;
    const LBPWS10: u8 = 0x20;
    const LBPRZ: u8 = 0x04;
    /// A store whose unallocated blocks read as zeroes, a file or a ZFS volume, is thin. The host
    /// does not report the type of others.
    const THIN: u8 = 2;
    let Some(discard) = unit.discard() else { return vec![0; 4] };
    let lbprz = if discard.reads_zero { LBPRZ } else { 0 };
    let page = LogicalBlockProvisioning {
        threshold_exponent: unit.threshold_exponent(),
        flags: LBPU | LBPWS | LBPWS10 | lbprz,
        provisioning_type: if discard.reads_zero { THIN } else { 0 },
        reserved: 0,
    };
    page.as_bytes().to_vec()
}
