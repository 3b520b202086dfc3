//! `layer freeze`.

use std::path::Path;
use std::process::ExitCode;

use block::freeze_layer;
use serde_json::json;

use super::shown::shown;
use crate::cmd::print;

/// Shown below the options.
pub(super) const FREEZE_HELP: &str = "\
A layer is frozen when another one is made over it. Frozen before, it can be
shared and exported while no layer stands on it.

Example:
  bulkhead layer freeze vm1.layer";

/// Freezes a layer.
pub(super) fn freeze(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let frozen = freeze_layer(path).map_err(|error| anyhow::anyhow!("{error}"))?;
    let was_frozen = frozen.was_frozen;
    print(&if json {
        let path = path.display().to_string();
        let identity = frozen.identity.to_string();
        let answer = json!({ "path": path, "content": identity, "was_frozen": was_frozen });
        format!("{answer:#}\n")
    } else if was_frozen {
        format!("{}: was frozen already\n", shown(path))
    } else {
        format!("{}: frozen; it is never written again\n", shown(path))
    })?;
    Ok(ExitCode::SUCCESS)
}
