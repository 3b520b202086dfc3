//! KVM: the virtual machine, its vCPUs and its interrupts. Opens `/dev/kvm`.

mod failure;
mod interrupts;
mod raw;

use std::io;

use devices::GuestMemory;
use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use crate::layout;

pub(crate) use failure::{Cause, KvmFailure};
pub(crate) use interrupts::KvmDevices;

/// The reason there is no virtual machine.
#[derive(Debug, Error)]
pub(crate) enum KvmError {
    /// The host has no KVM.
    #[error("cannot open /dev/kvm; {}", remedy(.0))]
    Open(#[source] kvm_ioctls::Error),
    /// KVM is too old or restricted.
    #[error("this host's KVM lacks {0}, which is required")]
    Lacks(&'static str),
    /// KVM refused a request.
    #[error("KVM refused to {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
}

/// An error that names the refused request.
pub(crate) fn refused(request: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Refused(request, source)
}

fn remedy(error: &kvm_ioctls::Error) -> &'static str {
    match io::Error::from_raw_os_error(error.errno()).kind() {
        io::ErrorKind::NotFound => {
            "enable virtualization in the firmware and load the module kvm_intel or kvm_amd"
        }
        io::ErrorKind::PermissionDenied => "join the group kvm, or run as another user",
        _ => "see the kernel log",
    }
}

/// Required capabilities, with their names in KVM's documentation.
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens KVM and checks its capabilities.
///
/// # Errors
///
/// KVM cannot be opened, or lacks a capability.
pub(crate) fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Lacks("the stable API (version 12)"));
    }
    match REQUIRED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(kvm),
    }
}

/// A virtual machine. Keeps the guest's memory while KVM may access it.
pub(crate) struct Vm {
    // Dropped before `_memory`.
    fd: VmFd,
    _memory: GuestMemory,
}

/// KVM_CREATE_VM takes all locks of the address space, which the kernel gives up with EINTR when
/// the thread has work pending, such as a stop by a debugger.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            created => return created,
        }
    }
}

impl Vm {
    /// A machine with interrupt controllers and memory, without vCPUs.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub(crate) fn new(kvm: &Kvm, memory: GuestMemory) -> Result<Self, KvmError> {
        let fd = create_vm(kvm).map_err(refused("create a virtual machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or_default(); // Below 4 GiB.
        fd.set_tss_address(tss).map_err(refused("place the task state segment"))?;
        fd.create_irq_chip().map_err(refused("create interrupt controllers"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            raw::map_memory(&fd, slot, region).map_err(refused("map guest memory"))?;
        }
        Ok(Self { fd, _memory: memory })
    }

    /// Creates the vCPU with this index. It must not outlive the machine.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub(crate) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(index.into()).map_err(refused("create a vCPU"))
    }
}
