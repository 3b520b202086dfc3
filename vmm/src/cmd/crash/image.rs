//! An image of a state.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crash::CheckedDisk;

use super::interrupt::is_interrupted;
use crate::cmd::progress::ProgressLine;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;
/// Unit of the holes of the image.
const BLOCK: usize = 4096;

/// Writes the disk to a new file in which zeroes take no space. Returns the bytes of its data, or
/// `None` if a signal arrived; then there is no file.
///
/// # Errors
///
/// The file exists, or the host's error.
pub(super) fn write_image(disk: &dyn CheckedDisk, path: &Path) -> io::Result<Option<u64>> {
    let file = File::create_new(path)?;
    let written = copy(disk, &file);
    if !matches!(written, Ok(Some(_))) {
        // A part of an image is none.
        fs::remove_file(path)?;
    }
    written
}

fn copy(disk: &dyn CheckedDisk, file: &File) -> io::Result<Option<u64>> {
    let size = disk.size();
    file.set_len(size)?;
    let mut line = ProgressLine::new("writing", size);
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut data) = (0, 0);
    while at < size {
        if is_interrupted() {
            return Ok(None);
        }
        let len = usize::try_from(size - at).unwrap_or(usize::MAX).min(CHUNK);
        let chunk = buffer.get_mut(..len).unwrap_or_default();
        disk.read(at, chunk)?;
        for (block, place) in chunk.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, place)?;
                data += block.len() as u64;
            }
        }
        at += len as u64;
        line.advance(len as u64);
    }
    file.sync_all()?;
    Ok(Some(data))
}
