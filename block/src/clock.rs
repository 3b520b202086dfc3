//! The time that deadlines are measured by: the host's, or one that the simulator moves on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The host's.
    Host,
    /// What [`Clock::advance`] made of it.
    Simulated {
        /// When it began.
        start: Instant,
        /// Nanoseconds since then.
        passed_ns: Arc<AtomicU64>,
    },
}

impl Clock {
    /// A clock that stands still.
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

    /// Moves a simulated clock on.
    pub fn advance(&self, by: Duration) {
        if let Self::Simulated { passed_ns, .. } = self {
            let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
            passed_ns.fetch_add(by, Ordering::AcqRel);
        }
    }
}
