//! The zero page: the boot parameters of a Linux kernel.

use std::ops::Range;

use devices::GuestMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use super::kernel::LoadedKernel;
use crate::layout;

/// `type_of_loader`: no assigned loader id.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the zero page.
pub(super) fn write(
    memory: &GuestMemory,
    memory_bytes: u64,
    kernel: &LoadedKernel,
    initramfs: Option<Range<u64>>,
    command_line_length: usize,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: kernel.header, ..boot_params::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = halves(layout::COMMAND_LINE);
    params.hdr.cmdline_size = u32::try_from(command_line_length).unwrap_or(u32::MAX);
    if let Some(range) = initramfs {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(range.start);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(range.end - range.start);
    }
    params.acpi_rsdp_addr = layout::ACPI_TABLES.start;
    let map = memory_map(memory_bytes);
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = entry;
    }
    params.e820_table = table;
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

/// The low and the high 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// The e820 map: RAM, without the firmware area below 1 MiB.
fn memory_map(memory_bytes: u64) -> Vec<boot_e820_entry> {
    let entry = |range: Range<u64>, r#type| boot_e820_entry {
        addr: range.start,
        size: range.end - range.start,
        r#type,
    };
    let mut map = vec![
        entry(0..layout::BASE_RAM_END, E820_RAM),
        entry(layout::BASE_RAM_END..layout::HIGH_RAM, E820_RESERVED),
    ];
    for range in layout::ram(memory_bytes) {
        map.push(entry(range.start.max(layout::HIGH_RAM)..range.end, E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, MIB};

    fn map(memory_bytes: u64) -> Vec<(u64, u64, u32)> {
        memory_map(memory_bytes)
            .into_iter()
            .map(|entry| (entry.addr, entry.addr + entry.size, entry.r#type))
            .collect()
    }

    #[test]
    fn the_map_covers_all_ram_except_the_firmware_area() {
        assert_eq!(map(128 * MIB), [(0, 0x9_fc00, 1), (0x9_fc00, MIB, 2), (MIB, 128 * MIB, 1)]);
    }

    #[test]
    fn the_map_excludes_the_hole() {
        assert_eq!(map(5 * GIB)[2..], [(MIB, 3 * GIB, 1), (4 * GIB, 6 * GIB, 1)]);
    }

    #[test]
    fn halves_are_low_then_high() {
        assert_eq!(halves(0x1122_3344_5566_7788), (0x5566_7788, 0x1122_3344));
    }
}
