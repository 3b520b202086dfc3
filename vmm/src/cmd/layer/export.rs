//! `layer export`.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;

use block::{ExportedStream, LayerExport};
use serde_json::json;

use super::shown::{STANDARD, shown};
use crate::cmd::print;
use crate::cmd::progress::ProgressLine;
use crate::config::human_size;
use crate::exit::Exit;
use crate::log;

/// Examples of the command.
pub(super) const EXPORT_HELP: &str = "\
A stream has what the layer changed, and is applied over a copy of its base. No
machine can write the layer meanwhile.

Examples:
  bulkhead layer export vm1.layer vm1.stream
  bulkhead layer export --from debian.img vm2.layer vm2.stream
  bulkhead layer export vm1.layer - | ssh host \\
    bulkhead layer import --base debian.img - vm1.layer";

/// Writes what a layer has changed, to a new file or to standard output.
pub(super) fn export(
    path: &Path,
    from: Option<&Path>,
    out: &Path,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let is_standard = out == Path::new(STANDARD);
    if is_standard && (json || io::stdout().is_terminal()) {
        let why = if json { "`--json` does" } else { "it is a terminal" };
        log::print(format_args!(
            "error: the stream cannot go to standard output as {why}; name a new file, or redirect it",
        ));
        return Ok(Exit::BadConfig.into());
    }
    let source = LayerExport::open(path, from).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut line = ProgressLine::new("exporting", source.size());
    let progress = |bytes| line.advance(bytes);
    let exported = if is_standard {
        source.to_writer(io::stdout().lock(), Path::new("standard output"), progress)
    } else {
        source.to_file(out, progress)
    };
    let exported = exported.map_err(|error| anyhow::anyhow!("{error}"))?;
    drop(line);
    if !is_standard {
        print(&summary(path, source.base(), out, &exported, json))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(path: &Path, base: &Path, out: &Path, exported: &ExportedStream, json: bool) -> String {
    let ExportedStream { uuid, size, changed, data } = exported;
    if json {
        let [path, base, out] = [path, base, out].map(|path| path.display().to_string());
        let answer = json!({
            "path": path,
            "base": base,
            "stream": out,
            "uuid": uuid.to_string(),
            "size_bytes": size,
            "changed_bytes": changed,
            "data_bytes": data,
        });
        return format!("{answer:#}\n");
    }
    format!(
        "{}: {} that {} changed over {}, {} of it data\n",
        shown(out),
        human_size(*changed),
        shown(path),
        shown(base),
        human_size(*data)
    )
}
