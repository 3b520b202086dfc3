//! The log of a recorded disk: whether it can be made.

use std::fs::{FileType, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::file::{NamedFile, check_creatable};
use crate::config::report::Diagnostic;
use crate::config::source::DiskTable;

/// Whether the log is a new or an empty file. A start checks it again, when it has locked it.
pub(super) fn check_log(disk: &DiskTable) -> Option<Diagnostic> {
    let (path, span) = (disk.record.as_deref()?, disk.keys.span("record")?);
    let log = NamedFile { purpose: "log", path, span: span.clone(), create: None };
    let metadata = path.metadata().ok();
    if let Some(own) = own_file(disk, path, metadata.as_ref()) {
        let what = format!("`record` and `{own}` name the same file");
        return Some(
            Diagnostic::error(what)
                .at(span, "the log is a file of its own")
                .related(disk.keys.span(own)?, "has the data of the disk")
                .help("name a file that does not exist"),
        );
    }
    if metadata.as_ref().is_some_and(|found| found.is_file() && found.len() > 0) {
        let error = log.error("is not empty", "a recording starts a new log");
        return Some(error.help("name a file that does not exist"));
    }
    // A link to a file is followed, as a start does.
    let is_file = metadata.is_some_and(|found| found.is_file());
    check_creatable(&log, "not a regular file", |kind: &FileType| kind.is_file() || is_file)
}

/// The key of the disk that names the file of the log as well.
fn own_file(disk: &DiskTable, log: &Path, found: Option<&Metadata>) -> Option<&'static str> {
    let identity = |found: &Metadata| (found.dev(), found.ino());
    let is_log = |path: &Path| match found {
        Some(found) => path.metadata().is_ok_and(|other| identity(&other) == identity(found)),
        // It is to be made.
        None => path == log,
    };
    let base = disk.base.as_deref().map(|path| ("base", path));
    let mut files = [("path", disk.path.as_path())].into_iter().chain(base);
    files.find_map(|(key, path)| is_log(path).then_some(key))
}
