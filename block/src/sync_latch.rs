//! The latch for lost writes.
//!
//! When write-back fails, Linux reports it once per open file description and may drop the dirty
//! pages: the next `fdatasync` succeeds although the data is gone. The latch, one per disk,
//! remembers what the kernel forgets.

use std::io;
use std::sync::OnceLock;
use std::time::SystemTime;

/// A loss of acknowledged data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWrites {
    /// When the host reported it.
    pub time: SystemTime,
    /// The host's error.
    pub errno: i32,
}

/// Once set, every request that promises durability fails until the disk is reopened.
#[derive(Debug, Default)]
pub(crate) struct SyncLatch(OnceLock<LostWrites>);

impl SyncLatch {
    /// Sets the latch: acknowledged data may be lost. Returns whether it was unset before.
    pub(crate) fn set(&self, error: &io::Error) -> bool {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.0.set(LostWrites { time: SystemTime::now(), errno }).is_ok()
    }

    /// The loss; `None` if the latch is not set.
    pub(crate) fn lost_writes(&self) -> Option<LostWrites> {
        self.0.get().copied()
    }

    /// Checks that durability can still be promised.
    ///
    /// # Errors
    ///
    /// `EIO` if the latch is set.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.0.get().is_some() {
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
        let error = |errno| io::Error::from_raw_os_error(errno);
        assert!(latch.set(&error(libc::ENOSPC)), "it was unset");
        assert!(!latch.set(&error(libc::EIO)));
        assert_eq!(latch.lost_writes().map(|lost| lost.errno), Some(libc::ENOSPC), "the first");
        for _ in 0..2 {
            assert_eq!(latch.check().unwrap_err().raw_os_error(), Some(libc::EIO));
        }
    }
}
