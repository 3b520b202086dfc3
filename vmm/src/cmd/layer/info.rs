//! `layer info`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use block::{BaseChange, LevelInfo, layer_info};
use clap::builder::styling::Style;
use serde_json::{Value, json};

use super::shown::shown;
use crate::cmd::print;
use crate::cmd::table::TextTable;
use crate::config::human_size;
use crate::exit::Exit;
use crate::host_query::HostQuery;

const BOLD: Style = Style::new().bold();

/// Prints a layer and everything below it. Fails if a base has changed.
pub(super) fn info(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let asked = path.to_owned();
    let answer = HostQuery::start(move || layer_info(&asked)).answer();
    let answer = answer.with_context(|| format!("{}: could not be learned", path.display()))?;
    let levels = answer.map_err(|error| anyhow::anyhow!("{error}"))?;
    print(&if json { to_json(&levels) } else { text(&levels) })?;
    let has_changed = levels.iter().any(|level| level.change.is_some());
    Ok(if has_changed { Exit::Failed.into() } else { ExitCode::SUCCESS })
}

fn text(levels: &[LevelInfo]) -> String {
    let mut table =
        TextTable::new(&["", "SIZE", "HAS", "STATE", "PATH"], &[false, true, true, false, false]);
    let mut problems = String::new();
    for (index, level) in levels.iter().enumerate() {
        let kind = if level.uuid.is_some() { "layer" } else { "base" };
        let state = match (&level.change, level.is_frozen) {
            (Some(_), _) => "changed",
            (None, _) if level.is_merging => "commit interrupted",
            (None, true) if level.uuid.is_some() => "frozen",
            (None, true) => "read only",
            (None, false) => "writable",
        };
        let path = shown(&level.path);
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
        let path = shown(&top.path);
        let uuid = top.uuid.map_or_else(String::new, |uuid| uuid.to_string());
        format!("{BOLD}{path}{BOLD:#}: layer {uuid}, {}\n\n", human_size(top.size))
    });
    format!("{title}{}{problems}", table.render())
}

fn to_json(levels: &[LevelInfo]) -> String {
    let level = |level: &LevelInfo| {
        json!({
            "path": level.path.display().to_string(),
            "uuid": level.uuid.map(|uuid| uuid.to_string()),
            "size_bytes": level.size,
            "frozen": level.is_frozen,
            "commit_interrupted": level.is_merging,
            "answered_bytes": level.answered,
            "map_memory_bytes": level.map_memory,
            "change": level.change.as_ref().map(|change| &change.what),
        })
    };
    format!("{:#}\n", json!({ "levels": levels.iter().map(level).collect::<Vec<Value>>() }))
}
