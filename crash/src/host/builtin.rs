//! The checks that come with the program: scripts that a check finds by their names.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A script for `/bin/sh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltinCheck {
    /// The command.
    pub name: &'static str,
    /// The text of the script.
    pub script: &'static str,
}

macro_rules! builtin {
    ($name:literal) => {
        BuiltinCheck { name: $name, script: include_str!(concat!("../../checks/", $name)) }
    };
}

/// All of them.
pub const BUILTIN_CHECKS: [BuiltinCheck; 9] = [
    builtin!("check-ext4"),
    builtin!("check-xfs"),
    builtin!("check-btrfs"),
    builtin!("check-files"),
    builtin!("check-sqlite"),
    builtin!("check-postgres"),
    builtin!("check-lmdb"),
    builtin!("check-pattern"),
    builtin!("check-copy"),
];

impl BuiltinCheck {
    /// How it is called, and what it does, from the second line of its script: "NAME: TEXT".
    #[must_use]
    pub fn description(&self) -> (&'static str, &'static str) {
        let line = self.script.lines().nth(1).unwrap_or_default();
        line.trim_start_matches("# ").split_once(": ").unwrap_or_default()
    }
}

/// Writes all of them to a new folder `checks` in `parent`.
///
/// # Errors
///
/// The host's error.
pub(super) fn install(parent: &Path) -> io::Result<PathBuf> {
    let folder = parent.join("checks");
    DirBuilder::new().mode(0o700).create(&folder)?;
    for check in BUILTIN_CHECKS {
        let options = OpenOptions::new().write(true).create_new(true).mode(0o700).to_owned();
        options.open(folder.join(check.name))?.write_all(check.script.as_bytes())?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_described() {
        for check in BUILTIN_CHECKS {
            let (call, text) = check.description();
            assert!(call.starts_with(check.name) && text.len() > 20, "{call}: {text}");
            assert!(check.script.starts_with("#!/bin/sh\n"));
        }
    }
}
