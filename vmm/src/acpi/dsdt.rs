//! The differentiated description table: devices that a guest cannot enumerate.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Method, Name, Notify, ONE,
    OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, ZERO,
};
use devices::platform::{PowerControl, PowerRegister};

use crate::layout::{
    CMOS_PORTS, PCI_CONFIG_PORTS, PCI_WINDOW, POWER_GSI, POWER_PORTS, PVPANIC_PORTS, Ports,
    SERIAL_GSI, SERIAL_PORTS,
};

/// The notification of a pressed power button (ACPI 6.5 §5.6.6).
const BUTTON_PRESSED: u8 = 0x80;
/// `_STA`: present, enabled, visible, functional.
const WORKING: u8 = 0xf;

/// The AML of the whole table.
pub(super) fn definition() -> Vec<u8> {
    let mut aml = Vec::new();
    pci_root(&mut aml);
    serial_port(&mut aml);
    clock(&mut aml);
    pvpanic(&mut aml);
    power_button(&mut aml);
    let mut definition = Scope::raw("\\_SB_".into(), aml);
    soft_off(&mut definition);
    definition
}

/// The sleep type of soft-off.
fn soft_off(aml: &mut Vec<u8>) {
    let sleep_type = PowerControl::SLEEP_TYPE_OFF;
    Name::new("\\_S5_".into(), &Package::new(vec![&sleep_type])).to_aml_bytes(aml);
}

fn pci_root(aml: &mut Vec<u8>) {
    // The window lies below 4 GiB.
    let [first, last] = [PCI_WINDOW.start, PCI_WINDOW.end - 1]
        .map(|address| u32::try_from(address).unwrap_or(u32::MAX));
    let cacheable = AddressSpaceCacheable::NotCacheable;
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0_u16, 0),
                    &io(PCI_CONFIG_PORTS),
                    &AddressSpace::new_memory(cacheable, true, first, last, None),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&interrupt(SERIAL_GSI), &io(SERIAL_PORTS)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The clock has no alarm, so it has no interrupt.
fn clock(aml: &mut Vec<u8>) {
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io(CMOS_PORTS)])),
        ],
    )
    .to_aml_bytes(aml);
}

fn pvpanic(aml: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &WORKING),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io(PVPANIC_PORTS)])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The button, and the generic event device (ACPI 6.5 §5.6.9) that notifies of a press.
fn power_button(aml: &mut Vec<u8>) {
    let button: Path = "\\_SB_.PWRB".into();
    let pressed = Path::new("PBTN");
    Device::new(
        "PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    )
    .to_aml_bytes(aml);
    let port = POWER_PORTS.base + PowerRegister::Button as u16;
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(POWER_GSI)])),
            &OpRegion::new("PREG".into(), OpRegionSpace::SystemIO, &port, &ONE),
            &Field::new(
                "PREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"PBTN", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&If::new(
                    &Equal::new(&pressed, &ONE),
                    vec![&Notify::new(&button, &BUTTON_PRESSED)],
                )],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn io(ports: Ports) -> IO {
    IO::new(ports.base, ports.base, 1, u8::try_from(ports.length).unwrap_or(u8::MAX))
}

/// Edge triggered, active high, not shared: the interrupt of an irqfd.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
