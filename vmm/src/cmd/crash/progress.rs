//! The progress of an exploration, on a terminal.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crash::{Progress, Stage};

use super::duration::human_time;
use crate::log::StatusLine;

/// An exploration that ends earlier shows no progress.
const DELAY: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_millis(200);

/// A status line that any thread may update.
#[derive(Default)]
pub(super) struct ExploreLine(Mutex<(StatusLine, Duration)>);

impl ExploreLine {
    /// Shows how far the exploration is, now and then.
    pub(super) fn update(&self, progress: &Progress) {
        // Another thread that has it shows as much.
        let Ok(mut inner) = self.0.try_lock() else { return };
        let (line, next) = &mut *inner;
        if progress.elapsed < (*next).max(DELAY) {
            return;
        }
        *next = progress.elapsed + PERIOD;
        line.show(text(progress));
    }

    /// Removes the line.
    pub(super) fn end(self) {
        drop(self.0.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
}

fn text(progress: &Progress) -> String {
    let stage = match progress.stage {
        Stage::Baseline => "the last state".to_owned(),
        Stage::Lost(0) => "nothing lost".to_owned(),
        Stage::Lost(1) => "1 write lost".to_owned(),
        Stage::Lost(lost) => format!("up to {lost} writes lost"),
        Stage::Samples => "samples".to_owned(),
        Stage::Reduction => "reducing a failing state".to_owned(),
    };
    let Progress { checks, pruned, failures, elapsed, .. } = progress;
    let (time, rate) = (human_time(*elapsed), rate(*checks, *elapsed));
    let failing = if *failures > 0 { format!(", {failures} failing") } else { String::new() };
    // A narrow terminal cuts the end.
    format!("{time}: {checks} checks ({rate}/s){failing}, {pruned} known, {stage}")
}

/// Checks a second.
pub(super) fn rate(checks: u64, elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    checks.saturating_mul(1000) / millis
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_rate_and_the_stage() {
        let mut progress = Progress {
            checks: 1200,
            pruned: 30,
            failures: 0,
            waiting: 9,
            stage: Stage::Lost(2),
            elapsed: Duration::from_secs(6),
        };
        let line = "6.0 s: 1200 checks (200/s), 30 known, up to 2 writes lost";
        assert_eq!(text(&progress), line);
        progress.failures = 1;
        progress.stage = Stage::Samples;
        let line = "6.0 s: 1200 checks (200/s), 1 failing, 30 known, samples";
        assert_eq!(text(&progress), line);
    }
}
