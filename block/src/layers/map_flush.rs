//! The write-back of the map by the control plane, when it makes the disk durable.

use std::io;
use std::time::Duration;

use super::header::Header;
use super::levels::Levels;
use super::unit::{BLOCK, BLOCK_BYTES};
use crate::page::PageBuffer;

/// The file of a top.
pub(super) trait TopFile {
    /// Makes all completed writes durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Writes a page of the map at a byte of the file.
    fn write_page(&self, page: &[u8], at: u64) -> io::Result<()>;

    /// Whether writes are held for space.
    fn holds(&self) -> bool;
}

/// Makes all completed writes to a disk durable. Waits for a write-back of an engine.
///
/// # Errors
///
/// The host's error; or `ENOSPC` if that write-back is held.
pub(super) fn sync(levels: &Levels, top: &impl TopFile) -> io::Result<()> {
    if levels.top.budget.is_some() {
        // No part of an ephemeral disk is kept.
        return Ok(());
    }
    if levels.top.is_read_only || levels.sync.is_clean(|| levels.top.map.has_dirty()) {
        return top.sync_data();
    }
    let started = loop {
        match levels.sync.start_within(Duration::from_millis(100)) {
            Some(started) => break started,
            // It may last as long as the store is full.
            None if top.holds() => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            None => {}
        }
    };
    let result = write_map(levels, top);
    levels.sync.end(&started, &result);
    result
}

/// Writes the dirty pages of the map, after the data that their bits tell of.
fn write_map(levels: &Levels, top: &impl TopFile) -> io::Result<()> {
    let mut page = PageBuffer::zeroed(BLOCK_BYTES);
    let mut dirty = Vec::new();
    while let Some(next) = levels.top.map.next_dirty(dirty.last().map_or(0, |last| last + 1)) {
        dirty.push(next);
    }
    for next in dirty {
        levels.top.map.clean(next);
        levels.top.map.store(next, page.as_mut_slice());
        let flushed = if levels.take_volatile() { top.sync_data() } else { Ok(()) };
        let at = Header::map_at() + next as u64 * BLOCK;
        flushed.and_then(|()| top.write_page(page.as_slice(), at)).inspect_err(|_| {
            levels.restore_volatile();
            levels.top.map.soil(next);
        })?;
    }
    top.sync_data()
}
