//! Failures of KVM to run a guest.
//!
//! Created on the vCPU's thread, right after the exit.

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::VcpuFd;

use super::raw::InternalError;

/// The cause of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// KVM_EXIT_INTERNAL_ERROR: emulation failed. The bytes may be missing.
    Emulation { instruction: Vec<u8> },
    /// KVM_EXIT_INTERNAL_ERROR with another suberror.
    Internal { suberror: u32, data: Vec<u64> },
    /// KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest.
    FailEntry { reason: u64, cpu: u32 },
    /// An exit that this program does not handle.
    Unexpected { exit: String },
    /// KVM_RUN failed.
    Run { error: kvm_ioctls::Error },
}

/// A vCPU that KVM cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvmFailure {
    vcpu: u8,
    cause: Cause,
    instruction_pointer: Option<u64>,
}

impl KvmFailure {
    /// The failure of the vCPU `fd` with index `vcpu`.
    pub(crate) fn new(vcpu: u8, fd: &VcpuFd, cause: Cause) -> Self {
        let instruction_pointer = fd.get_regs().map(|registers| registers.rip).ok();
        Self { vcpu, cause, instruction_pointer }
    }
}

impl Cause {
    /// The cause of KVM_EXIT_INTERNAL_ERROR, which must be the last exit.
    pub(crate) fn of_internal_error(run: &kvm_run) -> Self {
        let InternalError { suberror, data, instruction } = InternalError::read(run);
        if suberror == KVM_INTERNAL_ERROR_EMULATION {
            return Self::Emulation { instruction };
        }
        Self::Internal { suberror, data }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulation { instruction } if instruction.is_empty() => {
                f.write_str("it cannot emulate an instruction")
            }
            Self::Emulation { instruction } => {
                write!(f, "it cannot emulate the instruction{}", Hex(instruction))
            }
            Self::Internal { suberror, data } => {
                write!(f, "internal error {suberror} ({})", suberror_name(*suberror))?;
                data.iter().try_for_each(|value| write!(f, " {value:#x}"))
            }
            Self::FailEntry { reason, cpu } => {
                write!(f, "host CPU {cpu} refused to enter the guest, reason {reason:#x}")
            }
            Self::Unexpected { exit } => write!(f, "unexpected exit {exit}"),
            Self::Run { error } => write!(f, "KVM_RUN failed: {error}"),
        }
    }
}

/// Bytes in hexadecimal, each after a space.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit unknown to KVM",
        _ => "unknown",
    }
}

impl fmt::Display for KvmFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this host's KVM cannot run the guest: {}", self.cause)?;
        write!(f, "\n  where: vCPU {}", self.vcpu)?;
        if let Some(pointer) = self.instruction_pointer {
            write!(f, ", instruction pointer {pointer:#x}")?;
        }
        f.write_str(
            "\n  what to do: use a host with hardware virtualization (VT-x with EPT or AMD-V with \
             NPT); inside a virtual machine, enable nested virtualization. The host's kernel log \
             may have details",
        )
    }
}

impl std::error::Error for KvmFailure {}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(cause: Cause) -> String {
        KvmFailure { vcpu: 2, cause, instruction_pointer: Some(0x10_0000) }.to_string()
    }

    #[test]
    fn the_message_has_cause_place_and_remedy() {
        let text = message(Cause::Emulation { instruction: vec![0x0f, 0xae, 0x2f] });
        assert!(text.contains("cannot emulate the instruction 0f ae 2f"), "{text}");
        assert!(text.contains("vCPU 2, instruction pointer 0x100000"), "{text}");
        assert!(text.contains("what to do"), "{text}");
    }

    #[test]
    fn each_cause_has_a_message() {
        let internal = Cause::Internal { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, data: vec![7] };
        assert!(message(internal).contains("an event could not be delivered) 0x7"));
        let entry = Cause::FailEntry { reason: 0x8000_0021, cpu: 3 };
        assert!(
            message(entry).contains("host CPU 3 refused to enter the guest, reason 0x80000021")
        );
        let run = Cause::Run { error: kvm_ioctls::Error::new(libc::EFAULT) };
        assert!(message(run).contains("KVM_RUN failed: Bad address"));
    }
}
