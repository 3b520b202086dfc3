//! The file of a disk to serve: `[disk]` with the keys of a machine's disks, and `[control]`.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::host::Purpose;
use super::model::DiskConfig;
use super::needs::EnginePolicy;
use super::report::{Diagnostic, Report};
use super::source::{BusKind, DiskFileSource, DiskTable};
use super::text::ConfigText;
use super::{build, host, parse};
use crate::process_limits::ProcessLimits;

/// A disk that this host can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFile {
    pub(crate) disk: DiskConfig,
    /// Path of the control socket.
    pub(crate) control: Option<PathBuf>,
}

/// Reads, parses and checks the file at `path` against this host.
///
/// # Errors
///
/// The report of every problem found. Warnings alone are no error and go to the log.
pub(crate) fn load(path: &Path) -> Result<DiskFile, Report> {
    match inspect_text(ConfigText::read(path)?, Purpose::Start) {
        (Some(file), report) => {
            report.log_warnings();
            Ok(file)
        }
        (None, report) => Err(report),
    }
}

/// The disk, unless there is an error, and the report on its file; `None` for any other file.
pub(crate) fn inspect(path: &Path) -> Option<(Option<DiskFile>, Report)> {
    disk_text(path).map(|file| inspect_text(file, Purpose::Report))
}

/// The disk of the file, without checks against the host: the disk may already be served. `None`
/// for any other file.
pub(super) fn parsed(path: &Path) -> Option<Result<DiskFile, Report>> {
    let file = disk_text(path)?;
    let (source, diagnostics) = parse::parse_disk_file(&file.text, file.folder);
    let (built, report) = build_file(file, source, diagnostics);
    Some(built.ok_or(report))
}

fn disk_text(path: &Path) -> Option<ConfigText<'_>> {
    ConfigText::read(path).ok().filter(|file| parse::is_disk_file(&file.text))
}

fn inspect_text(file: ConfigText<'_>, purpose: Purpose) -> (Option<DiskFile>, Report) {
    let (source, mut diagnostics) = parse::parse_disk_file(&file.text, file.folder);
    if let Some(DiskFileSource { disk, control }) = &source {
        host::check_disks(disk.as_slice(), purpose, &mut diagnostics);
        diagnostics.extend(disk.as_ref().and_then(require_virtio_blk));
        diagnostics.extend(disk.as_ref().and_then(refuse_ephemeral));
        diagnostics
            .extend(control.as_ref().and_then(|path| purpose.check(path, host::check_control)));
        let served = disk.clone().and_then(build::served_disk);
        let policy = EnginePolicy::probe();
        let needs = served.map(|disk| policy.served_disk(&disk, control.is_some()));
        let limits = ProcessLimits::probe();
        diagnostics.extend(needs.into_iter().flat_map(|needs| host::check_limits(needs, &limits)));
    }
    build_file(file, source, diagnostics)
}

/// vhost-user-blk exports one disk, not a SCSI controller.
fn require_virtio_blk(disk: &DiskTable) -> Option<Diagnostic> {
    (disk.bus != BusKind::VirtioBlk).then(|| {
        Diagnostic::error("only a virtio-blk disk can be served to other monitors")
            .at(disk.header.clone(), "is on virtio-scsi")
            .help("remove `bus`")
    })
}

/// A guest of another monitor lives on when the service ends. It would find the disk as it was at
/// the start.
fn refuse_ephemeral(disk: &DiskTable) -> Option<Diagnostic> {
    disk.ephemeral.as_ref()?;
    let ephemeral = disk.keys.span("ephemeral")?;
    Some(
        Diagnostic::error("an ephemeral disk cannot be served to other monitors")
            .at(ephemeral, "its changes end with the service, which the guest may outlive")
            .help("keep them in a layer: remove `ephemeral`, add `path` and `create = true`"),
    )
}

fn build_file(
    file: ConfigText<'_>,
    source: Option<DiskFileSource>,
    diagnostics: Vec<Diagnostic>,
) -> (Option<DiskFile>, Report) {
    let report = Report::new(file.name, file.text, diagnostics);
    let source = source.filter(|_| !report.has_errors());
    let built = source.and_then(|DiskFileSource { disk, control }| {
        let control = control.map(Spanned::into_inner);
        Some(DiskFile { disk: build::served_disk(disk?)?, control })
    });
    (built, report)
}
