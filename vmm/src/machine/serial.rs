//! The serial port as the control thread and the vCPUs share it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::platform::SerialPort;
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::eventfd::EventFd;

use super::bus::SharedDevice;
use crate::console::OutputWriter;

/// The serial port of a machine.
pub(crate) struct Serial {
    port: Arc<Mutex<SerialPort<OutputWriter>>>,
    drained: Arc<OwnedFd>,
}

impl Serial {
    /// A port that raises `interrupt` and writes to `output`.
    ///
    /// # Errors
    ///
    /// When the host gives no event.
    pub(crate) fn new(interrupt: EventFd, output: OutputWriter) -> io::Result<Self> {
        let drained = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let port = SerialPort::new(interrupt, Arc::clone(&drained), output);
        Ok(Self { port: Arc::new(Mutex::new(port)), drained })
    }

    /// The port's registers, for the bus.
    pub(crate) fn registers(&self) -> SharedDevice {
        self.port.clone()
    }

    /// How much input the port has room for.
    pub(crate) fn room(&self) -> usize {
        self.lock().room()
    }

    /// Hands input to the guest, which must be no more than there is room for.
    pub(crate) fn receive(&self, input: &[u8]) -> io::Result<()> {
        let taken = self.lock().receive(input)?;
        if taken < input.len() {
            tracing::debug!(lost = input.len() - taken, "console input while looped back");
        }
        Ok(())
    }

    /// Readable after the guest has taken all input.
    pub(crate) fn drained(&self) -> BorrowedFd<'_> {
        self.drained.as_fd()
    }

    /// Makes [`Serial::drained`] unreadable until the next time.
    pub(crate) fn forget_drained(&self) {
        // Nothing to forget is fine, too.
        let _: Result<usize, _> = rustix::io::read(&*self.drained, &mut [0; 8]);
    }

    /// The port is whole between accesses, so also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, SerialPort<OutputWriter>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
