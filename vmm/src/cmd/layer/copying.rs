//! The progress of a command that copies blocks.

use block::{CopyProgress, OpenError};

use crate::cmd::progress::ProgressLine;

/// Runs a command that copies, with its progress on the terminal.
pub(super) fn with_progress<T>(
    task: &'static str,
    run: impl FnOnce(&mut dyn FnMut(CopyProgress)) -> Result<T, OpenError>,
) -> anyhow::Result<T> {
    let mut line = None;
    let outcome = run(&mut |CopyProgress { bytes, total }| {
        line.get_or_insert_with(|| ProgressLine::new(task, total)).advance(bytes);
    });
    outcome.map_err(|error| anyhow::anyhow!("{error}"))
}
