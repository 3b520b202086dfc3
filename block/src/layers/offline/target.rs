//! The file that blocks are copied to: a raw image or device, or a layer with its map. May block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::file::host_error;
use super::super::map::LayerMap;
use super::super::map_file::write_map;
use super::super::unit::{BLOCK, BLOCK_BYTES};
use crate::OpenError;

/// Bytes of data between two writes of the map: what a command that is killed has to copy again.
const SETTLE_EVERY: u64 = 1 << 30;
/// Bytes of zeroes that are written at once where the host cannot deallocate.
const ZEROES: usize = 1 << 20;

/// See the module's documentation.
pub(super) struct Target<'f> {
    pub(super) file: &'f File,
    pub(super) path: &'f Path,
    /// Position of the disk's first byte in the file.
    pub(super) data_at: u64,
    /// End of the disk, in bytes: the last block of a raw one may be partial.
    pub(super) size: u64,
    /// The map of a layer.
    pub(super) map: Option<&'f LayerMap>,
    /// All of it reads zero yet, so that zeroes are left out.
    pub(super) is_new: bool,
    unsettled: u64,
}

impl<'f> Target<'f> {
    pub(super) fn new(file: &'f File, path: &'f Path, data_at: u64, size: u64) -> Self {
        Self { file, path, data_at, size, map: None, is_new: false, unsettled: 0 }
    }

    /// Stores blocks at `at`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn put(&mut self, at: u64, blocks: &[u8]) -> Result<(), OpenError> {
        let mut at = at;
        for (is_zero, bytes) in runs(blocks) {
            if is_zero {
                self.zero(at, at + bytes.len() as u64)?;
            } else {
                let inside = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
                let part = bytes.get(..inside).unwrap_or(bytes);
                let written = self.file.write_all_at(part, self.data_at + at);
                written.map_err(host_error(self.path, "write to it"))?;
                self.answer(at, bytes.len() as u64)?;
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Stores zeroes from `at` to `end`, without space if the host can do that.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn zero(&mut self, at: u64, end: u64) -> Result<(), OpenError> {
        let inside = end.min(self.size);
        if !self.is_new && at < inside {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(self.file, flags, self.data_at + at, inside - at) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.write_zeroes(at, inside).map_err(host_error(self.path, "zero it"))?;
                }
                Err(errno) => return Err(host_error(self.path, "zero it")(errno.into())),
            }
        }
        self.answer(at, end - at)
    }

    fn write_zeroes(&self, mut at: u64, end: u64) -> io::Result<()> {
        let zeroes = vec![0; ZEROES];
        while at < end {
            let bytes = usize::try_from(end - at).unwrap_or(ZEROES).min(ZEROES);
            let part = zeroes.get(..bytes).unwrap_or_default();
            self.file.write_all_at(part, self.data_at + at)?;
            at += bytes as u64;
        }
        Ok(())
    }

    fn answer(&mut self, at: u64, bytes: u64) -> Result<(), OpenError> {
        if let Some(map) = self.map {
            map.set(at / BLOCK, (at + bytes) / BLOCK);
        }
        self.unsettled += bytes;
        if self.unsettled >= SETTLE_EVERY { self.settle() } else { Ok(()) }
    }

    /// Makes the data durable, and then the bits that tell of it.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn settle(&mut self) -> Result<(), OpenError> {
        self.unsettled = 0;
        self.file.sync_data().map_err(host_error(self.path, "make it durable"))?;
        let written = self.map.map_or(Ok(()), |map| write_map(self.file, map));
        written.map_err(host_error(self.path, "write its map"))
    }
}

/// The runs of zero blocks and of others.
fn runs(blocks: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let mut rest = blocks;
    std::iter::from_fn(move || {
        let mut chunks = rest.chunks(BLOCK_BYTES);
        let first = is_zero(chunks.next()?);
        let more = chunks.take_while(|block| is_zero(block) == first).count();
        let (run, tail) = rest.split_at((BLOCK_BYTES * (more + 1)).min(rest.len()));
        rest = tail;
        Some((first, run))
    })
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_told_from_others() {
        let block = |byte: u8| [byte; BLOCK_BYTES];
        let blocks: Vec<u8> = [1, 2, 0, 0, 3].into_iter().flat_map(block).collect();
        let found: Vec<_> = runs(&blocks).map(|(is_zero, run)| (is_zero, run.len())).collect();
        let blocks = |count: usize| count * BLOCK_BYTES;
        assert_eq!(found, [(false, blocks(2)), (true, blocks(2)), (false, blocks(1))]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
