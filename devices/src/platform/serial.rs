//! The serial port: vm-superio's 16550A behind [`BusDevice`].
//!
//! Registers are accessed by the vCPU threads, input is fed by the thread that owns the console.
//! The output must never block: what stands behind `W` has to take every byte at once.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use block::LogLimit;
use vm_superio::{Serial, Trigger, serial::SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Raises the interrupt line of the port.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the console that the guest took all input, so that more can follow.
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
    uart: Serial<Interrupt, InputDrained, W>,
    refused: LogLimit,
}

impl<W: Write> SerialPort<W> {
    /// How many bytes of ports the registers take.
    pub const LENGTH: u16 = 8;

    /// A port that raises `interrupt`, signals the eventfd `drained` when the guest has read all
    /// input, and sends to `output`.
    pub fn new(interrupt: EventFd, drained: Arc<OwnedFd>, output: W) -> Self {
        let uart = Serial::with_events(
            Interrupt(interrupt),
            InputDrained(drained, LogLimit::default()),
            output,
        );
        Self { uart, refused: LogLimit::default() }
    }

    /// How many bytes [`SerialPort::receive`] would take now.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Hands input to the guest; returns how many bytes of it were taken.
    ///
    /// # Errors
    ///
    /// When the interrupt cannot be raised.
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
        // The registers are bytes, so a longer access is a string instruction on one register.
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        data.fill_with(|| self.uart.read(register));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for &byte in data {
            if let Err(error) = self.uart.write(register, byte)
                && let Some(suppressed) = self.refused.check()
            {
                tracing::warn!(%error, suppressed, "serial port");
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
    fn input_raises_the_interrupt_and_tells_when_it_is_drained() {
        let (mut port, line, drained) = port();
        port.write(1, &[0x01]);
        assert_eq!(port.receive(b"ab").unwrap(), 2);
        assert_eq!(line.read().unwrap(), 1);
        let mut data = [0; 1];
        port.read(0, &mut data);
        assert_eq!(count(&drained), None, "one byte is still there");
        port.read(0, &mut data);
        assert_eq!((data, count(&drained)), ([b'b'], Some(1)));
    }

    #[test]
    fn a_full_fifo_takes_nothing_and_loses_nothing() {
        let (mut port, _, _) = port();
        let room = port.room();
        assert_eq!(port.receive(&vec![b'x'; room + 9]).unwrap(), room);
        assert_eq!(port.receive(b"y").unwrap(), 0);
    }
}
