//! The levels of a layered disk: the top, the frozen layers below it, and the raw base; and which
//! of them answers for a block.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::map::LayerMap;
use super::map_sync::MapSync;
use super::unit::{BLOCK, BLOCK_SIZE};
use crate::DiscardLimits;
use crate::range_lock::RangeLock;

/// One file of the disk: the place of its content, and what it answers for.
#[derive(Debug)]
pub(super) struct Level {
    /// Position of the disk's first byte in the file.
    pub(super) data_at: u64,
    /// Size of its disk in bytes when it was opened: a level below others answers beyond it with
    /// zeroes.
    pub(super) size: u64,
    pub(super) map: LevelMap,
}

/// The blocks that a level answers for.
#[derive(Debug)]
pub(super) enum LevelMap {
    /// Those of a layer.
    Layer(LayerMap),
    /// All: it is a raw base.
    Raw,
}

/// The level that answers for a piece of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answerer {
    /// The level with this index, of which the top has 0.
    Level(usize),
    /// No level: zeroes.
    Zeroes,
}

/// The top: where its content is, and what it promises.
#[derive(Debug)]
pub(super) struct Top {
    /// Position of the disk's first byte in the file.
    pub(super) data_at: u64,
    pub(super) map: LayerMap,
    pub(super) logical_block: u32,
    pub(super) is_read_only: bool,
    /// Flushes do nothing (`cache = "unsafe"`).
    pub(super) ignores_flushes: bool,
    /// The granules of the file's discards; `None` if it deallocates nothing.
    pub(super) discard: Option<DiscardLimits>,
}

/// State of an open layered disk, shared by the control thread and all engines.
#[derive(Debug)]
pub(super) struct Levels {
    pub(super) top: Top,
    /// From below the top to the raw base.
    below: Box<[Level]>,
    /// Size of the disk in bytes; grows only.
    capacity: AtomicU64,
    /// Excludes changes of blocks that the top does not answer for yet.
    pub(super) first_writes: RangeLock,
    pub(super) sync: MapSync,
    /// Bits were set for data that is not durable.
    volatile: AtomicBool,
}

