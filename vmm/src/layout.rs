//! The layout of the guest's physical address space, its ports and its interrupts.
//!
//! ```text
//! 0          boot structures, command line, RAM, ACPI tables below 1 MiB
//! 1 MiB      RAM: the kernel, and the initramfs at the end of low RAM
//! 3 GiB      hole: PCI window, IOAPIC, local APICs
//! 4 GiB      remaining RAM
//! ```

use std::ops::Range;

use devices::platform::{Cmos, KeyboardReset, PowerControl, Pvpanic};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// End of the guest's RAM below 1 MiB; the rest up to [`HIGH_RAM`] belongs to firmware.
pub(crate) const BASE_RAM_END: u64 = 0x9_fc00;
/// Boot structures, for the first instructions of the kernel.
pub(crate) const GDT: u64 = 0x500;
pub(crate) const ZERO_PAGE: u64 = 0x7000;
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The ACPI tables. The RSDP comes first, in the area that guests scan for it.
pub(crate) const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// Start address of a processor in real mode, where a BIOS would be.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM above 1 MiB.
pub(crate) const HIGH_RAM: u64 = MIB;

/// The hole in RAM below 4 GiB.
pub(crate) const HOLE: Range<u64> = 3 * GIB..4 * GIB;
/// The window of PCI BARs.
pub(crate) const PCI_WINDOW: Range<u64> = HOLE.start..IOAPIC;
pub(crate) const IOAPIC: u64 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;
/// Pages that KVM needs on some Intel CPUs.
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The ranges of RAM of a guest, below and above the hole.
pub(crate) fn ram(memory_bytes: u64) -> Vec<Range<u64>> {
    let low = 0..memory_bytes.min(HOLE.start);
    let high = HOLE.end..HOLE.end + (memory_bytes - low.end);
    [low, high].into_iter().filter(|range| !range.is_empty()).collect()
}

/// A device's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) base: u16,
    pub(crate) length: u16,
}

impl Ports {
    /// The offset of `port`, if it is one of them.
    pub(crate) fn offset(self, port: u16) -> Option<u8> {
        let offset = port.checked_sub(self.base).filter(|&offset| offset < self.length)?;
        u8::try_from(offset).ok()
    }
}

/// Command and status register of the keyboard controller, which only implements reset.
pub(crate) const KEYBOARD_PORTS: Ports = Ports { base: 0x64, length: KeyboardReset::LENGTH };
pub(crate) const CMOS_PORTS: Ports = Ports { base: 0x70, length: Cmos::LENGTH };
pub(crate) const SERIAL_PORTS: Ports = Ports { base: 0x3f8, length: 8 };
pub(crate) const PVPANIC_PORTS: Ports = Ports { base: 0x505, length: Pvpanic::LENGTH };
pub(crate) const POWER_PORTS: Ports = Ports { base: 0x600, length: PowerControl::LENGTH };
/// CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0 §3.2.2.3.2).
pub(crate) const PCI_CONFIG_PORTS: Ports = Ports { base: 0xcf8, length: 8 };

/// Interrupts are pins of the IOAPIC, with equal KVM interrupt numbers.
pub(crate) const SERIAL_GSI: u32 = 4;
pub(crate) const POWER_GSI: u32 = 9;
pub(crate) const IOAPIC_PINS: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(memory_bytes: u64) -> Vec<(u64, u64)> {
        ram(memory_bytes).into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn memory_below_the_hole_is_one_range() {
        assert_eq!(bounds(128 * MIB), [(0, 128 * MIB)]);
    }

    #[test]
    fn memory_up_to_the_hole_is_one_range() {
        assert_eq!(bounds(3 * GIB), [(0, 3 * GIB)]);
    }

    #[test]
    fn more_memory_continues_above_the_hole() {
        assert_eq!(bounds(3 * GIB + 2 * MIB), [(0, 3 * GIB), (4 * GIB, 4 * GIB + 2 * MIB)]);
        assert_eq!(bounds(5 * GIB), [(0, 3 * GIB), (4 * GIB, 6 * GIB)]);
    }
}
