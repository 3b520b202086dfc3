//! The loop of the control thread of `bulkhead run`.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use devices::platform::PowerButton;

use super::commands::CommandReceiver;
use super::console_input::ConsoleInput;
use super::event_loop::EventLoop;
use super::shutdown::{CommandSource, EndingSource, Shutdown, SignalSource};
use super::signals::Signals;
use crate::console::Console;
use crate::machine::{Ending, EndingCell, Serial, Vcpus};

/// Everything that the control thread of a running machine uses.
pub(crate) struct ControlThread<'m> {
    pub(crate) signals: &'m Signals,
    pub(crate) console: &'m mut Console,
    pub(crate) serial: &'m Serial,
    pub(crate) ending: &'m EndingCell,
    pub(crate) vcpus: &'m Vcpus,
    /// Commands from the control socket, if the machine has one.
    pub(crate) commands: Option<CommandReceiver>,
    pub(crate) button: PowerButton,
    /// Time between the power button and a forced stop.
    pub(crate) grace: Duration,
}

impl ControlThread<'_> {
    /// Runs until the machine has ended or must end.
    ///
    /// # Errors
    ///
    /// The host failed.
    pub(crate) fn run(self) -> io::Result<Ending> {
        let shutdown = Shutdown {
            machine_ending: self.ending,
            vcpus: self.vcpus,
            serial: self.serial,
            button: self.button,
            grace: self.grace,
            deadline: Cell::new(None),
            is_stopped: Cell::new(false),
            panic: Cell::new(None),
        };
        let mut events = EventLoop::new()?;
        events.add(SignalSource(self.signals, &shutdown))?;
        events.add(EndingSource(self.ending))?;
        if let Some(commands) = self.commands {
            events.add(CommandSource(commands, &shutdown))?;
        }
        events.add(ConsoleInput::new(self.console, self.serial))?;
        loop {
            if let Some(ending) = shutdown.ending() {
                return Ok(ending);
            }
            events.wait(shutdown.next_look())?;
        }
    }
}
