//! The map of a layer in its file: read with the bits of the unflushed map, and written. Control
//! thread only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::file::{buffered, host_error, read_pages};
use super::header::Header;
use super::map::LayerMap;
use super::unflushed;
use super::unit::{BLOCK, BLOCK_BYTES};
use crate::OpenError;
use crate::page::PageBuffer;

/// Refuses a layer whose file does not have what its header tells of.
///
/// # Errors
///
/// The host's error, or the file is a device or too short.
pub(super) fn require_length(file: &File, path: &Path, header: &Header) -> Result<(), OpenError> {
    let metadata = file.metadata().map_err(host_error(path, "query it"))?;
    if !metadata.is_file() {
        let why = "a layer is a regular file, not a device; copy it to one";
        return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
    }
    let size = metadata.len();
    if size < header.data_at() + header.size {
        let why = format!(
            "it was truncated: it has {size} bytes, not {}; restore it from a backup",
            header.data_at() + header.size
        );
        return Err(OpenError::Unsuitable { path: path.into(), why });
    }
    Ok(())
}

/// Reads the map of a layer.
///
/// # Errors
///
/// The host's error, or the map or the file does not fit the header.
pub(super) fn read_map(file: &File, path: &Path, header: &Header) -> Result<LayerMap, OpenError> {
    let file = buffered(file).map_err(host_error(path, "open it again"))?;
    require_length(&file, path, header)?;
    let map = load_map(&file, path, header)?;
    let (beyond, end) = (header.size / BLOCK, header.size_max() / BLOCK);
    if beyond < end && map.run(beyond, end) != (false, end) {
        let why = "its map is damaged: it has blocks beyond the end of the disk; restore it from \
                   a backup";
        return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
    }
    Ok(map)
}

/// Reads the bits of a map, whatever they are, with those of the unflushed map. The map is dirty
/// where the file has bits in that one only.
///
/// # Errors
///
/// The host's error.
pub(super) fn load_map(file: &File, path: &Path, header: &Header) -> Result<LayerMap, OpenError> {
    let map = LayerMap::new(header.map_pages());
    read_pages(file, path, header, Header::map_at(), |page, bytes| map.load(page, bytes))?;
    unflushed::add_bits(file, path, header, &map)?;
    Ok(map)
}

/// Writes the dirty pages of a map, of which `file` has the data durably, and makes them durable.
///
/// # Errors
///
/// The host's error.
pub(super) fn write_map(file: &File, map: &LayerMap) -> io::Result<()> {
    let mut page = PageBuffer::zeroed(BLOCK_BYTES);
    let mut next = 0;
    while let Some(dirty) = map.next_dirty(next) {
        map.clean(dirty);
        map.store(dirty, page.as_mut_slice());
        file.write_all_at(page.as_slice(), Header::map_at() + dirty as u64 * BLOCK)?;
        next = dirty + 1;
    }
    if next == 0 { Ok(()) } else { file.sync_data() }
}

/// Whether the file has bits that count, and that its map lacks.
///
/// # Errors
///
/// The host's error, or the map is damaged.
pub(super) fn is_unsettled(file: &File, path: &Path, header: &Header) -> Result<bool, OpenError> {
    Ok(unsettled(file, path, header)?.is_some())
}

/// The map of a layer whose file has bits that count and that its map lacks.
fn unsettled(file: &File, path: &Path, header: &Header) -> Result<Option<LayerMap>, OpenError> {
    if unflushed::bits_that_count(file, path, header)?.is_none() {
        return Ok(None);
    }
    Ok(Some(read_map(file, path, header)?).filter(LayerMap::has_dirty))
}

/// Moves the bits that count to the map of a layer that is locked, and makes it durable, so that no
/// unflushed map is needed to read it.
///
/// # Errors
///
/// The host's error, or the map is damaged.
pub(super) fn settle(file: &File, path: &Path, header: &Header) -> Result<(), OpenError> {
    let reader = buffered(file).map_err(host_error(path, "open it again"))?;
    let Some(map) = unsettled(&reader, path, header)? else { return Ok(()) };
    let settled = file.sync_data().and_then(|()| write_map(file, &map));
    settled.map_err(host_error(path, "move its unflushed map to its map"))
}
