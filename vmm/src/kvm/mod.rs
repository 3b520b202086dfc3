//! KVM: the virtual machine and what of it others may hold. The only place that opens `/dev/kvm`.

mod failure;
mod interrupts;

use std::io;

use devices::GuestMemory;
use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;

pub(crate) use failure::{Cause, KvmFailure};
pub(crate) use interrupts::KvmDevices;

/// Why there is no virtual machine.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The host offers no KVM.
    #[error("cannot open /dev/kvm; {}", remedy(.0))]
    Open(#[source] kvm_ioctls::Error),
    /// KVM is too old or cut down.
    #[error("this host's KVM lacks {0}, which a guest needs")]
    Lacks(&'static str),
    /// KVM refused a request.
    #[error("KVM refused to {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
}

/// Names the request that KVM refused.
pub(crate) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Refused(what, source)
}

fn remedy(error: &kvm_ioctls::Error) -> &'static str {
    match io::Error::from_raw_os_error(error.errno()).kind() {
        io::ErrorKind::NotFound => {
            "enable virtualisation in the firmware and load the module kvm_intel or kvm_amd"
        }
        io::ErrorKind::PermissionDenied => "join the group kvm, or run as a user who may",
        _ => "see the kernel log",
    }
}

/// What Bulkhead asks of KVM, by the name in its documentation.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens KVM and checks that it can do what is needed.
///
/// # Errors
///
/// When it cannot; the error says what to do.
pub(crate) fn open() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(Error::Open)?;
    if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
        return Err(Error::Lacks("the stable API (version 12)"));
    }
    match NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(Error::Lacks(name)),
        None => Ok(kvm),
    }
}

/// A virtual machine. Keeps the guest's memory for as long as KVM may access it.
pub(crate) struct Vm {
    // Before `_memory`, as fields are dropped in this order.
    fd: VmFd,
    _memory: GuestMemory,
}

impl Vm {
    /// A machine with interrupt controllers and memory, and no processor yet.
    ///
    /// # Errors
    ///
    /// When KVM refuses.
    pub(crate) fn new(kvm: &Kvm, memory: GuestMemory) -> Result<Self, Error> {
        let fd = kvm.create_vm().map_err(refused("create a virtual machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or_default(); // Below 4 GiB.
        fd.set_tss_address(tss).map_err(refused("place the task state segment"))?;
        fd.create_irq_chip().map_err(refused("create interrupt controllers"))?;
        set_memory(&fd, &memory)?;
        Ok(Self { fd, _memory: memory })
    }

    /// The processor with this index.
    ///
    /// # Errors
    ///
    /// When KVM has no room for more.
    pub(crate) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, Error> {
        self.fd.create_vcpu(index.into()).map_err(refused("create a vCPU"))
    }
}

fn set_memory(fd: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a whole mapping of `memory`, which `Vm` keeps until after it has
        // closed the machine. Only vCPUs use it beyond that, and each `Vcpu` holds its `Vm`.
        unsafe { fd.set_user_memory_region(slot) }.map_err(refused("map guest memory"))?;
    }
    Ok(())
}
