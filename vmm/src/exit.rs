//! The exit codes of the program.

use std::fmt;
use std::process::ExitCode;

/// How the program ends, above all `bulkhead run`. The numbers are an interface: scripts and
/// service units rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The guest powered off.
    PoweredOff = 0,
    /// The host failed, or its KVM cannot run the guest.
    Failed = 1,
    /// The command line or the configuration is wrong.
    BadConfig = 2,
    /// A check fails in a state that a power cut can leave (`bulkhead crash`).
    FailingState = 3,
    /// The guest rebooted.
    Rebooted = 10,
    /// The guest's kernel panicked.
    Panicked = 11,
    /// The guest stopped on a triple fault.
    TripleFault = 12,
    /// The guest was stopped: it did not power off in time, or a second signal arrived.
    Stopped = 13,
    /// A signal ended the command before its end (`bulkhead crash`).
    Interrupted = 130,
}

impl Exit {
    /// The remedy for a user after an unwanted end of the guest.
    pub(crate) fn explanation(self) -> Option<&'static str> {
        match self {
            Self::PoweredOff
            | Self::Failed
            | Self::BadConfig
            | Self::FailingState
            | Self::Interrupted => None,
            Self::Rebooted => Some("start it again to continue (exit code 10)"),
            Self::Panicked => Some("its console has the reason (exit code 11)"),
            Self::TripleFault => Some(
                "its kernel cannot handle a fault, or is not one for this machine: see its console \
                 and `bulkhead check --explain` (exit code 12)",
            ),
            Self::Stopped => Some(
                "it did not power off by itself, so its file systems may need recovery \
                      (exit code 13)",
            ),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PoweredOff => "the guest powered off",
            Self::Failed => "the host failed",
            Self::BadConfig => "the configuration is wrong",
            Self::FailingState => "a check fails",
            Self::Rebooted => "the guest rebooted",
            Self::Panicked => "the guest's kernel panicked",
            Self::TripleFault => "the guest stopped on a triple fault",
            Self::Stopped => "the guest was stopped",
            Self::Interrupted => "the command was interrupted",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_stable() {
        let codes = [
            (Exit::PoweredOff, 0),
            (Exit::Failed, 1),
            (Exit::BadConfig, 2),
            (Exit::FailingState, 3),
            (Exit::Rebooted, 10),
            (Exit::Panicked, 11),
            (Exit::TripleFault, 12),
            (Exit::Stopped, 13),
            (Exit::Interrupted, 130),
        ];
        for (exit, code) in codes {
            assert_eq!(exit as u8, code, "{exit}");
        }
    }
}
