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
    /// Take the base also if it is not the disk as it was before the first write
    #[arg(long)]
    pub(super) force_base: bool,
}

impl RecordingArguments {
    /// Reads the log.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no log, or not one of a disk with this base.
    pub(super) fn open(&self) -> anyhow::Result<Recording> {
        let recording = Recording::open(&self.log, &self.base).map_err(|error| {
            anyhow::anyhow!("{} over {}: {error}", shown(&self.log), self.base())
        })?;
        if !self.force_base {
            recording.check_base().map_err(|error| {
                anyhow::anyhow!(
                    "{} is not the base of {}: {error}; name the disk as it was before the \
                     recording, or insist with --force-base",
                    self.base(),
                    shown(&self.log)
                )
            })?;
        }
        Ok(recording)
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
        let force = if self.force_base { " --force-base" } else { "" };
        format!("bulkhead crash {request} {log} --base {base}{force} {state}")
    }
}

/// A path as it is shown on a terminal.
pub(super) fn shown(path: &Path) -> String {
    sanitize(&path.display().to_string())
}
