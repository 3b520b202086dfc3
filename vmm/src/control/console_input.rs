//! Console input on its way to the serial port. Control thread.
//!
//! Input is read only as far as it fits into the port's FIFO, so none is lost.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use event_manager::EventSet;
use rustix::io::Errno;

use super::event_loop::{EventSource, Interest};
use crate::console::Console;
use crate::machine::Serial;

/// Larger than the port's FIFO.
const CHUNK: usize = 64;

/// Token of the console's descriptor.
const INPUT: u32 = 1;
/// Token of the notifier of room in the port.
const ROOM: u32 = 2;

/// The console's input and the serial port.
pub(super) struct ConsoleInput<'m> {
    console: &'m mut Console,
    serial: &'m Serial,
    registered: Option<RegisteredFd>,
    /// Input that was read when the port had room and not accepted, because the guest has switched
    /// the port to loopback mode meanwhile.
    leftover: Vec<u8>,
}

/// The descriptor that is registered for input.
struct RegisteredFd(RawFd);

impl AsRawFd for RegisteredFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl<'m> ConsoleInput<'m> {
    pub(super) fn new(console: &'m mut Console, serial: &'m Serial) -> Self {
        Self { console, serial, registered: None, leftover: Vec::new() }
    }

    /// Waits for input while the port has room for it.
    fn wait_for_input(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        if self.registered.is_some() {
            return Ok(());
        }
        let has_room = self.leftover.is_empty() && self.serial.room() > 0;
        let input = self.console.input_descriptor(has_room);
        let Some(input) = input.map(|input| RegisteredFd(input.as_raw_fd())) else {
            return Ok(());
        };
        match interest.add(&input, INPUT, EventSet::IN) {
            Ok(()) => self.registered = Some(input),
            // A regular file or /dev/null: always ready, and epoll refuses it. One read for each
            // turn of the loop, so that no other event is delayed.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                self.read();
                self.serial.input_room().notify()?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn read(&mut self) {
        let mut buffer = [0; CHUNK];
        // The guest may have filled the port in loopback mode since. Nothing is lost: the console
        // is read again when there is room. A read of nothing would look like the end of the input.
        let room = self.serial.room().min(CHUNK);
        if room == 0 {
            return;
        }
        let length = self.console.read(buffer.get_mut(..room).unwrap_or_default());
        self.pass(buffer.get(..length).unwrap_or_default());
    }

    /// Passes the input that the port has not accepted, now that it has room.
    fn pass_leftover(&mut self) {
        let leftover = std::mem::take(&mut self.leftover);
        self.pass(&leftover);
    }

    fn pass(&mut self, input: &[u8]) {
        let accepted = self.serial.receive(input);
        self.leftover = input.get(accepted..).unwrap_or_default().to_vec();
    }
}

impl EventSource for ConsoleInput<'_> {
    fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        interest.add(self.serial.input_room(), ROOM, EventSet::IN)?;
        self.wait_for_input(interest)
    }

    fn handle(&mut self, token: u32, interest: &mut Interest<'_, '_>) -> io::Result<()> {
        if token == INPUT {
            // The read may close the descriptor, or fill the port.
            if let Some(input) = self.registered.take() {
                interest.remove(&input)?;
            }
            self.read();
        } else {
            self.serial.input_room().clear();
            self.pass_leftover();
        }
        self.wait_for_input(interest)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::config::ConsoleConfig;

    /// Registers of a 16550A.
    const DATA: u64 = 0;
    const MODEM_CONTROL: u64 = 4;
    const LINE_STATUS: u64 = 5;
    const LOOPBACK: u8 = 0x10;
    const DATA_READY: u8 = 1;

    fn write(serial: &Serial, register: u64, value: u8) {
        serial.registers().lock().unwrap().write(register, &[value]);
    }

    /// The data that the guest finds.
    fn received(serial: &Serial) -> Vec<u8> {
        let registers = serial.registers();
        let read = |register| {
            let mut value = [0];
            registers.lock().unwrap().read(register, &mut value);
            value[0]
        };
        std::iter::from_fn(|| (read(LINE_STATUS) & DATA_READY != 0).then(|| read(DATA))).collect()
    }

    /// The guest switches to loopback mode between the question for room and the input.
    #[test]
    fn input_that_the_port_refuses_is_passed_later_and_once() {
        let mut console = Console::open(&ConsoleConfig::Off).unwrap();
        let serial = Serial::new(EventFd::new(0).unwrap(), console.writer()).unwrap();
        let mut input = ConsoleInput::new(&mut console, &serial);
        assert!(serial.room() > 0);
        write(&serial, MODEM_CONTROL, LOOPBACK);
        input.pass(b"lost?");
        input.pass_leftover();
        assert_eq!(received(&serial), b"", "in loopback mode");
        write(&serial, MODEM_CONTROL, 0);
        let mut room = [PollFd::new(serial.input_room(), PollFlags::IN)];
        assert_eq!(poll(&mut room, Some(&Timespec::default())), Ok(1), "the port has room");
        input.pass_leftover();
        assert_eq!(received(&serial), b"lost?");
        input.pass_leftover();
        assert_eq!(received(&serial), b"");
    }
}
