//! Medians and ratios, as a table on standard output and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::contestant::Contestant;
use super::figures::Figures;
use super::wake::WakeCost;

/// The measurements of all runs.
pub(super) struct Report {
    machine: String,
    wake: Option<WakeCost>,
    /// All runs by workload, in order of measurement, and by contestant.
    runs: Vec<(&'static str, BTreeMap<Contestant, Vec<Figures>>)>,
}

impl Report {
    pub(super) fn new(machine: String) -> Self {
        println!("{machine}\nmedians; on one CPU, except workloads named 2cpu\n");
        println!("{:<22}{:<12}{:>10}{:>12}{:>14}", "", "", "IOPS", "CPU ns/IO", "ours/theirs");
        Self { machine, wake: None, runs: Vec::new() }
    }

    /// Prints the cost of wake-ups.
    pub(super) fn show_wake(&mut self, turn: WakeCost) {
        let WakeCost { polled, kicked } = self.wake.insert(turn);
        println!("an interrupt takes {polled:?}, an interrupt and a kick {kicked:?}\n");
    }

    pub(super) fn add(&mut self, workload: &'static str, contestant: Contestant, figures: Figures) {
        if self.runs.last().is_none_or(|(name, _)| *name != workload) {
            self.runs.push((workload, BTreeMap::new()));
        }
        if let Some((_, contestants)) = self.runs.last_mut() {
            contestants.entry(contestant).or_default().push(figures);
        }
    }

    /// Medians of a workload by contestant.
    fn medians(&self, workload: &str) -> BTreeMap<Contestant, Figures> {
        let runs = self.runs.iter().filter(|(name, _)| *name == workload);
        let each = runs.flat_map(|(_, contestants)| contestants.iter());
        each.map(|(contestant, figures)| (*contestant, median_of(figures))).collect()
    }

    /// Prints the medians of a workload.
    pub(super) fn show_workload(&self, workload: &str) {
        let medians = self.medians(workload);
        let ours = medians.get(&Contestant::Ours);
        for (contestant, figures) in &medians {
            let ratio = ours.map_or(f64::NAN, |ours| ours.iops / figures.iops);
            println!(
                "{workload:<22}{:<12}{:>10.0}{:>12.0}{ratio:>14.2}",
                contestant.name(),
                figures.iops,
                figures.cpu_ns
            );
        }
        println!();
    }

    /// Writes all medians to `path`.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let workloads: Map<String, Value> =
            self.runs.iter().map(|(name, _)| ((*name).into(), self.workload(name))).collect();
        let wake = self.wake.map(|turn| {
            json!({ "interrupt": turn.polled.as_nanos(), "interrupt_and_kick": turn.kicked.as_nanos() })
        });
        let whole = json!({ "machine": self.machine, "wake_ns": wake, "workloads": workloads });
        fs::write(path, serde_json::to_string_pretty(&whole)? + "\n")?;
        Ok(())
    }

    fn workload(&self, name: &str) -> Value {
        let medians = self.medians(name);
        let mut value = Map::new();
        let mut ratios = Map::new();
        for (contestant, figures) in &medians {
            value.insert(contestant.name().into(), figures_value(figures));
            if let Some(ours) = medians.get(&Contestant::Ours)
                && *contestant != Contestant::Ours
            {
                let ratio = (ours.iops / figures.iops * 1000.0).round() / 1000.0;
                ratios.insert(format!("ours/{}", contestant.name()), ratio.into());
            }
        }
        value.insert("ratios".into(), ratios.into());
        value.into()
    }
}

fn figures_value(figures: &Figures) -> Value {
    let mut value = json!({ "iops": figures.iops.round(), "cpu_ns": figures.cpu_ns.round() });
    if let (Some(calls), Some(fields)) = (figures.system_calls, value.as_object_mut()) {
        fields.insert("system_calls".into(), ((calls * 1000.0).round() / 1000.0).into());
    }
    value
}

/// Median of each figure.
fn median_of(runs: &[Figures]) -> Figures {
    Figures {
        iops: median(runs.iter().map(|run| run.iops)),
        cpu_ns: median(runs.iter().map(|run| run.cpu_ns)),
        system_calls: runs
            .iter()
            .all(|run| run.system_calls.is_some())
            .then(|| median(runs.iter().filter_map(|run| run.system_calls))),
    }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_ignores_one_disturbed_run() {
        let run = |iops| Figures { iops, cpu_ns: 1000.0 / iops, system_calls: None };
        let found = median_of(&[run(10.0), run(1.0), run(11.0)]);
        assert!((found.iops - 10.0).abs() < 0.1 && (found.cpu_ns - 100.0).abs() < 0.1);
    }
}
