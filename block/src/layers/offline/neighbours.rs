//! The layers that a change of a base would break, as far as they are in given folders. May block.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::super::file::host_error;
use super::super::identity::BaseIdentity;
use super::super::info::header_at;
use super::super::new_file::{HIDDEN_END, folder};
use super::walk::leads_to;
use crate::{FileIdentity, OpenError};

/// The layers other than `top` that stand on `base`, in the folders of `top` and of `base`, apart
/// from those that stand on `top`. One with the identity that `top` has recorded stands on the base
/// too, if its own path of the base is outdated.
pub(in super::super) fn neighbours(
    top: &Path,
    recorded: &BaseIdentity,
    base: &Path,
) -> Vec<PathBuf> {
    let Ok(own) = FileIdentity::at(top) else { return Vec::new() };
    let mut found = standing_on(base, recorded, &[folder(top)]);
    found.retain(|path| FileIdentity::at(path).is_ok_and(|found| found != own));
    found.retain(|path| !leads_to(path, own));
    found
}

/// Fails unless [`neighbours`] can see all layers in the folders of both files.
///
/// # Errors
///
/// The host's error, or `top` is not there.
pub(super) fn require_searchable(top: &Path, base: &Path) -> Result<(), OpenError> {
    FileIdentity::at(top).map_err(host_error(top, "find it"))?;
    for folder in [folder(top), folder(base)] {
        let search = host_error(folder, "search it for layers");
        for entry in folder.read_dir().map_err(&search)? {
            let path = entry.map_err(&search)?.path();
            if path.is_file() && !is_hidden(&path) {
                File::open(&path).map_err(host_error(&path, "see whether it is a layer"))?;
            }
        }
    }
    Ok(())
}

/// The layers that stand on `base`, or on one with this identity, in its folder and in others.
pub(super) fn standing_on(base: &Path, recorded: &BaseIdentity, others: &[&Path]) -> Vec<PathBuf> {
    let Ok(changed) = FileIdentity::at(base) else { return Vec::new() };
    // A link to the base may be in another folder.
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    let mut folders = others.to_vec();
    folders.push(folder(&base));
    folders.dedup_by_key(|folder| folder.canonicalize().ok());
    let mut found: Vec<_> = folders
        .into_iter()
        .filter_map(|folder| folder.read_dir().ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path))
        .filter(|path| !is_hidden(path) && path.is_file())
        .filter(|path| FileIdentity::at(path).is_ok_and(|found| found != changed))
        .filter(|path| {
            header_at(path).is_ok_and(|header| header.base == *recorded || leads_to(path, changed))
        })
        .collect();
    found.sort();
    found
}

/// Whether it is a file that a killed program left while it replaced a layer.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(HIDDEN_END.as_bytes()))
}
