//! The unsafe parts of KVM's interface: memory slots and the unions of `kvm_run`.
//!
//! Apart from `sys`, the only module of the program with unsafe code.

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryRegion, GuestRegionMmap};

/// `emulation_failure.flags`: the instruction's bytes follow.
const HAS_INSTRUCTION_BYTES: u64 = 1 << 0;

/// Maps `region` into the machine as memory slot `slot`.
///
/// The caller keeps the region until the machine and all of its vCPUs are closed.
pub(super) fn map_memory(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap,
) -> Result<(), kvm_ioctls::Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the range is a whole mapping. Its only caller, `Vm`, keeps the guest's memory until
    // after it has closed the machine, and each vCPU keeps its `Vm`.
    unsafe { vm.set_user_memory_region(slot) }
}

/// The details of KVM_EXIT_INTERNAL_ERROR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InternalError {
    pub(super) suberror: u32,
    pub(super) data: Vec<u64>,
    /// The instruction that was not emulated, if KVM reports it.
    pub(super) instruction: Vec<u8>,
}

impl InternalError {
    /// Reads the details. The last exit must be KVM_EXIT_INTERNAL_ERROR.
    pub(super) fn read(run: &kvm_run) -> Self {
        // SAFETY: `internal` is the member that KVM fills on this exit, and any bytes are valid in
        // its integers.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let suberror = internal.suberror;
        let count = usize::try_from(internal.ndata).unwrap_or_default();
        let data = internal.data.into_iter().take(count).collect();
        let is_emulation = suberror == KVM_INTERNAL_ERROR_EMULATION;
        let instruction = if is_emulation { instruction_bytes(run) } else { Vec::new() };
        Self { suberror, data, instruction }
    }
}

fn instruction_bytes(run: &kvm_run) -> Vec<u8> {
    // SAFETY: `emulation_failure` is the member that KVM fills on this exit, and any bytes are
    // valid in its integers.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.ndata < 1 || failure.flags & HAS_INSTRUCTION_BYTES == 0 {
        return Vec::new();
    }
    // SAFETY: the flag says that this member is filled, and it holds only bytes.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let length = usize::from(instruction.insn_size);
    instruction.insn_bytes.into_iter().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_bytes_are_read_only_with_their_flag() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
        run.__bindgen_anon_1.emulation_failure.ndata = 3;
        // SAFETY: all members of the union are integers, so any may be referred to.
        let failure = unsafe { &mut run.__bindgen_anon_1.emulation_failure };
        // SAFETY: as above.
        let bytes = unsafe { &mut failure.__bindgen_anon_1.__bindgen_anon_1 };
        bytes.insn_size = 2;
        bytes.insn_bytes[..3].copy_from_slice(&[0x0f, 0x0b, 0x90]);
        assert!(InternalError::read(&run).instruction.is_empty());
        run.__bindgen_anon_1.emulation_failure.flags = HAS_INSTRUCTION_BYTES;
        let error = InternalError::read(&run);
        assert_eq!(error.suberror, KVM_INTERNAL_ERROR_EMULATION);
        assert_eq!(error.instruction, [0x0f, 0x0b]);
    }
}
