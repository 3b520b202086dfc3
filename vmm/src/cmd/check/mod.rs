//! `bulkhead check`: shows the machine or disk of a file, or the errors of the file.

mod json;
mod summary;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::explain;
use crate::config::{disk_file, machine_file};
use crate::exit::Exit;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A line for each part.
    Summary,
    /// The summary, and the durability of each disk.
    Explained,
    /// JSON, for programs.
    Json,
}

/// Checks the file at `path` and prints the result. An error in the file is no error here: it is
/// part of the result, and of the exit code.
///
/// # Errors
///
/// Standard output cannot be written.
pub(crate) fn check(path: &Path, form: Form) -> io::Result<ExitCode> {
    let (report, text) = match disk_file::inspect(path) {
        Some((disk, report)) => {
            let text = match (form, &disk) {
                (Form::Json, disk) => json::disk_file(disk.as_ref(), &report),
                (_, None) => String::new(),
                (Form::Summary, Some(disk)) => summary::disk_file(path, disk),
                (Form::Explained, Some(disk)) => {
                    summary::disk_file(path, disk) + &explain::disk(&disk.disk)
                }
            };
            (report, text)
        }
        None => {
            let (machine, report) = machine_file::inspect(path);
            let text = match (form, &machine) {
                (Form::Json, machine) => json::machine_file(machine.as_ref(), &report),
                (_, None) => String::new(),
                (Form::Summary, Some(machine)) => summary::machine(path, machine),
                (Form::Explained, Some(machine)) => {
                    summary::machine(path, machine) + &explain::machine(machine)
                }
            };
            (report, text)
        }
    };
    if form != Form::Json {
        report.print();
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(if report.has_errors() { Exit::BadConfig.into() } else { ExitCode::SUCCESS })
}
