//! The bound on the memory for copies of a disk's requests: bounce buffers, used and free, and data
//! to compare.
//!
//! A guest decides how many requests need a copy and how large they are. A disk has one budget for
//! all its engines. Each request reserves its memory first; reservations are granted in the order
//! they were made, so that a large one is not overtaken for good. Nothing blocks: an engine whose
//! reservation is not granted is kicked when it is.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer_pool::BufferPool;
use crate::kick::Kick;

/// The budget of one disk.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    /// In bytes.
    total: u64,
    state: Mutex<BudgetState>,
    /// Free buffers take the memory that is not reserved.
    buffers: Arc<BufferPool>,
}

#[derive(Debug, Default)]
struct BudgetState {
    /// Bytes of granted reservations.
    used: u64,
    next_ticket: u64,
    /// Reservations that are not granted, oldest first.
    waiting: VecDeque<WaitingReservation>,
}

#[derive(Debug)]
struct WaitingReservation {
    ticket: u64,
    bytes: u64,
    kick: Kick,
}

/// Memory reserved or waited for, to be passed to [`MemoryBudget::release`].
#[derive(Debug)]
#[must_use = "memory that is not released is lost to the disk"]
pub(crate) struct Reservation {
    ticket: u64,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl MemoryBudget {
    /// A budget of `total` bytes.
    pub(crate) fn new(total: u64) -> Self {
        Self { total, state: Mutex::default(), buffers: Arc::default() }
    }

    /// The buffers for requests that have reserved their memory.
    pub(crate) fn buffers(&self) -> &Arc<BufferPool> {
        &self.buffers
    }

    /// Reserves memory, of a single request at most the whole budget. Returns whether it is
    /// granted.
    pub(crate) fn reserve(&self, by: &Kick, bytes: u64) -> (Reservation, bool) {
        let bytes = bytes.min(self.total);
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let granted = state.waiting.is_empty() && state.used + bytes <= self.total;
        if granted {
            state.used += bytes;
            self.buffers.shrink_to(self.total - state.used);
        } else {
            state.waiting.push_back(WaitingReservation { ticket, bytes, kick: by.clone() });
        }
        (Reservation { ticket, bytes }, granted)
    }

    /// Whether a reservation is granted.
    pub(crate) fn is_granted(&self, reservation: &Reservation) -> bool {
        !self.lock().waiting.iter().any(|waiting| waiting.ticket == reservation.ticket)
    }

    /// Releases a reservation of `by`, and kicks the other engines whose reservations this grants.
    #[expect(clippy::needless_pass_by_value, reason = "a released reservation is gone")]
    pub(crate) fn release(&self, by: &Kick, reservation: Reservation) {
        let mut state = self.lock();
        let waiting = state.waiting.iter().position(|w| w.ticket == reservation.ticket);
        match waiting {
            Some(index) => {
                state.waiting.remove(index);
            }
            None => state.used -= reservation.bytes,
        }
        let mut granted = Vec::new();
        while let Some(first) = state.waiting.front()
            && state.used + first.bytes <= self.total
        {
            state.used += first.bytes;
            granted.extend(state.waiting.pop_front().map(|first| first.kick));
        }
        self.buffers.shrink_to(self.total - state.used);
        drop(state);
        granted.iter().filter(|engine| !engine.is_same(by)).for_each(Kick::signal);
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        // Each change is complete when the lock is released, also by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::event::EventfdFlags;

    use super::*;

    fn engine() -> (OwnedFd, Kick) {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let eventfd = rustix::event::eventfd(0, flags).unwrap();
        let kick = Kick::new(eventfd.as_fd()).unwrap();
        (eventfd, kick)
    }

    fn is_kicked(kick: &OwnedFd) -> bool {
        rustix::io::read(kick, &mut [0; 8]).is_ok()
    }

    #[test]
    fn reservations_are_granted_in_order_up_to_the_total() {
        let budget = MemoryBudget::new(100);
        let ((own, one), (kick, two)) = (engine(), engine());
        let (first, granted) = budget.reserve(&one, 60);
        assert!(granted);
        let (large, granted) = budget.reserve(&two, 50);
        assert!(!granted);
        let (small, granted) = budget.reserve(&one, 10);
        assert!(!granted, "it must not overtake the large one");
        budget.release(&one, first);
        assert!(budget.is_granted(&large) && budget.is_granted(&small));
        assert!(is_kicked(&kick) && !is_kicked(&own), "an engine does not kick itself");
        budget.release(&two, large);
        budget.release(&one, small);
        assert_eq!(budget.lock().used, 0);
    }

    #[test]
    fn a_waiting_reservation_can_be_given_up() {
        let budget = MemoryBudget::new(100);
        let (_kick, one) = engine();
        let (first, _) = budget.reserve(&one, 100);
        let (given_up, _) = budget.reserve(&one, 100);
        let (next, _) = budget.reserve(&one, 100);
        budget.release(&one, given_up);
        assert!(!budget.is_granted(&next));
        budget.release(&one, first);
        assert!(budget.is_granted(&next));
        budget.release(&one, next);
        assert_eq!(budget.lock().used, 0);
    }

    #[test]
    fn a_request_larger_than_the_budget_gets_all_of_it() {
        let budget = MemoryBudget::new(100);
        let (_kick, one) = engine();
        let (all, granted) = budget.reserve(&one, 1000);
        assert!(granted);
        budget.release(&one, all);
        assert_eq!(budget.lock().used, 0);
    }
}
