//! The levels of a layered disk: the top, the frozen layers below it, and the raw base; and which
//! of them answers for a block.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::block_budget::BlockBudget;
use super::map::LayerMap;
use super::map_sync::MapSync;
use super::unflushed::UnflushedMap;
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

impl Level {
    /// The same level, with the same memory.
    fn share(&self) -> Self {
        let map = match &self.map {
            LevelMap::Layer(map) => LevelMap::Layer(map.share()),
            LevelMap::Raw => LevelMap::Raw,
        };
        Self { map, ..*self }
    }
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
    /// The blocks that an ephemeral top may have; `None` for a top that is kept.
    pub(super) budget: Option<BlockBudget>,
    /// Of a top whose completed writes survive a kill of the program.
    pub(super) unflushed: Option<UnflushedMap>,
}

impl Top {
    /// The same top, with the same memory, of a disk that is kept.
    fn share(&self) -> Self {
        let unflushed = self.unflushed.as_ref().map(UnflushedMap::share);
        Self { map: self.map.share(), budget: None, unflushed, ..*self }
    }

    /// Takes the blocks from `first` to `end` for a change of them. Returns `false` if there is no
    /// space for them, which counts as a refused request if it `is_final`.
    pub(super) fn take_blocks(&self, first: u64, end: u64, is_final: bool) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.take(&self.map, first, end, is_final))
    }

    /// Gives those blocks back that the change has not made.
    pub(super) fn give_back_blocks(&self, first: u64, end: u64) {
        if let Some(budget) = &self.budget {
            budget.give_back(&self.map, first, end);
        }
    }
}

/// State of an open layered disk, shared by the control thread and all engines.
#[derive(Debug)]
pub(super) struct Levels {
    pub(super) top: Top,
    /// From below the top to the raw base.
    below: Box<[Level]>,
    /// Size in bytes of a raw base that is directly below the top, else 0.
    raw_below: u64,
    /// Size of the disk in bytes; grows only.
    capacity: AtomicU64,
    /// Engines start requests up to here: up to the capacity, or none while the disk is held.
    admitted: AtomicU64,
    /// The engines have orders ([`super::seats`]).
    has_orders: AtomicBool,
    /// Excludes changes of blocks that the top does not answer for yet.
    pub(super) first_writes: RangeLock,
    pub(super) sync: MapSync,
    /// Bits were set for data that is not durable.
    volatile: AtomicBool,
}

impl Levels {
    pub(super) fn new(top: Top, below: Vec<Level>, capacity: u64) -> Self {
        let raw_below = match below.first() {
            Some(Level { data_at: 0, size, map: LevelMap::Raw }) => *size,
            _ => 0,
        };
        Self {
            top,
            below: below.into(),
            raw_below,
            capacity: AtomicU64::new(capacity),
            admitted: AtomicU64::new(capacity),
            has_orders: AtomicBool::new(false),
            first_writes: RangeLock::new(BLOCK_SIZE, true),
            sync: MapSync::default(),
            volatile: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Grows the disk, which is not held.
    pub(super) fn grow_to(&self, capacity: u64) {
        self.capacity.fetch_max(capacity, Ordering::AcqRel);
        self.admitted.fetch_max(capacity, Ordering::AcqRel);
    }

    /// Up to where engines start requests: 0 while the disk is held.
    #[inline]
    pub(super) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Acquire)
    }

    /// Whether engines start no request.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.admitted() == 0
    }

    /// Whether the engines have orders.
    #[inline]
    pub(super) fn has_orders(&self) -> bool {
        self.has_orders.load(Ordering::Acquire)
    }

    pub(super) fn set_orders(&self, has_orders: bool) {
        self.has_orders.store(has_orders, Ordering::Release);
    }

    /// Lets engines start no request, from when they see it. Those that were started complete.
    pub(super) fn hold(&self) {
        self.admitted.store(0, Ordering::Release);
    }

    /// Ends a hold.
    pub(super) fn admit(&self) {
        self.admitted.store(self.capacity(), Ordering::Release);
    }

    /// The levels below a new top, whose own top these levels have been: none of them is written
    /// any more.
    pub(super) fn succeeded_by(&self, top: Top) -> Self {
        let map = LevelMap::Layer(self.top.map.share());
        let frozen = Level { data_at: self.top.data_at, size: self.capacity(), map };
        let below = std::iter::once(frozen).chain(self.below.iter().map(Level::share));
        Self::new(top, below.collect(), self.capacity())
    }

    /// The levels without the one below the top, which was merged into the one below that: `base`
    /// as it is now. These levels are not used any more, and the file has all bits of the top.
    pub(super) fn merged(&self, base: Level) -> Self {
        let below = std::iter::once(base).chain(self.below.iter().skip(2).map(Level::share));
        Self::new(self.top.share(), below.collect(), self.capacity())
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

    /// The level that takes a transfer of the bytes from `at` to `end`, and where its file has
    /// them, if they are in one block, and that is of the top, or for reads of a raw base below it.
    #[inline(always)] // By `make bench-gate`.
    pub(super) fn block_answerer(&self, at: u64, end: u64, is_write: bool) -> Option<(usize, u64)> {
        if (at ^ end.wrapping_sub(1)) >= BLOCK {
            return None;
        }
        if self.top.map.is_set(at / BLOCK) {
            return Some((0, self.top.data_at + at));
        }
        (!is_write && end <= self.raw_below).then_some((1, at))
    }

    /// The level that answers for all bytes from `at` to `end`, and where its file has them, if
    /// that is easy to tell. The range is within the disk and not empty.
    pub(super) fn answerer(&self, at: u64, end: u64) -> Option<(usize, u64)> {
        let (first, last) = (at / BLOCK, (end - 1) / BLOCK);
        match self.top.map.answers(first, last) {
            Some(true) => Some((0, self.top.data_at + at)),
            Some(false) => self.answerer_below(at, end),
            None => None,
        }
    }

    /// The same, below the top, which answers for none of the bytes.
    fn answerer_below(&self, at: u64, end: u64) -> Option<(usize, u64)> {
        for (index, level) in (1..).zip(&self.below) {
            let answers = match &level.map {
                _ if end > level.size => return None,
                LevelMap::Layer(map) => map.answers(at / BLOCK, (end - 1) / BLOCK)?,
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
            budget: None,
            unflushed: None,
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
