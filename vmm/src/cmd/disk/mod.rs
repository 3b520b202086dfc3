//! `bulkhead disk`: inspects a disk from outside, whether or not a machine uses it.

mod extent_map;
mod inspection;
mod progress;
mod selection;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use block::{Extent, OpenError, Survey};
use clap::Subcommand;

use self::inspection::Inspection;
use self::progress::ProgressLine;
use self::selection::{DiskName, SelectedDisk};
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

/// Inspects a disk and prints the result.
///
/// # Errors
///
/// The disk cannot be inspected, or the result not be printed.
pub(crate) fn disk(command: &DiskCommand, json: bool) -> anyhow::Result<ExitCode> {
    let (DiskCommand::Inspect { disk, .. } | DiskCommand::Map { disk, .. }) = command;
    let selected = match disk.select() {
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
    let mut progress = ProgressLine::new("reading", data);
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
