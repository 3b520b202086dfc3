//! The ACPI tables. They are hardware-reduced, so that a guest does not probe for a PIC, PIT,
//! keyboard controller or power management timer.
//!
//! [`write`] places them one after the other. RSDP → XSDT → FADT, MADT; FADT → DSDT.

mod dsdt;

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use devices::GuestMemory;
use devices::platform::PowerRegister;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, POWER_PORTS};

const OEM_ID: [u8; 6] = *b"BLKHD ";
const TABLE_ID: [u8; 8] = *b"BULKHEAD";
const REVISION: u32 = 1;

/// FADT IAPC_BOOT_ARCH: no VGA. The clear bits mean no legacy devices and no keyboard controller.
const NO_VGA: u16 = 1 << 2;
const RESET_VALUE: u8 = 1;
/// Alignment of tables.
const ALIGNMENT: usize = 16;

/// The reason the tables cannot be written.
#[derive(Debug, Error)]
pub(crate) enum AcpiError {
    /// Guest memory lacks their address.
    #[error("cannot write the ACPI tables into guest memory")]
    Memory(#[from] GuestMemoryError),
    /// They exceed their area.
    #[error("the ACPI tables take {0} bytes, more than their area")]
    TooLarge(usize),
}

/// Writes the tables of a machine with `vcpus` processors.
///
/// # Errors
///
/// They do not fit.
pub(crate) fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), AcpiError> {
    let tables = build(layout::ACPI_TABLES.start, vcpus);
    let room = layout::ACPI_TABLES.end - layout::ACPI_TABLES.start;
    if tables.len() as u64 > room {
        return Err(AcpiError::TooLarge(tables.len()));
    }
    memory.write_slice(&tables, GuestAddress(layout::ACPI_TABLES.start))?;
    Ok(())
}

/// The bytes of all tables, for the address `base`.
fn build(base: u64, vcpus: u8) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut append = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = base + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        address
    };
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, TABLE_ID, REVISION);
    dsdt.append_slice(&dsdt::definition());
    let dsdt = append(&dsdt);
    let mut xsdt = XSDT::new(OEM_ID, TABLE_ID, REVISION);
    xsdt.add_entry(append(&fadt(dsdt).finalize()));
    xsdt.add_entry(append(&madt(vcpus)));
    let xsdt = append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    bytes.splice(..rsdp.len(), rsdp);
    bytes
}

/// The fixed description table: the registers that exist.
fn fadt(dsdt: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM_ID, TABLE_ID, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = power_register(PowerRegister::Reset);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = power_register(PowerRegister::SleepControl);
    fadt.sleep_status_reg = power_register(PowerRegister::SleepStatus);
    fadt
}

fn power_register(register: PowerRegister) -> GAS {
    let port = POWER_PORTS.base + register as u16;
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

/// The interrupt controllers: a local APIC for each processor, and the IOAPIC.
fn madt(vcpus: u8) -> MADT {
    let [local_apic, ioapic] = [layout::LOCAL_APIC, layout::IOAPIC].map(|address| {
        u32::try_from(address).unwrap_or_default() // Both lie below 4 GiB.
    });
    let local_apic = LocalInterruptController::Address(local_apic);
    let mut madt = MADT::new(OEM_ID, TABLE_ID, REVISION, local_apic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, ioapic, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xe_0000;

    fn tables(vcpus: u8) -> Vec<u8> {
        build(BASE, vcpus)
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// The table at a guest physical address, with length and checksum verified.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let table = &bytes[usize::try_from(address - BASE).unwrap()..];
        let length = u32::from_le_bytes(table[4..8].try_into().unwrap());
        let table = &table[..usize::try_from(length).unwrap()];
        assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn roots(bytes: &[u8]) -> (&[u8], &[u8], &[u8]) {
        let xsdt = table(bytes, u64_at(bytes, 24));
        let (fadt, madt) = (table(bytes, u64_at(xsdt, 36)), table(bytes, u64_at(xsdt, 44)));
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        (xsdt, fadt, madt)
    }

    #[test]
    fn every_table_is_linked_and_has_a_valid_checksum() {
        let bytes = tables(2);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let (xsdt, fadt, madt) = roots(&bytes);
        let dsdt = table(&bytes, u64_at(fadt, 140));
        let signatures = [xsdt, fadt, madt, dsdt].map(|table| &table[..4]);
        assert_eq!(signatures, [b"XSDT", b"FACP", b"APIC", b"DSDT"]);
    }

    #[test]
    fn the_platform_is_hardware_reduced_with_reset_and_sleep_registers() {
        let bytes = tables(1);
        let (_, fadt, _) = roots(&bytes);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        // A generic address: space, width, offset, access, address.
        assert_eq!(&fadt[116..128], [1, 8, 0, 1, 0x02, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_madt_has_an_apic_for_each_processor() {
        for vcpus in [1, 4, 254] {
            let bytes = tables(vcpus);
            let (_, _, madt) = roots(&bytes);
            let mut structures = &madt[44..];
            let mut ids = Vec::new();
            while let [kind, length, ..] = *structures {
                if kind == 0 {
                    ids.push(structures[3]);
                }
                structures = &structures[length.into()..];
            }
            assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_tables_of_the_largest_machine_fit() {
        assert!(tables(254).len() < 0x1_0000);
    }
}
