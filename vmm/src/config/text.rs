//! Reads a configuration file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::report::{Diagnostic, Report};

/// Larger than any configuration, so that reading `/dev/zero` ends.
const FILE_MAX: u64 = 1 << 20;

/// A configuration file as read.
pub(super) struct ConfigText<'p> {
    /// The name in messages.
    pub(super) name: String,
    pub(super) text: String,
    /// Relative paths start here.
    pub(super) folder: &'p Path,
}

impl<'p> ConfigText<'p> {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// The report of an unreadable file.
    pub(super) fn read(path: &'p Path) -> Result<Self, Report> {
        let name = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new(""));
        match read(path) {
            Ok(text) => Ok(Self { name, text, folder }),
            Err(diagnostic) => Err(Report::new(name, String::new(), vec![diagnostic])),
        }
    }
}

fn read(path: &Path) -> Result<String, Diagnostic> {
    let cannot =
        |why: String| Diagnostic::error(format!("cannot read the configuration: {why}")).in_file();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => cannot("no such file".to_owned()),
        io::ErrorKind::IsADirectory => {
            cannot("it is a directory".to_owned()).help("name a .toml file in it")
        }
        _ => cannot(error.to_string()),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_MAX) {
        return Err(cannot("it is larger than 1 MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        cannot(format!("invalid UTF-8 at byte {offset}")).help("save the file as UTF-8 text")
    })
}
