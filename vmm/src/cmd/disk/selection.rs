//! The disk of a command line: by its path, or by its id in a configuration.

use std::path::PathBuf;

use clap::Args;

use crate::config::{self, DiskConfig};

/// A disk on the command line.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskName {
    /// An image file or block device; with --config, the id of a disk in it
    #[arg(value_name = "PATH|ID")]
    disk: PathBuf,
    /// The configuration with the id
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
}

/// A disk to inspect, and its configuration if it was selected by id.
pub(super) struct SelectedDisk {
    pub(super) path: PathBuf,
    pub(super) config: Option<DiskConfig>,
}

impl DiskName {
    /// The disk with this name.
    ///
    /// # Errors
    ///
    /// The report of the configuration, or of the missing disk.
    pub(super) fn select(&self) -> Result<SelectedDisk, config::Report> {
        let Some(config) = &self.config else {
            return Ok(SelectedDisk { path: self.disk.clone(), config: None });
        };
        let disk = config::disk(config, &self.disk.to_string_lossy())?;
        Ok(SelectedDisk { path: disk.path.clone(), config: Some(disk) })
    }
}
