//! Log files of scenarios and of the build.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::program::target_folder;

/// The last `lines` lines of a log file, for error messages. Empty if it cannot be read.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Makes an empty folder `target/lab/NAME` for the logs of a scenario.
pub(super) fn fresh_logs(name: &str) -> Result<PathBuf> {
    let logs = target_folder().join("lab").join(name);
    if logs.exists() {
        fs::remove_dir_all(&logs)?;
    }
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    Ok(logs.canonicalize()?)
}
