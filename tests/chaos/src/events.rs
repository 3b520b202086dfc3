//! The progress of a run: printed as it happens, and kept for a failure.

use std::time::{Duration, Instant};

/// The lines of a run.
pub(crate) struct Events {
    start: Instant,
    prints: bool,
    lines: Vec<String>,
}

impl Events {
    pub(crate) fn new(prints: bool) -> Self {
        Self { start: Instant::now(), prints, lines: Vec::new() }
    }

    /// Time since the start of the run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds a line.
    pub(crate) fn add(&mut self, text: &str) {
        let line = format!("{:7.2} s  {text}", self.elapsed().as_secs_f64());
        if self.prints {
            println!("{line}");
        }
        self.lines.push(line);
    }

    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> &[String] {
        &self.lines[self.lines.len().saturating_sub(count)..]
    }
}
