//! `bulkhead disk`: inspects a disk from outside, whether or not a machine uses it.

mod extent_map;
mod inspection;
mod progress;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use block::{Extent, OpenError, Survey};
use clap::{Args, Subcommand};

use self::inspection::Inspection;
use self::progress::Progress;
use crate::config::{self, DiskConfig};
use crate::exit::Exit;

/// A view of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum DiskCommand {
    /// Show a disk's size, its space on the host, its user, and the space that a trim could free
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

/// Inspects a disk and prints the result.
///
/// # Errors
///
/// The disk cannot be inspected, or the result not be printed.
pub(crate) fn disk(command: &DiskCommand, json: bool) -> anyhow::Result<ExitCode> {
    let (DiskCommand::Inspect { disk, .. } | DiskCommand::Map { disk, .. }) = command;
    let selected = match select(disk) {
        Ok(selected) => selected,
        Err(report) => {
            report.print();
            return Ok(Exit::BadConfig.into());
        }
    };
    let survey = survey(&selected)?;
    let text = match command {
        DiskCommand::Inspect { scan, .. } => {
            let extents = extents(&survey, &selected.path)?;
            let zeroes = if *scan { Some(scan_zeroes(&survey, &extents)?) } else { None };
            let inspection = Inspection::new(&selected, &survey, &extents, zeroes);
            if json { inspection.json() } else { inspection.text() }
        }
        DiskCommand::Map { width, .. } => {
            let size = survey.geometry.capacity;
            match extents(&survey, &selected.path)? {
                _ if survey.is_block_device => extent_map::unknown(size, survey.allocated, json),
                extents if json => extent_map::json(size, &extents),
                extents => extent_map::draw(size, &extents, *width),
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A disk to inspect, and its configuration if it was selected by id.
struct SelectedDisk {
    path: PathBuf,
    config: Option<DiskConfig>,
}

fn select(name: &DiskName) -> Result<SelectedDisk, config::Report> {
    let Some(config) = &name.config else {
        return Ok(SelectedDisk { path: name.disk.clone(), config: None });
    };
    let disk = config::disk(config, &name.disk.to_string_lossy())?;
    Ok(SelectedDisk { path: disk.path.clone(), config: Some(disk) })
}

fn survey(selected: &SelectedDisk) -> anyhow::Result<Survey> {
    let block_size = selected.config.as_ref().and_then(|config| config.options.block_size);
    Survey::of(&selected.path, block_size).map_err(|error| match &error {
        OpenError::Host { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let path = selected.path.display();
            anyhow!("there is no disk {path}; to name a disk by its id, add --config CONFIG")
        }
        // The message of these errors includes their source.
        error => anyhow!("{error}"),
    })
}

fn extents(survey: &Survey, path: &Path) -> anyhow::Result<Vec<Extent>> {
    let extents: io::Result<_> = survey.extents().collect();
    extents.with_context(|| format!("cannot map the data of {}", path.display()))
}

fn scan_zeroes(survey: &Survey, extents: &[Extent]) -> anyhow::Result<u64> {
    let data = extents.iter().filter(|extent| extent.data).map(|extent| extent.range.len).sum();
    let mut progress = Progress::new("reading", data);
    survey.count_zeroes(|bytes| progress.advance(bytes)).context("cannot read the disk")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader, for example `head`, has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write the result"),
    }
}
