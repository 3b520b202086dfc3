//! Whether the guest is promised durability at each write's completion or at its flush.
//!
//! Shared by whatever switches it (a register, a mode page) and all queues, which ask it once per write. Writes
//! that completed before it is switched off must be flushed by who does so; one that cannot be flushed leaves it on.

use std::sync::atomic::{AtomicBool, Ordering};

use ::block::{CacheMode, Durability};

/// See the module's documentation.
#[derive(Debug)]
pub struct WriteCache {
    on: AtomicBool,
}

impl WriteCache {
    /// The write cache as the mode has it.
    #[must_use]
    pub fn new(mode: CacheMode) -> Self {
        Self { on: AtomicBool::new(mode.has_write_cache()) }
    }

    /// Whether the guest is told of a volatile write cache now.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// What a write that asks for nothing more is promised now.
    #[must_use]
    pub fn durability(&self) -> Durability {
        if self.is_on() { Durability::Volatile } else { Durability::Durable }
    }

    /// Writes may be volatile from now on.
    pub fn switch_on(&self) {
        self.on.store(true, Ordering::Release);
    }

    /// Writes are durable from now on. Those that completed before are still to be flushed.
    pub fn switch_off(&self) {
        self.on.store(false, Ordering::Release);
    }

    /// Back to what the mode has.
    pub fn reset(&self, mode: CacheMode) {
        self.on.store(mode.has_write_cache(), Ordering::Release);
    }
}
