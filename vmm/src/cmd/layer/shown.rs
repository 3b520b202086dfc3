//! Names as they are shown on a terminal, and given on the command line. Pure.

use std::path::Path;

use crate::sanitize::sanitize;

/// The name of standard output and of standard input.
pub(super) const STANDARD: &str = "-";

/// A path as it is shown on a terminal.
pub(super) fn shown(path: &Path) -> String {
    sanitize(&path.display().to_string())
}
