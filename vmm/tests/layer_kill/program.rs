//! Runs of the built program, and folders for them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn bulkhead(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.current_dir(folder);
    command
}

/// Runs `bulkhead layer`.
pub(crate) fn layer(folder: &Path, arguments: &[&str]) -> Output {
    bulkhead(folder).arg("layer").args(arguments).output().unwrap()
}

pub(crate) fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = layer(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", error_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn fail(folder: &Path, arguments: &[&str]) -> String {
    let output = layer(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    error_of(&output)
}

pub(crate) fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The levels of a layer as `info` shows them, and whether all is well.
pub(crate) fn info(folder: &Path, name: &str) -> (Vec<Value>, bool) {
    let output = layer(folder, &["info", "--json", name]);
    let parsed = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
    (parsed["levels"].as_array().cloned().unwrap_or_default(), output.status.success())
}

/// A copy with the same modification times.
pub(crate) fn copy_of(origin: &Path) -> TempDir {
    let folder = tempfile::tempdir_in(fixtures::scratch()).unwrap();
    let from = origin.join(".");
    let status = Command::new("cp").args(["-a"]).arg(from).arg(folder.path()).status();
    assert!(status.unwrap().success());
    folder
}

pub(crate) fn names(folder: &Path) -> BTreeSet<String> {
    let entries = folder.read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
