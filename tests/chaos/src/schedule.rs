//! The disturbances of a run, drawn from its seed.

use std::fmt;
use std::time::Duration;

use fixtures::Random;

/// One kind of disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disturbance {
    /// The reader of the log stops.
    LogStall,
    /// Clients flood the control socket.
    ControlFlood,
    /// The file system of two images is frozen.
    Freeze,
    /// The process may open no further descriptor.
    Descriptors,
    /// The memory limit of the control group is lowered.
    Memory,
    /// SIGSTOP, later SIGCONT.
    Stop,
    /// SIGKILL, later a restart with the inflight record.
    Kill,
    /// SIGTERM, then a restart.
    Terminate,
}

impl Disturbance {
    pub(crate) const ALL: [Self; 8] = [
        Self::LogStall,
        Self::ControlFlood,
        Self::Freeze,
        Self::Descriptors,
        Self::Memory,
        Self::Stop,
        Self::Kill,
        Self::Terminate,
    ];

    /// Whether it disturbs all processes rather than one.
    pub(crate) fn is_global(self) -> bool {
        matches!(self, Self::Freeze | Self::Memory)
    }

    /// Whether at most one of its kind may be active for a process.
    pub(crate) fn is_exclusive(self) -> bool {
        !matches!(self, Self::LogStall | Self::ControlFlood)
    }

    /// Shortest and longest duration in milliseconds.
    fn durations(self) -> (usize, usize) {
        match self {
            Self::LogStall => (500, 4000),
            Self::ControlFlood => (300, 1500),
            Self::Freeze => (200, 1500),
            Self::Descriptors | Self::Memory => (300, 2000),
            Self::Stop => (100, 1500),
            Self::Kill | Self::Terminate => (0, 400),
        }
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LogStall => "log reader stops",
            Self::ControlFlood => "control socket flood",
            Self::Freeze => "store freezes",
            Self::Descriptors => "descriptors run short",
            Self::Memory => "memory limit lowered",
            Self::Stop => "SIGSTOP",
            Self::Kill => "SIGKILL, restart",
            Self::Terminate => "SIGTERM, restart",
        })
    }
}

/// One disturbance of a schedule.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Earliest start.
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) disturbance: Disturbance,
    /// Index of the process.
    pub(crate) process: usize,
    /// For its own random decisions.
    pub(crate) random: Random,
}

/// Draws the disturbances between `from` and `to` for `processes` processes.
pub(crate) fn draw(
    random: &mut Random,
    from: Duration,
    to: Duration,
    processes: usize,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut at = from;
    let mut remaining = Vec::new();
    while at < to {
        // Each kind occurs once before one occurs again.
        if remaining.is_empty() {
            remaining = Disturbance::ALL.to_vec();
        }
        let disturbance = remaining.swap_remove(random.below(remaining.len()));
        let (shortest, longest) = disturbance.durations();
        let lasts = Duration::from_millis(random.within(shortest, longest) as u64);
        let process = random.below(processes);
        steps.push(Step { at, lasts, disturbance, process, random: random.fork() });
        at += Duration::from_millis(random.within(150, 700) as u64);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_determines_schedule_with_all_kinds() {
        let draw = || {
            let mut random = Random::new(7);
            super::draw(&mut random, Duration::ZERO, Duration::from_secs(20), 4)
        };
        let steps = draw();
        assert_eq!(format!("{steps:?}"), format!("{:?}", draw()));
        for kind in Disturbance::ALL {
            assert!(steps.iter().any(|step| step.disturbance == kind), "{kind}");
        }
    }
}
