//! Model specific registers that firmware sets before it starts a kernel.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Sets the registers of one vCPU.
///
/// # Errors
///
/// KVM refuses one.
pub(crate) fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    for (index, data) in [
        (MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        (MTRR_DEFAULT_TYPE, MTRR_ENABLED | MTRR_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let msrs =
            Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
        if vcpu.set_msrs(&msrs)? != 1 {
            tracing::info!(index = format_args!("{index:#x}"), "KVM does not support this MSR");
        }
    }
    Ok(())
}
