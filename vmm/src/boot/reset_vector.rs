//! The real-mode reset vector, where firmware would be.
//!
//! On hardware-reduced ACPI, Linux takes the machine for one with EFI and does not use the reset
//! register: it asks EFI, which is not there, and then jumps to where a PC's BIOS starts. These few
//! bytes write the reset register from there.

use devices::GuestMemory;
use devices::platform::PowerRegister;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;

/// F000:FFF0, where x86 processors start and where `machine_real_restart` of Linux ends.
const ADDRESS: GuestAddress = GuestAddress(layout::RESET_VECTOR);

/// Writes the code.
///
/// # Errors
///
/// When guest memory has no such address.
pub(super) fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&code(), ADDRESS)
}

fn code() -> [u8; 10] {
    let [port_low, port_high] =
        (layout::POWER_PORTS.base + PowerRegister::Reset as u16).to_le_bytes();
    [
        0xb0, 1, // mov al, 1
        0xba, port_low, port_high, // mov dx, port
        0xee,      // out dx, al
        0xfa,      // cli
        0xf4,      // hlt
        0xeb, 0xfc, // jmp to the cli
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables end before it, and its code before 1 MiB.
    #[test]
    fn the_code_has_its_place() {
        const { assert!(layout::ACPI_TABLES.end <= ADDRESS.0) };
        assert!(ADDRESS.0 + code().len() as u64 <= layout::MIB);
    }
}
