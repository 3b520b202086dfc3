//! Makes a new layer over a base. Control thread only.

use std::path::Path;

use super::claim::{ClaimedBase, path_from};
use super::file::host_error;
use super::header::Header;
use super::info::probe_base;
use super::new_file::NewFile;
use super::unit::BLOCK;
use super::uuid::Uuid;
use crate::OpenError;

/// A layer that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedLayer {
    /// Its identity.
    pub uuid: Uuid,
    /// Size of its disk in bytes.
    pub size: u64,
}

/// Makes a layer at `path` over `base`, of `size` bytes or as large as the base. A base that is a
/// layer is frozen: it is never written again. The layer is made under another name beside `path`
/// and has its name when it is complete.
///
/// # Errors
///
/// `path` exists; the base is in use by a writer, has another format, or cannot be read; or the
/// host's error.
pub fn create_layer(
    path: &Path,
    base: &Path,
    size: Option<u64>,
) -> Result<CreatedLayer, OpenError> {
    let unsuitable = |why: String| OpenError::Unsuitable { path: path.into(), why };
    if path.symlink_metadata().is_ok() {
        return Err(unsuitable("it exists already; a layer is never made over a file".to_owned()));
    }
    let smallest = probe_base(base)?;
    let claimed = ClaimedBase::open(base)?;
    let identity = claimed.identity();
    let size = size.unwrap_or(smallest);
    if !size.is_multiple_of(BLOCK) {
        return Err(unsuitable(format!("{size} bytes is not a multiple of {BLOCK} bytes")));
    }
    if size < smallest {
        let why = format!("{size} bytes is less than the base has, and would cut its end off");
        return Err(unsuitable(why));
    }
    let uuid = Uuid::random().map_err(host_error(path, "make its identity"))?;
    let header = Header::new(uuid, size, identity, &path_from(path, base));
    if size > header.size_max() {
        let most = header.size_max();
        return Err(unsuitable(format!("{size} bytes is more than a layer can have, {most}")));
    }
    let new = NewFile::write(path, &header)?;
    // The last step that can fail for a reason of the user has passed.
    claimed.freeze(base)?;
    new.link(path)?;
    Ok(CreatedLayer { uuid, size })
}
