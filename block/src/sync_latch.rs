//! The latch for lost writes.
//!
//! When write-back fails, Linux reports it once per open file description and may drop the dirty
//! pages: the next `fdatasync` succeeds although the data is gone. The latch, one per disk,
//! remembers what the kernel forgets.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Once set, every request that promises durability fails until the disk is reopened.
#[derive(Debug, Default)]
pub(crate) struct SyncLatch(AtomicBool);

impl SyncLatch {
    /// Sets the latch: acknowledged data may be lost. Returns whether it was unset before.
    pub(crate) fn set(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Checks that durability can still be promised.
    ///
    /// # Errors
    ///
    /// `EIO` if the latch is set.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_latch_stays_set() {
        let latch = SyncLatch::default();
        assert!(latch.check().is_ok());
        assert!(latch.set(), "it was unset");
        assert!(!latch.set());
        for _ in 0..2 {
            assert_eq!(latch.check().unwrap_err().raw_os_error(), Some(libc::EIO));
        }
    }
}
