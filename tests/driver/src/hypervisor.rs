//! A hypervisor of eventfds: the test reads the interrupts that KVM would inject.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::{Hypervisor, MsiLine, MsiMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The receiving end of an interrupt line.
#[derive(Debug)]
pub struct Line {
    event: Arc<EventFd>,
    route: Mutex<Option<MsiMessage>>,
}

impl Line {
    /// Reads and clears the number of signals.
    pub fn take(&self) -> u64 {
        self.event.read().unwrap_or(0)
    }

    /// Waits up to `patience` for a signal, then reads and clears their number; 0 on timeout.
    pub fn wait(&self, patience: Duration) -> u64 {
        // SAFETY: the event owns the descriptor and outlives the borrow.
        let event = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
        let timeout = Timespec::try_from(patience).unwrap();
        let _ = poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], Some(&timeout));
        self.take()
    }

    /// The eventfd that the device signals.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The message of the line; `None` while it is masked.
    pub fn route(&self) -> Option<MsiMessage> {
        *self.route.lock().unwrap()
    }
}

struct Handle(Arc<Line>);

impl MsiLine for Handle {
    fn event(&self) -> &Arc<EventFd> {
        &self.0.event
    }

    fn unmask(&mut self, message: MsiMessage) -> io::Result<()> {
        *self.0.route.lock().unwrap() = Some(message);
        Ok(())
    }

    fn mask(&mut self) -> io::Result<()> {
        *self.0.route.lock().unwrap() = None;
        Ok(())
    }
}

/// Keeps the interrupt lines and doorbells that devices register.
#[derive(Default)]
pub struct EventHypervisor {
    lines: Mutex<Vec<Arc<Line>>>,
    /// By address, with the descriptor that attached each: only that one detaches it.
    doorbells: Mutex<BTreeMap<u64, (RawFd, EventFd)>>,
}

impl EventHypervisor {
    /// All lines in order of registration.
    pub fn lines(&self) -> Vec<Arc<Line>> {
        self.lines.lock().unwrap().clone()
    }

    /// Addresses of the attached doorbells.
    pub fn doorbells(&self) -> Vec<u64> {
        self.doorbells.lock().unwrap().keys().copied().collect()
    }

    /// The eventfd of the doorbell at `address`.
    pub fn doorbell(&self, address: u64) -> Option<EventFd> {
        self.doorbells.lock().unwrap().get(&address)?.1.try_clone().ok()
    }

    /// Signals the doorbell at `address`; false if there is none.
    pub fn ring(&self, address: u64) -> bool {
        let doorbells = self.doorbells.lock().unwrap();
        doorbells.get(&address).is_some_and(|(_, event)| event.write(1).is_ok())
    }
}

impl Hypervisor for EventHypervisor {
    fn msi_line(&self) -> io::Result<Box<dyn MsiLine>> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let line = Arc::new(Line { event, route: Mutex::new(None) });
        self.lines.lock().unwrap().push(Arc::clone(&line));
        Ok(Box::new(Handle(line)))
    }

    fn attach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock().unwrap();
        if doorbells.contains_key(&address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        doorbells.insert(address, (event.as_raw_fd(), event.try_clone()?));
        Ok(())
    }

    fn detach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock().unwrap();
        if doorbells.get(&address).is_none_or(|(fd, _)| *fd != event.as_raw_fd()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        doorbells.remove(&address);
        Ok(())
    }
}
