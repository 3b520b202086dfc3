//! `layer commit`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use block::{CommitOptions, CommittedLayer, commit_layer};
use serde_json::json;

use super::copying::with_progress;
use super::shown::shown;
use crate::cmd::print;
use crate::config::human_size;

/// Shown below the options.
pub(super) const COMMIT_HELP: &str = "\
The base has then what the layer read, and the layer is empty over it. A base
that is too small grows, if it is a file. Other layers over the base cannot be
used afterwards: those in the folders of both files are found, and the command
is refused. If it is interrupted, the layer stays usable, and the same command
finishes.

Examples:
  bulkhead layer commit vm1.layer
  bulkhead layer commit --remove vm1.layer";

/// Merges a layer into its base.
pub(super) fn commit(path: &Path, options: CommitOptions, json: bool) -> anyhow::Result<ExitCode> {
    let done = with_progress("merging", |progress| commit_layer(path, options, progress))?;
    print(&if json { to_json(path, options, &done) } else { text(path, options, &done) })?;
    Ok(ExitCode::SUCCESS)
}

fn text(path: &Path, options: CommitOptions, done: &CommittedLayer) -> String {
    let CommittedLayer { base, merged, broken } = done;
    let state = if options.remove { "it is removed" } else { "it is without changes now" };
    let (path, merged, base) = (shown(path), human_size(*merged), shown(base));
    let mut text = format!("{path}: {merged} merged into {base}; {state}\n");
    for layer in broken {
        text += &format!("{}: cannot be used now, as its base has changed\n", shown(layer));
    }
    text
}

fn to_json(path: &Path, options: CommitOptions, done: &CommittedLayer) -> String {
    let CommittedLayer { base, merged, broken } = done;
    let shown = |path: &Path| path.display().to_string();
    let answer = json!({
        "path": shown(path),
        "base": shown(base),
        "merged_bytes": merged,
        "removed": options.remove,
        "unusable": broken.iter().map(PathBuf::as_path).map(shown).collect::<Vec<_>>(),
    });
    format!("{answer:#}\n")
}
