//! Copies of blocks from a chain to a file. May block.

use super::super::unit::BLOCK;
use super::chain::{LockedChain, Origin};
use super::target::Target;
use crate::OpenError;

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;

/// The progress of a command, after a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// Bytes of this part.
    pub bytes: u64,
    /// Bytes of all parts.
    pub total: u64,
}

/// Reports of the progress.
pub type OnProgress<'p> = &'p mut dyn FnMut(CopyProgress);

/// Memory for a copy.
pub(super) struct Copier<'p> {
    chunk: Vec<u8>,
    other: Vec<u8>,
    total: u64,
    on_progress: OnProgress<'p>,
    /// Bytes of blocks that were copied.
    pub(super) copied: u64,
}

impl<'p> Copier<'p> {
    /// A copy whose parts have `total` bytes.
    pub(super) fn new(total: u64, on_progress: OnProgress<'p>) -> Self {
        Self { chunk: vec![0; CHUNK], other: vec![0; CHUNK], total, on_progress, copied: 0 }
    }

    fn report(&mut self, bytes: u64) {
        (self.on_progress)(CopyProgress { bytes, total: self.total });
    }

    /// Passes a part that needs no copy.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.report(bytes);
    }

    /// Copies the blocks from `at` to `end` of the chain.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn copy(
        &mut self,
        from: &LockedChain,
        mut at: u64,
        end: u64,
        target: &mut Target<'_>,
    ) -> Result<(), OpenError> {
        while at < end {
            let (origin, to) = from.piece(at, end)?;
            let whole = to / BLOCK * BLOCK;
            let next = if origin == Origin::Zeroes && whole > at {
                target.zero(at, whole)?;
                whole
            } else {
                let to = to.next_multiple_of(BLOCK).min(at + CHUNK as u64).min(end);
                let bytes = usize::try_from(to - at).unwrap_or_default();
                let chunk = self.chunk.get_mut(..bytes).unwrap_or_default();
                from.read(at, chunk)?;
                target.put(at, chunk)?;
                self.copied += to - at;
                to
            };
            self.report(next - at);
            at = next;
        }
        Ok(())
    }

    /// Copies the blocks from `at` to `end` of `from` that differ from those of `to`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn copy_differences(
        &mut self,
        from: &LockedChain,
        to: &LockedChain,
        mut at: u64,
        end: u64,
        target: &mut Target<'_>,
    ) -> Result<(), OpenError> {
        while at < end {
            let (origin, from_end) = from.piece(at, end)?;
            let (other, to_end) = to.piece(at, end)?;
            let is_same = from.place(origin)? == to.place(other)?;
            let until = from_end.min(to_end);
            let whole = until / BLOCK * BLOCK;
            let next = if is_same && whole > at {
                whole
            } else {
                let until = until.next_multiple_of(BLOCK).min(at + CHUNK as u64).min(end);
                self.compare(from, to, at, until, target)?;
                until
            };
            self.report(next - at);
            at = next;
        }
        Ok(())
    }

    fn compare(
        &mut self,
        from: &LockedChain,
        to: &LockedChain,
        at: u64,
        end: u64,
        target: &mut Target<'_>,
    ) -> Result<(), OpenError> {
        let bytes = usize::try_from(end - at).unwrap_or_default();
        let old = self.chunk.get_mut(..bytes).unwrap_or_default();
        let new = self.other.get_mut(..bytes).unwrap_or_default();
        from.read(at, old)?;
        to.read(at, new)?;
        let block = usize::try_from(BLOCK).unwrap_or(1);
        for (place, (old, new)) in
            (at..).step_by(block).zip(old.chunks(block).zip(new.chunks(block)))
        {
            if old != new {
                target.put(place, old)?;
                self.copied += old.len() as u64;
            }
        }
        Ok(())
    }
}
