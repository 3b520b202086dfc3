//! What KVM says when it cannot go on with a guest.
//!
//! Read on the vCPU's own thread, right after the exit it explains.

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// `emulation_failure.flags`: the instruction's bytes follow.
const HAS_INSTRUCTION_BYTES: u64 = 1 << 0;

/// Why KVM stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// KVM_EXIT_INTERNAL_ERROR: emulation failed, with the bytes if KVM tells them.
    Emulation { instruction: Vec<u8> },
    /// KVM_EXIT_INTERNAL_ERROR of another kind.
    Internal { suberror: u32, data: Vec<u64> },
    /// KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest.
    FailEntry { reason: u64, cpu: u32 },
    /// An exit that this program has no use for.
    Unexpected { exit: String },
    /// KVM_RUN itself failed.
    Run { error: kvm_ioctls::Error },
}

/// A vCPU that KVM cannot run any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvmFailure {
    vcpu: u8,
    cause: Cause,
    instruction_pointer: Option<u64>,
}

impl KvmFailure {
    /// Describes why `fd`, the vCPU with this index, stopped.
    pub(crate) fn new(vcpu: u8, fd: &VcpuFd, cause: Cause) -> Self {
        let instruction_pointer = fd.get_regs().map(|registers| registers.rip).ok();
        Self { vcpu, cause, instruction_pointer }
    }
}

impl Cause {
    /// What stands behind a KVM_EXIT_INTERNAL_ERROR, which must be the last exit.
    pub(crate) fn of_internal_error(run: &kvm_run) -> Self {
        // SAFETY: `internal` is the member that KVM fills on this exit, and any bytes are valid in
        // its integers.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
            return Self::Emulation { instruction: instruction_bytes(run) };
        }
        let count = usize::try_from(internal.ndata).unwrap_or_default();
        let data = internal.data.into_iter().take(count).collect();
        Self::Internal { suberror: internal.suberror, data }
    }
}

/// The instruction that could not be emulated, as far as KVM tells it.
fn instruction_bytes(run: &kvm_run) -> Vec<u8> {
    // SAFETY: `emulation_failure` is the member that KVM fills on this exit, and any bytes are valid
    // in its integers.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.ndata < 1 || failure.flags & HAS_INSTRUCTION_BYTES == 0 {
        return Vec::new();
    }
    // SAFETY: the flag says that this member is the one filled, and it holds only bytes.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let length = usize::from(instruction.insn_size);
    instruction.insn_bytes.into_iter().take(length).collect()
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

/// Bytes as in a disassembly, each with a space before it.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit KVM does not know",
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
            "\n  what to do: run on a host whose CPU virtualises in hardware (VT-x with EPT or \
             AMD-V with NPT); inside a virtual machine, enable nested virtualisation. \
             The host's kernel log may say more",
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
    fn the_message_says_what_where_and_what_to_do() {
        let text = message(Cause::Emulation { instruction: vec![0x0f, 0xae, 0x2f] });
        assert!(text.contains("cannot emulate the instruction 0f ae 2f"), "{text}");
        assert!(text.contains("vCPU 2, instruction pointer 0x100000"), "{text}");
        assert!(text.contains("what to do"), "{text}");
    }

    #[test]
    fn each_cause_has_its_words() {
        let internal = Cause::Internal { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, data: vec![7] };
        assert!(message(internal).contains("an event could not be delivered) 0x7"));
        let entry = Cause::FailEntry { reason: 0x8000_0021, cpu: 3 };
        assert!(
            message(entry).contains("host CPU 3 refused to enter the guest, reason 0x80000021")
        );
        let run = Cause::Run { error: kvm_ioctls::Error::new(libc::EFAULT) };
        assert!(message(run).contains("KVM_RUN failed: Bad address"));
    }

    #[test]
    fn instruction_bytes_come_only_with_their_flag() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
        run.__bindgen_anon_1.emulation_failure.ndata = 3;
        // SAFETY: all members of the union are integers, so any may be referred to.
        let failure = unsafe { &mut run.__bindgen_anon_1.emulation_failure };
        // SAFETY: as above.
        let bytes = unsafe { &mut failure.__bindgen_anon_1.__bindgen_anon_1 };
        bytes.insn_size = 2;
        bytes.insn_bytes[..3].copy_from_slice(&[0x0f, 0x0b, 0x90]);
        assert_eq!(Cause::of_internal_error(&run), Cause::Emulation { instruction: vec![] });
        run.__bindgen_anon_1.emulation_failure.flags = HAS_INSTRUCTION_BYTES;
        let cause = Cause::of_internal_error(&run);
        assert_eq!(cause, Cause::Emulation { instruction: vec![0x0f, 0x0b] });
    }
}
