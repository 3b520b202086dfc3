//! The clock of deadlines: the host's, or one that the simulator advances.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The host's monotonic clock.
    Host,
    /// Advanced by [`Clock::advance`] only.
    Simulated {
        /// Its time at zero.
        start: Instant,
        /// Nanoseconds since `start`.
        passed_ns: Arc<AtomicU64>,
    },
}

impl Clock {
    /// A simulated clock.
    #[must_use]
    pub fn simulated() -> Self {
        Self::Simulated { start: Instant::now(), passed_ns: Arc::default() }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Self::Host => Instant::now(),
            Self::Simulated { start, passed_ns } => {
                let passed = Duration::from_nanos(passed_ns.load(Ordering::Acquire));
                start.checked_add(passed).unwrap_or(*start)
            }
        }
    }

    /// Advances a simulated clock.
    pub fn advance(&self, by: Duration) {
        if let Self::Simulated { passed_ns, .. } = self {
            let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
            passed_ns.fetch_add(by, Ordering::AcqRel);
        }
    }
}
