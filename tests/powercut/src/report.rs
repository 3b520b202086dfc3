//! The output of `make crash`: progress, the matrix, the explorations and a summary, or JSON.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use crash_tests::{Exploration, Judgement, SearchOutcome};
use powercut::{Outcome, Row, Tally};
use serde_json::{Value, json};

/// Time between two lines of progress, if they are kept.
const PERIOD: Duration = Duration::from_secs(60);

/// Sums of rows or explorations.
#[derive(Default)]
struct Sums {
    lines: u64,
    bad: u64,
    controls: u64,
    caught: u64,
}

impl Sums {
    fn add(&mut self, is_control: bool, is_bad: bool) {
        self.lines += 1;
        self.bad += u64::from(is_bad);
        self.controls += u64::from(is_control);
        self.caught += u64::from(is_control && !is_bad);
    }
}

/// Collects and prints.
pub(crate) struct Report {
    is_json: bool,
    seed: u64,
    start: Instant,
    end: Option<Instant>,
    last_progress: Instant,
    rows: Vec<(Row, Tally)>,
    explorations: Vec<Value>,
    failures: Vec<String>,
    of_rows: Sums,
    of_explorations: Sums,
    /// Cuts of all rows.
    cuts: u64,
    explored: u64,
    pruned: u64,
}

impl Report {
    pub(crate) fn new(is_json: bool, seed: u64, time: Option<Duration>) -> Self {
        let start = Instant::now();
        Self {
            is_json,
            seed,
            start,
            end: time.map(|time| start + time),
            last_progress: start,
            rows: Vec::new(),
            explorations: Vec::new(),
            failures: Vec::new(),
            of_rows: Sums::default(),
            of_explorations: Sums::default(),
            cuts: 0,
            explored: 0,
            pruned: 0,
        }
    }

    fn say(&self, line: &str) {
        if !self.is_json {
            self.clear();
            println!("{line}");
        }
    }

    /// Removes the line of progress from a terminal.
    fn clear(&self) {
        if stderr().is_terminal() {
            note("\r\x1b[K");
        }
    }

    /// Progress goes to standard error: one line that changes, or one a minute.
    fn progress(&mut self, text: &str) {
        let is_terminal = stderr().is_terminal();
        if !is_terminal && self.last_progress.elapsed() < PERIOD {
            return;
        }
        self.last_progress = Instant::now();
        let minutes = self.start.elapsed().as_secs() / 60;
        let left = self.end.map_or(String::new(), |end| {
            format!(", {} min left", end.saturating_duration_since(Instant::now()).as_secs() / 60)
        });
        self.clear();
        let end = if is_terminal { "" } else { "\n" };
        note(&format!("[{minutes} min{left}] {text}{end}"));
    }

    pub(crate) fn begin_rows(&self) {
        self.say(&format!("SEED={}", self.seed));
        self.say(&format!(
            "{:<58} {:>4} {:>6} {:>8} {:>8} {:>6} {:>9} {:>9} {:>5}",
            "power cuts: monitor/cache/store/bus/workload",
            "cuts",
            "states",
            "distinct",
            "flushed",
            "lost",
            "unfl.lost",
            "unfl.kept",
            "torn"
        ));
    }

    /// A cut of the row was made, the last one or not.
    pub(crate) fn add_row(&mut self, row: &Row, tally: &Tally, is_last: bool) {
        self.cuts += 1;
        if !is_last {
            self.progress(&format!("{row}: {} cuts, {} in all", tally.cuts, self.cuts));
            return;
        }
        self.of_rows.add(row.is_control(), tally.outcome(row).is_bad());
        self.say(&format!(
            "{:<58} {:>4} {:>6} {:>8} {:>8} {:>6} {:>9} {:>9} {:>5}  {}",
            row.to_string(),
            tally.cuts,
            tally.states,
            tally.contents.len(),
            tally.flushed,
            tally.flushed_lost,
            tally.unflushed_lost,
            tally.unflushed_kept,
            tally.torn,
            tally.outcome(row),
        ));
        self.say_details(tally, tally.outcome(row));
        self.rows.push((*row, tally.clone()));
    }

    fn say_details(&self, tally: &Tally, outcome: Outcome) {
        if let Some(first) = tally.first.as_ref().filter(|_| outcome.is_bad()) {
            self.say(&format!("    {first}"));
        }
        if tally.unreadable + tally.garbage > 0 {
            let (unreadable, garbage) = (tally.unreadable, tally.garbage);
            self.say(&format!("    unreadable states {unreadable}, sectors of garbage {garbage}"));
        }
        if let Some(reason) = tally.repeat_reason.as_ref().and_then(|text| text.lines().next()) {
            self.say(&format!("    hosts started again {}: {reason}", tally.repeated));
        }
    }

    /// The lab or a workload failed, which is no verdict.
    pub(crate) fn add_failure(&mut self, error: &str) {
        self.say(&format!("    NOT DONE: {error}"));
        self.failures.push(error.to_owned());
    }

    pub(crate) fn begin_explorations(&self) {
        self.say("");
        self.say(&format!(
            "{:<44} {:>9} {:>11} {:>6} {:>7} {:>8}",
            "explorations: disk/workload/fault",
            "states",
            "more known",
            "cuts",
            "seconds",
            "a second"
        ));
    }

