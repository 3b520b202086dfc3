//! File descriptors and threads that a machine or a served disk needs, compared with the limits of
//! the process. Pure.
//!
//! The need is the most that may be open or run at a time, whatever the guest does: engines of SCSI
//! disks are made at their first I/O, which must not fail then.

mod count;

use std::fmt;
use std::ops::Add;

use serde_json::{Value, json};

pub(crate) use count::EnginePolicy;

use crate::process_limits::{ProcessLimit, ProcessLimits};

/// A number of file descriptors and of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    descriptors: u64,
    threads: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let descriptors = self.descriptors.saturating_add(other.descriptors);
        Self { descriptors, threads: self.threads.saturating_add(other.threads) }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(usages: I) -> Self {
        usages.fold(Self::default(), Self::add)
    }
}

/// The needs of a machine or a served disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResourceNeeds {
    /// Images and engines.
    disks: Usage,
    /// Queues and interrupts of devices, disks included.
    devices: Usage,
    /// Everything else.
    program: Usage,
}

/// A limit that the needs exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExceededLimit {
    resource: &'static str,
    /// Of disks, devices and program.
    needs: [u64; 3],
    limit: ProcessLimit,
}

impl ResourceNeeds {
    fn descriptors(self) -> [u64; 3] {
        [self.disks, self.devices, self.program].map(|usage| usage.descriptors)
    }

    fn threads(self) -> [u64; 3] {
        [self.disks, self.devices, self.program].map(|usage| usage.threads)
    }

    /// All limits that are too low.
    pub(crate) fn exceeded(self, limits: &ProcessLimits) -> Vec<ExceededLimit> {
        let exceeded = |resource, needs: [u64; 3]| {
            move |limit: &ProcessLimit| {
                let limit = limit.clone();
                let is_too_low = needs.iter().sum::<u64>() > limit.available();
                is_too_low.then_some(ExceededLimit { resource, needs, limit })
            }
        };
        let descriptors = limits.descriptors.iter();
        let descriptors = descriptors.filter_map(exceeded("file descriptors", self.descriptors()));
        let threads = limits.threads.iter().filter_map(exceeded("threads", self.threads()));
        descriptors.chain(threads).collect()
    }

    /// Needs and limits, for programs.
    pub(crate) fn to_json(self, limits: &ProcessLimits) -> Value {
        let available = |limits: &[ProcessLimit]| limits.iter().map(ProcessLimit::available).min();
        let descriptors = available(limits.descriptors.as_slice());
        json!({
            "descriptors": { "needed": self.descriptors().iter().sum::<u64>(), "available": descriptors },
            "threads": { "needed": self.threads().iter().sum::<u64>(), "available": available(&limits.threads) },
        })
    }
}

impl fmt::Display for ExceededLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, needs, limit } = self;
        let need: u64 = needs.iter().sum();
        let [disks, devices, program] = needs;
        let ProcessLimit { name, max, in_use, .. } = limit;
        write!(
            f,
            "this machine needs {need} {resource} ({disks} for disks and their engines, {devices} \
             for devices, {program} for the rest), and {} are left: the limit is {max} ({name}), \
             and {in_use} are in use",
            limit.available()
        )
    }
}

impl ExceededLimit {
    /// The remedy.
    pub(crate) fn remedy(&self) -> String {
        let ProcessLimit { name, setting, .. } = &self.limit;
        format!("raise {name} or {setting}, or use fewer disks or `queues`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max: u64, in_use: u64) -> ProcessLimit {
        ProcessLimit { name: "`ulimit -Hn`".into(), setting: "`LimitNOFILE=`", max, in_use }
    }

    #[test]
    fn a_need_equal_to_what_is_left_is_no_excess() {
        let usage = Usage { descriptors: 10, threads: 4 };
        let needs = ResourceNeeds { disks: usage, devices: usage, program: usage };
        let limits = |max| ProcessLimits { descriptors: Some(limit(max, 3)), threads: vec![] };
        assert_eq!(needs.exceeded(&limits(33)), []);
        let exceeded = needs.exceeded(&limits(32));
        assert_eq!(
            exceeded[0].to_string(),
            "this machine needs 30 file descriptors (10 for disks and their engines, 10 for \
             devices, 10 for the rest), and 29 are left: the limit is 32 (`ulimit -Hn`), and 3 \
             are in use"
        );
        let limits = ProcessLimits { descriptors: None, threads: vec![limit(20, 5), limit(15, 4)] };
        let exceeded: Vec<_> =
            needs.exceeded(&limits).into_iter().map(|exceeded| exceeded.limit.max).collect();
        assert_eq!(exceeded, [15], "each limit applies");
        assert_eq!(needs.to_json(&limits)["threads"], json!({ "needed": 12, "available": 11 }));
    }
}
