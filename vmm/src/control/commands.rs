//! Commands to the control thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use thiserror::Error;

use crate::notifier::Notifier;

/// Longest time for a command. A pause, the slowest one, times out earlier.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A command to a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MachineCommand {
    /// Park the guest's vCPUs.
    Pause,
    /// Let the vCPUs run.
    Resume,
    /// Press the power button.
    PressPowerButton,
}

/// The reason a command failed.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    /// A signal has requested the end, or the machine has ended.
    #[error("the machine is shutting down")]
    ShuttingDown,
    /// The host failed.
    #[error("the host failed: {0}")]
    Host(#[from] io::Error),
    /// The control thread did not answer.
    #[error("the machine did not answer in time")]
    TimedOut,
}

/// A command in the queue, and the channel for its outcome.
struct QueuedCommand {
    command: MachineCommand,
    outcome: SyncSender<Result<(), CommandError>>,
}

/// Sends commands. Any thread.
pub(crate) struct CommandSender {
    commands: Sender<QueuedCommand>,
    notifier: Notifier,
}

/// Receives commands. Control thread.
pub(crate) struct CommandReceiver {
    commands: Receiver<QueuedCommand>,
    notifier: Notifier,
}

/// Both ends of a channel for commands.
///
/// # Errors
///
/// The process or the host is out of descriptors.
pub(crate) fn command_channel() -> io::Result<(CommandSender, CommandReceiver)> {
    let notifier = Notifier::new()?;
    let (sender, receiver) = channel();
    let sender = CommandSender { commands: sender, notifier: notifier.clone() };
    Ok((sender, CommandReceiver { commands: receiver, notifier }))
}

impl CommandSender {
    /// Sends a command and waits for its outcome.
    ///
    /// # Errors
    ///
    /// The command failed.
    pub(crate) fn execute(&self, command: MachineCommand) -> Result<(), CommandError> {
        let (sender, outcome) = sync_channel(1);
        let queued = QueuedCommand { command, outcome: sender };
        self.commands.send(queued).map_err(|_| CommandError::ShuttingDown)?;
        self.notifier.notify()?;
        match outcome.recv_timeout(TIMEOUT) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(CommandError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(CommandError::ShuttingDown),
        }
    }
}

impl CommandReceiver {
    /// Handles all queued commands.
    pub(super) fn handle_all(
        &self,
        mut handle: impl FnMut(MachineCommand) -> Result<(), CommandError>,
    ) {
        self.notifier.clear();
        while let Ok(QueuedCommand { command, outcome }) = self.commands.try_recv() {
            tracing::info!(?command, "command from the control socket");
            // Fails if the sender timed out.
            let _ = outcome.send(handle(command));
        }
    }
}

impl AsRawFd for CommandReceiver {
    /// Readable while commands are queued.
    fn as_raw_fd(&self) -> RawFd {
        self.notifier.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn the_sender_gets_the_outcome() {
        let (sender, receiver) = command_channel().unwrap();
        thread::scope(|scope| {
            let sent = scope.spawn(|| {
                [MachineCommand::Pause, MachineCommand::Resume]
                    .map(|command| sender.execute(command).is_ok())
            });
            for _ in 0..2 {
                poll(&mut [PollFd::new(&receiver.notifier, PollFlags::IN)], None).unwrap();
                receiver.handle_all(|command| match command {
                    MachineCommand::Pause => Ok(()),
                    _ => Err(CommandError::ShuttingDown),
                });
            }
            assert_eq!(sent.join().unwrap(), [true, false]);
        });
    }

    #[test]
    fn commands_fail_after_the_machine_has_ended() {
        let (sender, receiver) = command_channel().unwrap();
        drop(receiver);
        let outcome = sender.execute(MachineCommand::Pause);
        assert!(matches!(outcome, Err(CommandError::ShuttingDown)));
    }
}
