//! Commands to the control thread, which alone changes the state of the machine: so a command never
//! meets a signal half way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

/// How long a command may take. The longest, a pause, gives up before that.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked of a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Stop the guest's processors where they are.
    Pause,
    /// Let them go on.
    Resume,
    /// Press the power button.
    PressPowerButton,
}

/// Why a command was not obeyed.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// The machine was asked to end, or has ended.
    #[error("the machine is ending")]
    Ending,
    /// The host failed.
    #[error("the host failed: {0}")]
    Host(#[from] io::Error),
    /// The control thread is busy for too long.
    #[error("the machine did not answer in time")]
    Silent,
}

/// A command on its way, and where its outcome goes.
struct Order {
    command: Command,
    outcome: SyncSender<Result<(), Refusal>>,
}

/// Who may give commands.
pub(crate) struct Commander {
    orders: Sender<Order>,
    event: Arc<OwnedFd>,
}

/// The control thread's end.
pub(crate) struct Commands {
    orders: Receiver<Order>,
    event: Arc<OwnedFd>,
}

/// Both ends.
///
/// # Errors
///
/// When the host gives no event.
pub(crate) fn commands() -> io::Result<(Commander, Commands)> {
    let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let (sender, orders) = channel();
    Ok((Commander { orders: sender, event: Arc::clone(&event) }, Commands { orders, event }))
}

impl Commander {
    /// Gives a command and waits for its outcome.
    ///
    /// # Errors
    ///
    /// Why it was not obeyed.
    pub(crate) fn give(&self, command: Command) -> Result<(), Refusal> {
        let (outcome, answer) = sync_channel(1);
        self.orders.send(Order { command, outcome }).map_err(|_| Refusal::Ending)?;
        rustix::io::write(&self.event, &1_u64.to_ne_bytes()).map_err(io::Error::from)?;
        match answer.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(Refusal::Silent),
            Err(RecvTimeoutError::Disconnected) => Err(Refusal::Ending),
        }
    }
}

impl Commands {
    /// Obeys all commands that came so far.
    pub(crate) fn obey(&self, mut obey: impl FnMut(Command) -> Result<(), Refusal>) {
        // Nothing to forget is fine, too.
        let _: Result<usize, _> = rustix::io::read(&self.event, &mut [0; 8]);
        while let Ok(Order { command, outcome }) = self.orders.try_recv() {
            tracing::info!(?command, "asked through the control socket");
            // Whoever asked may have gone.
            let _ = outcome.send(obey(command));
        }
    }
}

impl AsFd for Commands {
    /// Readable while there are commands.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn a_command_gets_its_outcome() {
        let (commander, commands) = commands().unwrap();
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                [commander.give(Command::Pause).is_ok(), commander.give(Command::Resume).is_ok()]
            });
            for _ in 0..2 {
                poll(&mut [PollFd::new(&commands, PollFlags::IN)], None).unwrap();
                commands.obey(|command| match command {
                    Command::Pause => Ok(()),
                    _ => Err(Refusal::Ending),
                });
            }
            assert_eq!(asked.join().unwrap(), [true, false]);
        });
    }

    #[test]
    fn a_machine_that_has_ended_refuses() {
        let (commander, commands) = commands().unwrap();
        drop(commands);
        assert!(matches!(commander.give(Command::Pause), Err(Refusal::Ending)));
    }
}
