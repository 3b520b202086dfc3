//! The findings of an exploration, as text and as JSON. Pure.

use std::iter;

use clap::builder::styling::Style;
use crash::{Explanation, FoundState, LogEnd, Outcome, Recording, RequestFact, SearchEnd};
use serde_json::{Value, json};

use super::duration::human_time;
use super::explain::kind as request_kind;
use super::options::SearchArguments;
use super::progress::rate;
use super::recording::{RecordingArguments, shown};
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Lines of a check's output that are shown.
const LINES: usize = 12;
/// Lost writes of a state that are shown.
const LOSSES: usize = 6;
/// Failing states that are shown.
const SHOWN: usize = 10;

/// An exploration that has ended.
pub(super) struct ExploreReport<'r> {
    pub(super) arguments: &'r SearchArguments,
    pub(super) files: &'r RecordingArguments,
    /// Checks until a disk that ignores flushes was caught, if that was asked for.
    pub(super) control: Option<u64>,
    pub(super) recording: &'r Recording,
    pub(super) outcome: &'r Outcome,
}

impl ExploreReport<'_> {
    /// The text for a terminal.
    pub(super) fn text(&self) -> String {
        let Outcome { failures, flaky, end, .. } = self.outcome;
        let recording = self.files;
        let verdict = match (end, failures.len(), flaky.len()) {
            (SearchEnd::Baseline, ..) if failures.iter().any(|found| found.failure.is_late()) => {
                "the check does not end in its time without a power cut either; `--timeout` gives \
                 it more"
                    .to_owned()
            }
            (SearchEnd::Baseline, ..) => "the check fails without a power cut".to_owned(),
            (_, 0, 0) => "no failing state was found".to_owned(),
            (_, 0, _) => "the check does not always give the same answer".to_owned(),
            (_, 1, _) => "the check fails in a state that a power cut can leave".to_owned(),
            (_, many, _) => format!("the check fails in {many} states that a power cut can leave"),
        };
        let mut text = format!(
            "{BOLD}{} over {}{BOLD:#}: {verdict}\n",
            shown(&recording.log),
            recording.base()
        );
        for found in failures.iter().take(SHOWN) {
            text += &self.found(found);
        }
        for found in flaky.iter().take(SHOWN) {
            text += &self.found(found);
            text += "  It passed when it was checked again.\n";
        }
        let hidden = failures.len().saturating_sub(SHOWN) + flaky.len().saturating_sub(SHOWN);
        if hidden > 0 {
            text += &format!("\n  and {hidden} more\n");
        }
        text + "\n" + &self.facts()
    }

    /// A failing state.
    fn found(&self, found: &FoundState) -> String {
        let FoundState { name, failure, .. } = found;
        let mut text = format!("\n{BOLD}state {name}{BOLD:#}: {}\n", sanitize(&failure.end));
        // Its name came from this recording.
        if let Ok(explained) = self.recording.explain(name) {
            for (what, fact) in cut(&explained) {
                text += &line(what, &fact);
            }
        }
        let lines: Vec<&str> = failure.output.trim_end().lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LINES));
        for (what, output) in iter::once("output").chain(iter::repeat("")).zip(last) {
            text += &line(what, &sanitize(output));
        }
        let recording = self.files;
        text += "\n";
        for request in ["explain", "open"] {
            text += &format!("  {}\n", recording.command(request, name));
        }
        let options = self.arguments.open_options();
        let check = sanitize(&block::shell_word(&self.arguments.check.to_string_lossy()));
        text + &format!("  {}{options} --run {check}\n", recording.command("open", name))
    }

    /// The work that was done, a line for each fact.
    fn facts(&self) -> String {
        let Outcome { checks, repeated_checks, pruned, points, elapsed, .. } = self.outcome;
        let (rate, time) = (rate(*checks, *elapsed), human_time(*elapsed));
        let repeated = if *repeated_checks > 0 {
            format!(", {repeated_checks} of them to reduce and repeat failures")
        } else {
            String::new()
        };
        let mut facts = vec![
            ("checks", format!("{checks} in {time} ({rate}/s){repeated}")),
            ("known", format!("{pruned} more states, as these read the same")),
            ("power cuts", format!("{points} that leave different states")),
            ("explored", self.extent().to_owned()),
        ];
        if let Some(checks) = self.control {
            let what = format!("a disk that ignores flushes is caught, after {checks} checks");
            facts.push(("control", what));
        }
        if self.arguments.samples() > 0 {
            let (samples, seed) = (self.arguments.samples(), self.arguments.seed);
            facts.push(("samples", format!("up to {samples}, of seed {seed}")));
        }
        if !self.outcome.has_marks {
            let what = "none: a check cannot know what the guest had promised";
            facts.push(("marks", what.to_owned()));
        }
        match self.recording.end() {
            LogEnd::Failed(reason) => {
                let what = format!("ended early, what followed is missing: {}", sanitize(reason));
                facts.push(("log", what));
            }
            LogEnd::Unclean => {
                let what = "not closed: what was in flight at its end is missing";
                facts.push(("log", what.to_owned()));
            }
            LogEnd::Closed(_) | LogEnd::Foreign => {}
        }
        facts.into_iter().map(|(what, fact)| line(what, &fact)).collect()
    }

    /// How much of what was asked for was explored.
    fn extent(&self) -> &'static str {
        match self.outcome.end {
            SearchEnd::Complete => "all that was asked for",
            SearchEnd::Baseline => "nothing, as failures would prove nothing",
            SearchEnd::Failure => "until a failing state was found",
            SearchEnd::Time => "until the time was over",
            SearchEnd::States => "as many checks as were allowed",
            SearchEnd::Stopped => "until it was interrupted",
            SearchEnd::Memory => "as many states as can be remembered",
        }
    }

    /// The JSON.
    pub(super) fn json(&self) -> String {
        let Outcome { checks, repeated_checks, pruned, points, end, .. } = self.outcome;
        let end = match end {
            SearchEnd::Complete => "complete",
            SearchEnd::Baseline => "baseline",
            SearchEnd::Failure => "failure",
            SearchEnd::Time => "time",
            SearchEnd::States => "states",
            SearchEnd::Stopped => "interrupted",
            SearchEnd::Memory => "memory",
        };
        let states = |found: &[FoundState]| found.iter().map(state).collect::<Vec<Value>>();
        let log_failure = match self.recording.end() {
            LogEnd::Failed(reason) => Some(reason),
            LogEnd::Closed(_) | LogEnd::Unclean | LogEnd::Foreign => None,
        };
        let recording = self.files;
        let answer = json!({
            "log": recording.log.display().to_string(),
            "base": recording.base.display().to_string(),
            "end": end,
            "complete": self.outcome.is_complete(),
            "checks": checks,
            "repeated_checks": repeated_checks,
            "pruned": pruned,
            "power_cuts": points,
            "seconds": self.outcome.elapsed.as_secs_f64(),
            "seed": self.arguments.seed,
            "control_checks": self.control,
            "has_marks": self.outcome.has_marks,
            "log_closed": *self.recording.end() != LogEnd::Unclean,
            "log_failure": log_failure,
            "failures": states(&self.outcome.failures),
            "flaky": states(&self.outcome.flaky),
        });
        format!("{answer:#}\n")
    }
}

