//! The program under test and the folder of its build.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Path of the program under test: `BULKHEAD_BIN`, else `make build` of this tree.
pub fn bulkhead_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BULKHEAD_BIN") {
        return Ok(path.into());
    }
    let status = Command::new("make")
        .args(["--silent", "build"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .status()
        .context("running make")?;
    ensure!(status.success(), "`make build` failed");
    Ok(target_folder().join("release/bulkhead"))
}

/// Cargo's target folder.
pub(super) fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
}
