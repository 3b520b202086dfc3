//! The configuration of one disk to be served: `[disk]` with the keys of a machine's disks, and `[control]`.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::parse::{self, BusKind, Disk, DiskSource};
use super::report::Diagnostic;
use super::{DiskConfig, Report, explain, host, read};

/// A disk which this host can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFile {
    pub(crate) disk: DiskConfig,
    /// The socket it is controlled by.
    pub(crate) control: Option<PathBuf>,
}

impl DiskFile {
    /// What the disk promises, in plain words.
    pub(crate) fn promises(&self) -> String {
        explain::paragraph(&self.disk)
    }
}

/// Reads, parses and checks the configuration at `path` against this host.
///
/// # Errors
///
/// The report of every problem found. Warnings alone are no error and go to the log.
pub(crate) fn load(path: &Path) -> Result<DiskFile, Report> {
    let name = path.display().to_string();
    let text = read(path)
        .map_err(|diagnostic| Report::new(name.clone(), String::new(), vec![diagnostic]))?;
    match inspect(name, text, path.parent().unwrap_or(Path::new(""))) {
        (Some(disk), report) => {
            report.log_warnings();
            Ok(disk)
        }
        (None, report) => Err(report),
    }
}

/// The file at `path` as its text alone has it, of a disk that may be served already; `None` where it is not about a disk.
pub(super) fn parsed(path: &Path) -> Option<Result<DiskFile, Report>> {
    let text = read(path).ok().filter(|text| parse::is_disk(text))?;
    let (source, diagnostics) = parse::parse_disk(&text, path.parent().unwrap_or(Path::new("")));
    let (built, report) = built(path.display().to_string(), text, source, diagnostics);
    Some(built.ok_or(report))
}

/// The disk, where there is no error, and all that is to be said about it.
pub(super) fn inspect(name: String, text: String, folder: &Path) -> (Option<DiskFile>, Report) {
    let (source, mut diagnostics) = parse::parse_disk(&text, folder);
    if let Some(DiskSource { disk, control }) = &source {
        diagnostics.extend(disk.as_ref().and_then(host::check_disk));
        diagnostics.extend(disk.as_ref().and_then(only_virtio_blk));
        diagnostics.extend(control.as_ref().and_then(host::check_control));
    }
    built(name, text, source, diagnostics)
}

/// Other monitors are served one disk, not a controller of disks.
fn only_virtio_blk(disk: &Disk) -> Option<Diagnostic> {
    (disk.bus != BusKind::VirtioBlk).then(|| {
        Diagnostic::error("a disk is served to other monitors on virtio-blk only")
            .at(disk.header.clone(), "is on virtio-scsi")
            .help("leave `bus` out")
    })
}

fn built(
    name: String,
    text: String,
    source: Option<DiskSource>,
    diagnostics: Vec<Diagnostic>,
) -> (Option<DiskFile>, Report) {
    let report = Report::new(name, text, diagnostics);
    let built = source.filter(|_| !report.has_errors()).and_then(|DiskSource { disk, control }| {
        Some(DiskFile { disk: disk?.build_alone()?, control: control.map(Spanned::into_inner) })
    });
    (built, report)
}
