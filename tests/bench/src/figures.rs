//! Measurements of a run.

use std::time::Duration;

use super::load::Throughput;

/// Duration of the unmeasured start of a run.
pub(super) const WARM_UP: Duration = Duration::from_millis(20);

/// Measurements of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) iops: f64,
    /// CPU time of the backend per request, without that of the driver; fio has none.
    pub(super) cpu_ns: f64,
    /// Upper bound of system calls per request, from the device's statistics.
    pub(super) system_calls: Option<f64>,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn of(run: Throughput, cpu: Duration) -> Self {
        let requests = run.requests.max(1) as f64;
        Self {
            iops: requests / run.elapsed.as_secs_f64(),
            cpu_ns: cpu.as_nanos() as f64 / requests,
            system_calls: None,
        }
    }
}
