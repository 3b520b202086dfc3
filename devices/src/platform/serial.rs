//! The serial port: vm-superio's 16550A as a [`BusDevice`].
//!
//! vCPU threads access the registers; the thread that owns the console provides input. The writer
//! `W` must accept every byte without blocking.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use block::LogLimit;
use vm_superio::{Serial, Trigger, serial::SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// The interrupt line of the port.
struct SerialInterrupt(EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Notifies the console that the guest has read all input.
struct InputDrained(Arc<OwnedFd>, LogLimit);

impl SerialEvents for InputDrained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if let Err(error) = rustix::io::write(&*self.0, &1_u64.to_ne_bytes())
            && let Some(suppressed) = self.1.check()
        {
            tracing::warn!(%error, suppressed, "console input may stall");
        }
    }
}

/// A 16550A with its eight registers.
pub struct SerialPort<W: Write> {
    uart: Serial<SerialInterrupt, InputDrained, W>,
    /// Bounds the log of failed writes.
    refused: LogLimit,
}

impl<W: Write> SerialPort<W> {
    /// Number of ports.
    pub const LENGTH: u16 = 8;

    /// A port that raises `interrupt`, signals the eventfd `drained` when the guest has read all
    /// input, and writes to `output`.
    pub fn new(interrupt: EventFd, drained: Arc<OwnedFd>, output: W) -> Self {
        let uart = Serial::with_events(
            SerialInterrupt(interrupt),
            InputDrained(drained, LogLimit::default()),
            output,
        );
        Self { uart, refused: LogLimit::default() }
    }

    /// Number of bytes that [`SerialPort::receive`] accepts now.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Passes input to the guest. Returns the number of bytes accepted.
    ///
    /// # Errors
    ///
    /// The interrupt cannot be raised.
    pub fn receive(&mut self, input: &[u8]) -> io::Result<usize> {
        match self.uart.enqueue_raw_bytes(input) {
            Ok(taken) => Ok(taken),
            Err(vm_superio::serial::Error::FullFifo) => Ok(0),
            Err(vm_superio::serial::Error::Trigger(error)) => Err(error),
            Err(vm_superio::serial::Error::IOError(error)) => Err(error),
        }
    }
}

impl<W: Write + Send> BusDevice for SerialPort<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are bytes: a longer access is a string instruction on one register.
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        data.fill_with(|| self.uart.read(register));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for &byte in data {
            if let Err(error) = self.uart.write(register, byte)
                && let Some(suppressed) = self.refused.check()
            {
                tracing::warn!(%error, suppressed, "cannot write to the serial port");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rustix::event::{EventfdFlags, eventfd};

    fn port() -> (SerialPort<Vec<u8>>, EventFd, Arc<OwnedFd>) {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let drained = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let line = interrupt.try_clone().unwrap();
        (SerialPort::new(interrupt, Arc::clone(&drained), Vec::new()), line, drained)
    }

    fn count(event: &OwnedFd) -> Option<u64> {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).ok().map(|_| u64::from_ne_bytes(count))
    }

    #[test]
    fn a_string_write_sends_each_byte() {
        let (mut port, _, _) = port();
        port.write(0, b"hello");
        assert_eq!(port.uart.writer(), b"hello");
    }

    #[test]
    fn input_raises_the_interrupt_and_signals_when_drained() {
        let (mut port, line, drained) = port();
        port.write(1, &[0x01]);
        assert_eq!(port.receive(b"ab").unwrap(), 2);
        assert_eq!(line.read().unwrap(), 1);
        let mut data = [0; 1];
        port.read(0, &mut data);
        assert_eq!(count(&drained), None, "one byte is left");
        port.read(0, &mut data);
        assert_eq!((data, count(&drained)), ([b'b'], Some(1)));
    }

    #[test]
    fn a_full_fifo_accepts_nothing_and_loses_nothing() {
        let (mut port, _, _) = port();
        let room = port.room();
        assert_eq!(port.receive(&vec![b'x'; room + 9]).unwrap(), room);
        assert_eq!(port.receive(b"y").unwrap(), 0);
    }
}
