//! The file of a machine, from its path to a checked configuration.

use std::path::Path;

use super::host::{Host, Purpose, check_limits};
use super::model::MachineConfig;
use super::report::{Diagnostic, Report};
use super::source::MachineSource;
use super::text::ConfigText;
use super::{build, parse};

/// Reads, parses and checks the file at `path` against this host.
///
/// # Errors
///
/// The report of every problem found. Warnings alone are no error and go to the log.
pub(crate) fn load(path: &Path) -> Result<MachineConfig, Report> {
    match check_against_host(path, Purpose::Start) {
        (Some(config), report) => {
            report.log_warnings();
            Ok(config)
        }
        (None, report) => Err(report),
    }
}

/// The machine, unless there is an error, and the report on its file.
pub(crate) fn inspect(path: &Path) -> (Option<MachineConfig>, Report) {
    check_against_host(path, Purpose::Report)
}

fn check_against_host(path: &Path, purpose: Purpose) -> (Option<MachineConfig>, Report) {
    match ConfigText::read(path) {
        Ok(file) if parse::is_disk_file(&file.text) => {
            let help = "serve it to another monitor with `bulkhead serve`, or write `[machine]` \
                        and `[[disk]]`";
            let diagnostic = Diagnostic::error("this file describes a disk, not a machine");
            let diagnostic = diagnostic.in_file().help(help);
            (None, Report::new(file.name, file.text, vec![diagnostic]))
        }
        Ok(file) => inspect_text(file, &Host::probe(), purpose),
        Err(report) => (None, report),
    }
}

fn inspect_text(
    file: ConfigText<'_>,
    host: &Host,
    purpose: Purpose,
) -> (Option<MachineConfig>, Report) {
    let (source, mut diagnostics) = parse::parse_machine(&file.text, file.folder);
    if let Some(source) = &source {
        host.check(source, purpose, &mut diagnostics);
    }
    let config = source.and_then(build::machine);
    let needs = config.as_ref().map(|config| host.engines.machine(config));
    diagnostics.extend(needs.into_iter().flat_map(|needs| check_limits(needs, &host.limits)));
    let report = Report::new(file.name, file.text, diagnostics);
    (config.filter(|_| !report.has_errors()), report)
}

/// The tables of the file and its text, without checks against the host: the machine may already
/// run.
///
/// # Errors
///
/// The report of every problem in the text.
pub(super) fn parsed(path: &Path) -> Result<(MachineSource, String), Report> {
    let file = ConfigText::read(path)?;
    let (source, diagnostics) = parse::parse_machine(&file.text, file.folder);
    let report = Report::new(file.name, file.text.clone(), diagnostics);
    match source {
        Some(source) if !report.has_errors() => Ok((source, file.text)),
        _ => Err(report),
    }
}
