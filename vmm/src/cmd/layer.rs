//! `bulkhead layer`: makes layers, and shows what one stands on.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use block::{BaseChange, CreatedLayer, LevelInfo, create_layer, layer_info};
use clap::Subcommand;
use clap::builder::styling::Style;
use serde_json::{Value, json};

use super::table::TextTable;
use crate::config::{human_size, parse_size};
use crate::exit::Exit;
use crate::host_query::HostQuery;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();

/// A request about a layer.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum LayerCommand {
    /// Make a layer over a base, which is only read from then on
    Create {
        /// A raw image, a block device, or another layer, which is frozen
        #[arg(long, value_name = "PATH")]
        base: PathBuf,
        /// Size of the disk, such as 20GiB [default: that of the base]
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// The new layer
        path: PathBuf,
    },
    /// Show a layer and everything below it, and whether a base has changed
    Info {
        /// The layer
        path: PathBuf,
    },
}

/// Runs the request and prints the result.
///
/// # Errors
///
/// The layer cannot be made or read, or the result not be printed.
pub(crate) fn layer(command: &LayerCommand, json: bool) -> anyhow::Result<ExitCode> {
    let (text, exit) = match command {
        LayerCommand::Create { base, size, path } => {
            let made =
                create_layer(path, base, *size).map_err(|error| anyhow::anyhow!("{error}"))?;
            (created(path, base, &made, json), ExitCode::SUCCESS)
        }
        LayerCommand::Info { path } => {
            let asked = path.clone();
            let answer = HostQuery::start(move || layer_info(&asked)).answer();
            let answer =
                answer.with_context(|| format!("{}: could not be learned", path.display()))?;
            let levels = answer.map_err(|error| anyhow::anyhow!("{error}"))?;
            let has_changed = levels.iter().any(|level| level.change.is_some());
            let exit = if has_changed { Exit::Failed.into() } else { ExitCode::SUCCESS };
            (if json { info_json(&levels) } else { info(&levels) }, exit)
        }
    };
    super::print(&text)?;
    Ok(exit)
}

fn created(path: &Path, base: &Path, made: &CreatedLayer, json: bool) -> String {
    let CreatedLayer { uuid, size } = made;
    if json {
        let (path, base) = (path.display().to_string(), base.display().to_string());
        let uuid = uuid.to_string();
        return format!(
            "{:#}\n",
            json!({ "path": path, "base": base, "uuid": uuid, "size_bytes": size })
        );
    }
    let (path, base) =
        (sanitize(&path.display().to_string()), sanitize(&base.display().to_string()));
    format!("{path}: layer of {} over {base}\n", human_size(*size))
}

fn info(levels: &[LevelInfo]) -> String {
    let mut table =
        TextTable::new(&["", "SIZE", "HAS", "STATE", "PATH"], &[false, true, true, false, false]);
    let mut problems = String::new();
    for (index, level) in levels.iter().enumerate() {
        let kind = if level.uuid.is_some() { "layer" } else { "base" };
        let state = match (&level.change, level.is_frozen) {
            (Some(_), _) => "changed",
            (None, true) if level.uuid.is_some() => "frozen",
            (None, true) => "read only",
            (None, false) => "writable",
        };
        let path = sanitize(&level.path.display().to_string());
        if let Some(BaseChange { what, remedy }) = &level.change {
            problems += &format!(
                "\n{path} has changed since the layer over it was made: {what}; {remedy}\n"
            );
        }
        let size = human_size(level.size);
        let has = if level.uuid.is_some() { human_size(level.answered) } else { size.clone() };
        let kind = format!("{}{kind}", " ".repeat(index));
        table.row(vec![kind, size, has, state.to_owned(), path]);
    }
    let title = levels.first().map_or_else(String::new, |top| {
        let path = sanitize(&top.path.display().to_string());
        let uuid = top.uuid.map_or_else(String::new, |uuid| uuid.to_string());
        format!("{BOLD}{path}{BOLD:#}: layer {uuid}, {}\n\n", human_size(top.size))
    });
    format!("{title}{}{problems}", table.render())
}

fn info_json(levels: &[LevelInfo]) -> String {
    let level = |level: &LevelInfo| {
        json!({
            "path": level.path.display().to_string(),
            "uuid": level.uuid.map(|uuid| uuid.to_string()),
            "size_bytes": level.size,
            "frozen": level.is_frozen,
            "answered_bytes": level.answered,
            "map_memory_bytes": level.map_memory,
            "change": level.change.as_ref().map(|change| &change.what),
        })
    };
    format!("{:#}\n", json!({ "levels": levels.iter().map(level).collect::<Vec<Value>>() }))
}
