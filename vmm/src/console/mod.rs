//! The serial console: a terminal, a file, a socket, or nothing.
//!
//! Output goes its own way, see [`output`]. Input is read on the control thread, and only as much as
//! the serial port has room for, so nothing that was typed is lost.

mod output;
mod socket;
mod terminal;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::ConsoleConfig;
use terminal::RawMode;

pub(crate) use output::OutputWriter;
use output::{Output, Sink};
use socket::ConsoleSocket;

/// How long the end of the output may take at the end of the program.
const PATIENCE: Duration = Duration::from_secs(1);

/// The console of a machine.
pub(crate) struct Console {
    output: Output,
    input: Input,
}

enum Input {
    /// Nothing can be typed, or the end of it was reached.
    None,
    /// Standard input, in raw mode if it is a terminal.
    Stdin { _raw: Option<RawMode> },
    /// Whoever is connected to the socket.
    Socket(ConsoleSocket),
}

impl Console {
    /// Opens what the configuration says.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub(crate) fn open(config: &ConsoleConfig) -> io::Result<Self> {
        let (sink, input) = match config {
            ConsoleConfig::Stdio => (Some(stdout()?), Input::Stdin { _raw: RawMode::enter()? }),
            ConsoleConfig::File(path) => (Some(append_to(path)?), Input::None),
            ConsoleConfig::Socket(path) => (None, Input::Socket(ConsoleSocket::listen(path)?)),
            ConsoleConfig::Off => (None, Input::None),
        };
        Ok(Self { output: Output::start(sink)?, input })
    }

    /// Where the serial port writes to.
    pub(crate) fn writer(&self) -> OutputWriter {
        self.output.writer()
    }

    /// What to watch for [`Console::read`]. `room` says whether the serial port could take input.
    pub(crate) fn watched(&self, room: bool) -> Option<BorrowedFd<'_>> {
        match &self.input {
            Input::Stdin { .. } if room => Some(rustix::stdio::stdin()),
            Input::Socket(socket) => socket.watched(room),
            Input::Stdin { .. } | Input::None => None,
        }
    }

    /// Reads what there is, at most all of `buffer`; returns how much. Blocks unless the descriptor
    /// of [`Console::watched`] is ready.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        match &mut self.input {
            Input::None => 0,
            Input::Stdin { .. } => match rustix::io::read(rustix::stdio::stdin(), buffer) {
                Ok(0) => self.end_input("end of file"),
                Ok(length) => length,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => 0,
                Err(error) => self.end_input(error),
            },
            Input::Socket(socket) => socket.read(buffer, &self.output),
        }
    }

    fn end_input(&mut self, why: impl std::fmt::Display) -> usize {
        tracing::info!(%why, "no more console input");
        self.input = Input::None;
        0
    }

    /// Writes the rest of the output and gives the terminal back.
    pub(crate) fn close(self) {
        self.output.finish(PATIENCE);
    }
}

/// A descriptor of our own for standard output.
fn stdout() -> io::Result<Sink> {
    Ok(Arc::new(rustix::stdio::stdout().try_clone_to_owned()?))
}

fn append_to(path: &Path) -> io::Result<Sink> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(Arc::new(OwnedFd::from(file)))
}
