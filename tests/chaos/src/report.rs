//! The figures of a run, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::disturber::Occurrences;
use crate::load::Tally;
use crate::schedule::Disturbance;
use crate::usage::Usage;

/// The figures of one process.
#[derive(Clone, Debug)]
pub(crate) struct ProcessReport {
    pub(crate) name: &'static str,
    /// None for the machine.
    pub(crate) tally: Option<Tally>,
    /// Blocks of the reopened image that were verified.
    pub(crate) image_blocks: u64,
    pub(crate) before: Usage,
    pub(crate) after: Usage,
}

/// The figures of a run in which nothing failed.
#[derive(Clone, Debug)]
pub struct Report {
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    pub(crate) processes: Vec<ProcessReport>,
    pub(crate) disturbances: Vec<(Disturbance, Occurrences)>,
    pub(crate) flood_sent: u64,
    pub(crate) flood_answered: u64,
    /// File of the control group's limit.
    pub(crate) memory_limit: Option<&'static str>,
}

impl Report {
    /// The report for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let usage = |usage: &Usage| {
            json!({
                "resident_kib": usage.resident_kib,
                "anonymous_kib": usage.anonymous_kib,
                "threads": usage.threads,
                "descriptors": usage.descriptors,
            })
        };
        let processes = self.processes.iter().map(|process| {
            let requests = process.tally.map(|tally| {
                json!({
                    "reads": tally.reads,
                    "writes": tally.writes,
                    "discards": tally.discards,
                    "flushes": tally.flushes,
                    "verified_blocks": tally.verified,
                    "slowest_ms": tally.slowest.as_secs_f64() * 1e3,
                })
            });
            json!({
                "name": process.name,
                "requests": requests,
                "image_blocks": process.image_blocks,
                "before": usage(&process.before),
                "after": usage(&process.after),
            })
        });
        let disturbances = self.disturbances.iter().map(|(kind, of_kind)| {
            json!({
                "kind": kind.to_string(),
                "count": of_kind.count,
                "seconds": of_kind.total.as_secs_f64(),
                "skipped": of_kind.skipped,
            })
        });
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "processes": processes.collect::<Vec<_>>(),
            "disturbances": disturbances.collect::<Vec<_>>(),
            "control_requests": { "sent": self.flood_sent, "answered": self.flood_answered },
            "memory_limit": self.memory_limit,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  DISTURBANCE              COUNT  SECONDS")?;
        for (kind, of_kind) in &self.disturbances {
            let skipped = if of_kind.skipped > 0 { "  not possible on this host" } else { "" };
            let seconds = of_kind.total.as_secs_f64();
            writeln!(f, "  {:24} {:5}  {seconds:7.1}{skipped}", kind.to_string(), of_kind.count)?;
        }
        writeln!(
            f,
            "  control requests: {} sent, {} answered",
            self.flood_sent, self.flood_answered
        )?;
        writeln!(
            f,
            "\n  DISK        READS   WRITES  DISCARDS  FLUSHES  BLOCKS VERIFIED   IN IMAGE  SLOWEST"
        )?;
        for process in &self.processes {
            let Some(tally) = process.tally else { continue };
            writeln!(
                f,
                "  {:8} {:8} {:8}  {:8} {:8} {:16} {:10} {:5} ms",
                process.name,
                tally.reads,
                tally.writes,
                tally.discards,
                tally.flushes,
                tally.verified,
                process.image_blocks,
                tally.slowest.as_millis(),
            )?;
        }
        writeln!(
            f,
            "\n  PROCESS   RSS KIB BEFORE  AFTER   THREADS BEFORE  AFTER   DESCRIPTORS BEFORE  AFTER"
        )?;
        for ProcessReport { name, before, after, .. } in &self.processes {
            writeln!(
                f,
                "  {name:8} {:15} {:6} {:16} {:6} {:20} {:6}",
                before.resident_kib,
                after.resident_kib,
                before.threads,
                after.threads,
                before.descriptors,
                after.descriptors,
            )?;
        }
        write!(
            f,
            "\nSEED={}: passed in {:.1} s, nothing lost, nothing hung",
            self.seed,
            self.took.as_secs_f64()
        )
    }
}
