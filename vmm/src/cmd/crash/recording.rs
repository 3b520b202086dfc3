//! A recording, as the command line names it.

use std::env;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;
use crash::{BaseError, Recording, StateName};

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
    /// Reads the log of a disk whose base is known.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no log.
    pub(super) fn read(&self) -> anyhow::Result<Recording> {
        require_log(&self.log)?;
        Recording::open(&self.log, &self.base)
            .map_err(|error| anyhow::anyhow!("{} over {}: {error}", shown(&self.log), self.base()))
    }

    /// Reads the log, and compares the base with it.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no log, or not one of a disk with this base.
    pub(super) fn open(&self) -> anyhow::Result<Recording> {
        let recording = self.read()?;
        if self.force_base {
            return Ok(recording);
        }
        let (base, log) = (self.base(), shown(&self.log));
        match recording.check_base() {
            Ok(()) => Ok(recording),
            Err(BaseError::Io(error)) => bail!("cannot compare {base} with {log}: {error}"),
            Err(error) => bail!(
                "{base} is not the base of {log}: {error}; name the disk as it was before the \
                 recording, or insist with --force-base"
            ),
        }
    }

    /// Refuses to write to the log, the base or one of `kept`.
    ///
    /// # Errors
    ///
    /// The file is one of them.
    pub(super) fn require_other(&self, file: &Path, kept: &[&Path]) -> anyhow::Result<()> {
        let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
        let found = identity(file);
        let is_same = |other: &&Path| found.is_some() && identity(other) == found;
        let files = [self.log.as_path(), &self.base];
        ensure!(
            !files.iter().chain(kept).any(is_same),
            "{} is the log or a disk, which are not changed; name another file",
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

/// Refuses what is no log at a glance, as the wrong file was named.
///
/// # Errors
///
/// It is a folder, or has nothing.
pub(super) fn require_log(path: &Path) -> anyhow::Result<()> {
    // That there is none is reported when it is opened.
    let Ok(found) = path.metadata() else { return Ok(()) };
    ensure!(!found.is_dir(), "{} is a folder; name a log, as DISK.log in it", shown(path));
    let is_empty = found.is_file() && found.len() == 0;
    ensure!(!is_empty, "{} is empty: nothing was recorded in it", shown(path));
    Ok(())
}

/// Refuses a host without a folder for temporary files, in which states are mounted.
///
/// # Errors
///
/// There is none.
pub(super) fn require_temporary_folder() -> anyhow::Result<()> {
    let folder = env::temp_dir();
    let folder_shown = shown(&folder);
    ensure!(folder.is_dir(), "{folder_shown} is no folder; set TMPDIR to one for temporary files");
    Ok(())
}

/// A path as it is shown on a terminal.
pub(super) fn shown(path: &Path) -> String {
    sanitize(&path.display().to_string())
}
