//! The serial port, shared by the vCPUs and the control thread.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::platform::SerialPort;
use vmm_sys_util::eventfd::EventFd;

use super::bus::SharedDevice;
use crate::console::OutputWriter;
use crate::notifier::Notifier;

/// The serial port of a machine.
pub(crate) struct Serial {
    port: Arc<Mutex<SerialPort<OutputWriter>>>,
    input_drained: Notifier,
}

impl Serial {
    /// A port that raises `interrupt` and writes to `output`.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(super) fn new(interrupt: EventFd, output: OutputWriter) -> io::Result<Self> {
        let input_drained = Notifier::new()?;
        let port = SerialPort::new(interrupt, input_drained.descriptor(), output);
        Ok(Self { port: Arc::new(Mutex::new(port)), input_drained })
    }

    /// The registers, for the bus.
    pub(super) fn registers(&self) -> SharedDevice {
        self.port.clone()
    }

    /// Bytes of input that fit into the port's FIFO.
    pub(crate) fn room(&self) -> usize {
        self.lock().room()
    }

    /// Passes input to the guest, at most [`room`](Self::room) bytes.
    pub(crate) fn receive(&self, input: &[u8]) -> io::Result<()> {
        let accepted = self.lock().receive(input)?;
        if accepted < input.len() {
            let lost_bytes = input.len() - accepted;
            tracing::debug!(lost_bytes, "console input dropped: the port is in loopback mode");
        }
        Ok(())
    }

    /// Notifies when the guest has read all input.
    pub(crate) fn input_drained(&self) -> &Notifier {
        &self.input_drained
    }

    /// The port is consistent between accesses, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, SerialPort<OutputWriter>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
