//! Ephemeral disks: whether one can be made over its base.

use std::io;
use std::path::Path;

use block::{EphemeralPlace, probe_base, shell_path};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::file::NamedFile;
use super::purpose::Purpose;
use crate::config::report::Diagnostic;
use crate::config::source::DiskTable;

/// Checks the base, and the folder of the changes. A start reads no file that it has not locked, so
/// that it checks the base when it opens the disk.
pub(super) fn check_ephemeral(
    disk: &DiskTable,
    place: &EphemeralPlace,
    base: &Path,
    purpose: Purpose,
) -> Option<Diagnostic> {
    let span = disk.keys.span("base")?;
    let base = NamedFile { purpose: "base", path: base, span, create: None };
    if let Err(missing) = base.open() {
        return Some(missing);
    }
    let unsuitable = || {
        let error = probe_base(base.path).err()?;
        let error = base.error("cannot have an ephemeral disk over it", error.to_string());
        Some(error.help("name another base"))
    };
    let folder = match place {
        EphemeralPlace::Memory => None,
        EphemeralPlace::Folder(folder) => check_folder(disk, folder),
    };
    folder.or_else(|| if purpose == Purpose::Report { unsuitable() } else { None })
}

fn check_folder(disk: &DiskTable, folder: &Path) -> Option<Diagnostic> {
    let span = disk.keys.span("ephemeral")?;
    let path = folder.display();
    if !folder.is_dir() {
        let error = Diagnostic::error(format!("`{path}` is no folder for the changes of a disk"));
        let error = error.at(span, "not a folder");
        return Some(error.help("name a folder that exists, or write `ephemeral = true`"));
    }
    let access = Access::WRITE_OK | Access::EXEC_OK;
    let errno = accessat(CWD, folder, access, AtFlags::EACCESS).err()?;
    let error = Diagnostic::error(format!("no permission to make a file in `{path}`"));
    let help = format!("see `ls -l {}`, and grant yourself write permission", shell_path(folder));
    Some(error.at(span, io::Error::from(errno).to_string()).help(help))
}
