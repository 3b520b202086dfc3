//! The file of a layer: its header, and the pages of its maps. Control thread only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::header::{Header, HeaderError, SLOT, SLOTS};
use super::unit::{BLOCK, BLOCK_BYTES};
use crate::allocation::Extents;
use crate::host_file::{reopen, without_access_times};
use crate::page::PageBuffer;
use crate::{ByteOffset, ByteRange, Extent, OpenError};

/// Reads the header of an open file.
///
/// # Errors
///
/// The file is no layer, or cannot be read.
pub(super) fn read_header(file: &File, path: &Path) -> Result<Header, OpenError> {
    let file = buffered(file).map_err(host_error(path, "open it again"))?;
    let mut slots = [0; SLOT * SLOTS];
    let mut read = 0;
    while let Some(rest) = slots.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, read as u64).map_err(host_error(path, "read its header"))? {
            0 => break,
            bytes => read += bytes,
        }
    }
    Header::decode(&slots).map_err(|error| unsuitable(path, &error))
}

/// Writes the header and makes it durable.
///
/// # Errors
///
/// The host's error, or the header has a field that cannot be written.
pub(super) fn write_header(file: &File, header: &Header) -> io::Result<()> {
    let slot = header.encode().map_err(io::Error::other)?;
    let mut page = PageBuffer::zeroed(SLOT);
    page.as_mut_slice().copy_from_slice(&slot);
    file.write_all_at(page.as_slice(), header.slot_at())?;
    file.sync_data()
}

/// Calls `use_page` with each page that is not zero of the map at `start` in the file, and its
/// index.
///
/// # Errors
///
/// The host's error.
pub(super) fn read_pages(
    file: &File,
    path: &Path,
    header: &Header,
    start: u64,
    mut use_page: impl FnMut(usize, &[u8]),
) -> Result<(), OpenError> {
    let mut bytes = [0; BLOCK_BYTES];
    for extent in Extents::new(file, start, start + header.map_bytes) {
        let Extent { range, data } =
            extent.map_err(host_error(path, "find the data of its map"))?;
        for page in pages_of(range, start).filter(|_| data) {
            let at = start + page as u64 * BLOCK;
            file.read_exact_at(&mut bytes, at).map_err(host_error(path, "read its map"))?;
            if bytes.iter().any(|byte| *byte != 0) {
                use_page(page, &bytes);
            }
        }
    }
    Ok(())
}

/// The pages of the map at `start` that a range of the file touches.
fn pages_of(range: ByteRange, start: u64) -> std::ops::Range<usize> {
    let ByteRange { start: ByteOffset(first), len } = range;
    let page = |at: u64| usize::try_from((at - start) / BLOCK).unwrap_or(usize::MAX);
    page(first)..page(first + len - 1) + 1
}

/// The path of a layer's base.
pub(super) fn base_path(layer: &Path, header: &Header) -> PathBuf {
    // A link to the layer may be in another folder.
    let layer = layer.canonicalize().unwrap_or_else(|_| layer.to_owned());
    layer.parent().map_or_else(|| header.base_path.clone(), |parent| parent.join(&header.base_path))
}

/// Another description of the file, through the page cache, which needs no alignment.
pub(super) fn buffered(file: &File) -> io::Result<File> {
    Ok(without_access_times(reopen(file, OFlags::RDONLY | OFlags::CLOEXEC)?))
}

pub(super) fn host_error(path: &Path, what: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Host { path: path.into(), what, source }
}

pub(super) fn unsuitable(path: &Path, error: &HeaderError) -> OpenError {
    OpenError::Unsuitable { path: path.into(), why: error.to_string() }
}
