//! `bulkhead disk`: inspects a disk from outside, whether or not a machine uses it.

mod extent_map;
mod facts;
mod inspection;
mod layer_rows;
mod proof;
mod proof_report;
mod selection;
mod stack_tree;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use block::{OpenError, Survey, shell_path};
use clap::Subcommand;

use self::facts::{ExtentQuery, Facts};
use self::inspection::Inspection;
use self::selection::{DiskName, SelectedDisk};
use crate::exit::Exit;
use crate::host_query::HostQuery;

/// A view of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum DiskCommand {
    /// Show a disk's size, its space on the host, its user, and the storage below it
    Inspect {
        #[command(flatten)]
        disk: DiskName,
        /// Read all data, to count the blocks that hold only zeroes
        #[arg(long)]
        scan: bool,
    },
    /// Write and flush, and show on the kernel's own counters whether the flushes arrive
    #[command(after_help = PROVE_HELP)]
    Prove {
        #[command(flatten)]
        disk: DiskName,
        /// First byte of a scratch range of a device, 512 KiB that are written back unchanged
        #[arg(long, value_name = "BYTE")]
        offset: Option<u64>,
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

const PROVE_HELP: &str = "\
Writes 512 KiB to a new file beside an image or in a folder, which is removed at
the end, or to a device that no other host writes to.
Exits with 0 if the flushes of all cache modes but `unsafe` are kept, or, with
--config, those of the disk's mode.

Examples:
  bulkhead disk prove /srv/images/vm.img
  bulkhead disk prove root --config vm.toml
  bulkhead disk prove /dev/zvol/tank/vm --offset 0";

/// Inspects a disk and prints the result.
///
/// # Errors
///
/// The disk cannot be inspected, or the result not be printed.
pub(crate) fn disk(command: &DiskCommand, json: bool) -> anyhow::Result<ExitCode> {
    let (DiskCommand::Inspect { disk, .. }
    | DiskCommand::Prove { disk, .. }
    | DiskCommand::Map { disk, .. }) = command;
    let selected = match disk.select() {
        Ok(selected) => selected,
        Err(report) => {
            report.print();
            return Ok(Exit::BadConfig.into());
        }
    };
    let (text, exit) = match command {
        DiskCommand::Prove { offset, .. } => proof::prove(&selected, *offset, json)?,
        DiskCommand::Inspect { scan, .. } => {
            let survey = survey(&selected)?;
            let facts = Facts::query(&selected.path, &survey, *scan);
            let exit = if facts.is_incomplete() { Exit::Failed.into() } else { ExitCode::SUCCESS };
            let inspection = Inspection::new(&selected, &survey, &facts);
            (if json { inspection.json() } else { inspection.text() }, exit)
        }
        DiskCommand::Map { width, .. } => {
            (map(&survey(&selected)?, &selected, *width, json)?, ExitCode::SUCCESS)
        }
    };
    super::print(&text)?;
    Ok(exit)
}

fn survey(selected: &SelectedDisk) -> anyhow::Result<Arc<Survey>> {
    let block_size = selected.config.as_ref().and_then(|config| config.options.block_size);
    let (path, shown) = (selected.path.clone(), selected.path.display());
    let answer = HostQuery::start(move || Survey::open(&path, block_size)).answer();
    let answer = answer.with_context(|| format!("{shown}: could not be learned"))?;
    answer.map(Arc::new).map_err(|error| match &error {
        OpenError::Host { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            anyhow!("there is no disk {shown}; to name a disk by its id, add --config CONFIG")
        }
        // The message of these errors includes their source.
        error => anyhow!("{error}"),
    })
}

fn map(
    survey: &Arc<Survey>,
    selected: &SelectedDisk,
    width: Option<u16>,
    json: bool,
) -> anyhow::Result<String> {
    let size = survey.geometry.capacity;
    let path = selected.path.display();
    if facts::has_layer(survey).is_ok_and(|is_layer| is_layer) {
        let word = shell_path(&selected.path);
        return Err(anyhow!(
            "{path} is the file of a layer, not the disk; `bulkhead layer map {word}` shows the disk"
        ));
    }
    if survey.is_block_device() {
        let space = facts::space(survey).map_err(|reason| anyhow!("{path}: {reason}"))?;
        return Ok(extent_map::unknown(size, space.allocated, json));
    }
    let extents = ExtentQuery::start(survey).collect();
    let extents =
        extents.with_context(|| format!("data and holes of {path}: could not be learned"))?;
    Ok(if json {
        extent_map::json(size, &extents)
    } else {
        extent_map::draw(size, &extents, width)
    })
}
