//! A hypervisor that only keeps events: what KVM would route, a test reads.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::{Hypervisor, MsiLine, MsiMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An interrupt line as seen from the other side.
#[derive(Debug)]
pub struct Line {
    event: Arc<EventFd>,
    route: Mutex<Option<MsiMessage>>,
}

impl Line {
    /// How often the line was signalled since the last call.
    pub fn take(&self) -> u64 {
        self.event.read().unwrap_or(0)
    }

    /// Waits for a signal and takes it as [`Line::take`] does; 0 if none came in time.
    pub fn wait(&self, patience: Duration) -> u64 {
        // SAFETY: the event owns the descriptor and outlives the borrow.
        let event = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
        let timeout = Timespec::try_from(patience).unwrap();
        let _ = poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], Some(&timeout));
        self.take()
    }

    /// What the line's source signals.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The message the line raises now; `None` while it is masked.
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

/// See the module's documentation.
#[derive(Default)]
pub struct EventHypervisor {
    lines: Mutex<Vec<Arc<Line>>>,
    /// By their addresses; with the descriptor each was attached by, without which it is not detached.
    doorbells: Mutex<BTreeMap<u64, (RawFd, EventFd)>>,
}

impl EventHypervisor {
    /// All lines, in the order in which they were asked for.
    pub fn lines(&self) -> Vec<Arc<Line>> {
        self.lines.lock().unwrap().clone()
    }

    /// Where doorbells are attached.
    pub fn doorbells(&self) -> Vec<u64> {
        self.doorbells.lock().unwrap().keys().copied().collect()
    }

    /// The doorbell at `address`, to be rung by writing to it.
    pub fn doorbell(&self, address: u64) -> Option<EventFd> {
        self.doorbells.lock().unwrap().get(&address)?.1.try_clone().ok()
    }

    /// A guest's write to `address`: rings the doorbell there, if there is one.
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
