//! An event to the frontend whose descriptor it may replace while a worker signals it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event;
use crate::virtio::Interrupt;

/// See the module's documentation.
pub(super) struct Line {
    /// What workers signal. The frontend's event is put behind its descriptor.
    event: Arc<EventFd>,
    /// Stands there while the frontend wants no signal.
    nobody: EventFd,
}

impl Line {
    /// A line that ends nowhere.
    ///
    /// # Errors
    ///
    /// The host gives no event.
    pub(super) fn new() -> io::Result<Self> {
        let nobody = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { event: Arc::new(nobody.try_clone()?), nobody })
    }

    /// Leads the line to an event of the frontend, or nowhere.
    ///
    /// # Errors
    ///
    /// It is no event.
    pub(super) fn connect(&self, file: Option<File>) -> io::Result<()> {
        match file {
            Some(file) => event::replace(&self.event, &event::adopt(file)?),
            None => event::replace(&self.event, &self.nobody),
        }
    }

    pub(super) fn interrupt(&self) -> Interrupt {
        Interrupt::new(Arc::from([Arc::clone(&self.event)]), Arc::new(AtomicU16::new(0)))
    }
}
