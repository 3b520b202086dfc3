//! The event loop of the control thread: signals, commands, console input, and the end of the machine.

pub(crate) mod api;
pub(crate) mod commands;
pub(crate) mod signals;

use std::io;
use std::time::{Duration, Instant};

use devices::platform::PowerButton;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::console::Console;
use crate::exit::Exit;
use crate::machine::ending::{Ending, EndingCell};
use crate::machine::serial::Serial;
use crate::machine::vcpu::Vcpus;
use commands::{Command, Commands, Refusal};
use signals::Signals;

/// More than the serial port ever takes at once.
const INPUT_CHUNK: usize = 64;

/// What the control thread watches over.
pub(crate) struct Control<'a> {
    pub(crate) signals: &'a Signals,
    pub(crate) console: &'a mut Console,
    pub(crate) serial: &'a Serial,
    pub(crate) ending: &'a EndingCell,
    pub(crate) vcpus: &'a Vcpus,
    /// From the control socket, if there is one.
    pub(crate) commands: Option<Commands>,
    pub(crate) button: PowerButton,
    /// How long the guest has to power off after the button was pressed.
    pub(crate) grace: Duration,
}

/// What woke the loop.
struct Ready {
    signal: bool,
    command: bool,
    input: bool,
    drained: bool,
}

impl Control<'_> {
    /// Runs until the machine has ended, or has to.
    ///
    /// # Errors
    ///
    /// When the host fails to say what happened.
    pub(crate) fn run(mut self) -> io::Result<Ending> {
        let mut deadline = None;
        loop {
            if let Some(ending) = self.ending.get() {
                return Ok(ending.clone());
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                tracing::warn!("the guest did not power off in time");
                return Ok(Ending::Exit(Exit::Stopped));
            }
            let ready = self.wait(deadline)?;
            if ready.signal
                && let Some(signal) = self.signals.next()?
            {
                tracing::info!(signal, "asked to end");
                if deadline.is_some() {
                    return Ok(Ending::Exit(Exit::Stopped));
                }
                // A guest that is paused cannot power off.
                self.vcpus.resume();
                self.button.press()?;
                deadline = Some(Instant::now() + self.grace);
            }
            if ready.command
                && let Some(commands) = &self.commands
            {
                commands.obey(|command| self.obey(command, deadline.is_some()));
            }
            if ready.drained {
                self.serial.forget_drained();
            }
            if ready.input {
                self.take_input()?;
            }
        }
    }

    fn obey(&self, command: Command, is_ending: bool) -> Result<(), Refusal> {
        match command {
            Command::Pause if is_ending || self.ending.get().is_some() => Err(Refusal::Ending),
            Command::Pause => Ok(self.vcpus.pause()?),
            Command::Resume => {
                self.vcpus.resume();
                Ok(())
            }
            // While paused the press waits in the interrupt controller.
            Command::PressPowerButton => Ok(self.button.press()?),
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> io::Result<Ready> {
        let input = self.console.watched(self.serial.room() > 0);
        let mut watched = vec![
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::new(self.ending, PollFlags::IN),
            PollFd::from_borrowed_fd(self.serial.drained(), PollFlags::IN),
        ];
        let commands = self.commands.as_ref();
        watched.extend(commands.map(|commands| PollFd::new(commands, PollFlags::IN)));
        watched.extend(input.map(|input| PollFd::from_borrowed_fd(input, PollFlags::IN)));
        let timeout = deadline.map(timeout_until);
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |index: usize| watched.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let inputs_at = if commands.is_some() { 4 } else { 3 };
        Ok(Ready {
            signal: is_ready(0),
            command: commands.is_some() && is_ready(3),
            drained: is_ready(2),
            input: is_ready(inputs_at),
        })
    }

    fn take_input(&mut self) -> io::Result<()> {
        let mut buffer = [0; INPUT_CHUNK];
        let room = self.serial.room().min(INPUT_CHUNK);
        let length = self.console.read(buffer.get_mut(..room).unwrap_or_default());
        self.serial.receive(buffer.get(..length).unwrap_or_default())
    }
}

fn timeout_until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    // Longer than the clock can say is forever.
    Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
