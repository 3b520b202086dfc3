//! Files and sockets that the configuration names.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use block::shell_path;
use rustix::fs::OFlags;
use toml::Spanned;

use super::missing::{Missing, missing_directory, path_help};
use crate::config::report::{Diagnostic, Span};
use crate::config::source::{ConsoleTable, DiskTable};
use crate::unix_socket;

/// A file that the configuration names.
pub(super) struct NamedFile<'s> {
    /// Its purpose, for messages.
    pub(super) purpose: &'static str,
    pub(super) path: &'s Path,
    pub(super) span: Span,
    /// The size of the image to create if it is missing, as truncate(1) has it.
    pub(super) create: Option<&'static str>,
}

impl<'s> NamedFile<'s> {
    pub(super) fn new(purpose: &'static str, path: &'s Spanned<PathBuf>) -> Self {
        Self { purpose, path: path.get_ref(), span: path.span(), create: None }
    }

    /// Opens the file for reading.
    pub(super) fn open(&self) -> Result<File, Diagnostic> {
        // O_NONBLOCK: opening a FIFO must not wait for its writer.
        let nonblock = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblock).open(self.path);
        let file = file.map_err(|error| self.open_error(&error))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(self.error("is a directory", "a directory").help("name a file in it"));
        }
        Ok(file)
    }

    /// An error whose message is "the PURPOSE `PATH` {problem}".
    pub(super) fn error(&self, problem: &str, label: impl Into<String>) -> Diagnostic {
        let (purpose, path) = (self.purpose, self.path.display());
        Diagnostic::error(format!("the {purpose} `{path}` {problem}")).at(self.span.clone(), label)
    }

    /// The diagnostic for an error of `open(2)` or `read(2)`.
    pub(super) fn open_error(&self, error: &io::Error) -> Diagnostic {
        let Self { purpose, path, span, .. } = self;
        let (path, word) = (path.display(), shell_path(self.path));
        match error.kind() {
            io::ErrorKind::NotFound => {
                let Missing { label, help } = Missing::file(self.path, span, self.create);
                self.error("does not exist", label).help(help)
            }
            io::ErrorKind::PermissionDenied => {
                Diagnostic::error(format!("no permission to read the {purpose} `{path}`"))
                    .at(span.clone(), "permission denied")
                    .help(format!("see `ls -l {word}`, and grant yourself read permission"))
            }
            _ => Diagnostic::error(format!("cannot open the {purpose} `{path}`"))
                .at(span.clone(), error.to_string())
                .help(path_help(self.path, span)),
        }
    }
}

pub(super) fn check_console(console: &ConsoleTable, disks: &[DiskTable]) -> Option<Diagnostic> {
    match console {
        ConsoleTable::Stdio | ConsoleTable::Off => None,
        ConsoleTable::File { path, .. } => {
            let file = NamedFile::new("console file", path);
            let accepts = |kind: &FileType| kind.is_file() || kind.is_char_device();
            is_image(&file, disks).or_else(|| check_creatable(&file, "not a file", accepts))
        }
        ConsoleTable::Socket(path) => check_socket(&NamedFile::new("console socket", path)),
    }
}

/// Console output would overwrite the disk.
fn is_image(file: &NamedFile<'_>, disks: &[DiskTable]) -> Option<Diagnostic> {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let console = identity(file.path)?;
    let base = |disk: &DiskTable| Some((disk.base.clone()?, disk.keys.span("base")?));
    let images =
        disks.iter().filter_map(|disk| disk.image().map(|(path, span)| (path.into(), span)));
    let mut files = images.chain(disks.iter().filter_map(base));
    let is_same = |(path, _): &(PathBuf, Span)| identity(path) == Some(console);
    let (_, image) = files.find(is_same)?;
    let error = file.error("is the image of a disk", "output would overwrite the disk");
    Some(error.related(image, "the image").help("name another file for the console"))
}

pub(in crate::config) fn check_control(path: &Spanned<PathBuf>) -> Option<Diagnostic> {
    let socket = NamedFile::new("control socket", path);
    let in_use = || {
        unix_socket::is_listened_on(socket.path).ok()?;
        let in_use = socket.error("is in use", "another machine listens on it");
        Some(in_use.help("give each machine its own socket, or end the other one"))
    };
    check_socket(&socket).or_else(in_use)
}

fn check_socket(socket: &NamedFile<'_>) -> Option<Diagnostic> {
    check_creatable(socket, "exists and is not a socket", FileTypeExt::is_socket)
}

/// Whether `file` can be created, or an existing file of an accepted type be used.
pub(super) fn check_creatable(
    file: &NamedFile<'_>,
    label: &str,
    accepts: impl FnOnce(&FileType) -> bool,
) -> Option<Diagnostic> {
    let message = format!("cannot create the {} `{}`", file.purpose, file.path.display());
    let error = Diagnostic::error(message);
    if let Some(directory) = missing_directory(file.path) {
        let missing = Missing::directory(file.path, &file.span, directory, true);
        return Some(error.at(file.span.clone(), missing.label).help(missing.help));
    }
    let kind = file.path.symlink_metadata().ok()?.file_type();
    (!accepts(&kind)).then(|| error.at(file.span.clone(), label).help("choose another path"))
}
