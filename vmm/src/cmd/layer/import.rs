//! `layer import`.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use block::{ImportedLayer, LayerImport};
use serde_json::json;

use super::shown::{STANDARD, shown};
use crate::cmd::print;
use crate::cmd::progress::ProgressLine;
use crate::config::human_size;
use crate::exit::Exit;
use crate::log;

/// Examples of the command.
pub(super) const IMPORT_HELP: &str = "\
The base has to be a copy of the one that the stream was made over: the same
size and content, or the same frozen layer. Its modification time may differ.
A layer that was frozen is frozen again: make a layer over it.

Examples:
  bulkhead layer import --base debian.img vm1.stream vm1.layer
  ssh host bulkhead layer export vm1.layer - | \\
    bulkhead layer import --base debian.img vm1.layer";

/// Makes a layer from a stream and prints it.
pub(super) fn import(
    stream: Option<&Path>,
    base: &Path,
    path: &Path,
    force: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let file = stream.filter(|stream| *stream != Path::new(STANDARD));
    let Some(file) = file else {
        if io::stdin().is_terminal() {
            let message = "the stream cannot come from a terminal; name its file, or redirect it";
            log::print(format_args!("error: {message}"));
            return Ok(Exit::BadConfig.into());
        }
        let name = Path::new("standard input");
        return import_from(io::stdin().lock(), name, base, path, force, json);
    };
    let input = File::open(file).with_context(|| format!("{}: cannot open it", shown(file)))?;
    import_from(input, file, base, path, force, json)
}

fn import_from(
    input: impl Read,
    name: &Path,
    base: &Path,
    path: &Path,
    force: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let input = io::BufReader::with_capacity(1 << 18, input);
    let stream = LayerImport::open(input, name).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut line = ProgressLine::new("importing", stream.size());
    let imported = stream.to_layer(base, path, force, |bytes| line.advance(bytes));
    let imported = imported.map_err(|error| anyhow::anyhow!("{error}"))?;
    drop(line);
    print(&summary(path, base, &imported, json))?;
    Ok(ExitCode::SUCCESS)
}

fn summary(path: &Path, base: &Path, imported: &ImportedLayer, json: bool) -> String {
    let ImportedLayer { uuid, size, is_frozen, changed, data } = imported;
    if json {
        let answer = json!({
            "path": path.display().to_string(),
            "base": base.display().to_string(),
            "uuid": uuid.to_string(),
            "size_bytes": size,
            "frozen": is_frozen,
            "changed_bytes": changed,
            "data_bytes": data,
        });
        return format!("{answer:#}\n");
    }
    let state = if *is_frozen { ", frozen as the exported one" } else { "" };
    format!(
        "{}: layer of {} over {}, {} changed{state}\n",
        shown(path),
        human_size(*size),
        shown(base),
        human_size(*changed)
    )
}
