//! Totals of played schedules.

use std::fmt;

/// Requests, steps and rare events of one schedule, or of several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Submitted requests.
    pub requests: u64,
    /// Requests completed with an error.
    pub failed: u64,
    /// Steps of all parties.
    pub steps: u64,
    /// Writes of nothing but zeroes.
    pub zero_writes: u64,
    /// Successful calls that discarded or zeroed a range because of a detected write of zeroes.
    /// Counted in schedules whose driver sends neither DISCARD nor WRITE ZEROES.
    pub detected: u64,
    /// Compare-and-writes that have written.
    pub compared: u64,
    /// Compare-and-writes that have found a difference.
    pub miscompared: u64,
    /// Reads with FUA that succeeded.
    pub fua_reads: u64,
    /// Switches of the write cache to off by MODE SELECT.
    pub cache_offs: u64,
    /// Commands aborted by task management functions.
    pub aborted: u64,
    /// Sleeps of a worker with several engines.
    pub sleeps: u64,
    /// Hosts stopped while others go on.
    pub freezes: u64,
    /// Commands that have ended while the host of another disk was stopped.
    pub overtakes: u64,
    /// Disks detached from a controller in use.
    pub detached: u64,
    /// Processes killed.
    pub kills: u64,
    /// Calls that the kernel completed after the death of their process.
    pub orphans: u64,
    /// Attempts of a successor to open the disk that the lock prevented.
    pub refused: u64,
}

impl Counts {
    /// Adds the totals of another schedule.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.steps += other.steps;
        self.zero_writes += other.zero_writes;
        self.detected += other.detected;
        self.compared += other.compared;
        self.miscompared += other.miscompared;
        self.fua_reads += other.fua_reads;
        self.cache_offs += other.cache_offs;
        self.aborted += other.aborted;
        self.sleeps += other.sleeps;
        self.freezes += other.freezes;
        self.overtakes += other.overtakes;
        self.detached += other.detached;
        self.kills += other.kills;
        self.orphans += other.orphans;
        self.refused += other.refused;
    }
}

impl fmt::Display for Counts {
    /// Events that did not occur are omitted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failed, steps, .. } = self;
        write!(f, "{requests} requests ({failed} failed), {steps} steps")?;
        let events = [
            ("writes of zeroes", self.zero_writes),
            ("calls for detected zeroes", self.detected),
            ("compare-and-writes that wrote", self.compared),
            ("miscompares", self.miscompared),
            ("reads with FUA", self.fua_reads),
            ("write caches switched off", self.cache_offs),
            ("commands aborted", self.aborted),
            ("sleeps with several engines", self.sleeps),
            ("hosts stopped", self.freezes),
            ("commands ended beside a stopped host", self.overtakes),
            ("disks detached", self.detached),
            ("processes killed", self.kills),
            ("calls completed after a kill", self.orphans),
            ("opens refused by the lock", self.refused),
        ];
        for (name, count) in events.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, ", {count} {name}")?;
        }
        Ok(())
    }
}
