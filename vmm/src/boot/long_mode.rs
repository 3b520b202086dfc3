//! The processor state at the 64-bit entry point: long mode, flat segments, identity-mapped memory.

use devices::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{BOOT_STACK, GDT, MIB, PAGE_TABLES, ZERO_PAGE};

/// Segment selectors `__BOOT_CS` and `__BOOT_DS` of the boot protocol, and a task state segment.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Descriptors by selector: two null descriptors, 64-bit code, data, a busy 64-bit TSS (two words).
const DESCRIPTORS: [u64; 6] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff, 0];

/// Page table bits: present and writable; a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const ENTRIES: u64 = 512;

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Writes the GDT, and page tables that identity-map the first GiB, which holds the kernel, the
/// zero page and the command line.
pub(super) fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_obj(DESCRIPTORS, GuestAddress(GDT))?;
    let [pml4, pdpt, directory] = [0, 1, 2].map(|page| PAGE_TABLES + page * PAGE);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for index in 0..ENTRIES {
        let page = (index * 2 * MIB) | HUGE | PRESENT_WRITABLE;
        memory.write_obj(page, GuestAddress(directory + index * 8))?;
    }
    Ok(())
}

/// Sets the registers of `vcpu` to start at `entry`, by the boot protocol.
///
/// # Errors
///
/// KVM refuses the registers.
pub(crate) fn enter(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), kvm_ioctls::Error> {
    let mut system = vcpu.get_sregs()?;
    system.gdt.base = GDT;
    system.gdt.limit = u16::try_from(size_of_val(&DESCRIPTORS) - 1).unwrap_or(u16::MAX);
    system.cs = code_segment();
    let data = data_segment();
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = task_segment();
    system.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    system.cr3 = PAGE_TABLES;
    system.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    system.efer = EFER_LONG_MODE;
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        rsi: ZERO_PAGE,
        rsp: BOOT_STACK,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    })
}

/// A flat, accessed segment, equal to its descriptor in the GDT.
fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

fn code_segment() -> kvm_segment {
    kvm_segment { l: 1, ..flat_segment(CODE_SELECTOR, 0b1011) }
}

fn data_segment() -> kvm_segment {
    kvm_segment { db: 1, ..flat_segment(DATA_SELECTOR, 0b0011) }
}

fn task_segment() -> kvm_segment {
    kvm_segment { s: 0, ..flat_segment(TASK_SELECTOR, 0b1011) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tables_identity_map_the_first_gib() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let translate = |address: u64| {
            let pdpt = read(PAGE_TABLES + (address >> 39 & 511) * 8) & !0xfff;
            let directory = read(pdpt + (address >> 30 & 511) * 8) & !0xfff;
            let page = read(directory + (address >> 21 & 511) * 8);
            assert_eq!(page & (HUGE | PRESENT_WRITABLE), HUGE | PRESENT_WRITABLE);
            (page & !0x1f_ffff) | address & 0x1f_ffff
        };
        for address in [0, ZERO_PAGE, MIB, 16 * MIB + 5, 1024 * MIB - 1] {
            assert_eq!(translate(address), address);
        }
    }
}
