//! The write cache of a disk as its guest sees it: whether a write is durable when it completes, or
//! only after a flush.
//!
//! Switched by a register or a mode page, read by all queues once per write. The switch to durable
//! writes must flush the writes that completed before it; if the flush fails the cache stays on.

use std::sync::atomic::{AtomicBool, Ordering};

use ::block::{CacheMode, Durability};

/// State of the write cache.
#[derive(Debug)]
pub struct WriteCache {
    on: AtomicBool,
}

impl WriteCache {
    /// The default of a cache mode.
    #[must_use]
    pub fn new(mode: CacheMode) -> Self {
        Self { on: AtomicBool::new(mode.has_write_cache()) }
    }

    /// Whether the device reports a volatile write cache.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Durability of a write without FUA.
    #[must_use]
    pub fn durability(&self) -> Durability {
        if self.is_on() { Durability::Volatile } else { Durability::Durable }
    }

    /// Makes writes volatile from now on.
    pub fn switch_on(&self) {
        self.on.store(true, Ordering::Release);
    }

    /// Makes writes durable from now on. The caller flushes those that completed before.
    pub fn switch_off(&self) {
        self.on.store(false, Ordering::Release);
    }

    /// Restores the default of the cache mode.
    pub fn reset(&self, mode: CacheMode) {
        self.on.store(mode.has_write_cache(), Ordering::Release);
    }
}
