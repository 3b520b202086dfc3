//! How often a schedule has met each event.

/// How often each event has occurred.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) miscompared: u64,
    pub(super) flushes: u64,
    pub(super) cancelled: u64,
    pub(super) resets: u64,
    pub(super) power_cuts: u64,
    pub(super) kills: u64,
    /// Kills of a program that serves the disk.
    pub(super) served_kills: u64,
    pub(super) snapshots: u64,
    pub(super) kept: u64,
    pub(super) merged: u64,
}

impl Counts {
    fn fields(&mut self) -> [&mut u64; 12] {
        [
            &mut self.requests,
            &mut self.failed,
            &mut self.miscompared,
            &mut self.flushes,
            &mut self.cancelled,
            &mut self.resets,
            &mut self.power_cuts,
            &mut self.kills,
            &mut self.served_kills,
            &mut self.snapshots,
            &mut self.kept,
            &mut self.merged,
        ]
    }

    pub(super) fn add(&mut self, mut other: Self) {
        let sums = self.fields().into_iter().zip(other.fields());
        sums.for_each(|(sum, count)| *sum += *count);
    }

    pub(super) fn all_occurred(&mut self) -> bool {
        self.fields().into_iter().all(|count| *count > 0)
    }
}
