//! The layout of BAR 0 and the capabilities that describe it (Virtio 1.2 §4.1.4).

use crate::pci::{CapabilityId, ConfigSpace};
use crate::virtqueue::feature;

/// Size of BAR 0 in bytes. Each structure has its own page.
pub(super) const BAR_BYTES: u32 = 0x8000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
/// Offset of the doorbells.
pub(super) const NOTIFY: u32 = 0x3000;
/// Distance between the doorbells of two queues, in bytes (`notify_off_multiplier`).
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
pub(super) const MSIX_TABLE: u32 = 0x4000;
pub(super) const MSIX_PENDING: u32 = 0x6000;
const PAGE: u32 = 0x1000;
/// Maximum number of queues: the MSI-X table has 512 entries, one of them for the configuration.
pub(super) const MAX_QUEUES: u16 = 511;

/// Features that the transport adds to those of a device.
pub(super) const TRANSPORT_FEATURES: u64 =
    feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;

/// Offset of `pci_cfg_data` in the PCI configuration access capability (§4.1.4.9).
pub(super) const ACCESS_DATA: u8 = 16;

/// The structures in BAR 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BarRegion {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

/// The structure at an offset of the BAR, and the offset in the structure.
pub(super) fn region(offset: u32) -> Option<(BarRegion, u32)> {
    let (region, base) = match offset {
        COMMON..ISR => (BarRegion::Common, COMMON),
        ISR..DEVICE => (BarRegion::Isr, ISR),
        DEVICE..NOTIFY => (BarRegion::Device, DEVICE),
        NOTIFY..MSIX_TABLE => (BarRegion::Notify, NOTIFY),
        MSIX_TABLE..MSIX_PENDING => (BarRegion::MsixTable, MSIX_TABLE),
        MSIX_PENDING..BAR_BYTES => (BarRegion::MsixPending, MSIX_PENDING),
        _ => return None,
    };
    Some((region, offset - base))
}

/// Structure types (§4.1.4).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    PciAccess = 5,
}

/// Adds the virtio capabilities. Returns the offset of the PCI configuration access capability;
/// `None` if the configuration space is full.
pub(super) fn add_capabilities(config: &mut ConfigSpace) -> Option<u8> {
    let _ = add(config, Structure::Common, COMMON, PAGE, &[], &[])?;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let _ = add(config, Structure::Notify, NOTIFY, PAGE, &multiplier, &[])?;
    let _ = add(config, Structure::Isr, ISR, PAGE, &[], &[])?;
    let _ = add(config, Structure::Device, DEVICE, PAGE, &[], &[])?;
    // The driver writes BAR, offset and length, and accesses data through the last four bytes.
    let mut writable = [0xff; 18];
    if let Some(fixed) = writable.get_mut(..2) {
        fixed.fill(0);
    }
    add(config, Structure::PciAccess, 0, 0, &[0; 4], &writable)
}

/// Adds a `struct virtio_pci_cap` (cap_len, cfg_type, bar, id, padding, offset, length) followed by
/// the fields of its type in `extra`.
fn add(
    config: &mut ConfigSpace,
    structure: Structure,
    offset: u32,
    len: u32,
    extra: &[u8],
    writable: &[u8],
) -> Option<u8> {
    let cap_len = u8::try_from(16 + extra.len()).ok()?;
    let mut body = vec![cap_len, structure as u8, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(extra);
    config.add_capability(CapabilityId::Vendor, &body, writable)
}
