//! The configuration: from a TOML file to values that work on this host.
//!
//! A file passes [`parse`] (its text), [`rules`] (consistency of its tables) and [`host`]
//! (support by this host). Each adds diagnostics to one [`Report`], then [`build`] fills in the
//! defaults. Only [`host`] and [`text`] access anything outside the text.

pub(crate) mod attached;
mod build;
pub(crate) mod disk_file;
mod disk_keys;
mod ephemeral;
mod host;
mod limits;
pub(crate) mod machine_file;
mod model;
pub(crate) mod needs;
mod parse;
mod record_in;
mod report;
mod rules;
mod scsi;
mod size;
mod source;
mod syntax;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod value;

use std::path::{Path, PathBuf};

pub(crate) use disk_keys::to_json as disk_to_json;
pub(crate) use host::{KernelFormat, SharedFile, image_size, kernel_format_of, shared_file};
pub(crate) use model::{
    ConsoleConfig, ControllerConfig, DiskBus, DiskConfig, EphemeralChanges, KernelConfig,
    MachineConfig, NetConfig, ScsiAddress,
};
pub(crate) use record_in::control_socket_in;
use report::Diagnostic;
pub(crate) use report::Report;
pub(crate) use size::{human_size, parse_size};
pub(crate) use value::display_mac;

/// The control socket in the file at `path`, of a machine or a served disk. Not checked against the
/// host: the machine may already run.
///
/// # Errors
///
/// The report of every problem in the text.
pub(crate) fn control_socket(path: &Path) -> Result<Option<PathBuf>, Report> {
    if let Some(file) = disk_file::parsed(path) {
        return file.map(|file| file.control);
    }
    let (source, _) = machine_file::parsed(path)?;
    Ok(source.control.map(toml::Spanned::into_inner))
}

/// The disk `id` in the file at `path`, of a machine or a served disk. Not checked against the
/// host: the machine may already run.
///
/// # Errors
///
/// The report of every problem in the text, or of the missing disk.
pub(crate) fn disk(path: &Path, id: &str) -> Result<DiskConfig, Report> {
    let (disks, text) = match disk_file::parsed(path) {
        Some(file) => (vec![file?.disk], String::new()),
        None => {
            let (source, text) = machine_file::parsed(path)?;
            (build::machine(source).map(|machine| machine.disks).unwrap_or_default(), text)
        }
    };
    let ids: Vec<_> = disks.iter().map(|disk| format!("`{}`", disk.id())).collect();
    let help = match ids.as_slice() {
        [] => "the file describes no disk".to_owned(),
        ids => format!("its disks are {}", ids.join(", ")),
    };
    let report = |message: &str, help: String| {
        let error = Diagnostic::error(message).in_file().help(help);
        Report::new(path.display().to_string(), text, vec![error])
    };
    match disks.into_iter().find(|disk| disk.id() == id) {
        None => Err(report(&format!("there is no disk `{id}`"), help)),
        Some(disk) if disk.ephemeral.is_some() => Err(report(
            &format!("the disk `{id}` is ephemeral: it exists only while the machine runs"),
            format!("name its base, `{}`", disk.file().display()),
        )),
        Some(disk) => Ok(disk),
    }
}
