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
    input_room: Notifier,
    output: OutputWriter,
}

impl Serial {
    /// A port that raises `interrupt` and writes to `output`.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn new(interrupt: EventFd, output: OutputWriter) -> io::Result<Self> {
        let input_room = Notifier::new()?;
        let port = SerialPort::new(interrupt, input_room.descriptor(), output.clone());
        Ok(Self { port: Arc::new(Mutex::new(port)), input_room, output })
    }

    /// The registers, for the bus.
    pub(crate) fn registers(&self) -> SharedDevice {
        self.port.clone()
    }

    /// Bytes of input that the port takes now.
    pub(crate) fn room(&self) -> usize {
        self.lock().room()
    }

    /// Passes input to the guest, and returns the number of bytes accepted: at most
    /// [`room`](Self::room), or none if the guest has switched to loopback mode since.
    pub(crate) fn receive(&self, input: &[u8]) -> usize {
        self.lock().receive(input)
    }

    /// Bytes of output since the start.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.output.sent_bytes()
    }

    /// Notifies when there is room again, after [`room`](Self::room) was zero.
    pub(crate) fn input_room(&self) -> &Notifier {
        &self.input_room
    }

    /// The port is consistent between accesses, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, SerialPort<OutputWriter>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
