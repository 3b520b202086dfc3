//! How a running machine ends: power button, grace period, forced stop. Control thread.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use devices::platform::PowerButton;
use event_manager::EventSet;

use super::commands::{CommandError, CommandReceiver, MachineCommand};
use super::event_loop::{EventSource, Interest};
use super::panic_output::{self, PanicOutput};
use super::signals::Signals;
use crate::exit::Exit;
use crate::machine::{Ending, EndingCell, Serial, Vcpus};

/// The state of the machine's end.
pub(super) struct Shutdown<'m> {
    pub(super) machine_ending: &'m EndingCell,
    pub(super) vcpus: &'m Vcpus,
    pub(super) serial: &'m Serial,
    pub(super) button: PowerButton,
    /// Time between the power button and a forced stop.
    pub(super) grace: Duration,
    /// End of the grace period, after the first signal.
    pub(super) deadline: Cell<Option<Instant>>,
    /// Set by the second signal.
    pub(super) is_stopped: Cell<bool>,
    /// After a panic of the guest's kernel.
    pub(super) panic: Cell<Option<PanicOutput>>,
}

impl Shutdown<'_> {
    /// How the machine ended, if it has or must.
    pub(super) fn ending(&self) -> Option<Ending> {
        if self.is_stopped.get() {
            return Some(Ending::Exit(Exit::Stopped));
        }
        if let Some(ending) = self.machine_ending.get() {
            return Some(ending.clone());
        }
        if self.machine_ending.is_panicked() && self.is_panic_printed() {
            return Some(Ending::Exit(Exit::Panicked));
        }
        if self.deadline.get().is_some_and(|deadline| deadline <= Instant::now()) {
            tracing::warn!("the guest did not power off in time");
            return Some(Ending::Exit(Exit::Stopped));
        }
        None
    }

    /// When to ask for the ending again, without an event.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let panic = self.panic.get().map(|_| Instant::now() + panic_output::PERIOD);
        [self.deadline.get(), panic].into_iter().flatten().min()
    }

    /// Whether the guest has printed all about its panic.
    fn is_panic_printed(&self) -> bool {
        let (sent_bytes, now) = (self.serial.sent_bytes(), Instant::now());
        let output = self.panic.get().unwrap_or_else(|| PanicOutput::new(sent_bytes, now));
        let output = output.updated(sent_bytes, now);
        self.panic.set(Some(output));
        output.is_over(now)
    }

    /// The first signal presses the power button, the second one stops the machine.
    fn handle_signal(&self, signal: libc::c_int) -> io::Result<()> {
        tracing::info!(signal, "shutdown requested");
        if self.deadline.get().is_some() {
            self.is_stopped.set(true);
            return Ok(());
        }
        // A paused guest cannot power off.
        self.vcpus.resume();
        self.button.press()?;
        self.deadline.set(Some(Instant::now() + self.grace));
        Ok(())
    }

    fn handle_command(&self, command: MachineCommand) -> Result<(), CommandError> {
        let is_ending = self.deadline.get().is_some() || self.machine_ending.get().is_some();
        match command {
            MachineCommand::Pause if is_ending => Err(CommandError::ShuttingDown),
            MachineCommand::Pause => Ok(self.vcpus.pause()?),
            MachineCommand::Resume => {
                self.vcpus.resume();
                Ok(())
            }
            // While the machine is paused, the interrupt stays pending in the interrupt controller.
            MachineCommand::PressPowerButton => Ok(self.button.press()?),
        }
    }
}

/// Signals to the program.
pub(super) struct SignalSource<'s>(pub(super) &'s Signals, pub(super) &'s Shutdown<'s>);

impl EventSource for SignalSource<'_> {
    fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        interest.add(self.0, 0, EventSet::IN)
    }

    fn handle(&mut self, _: u32, _: &mut Interest<'_, '_>) -> io::Result<()> {
        let Self(signals, shutdown) = self;
        signals.next()?.map_or(Ok(()), |signal| shutdown.handle_signal(signal))
    }
}

/// Commands from the control socket.
pub(super) struct CommandSource<'s>(pub(super) CommandReceiver, pub(super) &'s Shutdown<'s>);

impl EventSource for CommandSource<'_> {
    fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        interest.add(&self.0, 0, EventSet::IN)
    }

    fn handle(&mut self, _: u32, _: &mut Interest<'_, '_>) -> io::Result<()> {
        let Self(commands, shutdown) = self;
        commands.handle_all(|command| shutdown.handle_command(command));
        Ok(())
    }
}

/// The end of the machine. Only wakes the loop, which checks [`Shutdown::ending`] after each event.
pub(super) struct EndingSource<'s>(pub(super) &'s EndingCell);

impl EventSource for EndingSource<'_> {
    fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        interest.add(self.0, 0, EventSet::IN)
    }

    fn handle(&mut self, _: u32, _: &mut Interest<'_, '_>) -> io::Result<()> {
        self.0.clear();
        Ok(())
    }
}
