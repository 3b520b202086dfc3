//! Totals of played schedules.

/// Requests and steps of one schedule, or of several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Submitted requests.
    pub requests: u64,
    /// Requests completed with an error.
    pub failed: u64,
    /// Steps of all parties.
    pub steps: u64,
}

impl Counts {
    /// Adds the totals of another schedule.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.steps += other.steps;
    }
}
