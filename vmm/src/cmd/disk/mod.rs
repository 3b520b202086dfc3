//! `bulkhead disk`: looks at a disk from outside, whether or not a machine runs on it.

mod extent_map;
mod progress;
mod report;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use block::{Extent, OpenError, Survey};
use clap::{Args, Subcommand};

use self::progress::Progress;
use crate::config::{self, DiskConfig};
use crate::exit::Exit;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Look {
    /// Show a disk's size, what it takes on the host, who uses it, and what a trim could free
    Inspect {
        #[command(flatten)]
        disk: DiskName,
        /// Read all data, to count the blocks that hold only zeroes
        #[arg(long)]
        scan: bool,
    },
    /// Draw which parts of a disk take space on the host
    Map {
        #[command(flatten)]
        disk: DiskName,
        /// Columns of the drawing [default: those of the terminal]
        #[arg(long, value_parser = clap::value_parser!(u16).range(8..=1000))]
        width: Option<u16>,
    },
}

/// Which disk.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskName {
    /// An image file or block device; with --config, the id of a disk in it
    #[arg(value_name = "PATH|ID")]
    disk: PathBuf,
    /// The configuration that the id is from
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
}

/// Looks at a disk, prints what there is to see, and returns the exit code.
///
/// # Errors
///
/// The disk cannot be looked at, or the answer not be written.
pub(crate) fn disk(look: &Look, json: bool) -> anyhow::Result<ExitCode> {
    let (Look::Inspect { disk, .. } | Look::Map { disk, .. }) = look;
    let found = match find(disk) {
        Ok(found) => found,
        Err(report) => {
            report.print();
            return Ok(Exit::BadConfig.into());
        }
    };
    let survey = survey(&found)?;
    let text = match look {
        Look::Inspect { scan, .. } => {
            let extents = extents(&survey, &found.path)?;
            let zeroes = if *scan { Some(scan_zeroes(&survey, &extents)?) } else { None };
            let inspection = report::Inspection::new(&found, &survey, &extents, zeroes);
            if json { inspection.json() } else { inspection.text() }
        }
        Look::Map { width, .. } => {
            let size = survey.geometry.capacity;
            match extents(&survey, &found.path)? {
                _ if survey.is_block_device => extent_map::unknown(size, survey.allocated, json),
                extents if json => extent_map::json(size, &extents),
                extents => extent_map::draw(size, &extents, *width),
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A disk to look at, and what its configuration says of it.
struct Found {
    path: PathBuf,
    config: Option<DiskConfig>,
}

fn find(name: &DiskName) -> Result<Found, config::Report> {
    let Some(config) = &name.config else {
        return Ok(Found { path: name.disk.clone(), config: None });
    };
    let disk = config::disk(config, &name.disk.to_string_lossy())?;
    Ok(Found { path: disk.path.clone(), config: Some(disk) })
}

fn survey(found: &Found) -> anyhow::Result<Survey> {
    let block_size = found.config.as_ref().and_then(|config| config.options.block_size);
    Survey::of(&found.path, block_size).map_err(|error| match &error {
        OpenError::Host { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let path = found.path.display();
            anyhow!("there is no disk {path}; to name a disk by its id, add --config CONFIG")
        }
        // It tells its cause itself.
        error => anyhow!("{error}"),
    })
}

fn extents(survey: &Survey, path: &Path) -> anyhow::Result<Vec<Extent>> {
    let extents: io::Result<_> = survey.extents().collect();
    extents.with_context(|| format!("cannot ask where {} has data", path.display()))
}

fn scan_zeroes(survey: &Survey, extents: &[Extent]) -> anyhow::Result<u64> {
    let data = extents.iter().filter(|extent| extent.data).map(|extent| extent.range.len).sum();
    let mut progress = Progress::new("reading", data);
    survey.count_zeroes(|bytes| progress.advance(bytes)).context("cannot read the disk")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write the answer"),
    }
}
