//! The serial console: a terminal, a file, a socket, or nothing.
//!
//! [`output`] writes on its own thread. Input is read on the control thread, and only as far as it
//! fits into the serial port, so none is lost.

mod output;
mod sink;
mod socket;
mod terminal;

use std::fmt::Display;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::config::ConsoleConfig;
use output::ConsoleOutput;
pub(crate) use output::OutputWriter;
use sink::{ConsoleFile, Sink};
use socket::ConsoleSocket;
use terminal::RawMode;
pub(crate) use terminal::restore as restore_terminal;

/// Longest time for the rest of the output at the end of the program.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The console of a machine.
pub(crate) struct Console {
    output: ConsoleOutput,
    input: Input,
}

enum Input {
    /// None, or ended.
    None,
    /// Standard input, in raw mode if it is a terminal.
    Stdin { _raw: Option<RawMode> },
    /// The client of the socket.
    Socket(ConsoleSocket),
}

impl Console {
    /// Opens the console of the configuration.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub(crate) fn open(config: &ConsoleConfig) -> io::Result<Self> {
        let (sink, input): (Option<Sink>, _) = match config {
            ConsoleConfig::Stdio if terminal::is_in_background() => {
                tracing::warn!("another job uses the terminal: the console has no input");
                (Some(stdout()?), Input::None)
            }
            ConsoleConfig::Stdio => (Some(stdout()?), Input::Stdin { _raw: RawMode::enter()? }),
            ConsoleConfig::File { path, limit } => {
                (Some(Arc::new(ConsoleFile::open(path, *limit)?)), Input::None)
            }
            ConsoleConfig::Socket(path) => (None, Input::Socket(ConsoleSocket::listen(path)?)),
            ConsoleConfig::Off => (None, Input::None),
        };
        Ok(Self { output: ConsoleOutput::start(sink)?, input })
    }

    /// The serial port's end of the output.
    pub(crate) fn writer(&self) -> OutputWriter {
        self.output.writer()
    }

    /// The descriptor that is ready when [`Console::read`] has something to do. `has_room` says
    /// whether the serial port takes input. May change with each read.
    pub(crate) fn input_descriptor(&self, has_room: bool) -> Option<BorrowedFd<'_>> {
        match &self.input {
            Input::Stdin { .. } if has_room => Some(rustix::stdio::stdin()),
            Input::Socket(socket) => socket.descriptor(has_room),
            Input::Stdin { .. } | Input::None => None,
        }
    }

    /// Reads available input into `buffer` and returns its length. Blocks unless the descriptor of
    /// [`Console::input_descriptor`] is ready. May close that descriptor.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        match &mut self.input {
            Input::None => 0,
            Input::Stdin { .. } => match rustix::io::read(rustix::stdio::stdin(), buffer) {
                Ok(0) => self.end_input("end of file"),
                Ok(length) => length,
                Err(Errno::INTR | Errno::AGAIN) => 0,
                Err(error) => self.end_input(error),
            },
            Input::Socket(socket) => socket.read(buffer, &self.output),
        }
    }

    fn end_input(&mut self, reason: impl Display) -> usize {
        tracing::info!(%reason, "console input ended");
        self.input = Input::None;
        0
    }

    /// Writes the rest of the output and restores the terminal.
    pub(crate) fn close(self) {
        self.output.drain(DRAIN_TIMEOUT);
    }
}

fn stdout() -> io::Result<Sink> {
    Ok(Arc::new(rustix::stdio::stdout().try_clone_to_owned()?))
}
