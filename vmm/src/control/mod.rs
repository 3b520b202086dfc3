//! The control thread: signals, commands, console input, and the end of the machine.
//!
//! It alone changes the state of a running machine, so a command and a signal never interleave.
//! `api` serves the control socket on its own thread and sends commands here.

pub(crate) mod api;
mod closing;
mod commands;
mod console_input;
mod event_loop;
mod panic_output;
mod shutdown;
mod signal_watch;
mod signals;
mod socket;
mod thread;

pub(crate) use closing::{BuildInterrupter, EndReporter, close};
pub(crate) use commands::{CommandError, CommandSender, MachineCommand, command_channel};
pub(crate) use event_loop::{EventLoop, EventSource, Interest};
pub(crate) use signal_watch::{REPORT_INTERVAL, SignalHandler, SignalWatch};
pub(crate) use signals::Signals;
pub(crate) use socket::{ListeningSocket, SocketError};
pub(crate) use thread::ControlThread;
