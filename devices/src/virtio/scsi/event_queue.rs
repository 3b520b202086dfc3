//! The event queue (Virtio 1.2 §5.6.6.3): what happens to disks, told as soon as the driver gives a buffer for it.
//!
//! Events wait for a buffer, but not many of them: beyond that they are lost, which the next one says.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::feature;
use super::shared::{Address, Shared};
use crate::event;
use crate::scsi::Attention;
use crate::virtio::chain_worker::{ChainHandler, Handled};
use crate::virtio::{Chain, GuestMap, QueueError};

/// Bytes of `struct virtio_scsi_event`.
pub(super) const EVENT_BYTES: u32 = 16;
/// The most events that wait for a buffer.
const MOST_WAITING: usize = 32;

/// Values of `event`.
const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
const EVENTS_MISSED: u32 = 0x8000_0000;
/// Values of `reason` for a transport reset.
const RESET_RESCAN: u32 = 1;
const RESET_REMOVED: u32 = 2;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// The feature that the driver must have accepted.
    feature: u64,
    kind: u32,
    lun: [u8; 8],
    reason: u32,
}

impl Event {
    /// A disk has appeared.
    pub(super) fn added(address: Address) -> Self {
        Self::transport_reset(address, RESET_RESCAN)
    }

    /// A disk is gone.
    pub(super) fn removed(address: Address) -> Self {
        Self::transport_reset(address, RESET_REMOVED)
    }

    fn transport_reset(address: Address, reason: u32) -> Self {
        let (feature, lun) = (feature::HOTPLUG, address.encode());
        Self { feature, kind: TRANSPORT_RESET, lun, reason }
    }

    /// Something about a disk has changed, which is also told as `attention`.
    pub(super) fn changed(address: Address, attention: Attention) -> Self {
        let (code, qualifier) = attention.code();
        let reason = u32::from(code) | u32::from(qualifier) << 8;
        Self { feature: feature::CHANGE, kind: PARAM_CHANGE, lun: address.encode(), reason }
    }
}

/// What waits to be told.
pub(super) struct Events {
    accepted: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Readable while there is something.
    signal: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    missed: bool,
}

impl Events {
    /// # Errors
    ///
    /// The host gives no event.
    pub(super) fn new() -> io::Result<Self> {
        let signal = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { accepted: AtomicU64::new(0), waiting: Mutex::default(), signal })
    }

    /// The driver has accepted these features.
    pub(super) fn accept(&self, features: u64) {
        self.accepted.store(features, Ordering::Release);
    }

    /// The driver has reset the device: it will look for itself.
    pub(super) fn forget(&self) {
        self.accept(0);
        *self.lock() = Waiting::default();
        let _ = self.signal.read();
    }

    /// Tells the driver of an event, if it accepted events of that kind.
    pub(super) fn raise(&self, event: Event) {
        if self.accepted.load(Ordering::Acquire) & event.feature == 0 {
            return;
        }
        let mut waiting = self.lock();
        if waiting.events.len() < MOST_WAITING {
            waiting.events.push_back(event);
        } else {
            waiting.missed = true;
        }
        // Fails only if the counter is full, in which case it is readable.
        let _ = self.signal.write(1);
    }

    /// The bytes of the oldest event, or of none if only the loss of others is to be told.
    fn take(&self) -> Option<[u8; EVENT_BYTES as usize]> {
        let mut waiting = self.lock();
        let (kind, lun, reason) = match waiting.events.pop_front() {
            Some(Event { kind, lun, reason, .. }) => (kind, lun, reason),
            None if waiting.missed => (NO_EVENT, [0; 8], 0),
            None => {
                let _ = self.signal.read();
                return None;
            }
        };
        let missed = if std::mem::take(&mut waiting.missed) { EVENTS_MISSED } else { 0 };
        let [k0, k1, k2, k3] = (kind | missed).to_le_bytes();
        let [l0, l1, l2, l3, l4, l5, l6, l7] = lun;
        let [r0, r1, r2, r3] = reason.to_le_bytes();
        Some([k0, k1, k2, k3, l0, l1, l2, l3, l4, l5, l6, l7, r0, r1, r2, r3])
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Events are pushed and popped whole, so that a panic elsewhere leaves nothing broken.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes events into the buffers of the queue, on its worker's thread.
pub(super) struct EventQueue {
    shared: Arc<Shared>,
}

impl EventQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl ChainHandler for EventQueue {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        let buffer = chain.writable();
        if buffer.len() < EVENT_BYTES.into() {
            // No event fits (§5.6.6.3): it comes back as it is.
            return Ok(Handled::Used(0));
        }
        let Some(event) = self.shared.events.take() else { return Ok(Handled::Wait) };
        let written = buffer.write(map, &event).map_or(0, |()| EVENT_BYTES);
        Ok(Handled::Used(written))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(event::as_fd(&self.shared.events.signal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Address = Address { target: 2, lun: 0x123 };

    #[test]
    fn events_are_told_in_their_order_and_losses_with_the_next() {
        let events = Events::new().unwrap();
        let change = Event::changed(ADDRESS, Attention::CapacityChanged);
        events.raise(change);
        assert_eq!(events.take(), None, "nobody has asked for it");
        events.accept(feature::CHANGE);
        events.raise(Event::added(ADDRESS));
        assert_eq!(events.take(), None, "of another feature");
        events.raise(change);
        let told = [3, 0, 0, 0, 1, 2, 0x41, 0x23, 0, 0, 0, 0, 0x2a, 9, 0, 0];
        assert_eq!(events.take(), Some(told));
        assert_eq!(events.take(), None);
        for _ in 0..=MOST_WAITING {
            events.raise(change);
        }
        assert_eq!(events.take().map(|event| event[3]), Some(0x80));
        for _ in 1..MOST_WAITING {
            assert_eq!(events.take(), Some(told));
        }
        assert_eq!(events.take(), None);
    }
}
