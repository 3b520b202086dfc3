//! The real-mode reset vector.
//!
//! With hardware-reduced ACPI, Linux assumes EFI and does not use the reset register. It calls EFI,
//! which does not exist, and then jumps to the entry point of a BIOS. The code at this address
//! writes the reset register.

use devices::GuestMemory;
use devices::platform::PowerRegister;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;

/// F000:FFF0, where x86 processors start, and the target of `machine_real_restart` in Linux.
const ADDRESS: GuestAddress = GuestAddress(layout::RESET_VECTOR);

/// Writes the code.
///
/// # Errors
///
/// Guest memory lacks the address.
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

    #[test]
    fn the_code_lies_between_the_acpi_tables_and_1_mib() {
        const { assert!(layout::ACPI_TABLES.end <= ADDRESS.0) };
        assert!(ADDRESS.0 + code().len() as u64 <= layout::MIB);
    }
}
