//! A queue as its worker receives it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;

use vmm_sys_util::eventfd::EventFd;

use super::inflight_record::Position;
use super::queue::Queue;
use crate::interrupt::Interrupt;

/// One queue at activation: the ring, its kick and its interrupt.
pub struct ActiveQueue {
    /// The queue's number.
    pub index: u16,
    /// The ring.
    pub queue: Queue,
    /// Signalled by the driver's notification; non-blocking.
    pub kick: Arc<EventFd>,
    /// Notifies the driver of used buffers.
    pub interrupt: Interrupt,
    /// How another worker resumes the queue after this one. `None` if a reset comes between them:
    /// chains in flight then need not be returned.
    pub hand_over: Option<HandOver>,
}

impl ActiveQueue {
    /// A queue that ends with a reset.
    #[must_use]
    pub fn new(index: u16, queue: Queue, kick: Arc<EventFd>, interrupt: Interrupt) -> Self {
        Self { index, queue, kick, interrupt, hand_over: None }
    }
}

/// The last report of a worker that was asked to stop.
pub struct HandOver {
    /// Receives the position when the worker no longer accesses the ring.
    pub position: SyncSender<Position>,
    /// Whether requests held for ENOSPC are failed. Otherwise the position owes them.
    pub fail_held: Arc<AtomicBool>,
}
