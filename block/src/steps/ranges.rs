//! Ranges to discard or zero, cut where the host's own calls need whole blocks.

use crate::host_file::HostFile;
use crate::trim::Granules;
use crate::{ByteRange, DiscardLimits, Operation};

/// Bytes from `at`, `len` long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) len: u64,
}

/// A range in three pieces, each perhaps empty: whole blocks, and what is left at its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) middle: Piece,
    pub(super) ends: [Piece; 2],
}

impl Cut {
    /// Cuts a range as the host's calls for `op` want it.
    pub(super) fn of(range: ByteRange, op: Operation, host: &HostFile) -> Self {
        let discards = matches!(op, Operation::Discard { .. });
        let limits = match op {
            Operation::Discard { .. } if host.is_block_device() => host.geometry.get().discard,
            Operation::WriteZeroes { unmap: true, .. } => host.zeroes_by_discarding(),
            _ => None,
        };
        let of_whole_blocks =
            |limits: &DiscardLimits| limits.granularity.is_multiple_of(host.range_unit);
        let mut cut = match limits.filter(of_whole_blocks) {
            // Of the rest of a range Linux would drop what the page cache has, and the device keep what it has.
            Some(limits) => {
                let (start, end) = (range.start.0, range.start.0 + range.len);
                Self::around(range, Granules::new(limits).within(start, end))
            }
            None => Self::at(range, u64::from(host.range_unit)),
        };
        if discards {
            // A discard is advice: parts of blocks stay as they are.
            cut.ends = [Piece::default(); 2];
        }
        cut
    }

    fn at(range: ByteRange, unit: u64) -> Self {
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

    /// Cuts where the middle starts and ends, which is within the range.
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
    fn a_cut_covers_the_range_once() {
        for (start, len) in
            [(0, 8192), (512, 8192), (0, 512), (512, 512), (3584, 1024), (4096, 4096), (512, 3584)]
        {
            let cut = Cut::at(ByteRange { start: ByteOffset(start), len }, 4096);
            let Cut { middle, ends: [head, tail] } = cut;
            assert!((middle.at | middle.len).is_multiple_of(4096), "{cut:?}");
            let mut pieces: Vec<_> =
                [head, middle, tail].into_iter().filter(|piece| piece.len > 0).collect();
            pieces.sort_by_key(|piece| piece.at);
            let end = pieces.iter().fold(start, |at, piece| {
                assert_eq!(piece.at, at, "{cut:?}");
                at + piece.len
            });
            assert_eq!(end, start + len, "{cut:?}");
        }
    }
}
