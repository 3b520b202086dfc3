//! What one run measured.

use std::time::Duration;

use super::load::Run;

/// What comes before it, uncounted.
pub(super) const WARM_UP: Duration = Duration::from_millis(20);

/// What one run found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) iops: f64,
    /// CPU time of the backend alone per request; of fio, which has no driver, all of it.
    pub(super) cpu_ns: f64,
    /// At most this many system calls per request, by the device's own statistics.
    pub(super) system_calls: Option<f64>,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn of(run: Run, cpu: Duration) -> Self {
        let requests = run.requests.max(1) as f64;
        Self {
            iops: requests / run.elapsed.as_secs_f64(),
            cpu_ns: cpu.as_nanos() as f64 / requests,
            system_calls: None,
        }
    }
}