    pub(crate) fn add_exploration(
        &mut self,
        exploration: &Exploration,
        judgement: Judgement,
        outcome: &SearchOutcome,
    ) {
        let states = outcome.checks - outcome.repeated_checks;
        self.explored += states;
        self.pruned += outcome.pruned;
        self.of_explorations.add(exploration.is_control(), judgement.is_bad());
        let seconds = outcome.elapsed.as_secs_f64();
        self.say(&format!(
            "{:<44} {states:>9} {:>11} {:>6} {seconds:>7.1} {:>8.0}  {judgement}",
            exploration.name(),
            outcome.pruned,
            outcome.points,
            outcome.checks as f64 / seconds.max(0.001),
        ));
        let failing = outcome.failures.iter().chain(&outcome.flaky).next();
        let output = failing.map(|state| state.failure.output.lines().last().unwrap_or_default());
        if let (Some(state), true) = (failing, judgement.is_bad()) {
            let end = &state.failure.end;
            self.say(&format!("    state {}: {end}: {}", state.name, output.unwrap_or_default()));
        }
        self.explorations.push(json!({
            "exploration": exploration.name(), "outcome": judgement.to_string(), "states": states,
            "known": outcome.pruned, "power_cuts": outcome.points, "seconds": seconds,
            "end": format!("{:?}", outcome.end), "failure": output,
        }));
        self.progress(&format!("{} states explored", self.explored));
    }

    /// Rows that both monitors have, beside each other.
    fn say_both(&self) {
        let name = |row: &Row| row.to_string();
        let pairs: Vec<_> = self
            .rows
            .iter()
            .filter_map(|(row, of_qemu)| {
                let rest = name(row).strip_prefix("qemu/")?.to_owned();
                let ours = format!("bulkhead/{rest}");
                let found = self.rows.iter().find(|(other, _)| name(other) == ours)?;
                Some((rest, &found.1, of_qemu))
            })
            .collect();
        if pairs.is_empty() {
            return;
        }
        self.say("");
        self.say(&format!(
            "{:<36} {:^34} {:^34}",
            "side by side", "bulkhead: cuts, lost, unfl.lost", "qemu: cuts, lost, unfl.lost"
        ));
        let cells = |tally: &Tally| {
            format!("{:>10} {:>10} {:>10}  ", tally.cuts, tally.flushed_lost, tally.unflushed_lost)
        };
        for (rest, ours, of_qemu) in pairs {
            self.say(&format!("{rest:<36} {} {}", cells(ours), cells(of_qemu)));
        }
    }

    fn json(&self, is_good: bool) -> Value {
        json!({
            "seed": self.seed, "seconds": self.start.elapsed().as_secs(), "good": is_good,
            "cuts": self.cuts, "explored_states": self.explored, "failures": self.failures,
            "rows": self.rows.iter().map(|(row, tally)| of_row(row, tally)).collect::<Vec<_>>(),
            "explorations": self.explorations,
        })
    }

    /// Prints the summary, or all in JSON. False if something failed, or there was less than
    /// `least_cuts` or `least_states`.
    pub(crate) fn finish(&self, least_cuts: u64, least_states: u64) -> bool {
        let is_enough = self.cuts >= least_cuts && self.explored >= least_states;
        let bad = self.of_rows.bad + self.of_explorations.bad;
        let is_good = is_enough && bad == 0 && self.failures.is_empty();
        if self.is_json {
            println!("{:#}", self.json(is_good));
            return is_good;
        }
        self.say_both();
        self.say("");
        let sum = |value: fn(&Tally) -> u64| -> u64 {
            let honest = self.rows.iter().filter(|(row, _)| !row.is_control());
            honest.map(|(_, tally)| value(tally)).sum()
        };
        if self.of_rows.lines > 0 {
            self.say(&format!(
                "{} power cuts in {} rows: {} flushed records, {} lost; {} of {} controls caught",
                self.cuts,
                self.of_rows.lines,
                sum(|tally| tally.flushed),
                sum(|tally| tally.flushed_lost),
                self.of_rows.caught,
                self.of_rows.controls
            ));
        }
        if self.of_explorations.lines > 0 {
            self.say(&format!(
                "{} states in {} explorations, {} more known without a check; {} of {} controls \
                 caught",
                self.explored,
                self.of_explorations.lines,
                self.pruned,
                self.of_explorations.caught,
                self.of_explorations.controls
            ));
        }
        if !is_enough {
            self.say(&format!("TOO FEW: {least_cuts} cuts and {least_states} states are wanted"));
        }
        let elapsed = self.start.elapsed().as_secs();
        let verdict = match (bad, self.failures.len()) {
            (0, 0) => "all as expected".to_owned(),
            (bad, failed) => format!("{bad} NOT AS EXPECTED, {failed} not done"),
        };
        let (minutes, seconds) = (elapsed / 60, elapsed % 60);
        self.say(&format!("{verdict} in {minutes} min {seconds} s, SEED={}", self.seed));
        is_good
    }
}

/// Writes to standard error, whose end is no concern.
fn note(text: &str) {
    stderr().write_all(text.as_bytes()).ok();
}

fn of_row(row: &Row, tally: &Tally) -> Value {
    json!({
        "row": row.to_string(), "outcome": tally.outcome(row).to_string(),
        "cuts": tally.cuts, "states": tally.states, "contents": tally.contents.len(),
        "flushed": tally.flushed, "flushed_lost": tally.flushed_lost,
        "unflushed_lost": tally.unflushed_lost, "unflushed_kept": tally.unflushed_kept,
        "torn": tally.torn, "garbage": tally.garbage, "unreadable": tally.unreadable,
        "repeated": tally.repeated, "disk_flushes": tally.disk_flushes, "disk_fua": tally.disk_fua,
        "writes_lost": tally.fates[0], "writes_kept": tally.fates[1],
        "writes_torn": tally.fates[2], "repeat_reason": tally.repeat_reason, "first": tally.first,
    })
}
