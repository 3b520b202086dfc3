//! The blocks that differ between the levels of a layered disk and those below them. May block.

use std::io;
use std::ops::Range;

use super::chain::{LayerChain, LayerPiece};
use super::unit::{BLOCK, BLOCK_BYTES};
use crate::{ByteOffset, ByteRange};

/// Bytes that are compared at once.
const CHUNK: usize = 1 << 20;

/// A step of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareStep {
    /// A number of bytes of the changes was compared.
    Compared(u64),
    /// Blocks that differ.
    Differs(LayerPiece),
}

impl LayerChain {
    /// Compares the content of [`LayerChain::changes`] with what they hide, block by block. Reads
    /// no ranges that both sides have as holes.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn compare(&self, below: usize, mut step: impl FnMut(CompareStep)) -> io::Result<()> {
        let mut content = [vec![0; CHUNK], vec![0; CHUNK]];
        for piece in self.changes(below) {
            let piece = piece?;
            let (mut at, end) = (piece.range.start.0, piece.end());
            let mut differing = None;
            while at < end {
                let equal = self.equal_holes(&piece, below, at)?;
                let to = if equal > at { equal } else { end.min(at + CHUNK as u64) };
                if equal == at {
                    self.compare_chunk(&piece, below, at..to, &mut content, |block| {
                        extend(&mut differing, &piece, block, &mut step);
                    })?;
                }
                step(CompareStep::Compared(to - at));
                at = to;
            }
            differing.map(CompareStep::Differs).into_iter().for_each(&mut step);
        }
        Ok(())
    }

    /// Up to where whole blocks from `at` on are holes in a piece and in what it hides.
    fn equal_holes(&self, piece: &LayerPiece, below: usize, at: u64) -> io::Result<u64> {
        if piece.data {
            return Ok(at);
        }
        let hidden = self.piece(below, at, piece.end())?;
        Ok(if hidden.data { at } else { hidden.end() / BLOCK * BLOCK })
    }

    /// Calls `differs` with the start of each block that differs.
    fn compare_chunk(
        &self,
        piece: &LayerPiece,
        below: usize,
        range: Range<u64>,
        [new, old]: &mut [Vec<u8>; 2],
        mut differs: impl FnMut(u64),
    ) -> io::Result<()> {
        let len = usize::try_from(range.end - range.start).unwrap_or(CHUNK).min(CHUNK);
        let (Some(new), Some(old)) = (new.get_mut(..len), old.get_mut(..len)) else {
            return Ok(());
        };
        if piece.data {
            self.read(0, range.start, new)?;
        } else {
            new.fill(0);
        }
        self.read(below, range.start, old)?;
        let blocks = new.chunks(BLOCK_BYTES).zip(old.chunks(BLOCK_BYTES));
        for ((new, old), block) in blocks.zip(0..) {
            if new != old {
                differs(range.start + block * BLOCK);
            }
        }
        Ok(())
    }
}

/// Adds the block at `at` of a piece to those that differ, and passes on those that it does not
/// continue.
fn extend(
    differing: &mut Option<LayerPiece>,
    piece: &LayerPiece,
    at: u64,
    step: &mut impl FnMut(CompareStep),
) {
    match differing {
        Some(last) if last.end() == at => last.range.len += BLOCK,
        last => {
            let range = ByteRange { start: ByteOffset(at), len: BLOCK };
            let before = last.replace(LayerPiece { range, ..*piece });
            before.map(CompareStep::Differs).into_iter().for_each(step);
        }
    }
}
