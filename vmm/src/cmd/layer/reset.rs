//! `layer reset`.

use std::path::Path;
use std::process::ExitCode;

use block::{ResetLayer, reset_layer};
use serde_json::json;

use super::shown::shown;
use crate::cmd::print;
use crate::config::human_size;

/// Shown below the options.
pub(super) const RESET_HELP: &str = "\
All changes are gone. The layer keeps its size, its base, its owner and its
mode. No machine may use it meanwhile, and no layer stand on it.

Example:
  bulkhead layer reset vm1.layer";

/// Drops the changes that a layer has.
pub(super) fn reset(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let reset = reset_layer(path).map_err(|error| anyhow::anyhow!("{error}"))?;
    let ResetLayer { uuid, size } = reset;
    print(&if json {
        let (path, uuid) = (path.display().to_string(), uuid.to_string());
        format!("{:#}\n", json!({ "path": path, "uuid": uuid, "size_bytes": size }))
    } else {
        format!("{}: {} as its base has them, without changes\n", shown(path), human_size(size))
    })?;
    Ok(ExitCode::SUCCESS)
}
