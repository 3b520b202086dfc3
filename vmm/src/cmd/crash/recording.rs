//! A recording, as the command line names it.

use std::path::{Path, PathBuf};

use clap::Args;
use crash::{Recording, StateName};

use crate::sanitize::sanitize;

/// Which recording it is.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct RecordingArguments {
    /// The log of the disk's writes
    pub(super) log: PathBuf,
    /// The disk as it was before the first write: an image or a block device
    #[arg(long, value_name = "IMAGE")]
    pub(super) base: PathBuf,
}

impl RecordingArguments {
    /// Reads the log.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no log, or not one of a disk with this base.
    pub(super) fn open(&self) -> anyhow::Result<Recording> {
        Recording::open(&self.log, &self.base)
            .map_err(|error| anyhow::anyhow!("{} over {}: {error}", shown(&self.log), self.base()))
    }

    /// Refuses to write to the log or the base.
    ///
    /// # Errors
    ///
    /// The file is one of them.
    pub(super) fn require_other(&self, file: &Path) -> anyhow::Result<()> {
        let same = |other: &PathBuf| {
            let canonical = |path: &Path| path.canonicalize().ok();
            canonical(file).is_some_and(|file| canonical(other) == Some(file))
        };
        anyhow::ensure!(
            ![&self.log, &self.base].into_iter().any(same),
            "{} is the log or the base, which are not changed; name another file",
            shown(file)
        );
        Ok(())
    }

    /// The base, as it is shown.
    pub(super) fn base(&self) -> String {
        shown(&self.base)
    }

    /// The command line of another request about a state.
    pub(super) fn command(&self, request: &str, state: &StateName) -> String {
        let [log, base] = [&self.log, &self.base].map(|path| sanitize(&block::shell_path(path)));
        format!("bulkhead crash {request} {log} --base {base} {state}")
    }
}

/// A path as it is shown on a terminal.
pub(super) fn shown(path: &Path) -> String {
    sanitize(&path.display().to_string())
}
