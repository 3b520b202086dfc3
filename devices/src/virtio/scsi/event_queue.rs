//! The event queue (Virtio 1.2 §5.6.6.3): changes of disks, delivered when the driver provides a
//! buffer.
//!
//! A bounded number of events wait for a buffer. Further events are lost; the next one delivered
//! says so.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::address::Address;
use crate::scsi::Attention;
use crate::virtio::chain_worker::{ChainHandler, Handled};
use crate::virtqueue::{Chain, QueueError};
use crate::{GuestMap, event};

/// VIRTIO_SCSI_F_HOTPLUG: the device reports added and removed disks (§5.6.3).
pub(super) const FEATURE_HOTPLUG: u64 = 1 << 1;
/// VIRTIO_SCSI_F_CHANGE: the device reports changed disks (§5.6.3).
pub(super) const FEATURE_CHANGE: u64 = 1 << 2;

/// Length of [`EventBytes`], in bytes.
pub(super) const EVENT_BYTES: u32 = 16;
const _: () = assert!(size_of::<EventBytes>() == EVENT_BYTES as usize);
/// Maximum number of events that wait for a buffer.
const MAX_WAITING: usize = 32;

/// Values of `event`.
const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
const EVENTS_MISSED: u32 = 0x8000_0000;
/// Values of `reason` of a transport reset.
const RESET_RESCAN: u32 = 1;
const RESET_REMOVED: u32 = 2;

/// `struct virtio_scsi_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Immutable, IntoBytes)]
struct EventBytes {
    event: U32,
    lun: [u8; 8],
    reason: U32,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// The feature that the driver must have accepted.
    feature: u64,
    event: u32,
    lun: [u8; 8],
    reason: u32,
}

impl Event {
    /// A disk was attached.
    pub(super) fn added(address: Address) -> Self {
        Self::transport_reset(address, RESET_RESCAN)
    }

    /// A disk was detached.
    pub(super) fn removed(address: Address) -> Self {
        Self::transport_reset(address, RESET_REMOVED)
    }

    fn transport_reset(address: Address, reason: u32) -> Self {
        let lun = address.encode();
        Self { feature: FEATURE_HOTPLUG, event: TRANSPORT_RESET, lun, reason }
    }

    /// A disk changed; the unit attention condition `attention` says how.
    pub(super) fn changed(address: Address, attention: Attention) -> Self {
        let (code, qualifier) = attention.code();
        let reason = u32::from(code) | u32::from(qualifier) << 8;
        Self { feature: FEATURE_CHANGE, event: PARAM_CHANGE, lun: address.encode(), reason }
    }
}

/// The events of a controller.
pub(super) struct Events {
    /// Features that the driver accepted.
    accepted: AtomicU64,
    waiting: Mutex<WaitingEvents>,
    /// Readable while events wait.
    signal: EventFd,
}

#[derive(Debug, Default)]
struct WaitingEvents {
    events: VecDeque<Event>,
    /// Events were lost.
    missed: bool,
}

impl Events {
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub(super) fn new() -> io::Result<Self> {
        let signal = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { accepted: AtomicU64::new(0), waiting: Mutex::default(), signal })
    }

    /// Adopts the features that the driver accepted.
    pub(super) fn set_features(&self, features: u64) {
        self.accepted.store(features, Ordering::Release);
    }

    /// Drops all events after a reset of the device: the driver then scans the bus.
    pub(super) fn reset(&self) {
        self.set_features(0);
        *self.lock() = WaitingEvents::default();
        let _ = self.signal.read();
    }

    /// Queues an event if the driver accepted its feature.
    pub(super) fn raise(&self, event: Event) {
        if self.accepted.load(Ordering::Acquire) & event.feature == 0 {
            return;
        }
        let mut waiting = self.lock();
        if waiting.events.len() < MAX_WAITING {
            waiting.events.push_back(event);
        } else {
            waiting.missed = true;
        }
        // Fails only if the counter is full: the event is then readable.
        let _ = self.signal.write(1);
    }

    /// Removes the oldest event, or the report of lost events if none is left.
    fn take(&self) -> Option<EventBytes> {
        let mut waiting = self.lock();
        let (event, lun, reason) = match waiting.events.pop_front() {
            Some(Event { event, lun, reason, .. }) => (event, lun, reason),
            None if waiting.missed => (NO_EVENT, [0; 8], 0),
            None => {
                let _ = self.signal.read();
                return None;
            }
        };
        let missed = if std::mem::take(&mut waiting.missed) { EVENTS_MISSED } else { 0 };
        Some(EventBytes { event: (event | missed).into(), lun, reason: reason.into() })
    }

    fn lock(&self) -> MutexGuard<'_, WaitingEvents> {
        // Events are pushed and popped whole: a panic leaves nothing inconsistent.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes events to the buffers of the queue, on its worker's thread.
pub(super) struct EventQueue {
    events: Arc<Events>,
}

impl EventQueue {
    pub(super) fn new(events: Arc<Events>) -> Self {
        Self { events }
    }
}

impl ChainHandler for EventQueue {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        let buffer = chain.writable();
        if buffer.len() < EVENT_BYTES.into() {
            // The buffer is too short for an event (§5.6.6.3): it is returned unchanged.
            return Ok(Handled::Used(0));
        }
        let Some(event) = self.events.take() else { return Ok(Handled::WaitForSource) };
        let written = buffer.write(map, event.as_bytes()).map_or(0, |()| EVENT_BYTES);
        Ok(Handled::Used(written))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(event::as_fd(&self.events.signal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Address = Address { target: 2, lun: 0x123 };

    #[test]
    fn events_are_delivered_in_order_and_losses_with_the_next() {
        let events = Events::new().unwrap();
        let take = || events.take().map(|event| event.as_bytes().to_vec());
        let change = Event::changed(ADDRESS, Attention::CapacityChanged);
        events.raise(change);
        assert_eq!(take(), None, "no driver");
        events.set_features(FEATURE_CHANGE);
        events.raise(Event::added(ADDRESS));
        assert_eq!(take(), None, "another feature");
        events.raise(change);
        let expected = vec![3, 0, 0, 0, 1, 2, 0x41, 0x23, 0, 0, 0, 0, 0x2a, 9, 0, 0];
        assert_eq!(take().as_ref(), Some(&expected));
        assert_eq!(take(), None);
        for _ in 0..=MAX_WAITING {
            events.raise(change);
        }
        assert_eq!(take().map(|event| event[3]), Some(0x80));
        for _ in 1..MAX_WAITING {
            assert_eq!(take().as_ref(), Some(&expected));
        }
        assert_eq!(take(), None);
    }
}
