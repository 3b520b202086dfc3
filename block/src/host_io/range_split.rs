//! Ranges to discard or zero, split where the host's calls need whole blocks.

use crate::discard::Granules;
use crate::host_file::HostFile;
use crate::{ByteRange, DiscardLimits, Operation};

/// `len` bytes from `at`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) len: u64,
}

/// A range in three pieces, each possibly empty: whole blocks, and the parts of blocks at both
/// ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RangeSplit {
    pub(super) middle: Piece,
    pub(super) ends: [Piece; 2],
}

impl RangeSplit {
    /// Splits a range as the host's calls for `op` require.
    pub(super) fn of(range: ByteRange, op: Operation, file: &HostFile) -> Self {
        let is_discard = matches!(op, Operation::Discard { .. });
        let limits = match op {
            Operation::Discard { .. } if file.is_block_device() => file.limits.geometry.discard,
            Operation::WriteZeroes { unmap: true, .. } => file.zeroes_by_discarding(),
            _ => None,
        };
        let unit = file.limits.range_unit;
        let has_whole_blocks = |limits: &DiscardLimits| limits.granularity.is_multiple_of(unit);
        let mut split = match limits.filter(has_whole_blocks) {
            // Of a partial granule Linux would drop the page cache, and the device keep its data.
            Some(limits) => {
                let (start, end) = (range.start.0, range.start.0 + range.len);
                Self::around(range, Granules::new(limits).within(start, end))
            }
            None => Self::at_blocks(range, u64::from(unit)),
        };
        if is_discard {
            // A discard is advice: parts of blocks keep their content.
            split.ends = [Piece::default(); 2];
        }
        split
    }

    fn at_blocks(range: ByteRange, unit: u64) -> Self {
        let (start, end) = (range.start.0, range.start.0 + range.len);
        let first = start.next_multiple_of(unit);
        let last = end - end % unit;
        if first > last {
            // Within one block.
            let whole = Piece { at: start, len: range.len };
            return Self { middle: Piece { at: first, len: 0 }, ends: [whole, Piece::default()] };
        }
        Self::around(range, (first, last))
    }

    /// Splits at the start and the end of the middle, which is within the range.
    fn around(range: ByteRange, (first, last): (u64, u64)) -> Self {
        let (start, end) = (range.start.0, range.start.0 + range.len);
        Self {
            middle: Piece { at: first, len: last - first },
            ends: [Piece { at: start, len: first - start }, Piece { at: last, len: end - last }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ByteOffset;

    #[test]
    fn the_pieces_cover_the_range_once() {
        for (start, len) in
            [(0, 8192), (512, 8192), (0, 512), (512, 512), (3584, 1024), (4096, 4096), (512, 3584)]
        {
            let split = RangeSplit::at_blocks(ByteRange { start: ByteOffset(start), len }, 4096);
            let RangeSplit { middle, ends: [head, tail] } = split;
            assert!((middle.at | middle.len).is_multiple_of(4096), "{split:?}");
            let mut pieces: Vec<_> =
                [head, middle, tail].into_iter().filter(|piece| piece.len > 0).collect();
            pieces.sort_by_key(|piece| piece.at);
            let end = pieces.iter().fold(start, |at, piece| {
                assert_eq!(piece.at, at, "{split:?}");
                at + piece.len
            });
            assert_eq!(end, start + len, "{split:?}");
        }
    }
}