impl Levels {
    pub(super) fn new(top: Top, below: Vec<Level>, capacity: u64) -> Self {
        Self {
            top,
            below: below.into(),
            capacity: AtomicU64::new(capacity),
            first_writes: RangeLock::new(BLOCK_SIZE, true),
            sync: MapSync::default(),
            volatile: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub(super) fn grow_to(&self, capacity: u64) {
        self.capacity.fetch_max(capacity, Ordering::AcqRel);
    }

    /// Sets the bits of blocks whose data was written to the top.
    pub(super) fn set(&self, first: u64, end: u64, is_durable: bool) {
        if !is_durable {
            self.volatile.store(true, Ordering::Release);
        }
        self.top.map.set(first, end);
    }

    /// Whether bits may have been set for volatile data since the last call. The caller flushes
    /// it, and tells [`Levels::restore_volatile`] if that failed.
    pub(super) fn take_volatile(&self) -> bool {
        self.volatile.swap(false, Ordering::AcqRel)
    }

    pub(super) fn restore_volatile(&self) {
        self.volatile.store(true, Ordering::Release);
    }

    /// The level that answers for all bytes from `at` to `end`, and where its file has them, if
    /// that is easy to tell. The range is within the disk and not empty.
    #[inline(always)] // By `make bench-gate`.
    pub(super) fn answerer(&self, at: u64, end: u64) -> Option<(usize, u64)> {
        let (first, last) = (at / BLOCK, (end - 1) / BLOCK);
        if self.top.map.answers(first, last)? {
            return Some((0, self.top.data_at + at));
        }
        for (index, level) in (1..).zip(&self.below) {
            let answers = match &level.map {
                _ if end > level.size => return None,
                LevelMap::Layer(map) => map.answers(first, last)?,
                LevelMap::Raw => true,
            };
            if answers {
                return Some((index, level.data_at + at));
            }
        }
        None
    }

    /// The highest level from `from` on that answers for the byte `at`, and up to where it is the
    /// same one, at most `end`. `at` is below `end`, and `end` within the disk.
    pub(super) fn piece(&self, from: usize, at: u64, mut end: u64) -> (Answerer, u64) {
        if from == 0 {
            let (is_set, run) = self.top.map.run(at / BLOCK, end.div_ceil(BLOCK));
            end = end.min(run * BLOCK);
            if is_set {
                return (Answerer::Level(0), end);
            }
        }
        for (index, level) in (1..).zip(&self.below).skip(from.saturating_sub(1)) {
            // Layers above may have grown.
            if at >= level.size {
                return (Answerer::Zeroes, end);
            }
            end = end.min(level.size);
            let LevelMap::Layer(map) = &level.map else { return (Answerer::Level(index), end) };
            let (is_set, run) = map.run(at / BLOCK, end.div_ceil(BLOCK));
            end = end.min(run * BLOCK);
            if is_set {
                return (Answerer::Level(index), end);
            }
        }
        (Answerer::Zeroes, end)
    }

    /// Where a level has the byte `at` of the disk in its file.
    #[inline]
    pub(super) fn place(&self, level: usize, at: u64) -> u64 {
        let below = |index: usize| self.below.get(index).map_or(0, |level| level.data_at);
        level.checked_sub(1).map_or(self.top.data_at, below) + at
    }
}

/// The discard limits of a disk that starts at `data_at` of a file, in whole blocks.
pub(super) fn discard_limits(file: DiscardLimits, data_at: u64) -> DiscardLimits {
    let granularity = file.granularity.max(BLOCK_SIZE);
    let unit = u64::from(granularity);
    let alignment = (u64::from(file.alignment) + unit - data_at % unit) % unit;
    let alignment = u32::try_from(alignment).unwrap_or_default();
    DiscardLimits { granularity, alignment, ..file }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_level_that_has_a_block_answers_for_it() {
        let map = |blocks: &[u64]| {
            let map = LayerMap::new(1);
            blocks.iter().for_each(|block| _ = map.set(*block, block + 1));
            map
        };
        let top = Top {
            data_at: 1 << 20,
            map: map(&[1, 9]),
            logical_block: 512,
            is_read_only: false,
            ignores_flushes: false,
            discard: None,
        };
        let middle =
            Level { data_at: 1 << 21, size: 8 * BLOCK, map: LevelMap::Layer(map(&[2, 3])) };
        let base = Level { data_at: 0, size: 6 * BLOCK + 512, map: LevelMap::Raw };
        let levels = Levels::new(top, vec![middle, base], 12 * BLOCK);
        let pieces = |from: usize, start: u64, end: u64| {
            let (mut at, mut pieces) = (start, Vec::new());
            while at < end {
                let (source, to) = levels.piece(from, at, end);
                pieces.push((source, to));
                at = to;
            }
            pieces
        };
        let expected = [
            (Answerer::Level(2), BLOCK),
            (Answerer::Level(0), 2 * BLOCK),
            (Answerer::Level(1), 4 * BLOCK),
            (Answerer::Level(2), 6 * BLOCK + 512),
            (Answerer::Zeroes, 8 * BLOCK),
            (Answerer::Zeroes, 9 * BLOCK),
            (Answerer::Level(0), 10 * BLOCK),
            (Answerer::Zeroes, 12 * BLOCK),
        ];
        assert_eq!(pieces(0, 512, 12 * BLOCK), expected);
        assert_eq!(pieces(1, BLOCK, 2 * BLOCK), [(Answerer::Level(2), 2 * BLOCK)]);
        assert_eq!(pieces(2, 2 * BLOCK, 3 * BLOCK), [(Answerer::Level(2), 3 * BLOCK)]);
        for (blocks, level) in [
            (1..2, Some(0)),
            (2..4, Some(1)),
            (4..6, Some(2)),
            (0..2, None),
            (6..7, None),
            (9..10, Some(0)),
        ] {
            let (at, end) = (blocks.start * BLOCK, blocks.end * BLOCK);
            let expected = level.map(|level| (level, levels.place(level, at)));
            assert_eq!(levels.answerer(at, end), expected, "{blocks:?}");
        }
        assert_eq!(levels.place(0, 5), (1 << 20) + 5);
        assert_eq!((levels.place(1, 5), levels.place(2, 5)), ((1 << 21) + 5, 5));
    }

    #[test]
    fn granules_keep_their_place_in_the_file() {
        let file =
            |granularity, alignment| DiscardLimits { granularity, alignment, reads_zero: true };
        assert_eq!(discard_limits(file(512, 0), 1 << 20), file(4096, 0));
        assert_eq!(discard_limits(file(65536, 4096), 1 << 20), file(65536, 4096));
        assert_eq!(discard_limits(file(2 << 20, 0), 1 << 20), file(2 << 20, 1 << 20));
    }
}
