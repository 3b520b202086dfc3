//! An event to the frontend, which may replace its descriptor while a worker signals it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event;
use crate::interrupt::Interrupt;

/// The event that workers signal.
pub(super) struct FrontendEvent {
    /// Its descriptor refers to the frontend's file, or to that of `unconnected`.
    event: Arc<EventFd>,
    /// An event without a reader.
    unconnected: EventFd,
}

impl FrontendEvent {
    /// An event that is not connected: signals have no effect.
    ///
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub(super) fn new() -> io::Result<Self> {
        let unconnected = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { event: Arc::new(unconnected.try_clone()?), unconnected })
    }

    /// Connects the event to one of the frontend, or disconnects it.
    ///
    /// # Errors
    ///
    /// The file is not an eventfd.
    pub(super) fn connect(&self, file: Option<File>) -> io::Result<()> {
        match file {
            Some(file) => event::replace(&self.event, &event::adopt(file)?),
            None => event::replace(&self.event, &self.unconnected),
        }
    }

    /// An interrupt that signals the event.
    pub(super) fn interrupt(&self) -> Interrupt {
        Interrupt::fixed(Arc::clone(&self.event))
    }
}
