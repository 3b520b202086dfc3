//! The write cache of a disk as its guest sees it: whether a write is durable when it completes, or
//! only after a flush.
//!
//! Switched by a register or a mode page, read by all queues once per write. A cache that the guest
//! switched off stays off over every reset until the guest switches it on (ADR 14): a driver may
//! continue after a reset without reading the state again, and sends no flushes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::block::{CacheMode, Durability};

/// State of the write cache.
#[derive(Debug)]
pub struct WriteCache {
    /// Whether writes are volatile; derived from `state`.
    on: AtomicBool,
    state: Mutex<CacheState>,
}

#[derive(Clone, Copy, Debug)]
struct CacheState {
    /// The state that the guest selected last; initially the default of the cache mode.
    selected: bool,
    /// Number of switches to off whose flush is in flight.
    pending_off: usize,
    /// A reset has ended a switch to off, perhaps before its flush.
    off_without_flush: bool,
    /// Whether the driver can flush. Writes are durable for one that cannot.
    driver_flushes: bool,
}

impl CacheState {
    fn is_on(self) -> bool {
        self.selected && self.pending_off == 0 && self.driver_flushes
    }

    fn may_hold_data(self) -> bool {
        self.selected || self.pending_off > 0 || self.off_without_flush
    }
}

impl WriteCache {
    /// The default of a cache mode.
    #[must_use]
    pub fn new(mode: CacheMode) -> Self {
        let state = CacheState {
            selected: mode.has_write_cache(),
            pending_off: 0,
            off_without_flush: false,
            driver_flushes: true,
        };
        Self { on: AtomicBool::new(state.is_on()), state: Mutex::new(state) }
    }

    /// Whether new writes are volatile.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Whether completed writes may be volatile: the cache is on, or a flush has not yet succeeded
    /// since it is off. The device reports a write cache for that long, so that no driver stops to
    /// flush too early. Takes a lock.
    #[must_use]
    pub fn may_hold_data(&self) -> bool {
        self.lock().may_hold_data()
    }

    /// Durability of a write without FUA.
    #[must_use]
    pub fn durability(&self) -> Durability {
        if self.is_on() { Durability::Volatile } else { Durability::Durable }
    }

    /// Makes writes volatile from now on.
    pub fn switch_on(&self) {
        self.update(|state| state.selected = true);
    }

    /// Makes writes durable from now on. The caller flushes the writes that completed before and
    /// then calls [`Self::end_switch_off`].
    pub fn begin_switch_off(&self) {
        self.update(|state| state.pending_off += 1);
    }

    /// Ends a switch to off. If its flush failed, the state that was selected before applies again,
    /// which is off if the guest had switched the cache off before.
    pub fn end_switch_off(&self, flushed: bool) {
        self.update(|state| {
            state.pending_off = state.pending_off.saturating_sub(1);
            state.selected &= !flushed;
            state.off_without_flush &= !flushed;
        });
    }

    /// Makes writes durable from now on, without a condition.
    pub fn force_off(&self) {
        self.update(|state| state.selected = false);
    }

    /// Adopts whether the driver can flush.
    pub fn set_driver_flushes(&self, flushes: bool) {
        self.update(|state| state.driver_flushes = flushes);
    }

    /// The device was reset and no request is in flight. A switch to off that the reset ended may
    /// have reached its flush: the cache stays off, but it may hold data until the next switch.
    pub fn device_reset(&self) {
        self.update(|state| {
            state.selected &= state.pending_off == 0;
            state.off_without_flush |= state.pending_off > 0;
            (state.pending_off, state.driver_flushes) = (0, true);
        });
    }

    fn update(&self, change: impl FnOnce(&mut CacheState)) {
        let mut state = self.lock();
        change(&mut state);
        self.on.store(state.is_on(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        // Each change is complete before the lock is released.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> WriteCache {
        WriteCache::new(CacheMode::WriteBack)
    }

    #[test]
    fn failed_switch_off_keeps_the_selected_state() {
        let cache = cache();
        cache.begin_switch_off();
        assert!(!cache.is_on(), "writes are durable during the flush");
        cache.end_switch_off(false);
        assert!(cache.is_on());
        cache.begin_switch_off();
        cache.end_switch_off(true);
        cache.begin_switch_off();
        cache.end_switch_off(false);
        assert!(!cache.is_on(), "it was off before the failed switch");
    }

    /// The guest has a success for one of two switches in flight.
    #[test]
    fn failed_switch_off_does_not_revert_a_concurrent_one() {
        for results in [[true, false], [false, true]] {
            let cache = cache();
            cache.begin_switch_off();
            cache.begin_switch_off();
            results.into_iter().for_each(|flushed| cache.end_switch_off(flushed));
            assert!(!cache.is_on(), "{results:?}");
        }
    }

    #[test]
    fn data_is_held_until_a_flush_has_succeeded() {
        let cache = cache();
        cache.begin_switch_off();
        assert!(cache.may_hold_data(), "the flush is in flight");
        cache.end_switch_off(false);
        assert!(cache.may_hold_data(), "the flush failed");
        cache.begin_switch_off();
        cache.begin_switch_off();
        cache.end_switch_off(true);
        cache.end_switch_off(false);
        assert!(!cache.may_hold_data(), "the flush of one switch succeeded");
        assert!(!WriteCache::new(CacheMode::WriteThrough).may_hold_data());
    }

    #[test]
    fn reset_during_switch_off_leaves_it_off() {
        let cache = cache();
        cache.begin_switch_off();
        cache.device_reset();
        assert!(!cache.is_on());
        assert!(cache.may_hold_data(), "the flush may not have succeeded");
        cache.begin_switch_off();
        cache.end_switch_off(true);
        assert!(!cache.may_hold_data());
        cache.switch_on();
        assert!(cache.is_on(), "no switch is pending after the reset");
    }

    #[test]
    fn reset_ends_the_durable_writes_of_a_driver_without_flush() {
        let cache = cache();
        cache.set_driver_flushes(false);
        assert!(!cache.is_on());
        cache.device_reset();
        assert!(cache.is_on(), "the guest did not switch it off");
    }
}