/// A fact and its name.
fn line(what: &str, fact: &str) -> String {
    format!("  {DIM}{what:<10}{DIM:#}  {fact}\n").trim_end().to_owned() + "\n"
}

/// When the power was cut, and what was lost.
fn cut(explained: &Explanation) -> Vec<(&'static str, String)> {
    let Explanation { name, lost, mark_before, .. } = explained;
    let completions = if name.point == 1 { "completion" } else { "completions" };
    let mark = mark_before
        .as_ref()
        .map_or_else(String::new, |mark| format!(" and mark {:?}", sanitize(&mark.text)));
    let mut facts = vec![("power cut", format!("after {} {completions}{mark}", name.point))];
    for (what, lost) in iter::once("lost").chain(iter::repeat("")).zip(lost.iter().take(LOSSES)) {
        let RequestFact { number, kind, at, len, .. } = &lost.write;
        let bytes: u64 = lost.lost.iter().map(|(_, len)| len).sum();
        let part = if bytes == *len { String::new() } else { format!("{bytes} of ") };
        let in_flight = if lost.in_flight { ", in flight" } else { "" };
        let kind = request_kind(*kind);
        facts.push((what, format!("{kind} {number}: {part}{len} bytes at {at}{in_flight}")));
    }
    let more = lost.len().saturating_sub(LOSSES);
    if more > 0 {
        facts.push(("", format!("and {more} more")));
    }
    facts
}

fn state(found: &FoundState) -> Value {
    json!({
        "state": found.name.to_string(),
        "lost": found.lost,
        "end": found.failure.end,
        "output": found.failure.output,
        "found_as": found.shrunk_from.as_ref().map(ToString::to_string),
    })
}
