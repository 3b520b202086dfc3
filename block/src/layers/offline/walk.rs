//! The files below a layer, by the headers alone: without a map, a lock or a write. May block.

use std::path::Path;

use super::super::file::{base_path, host_error, read_header};
use super::super::header::Header;
use super::super::identity::{BaseIdentity, BaseKind};
use super::super::info::{level_paths, open};
use super::super::open::{LEVELS_MAX, missing, require_unchanged, too_long};
use crate::{FileIdentity, OpenError};

/// Whether the file at `path`, or one below it if it is a layer, is `file`.
pub(super) fn leads_to(path: &Path, file: FileIdentity) -> bool {
    level_paths(path).iter().any(|path| FileIdentity::at(path).is_ok_and(|found| found == file))
}

/// Refuses a layer of which a base is missing or has changed.
///
/// # Errors
///
/// There is one; or the host's error.
pub(in super::super) fn require_unchanged_below(
    path: &Path,
    header: &Header,
) -> Result<(), OpenError> {
    let (mut layer, mut header) = (path.to_owned(), header.clone());
    for _ in 1..LEVELS_MAX {
        let base = base_path(&layer, &header);
        if !base.exists() {
            return Err(missing(&layer, &base));
        }
        let file = open(&base)?;
        let (found, below) = if header.base.kind == BaseKind::Layer {
            let below = read_header(&file, &base)?;
            (below.identity(), Some(below))
        } else {
            (BaseIdentity::of_raw(&file).map_err(host_error(&base, "read it"))?, None)
        };
        require_unchanged(&layer, &header, &base, &found, below.as_ref())?;
        let Some(below) = below else { return Ok(()) };
        (layer, header) = (base, below);
    }
    Err(too_long(path))
}
