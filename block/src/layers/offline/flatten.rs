//! `layer flatten`: a raw image with all that a layer reads.

use std::path::Path;

use super::super::file::host_error;
use super::super::new_file::NewFile;
use super::chain::LockedChain;
use super::copy::{Copier, OnProgress};
use super::target::Target;
use crate::OpenError;

/// A raw image that was made of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlattenedImage {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that were read from the layer and those below it.
    pub copied: u64,
}

/// Makes a raw image at `image` with what the layer at `path` reads. Zeroes take no space. The
/// image has its name when it is complete.
///
/// # Errors
///
/// `image` exists; the layer or one below it is in use by a writer, missing, or has changed; or the
/// host's error.
pub fn flatten_layer(
    path: &Path,
    image: &Path,
    on_progress: OnProgress<'_>,
) -> Result<FlattenedImage, OpenError> {
    if image.symlink_metadata().is_ok() {
        let why = "it exists already; an image is never made over a file".to_owned();
        return Err(OpenError::Unsuitable { path: image.into(), why });
    }
    let (header, chain) = LockedChain::open(path)?;
    let size = header.size;
    let new = NewFile::at(image, size)?;
    let mut target = Target::new(new.file(), image, 0, size);
    target.is_new = true;
    let mut copier = Copier::new(size, on_progress);
    copier.copy(&chain, 0, size, &mut target)?;
    let copied = copier.copied;
    new.file().sync_all().map_err(host_error(image, "make it durable"))?;
    new.link(image)?;
    Ok(FlattenedImage { size, copied })
}
