//! The log of a recorded disk: whether it can be made.

use std::fs::FileType;

use super::file::{NamedFile, check_creatable};
use crate::config::report::Diagnostic;
use crate::config::source::DiskTable;

/// Whether the log is a new or an empty file. A start checks it again, when it has locked it.
pub(super) fn check_log(disk: &DiskTable) -> Option<Diagnostic> {
    let (path, span) = (disk.record.as_deref()?, disk.keys.span("record")?);
    let log = NamedFile { purpose: "log", path, span, create: None };
    let metadata = path.metadata().ok();
    if metadata.as_ref().is_some_and(|found| found.is_file() && found.len() > 0) {
        let error = log.error("is not empty", "a recording starts a new log");
        return Some(error.help("name a file that does not exist"));
    }
    // A link to a file is followed, as a start does.
    let is_file = metadata.is_some_and(|found| found.is_file());
    check_creatable(&log, "not a regular file", |kind: &FileType| kind.is_file() || is_file)
}
