//! The map of a layer: one bit for each block of 4 KiB, set if the layer answers for the block, in
//! memory.
//!
//! Bits are only ever set, by any engine of the disk. A page of the map, 128 MiB of the disk, has
//! memory once one of its bits is set.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::unit::{BLOCK, BLOCK_BYTES};
use crate::ByteRange;

/// Blocks of one word.
const WORD_BLOCKS: u64 = u64::BITS as u64;
/// Words of one page.
const PAGE_WORDS: usize = BLOCK_BYTES / size_of::<u64>();
/// Blocks of one page.
const PAGE_BLOCKS: u64 = BLOCK * 8;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct LayerMap {
    pages: Box<[OnceLock<MapPage>]>,
    /// Number of dirty pages.
    dirty: AtomicUsize,
    /// Sum of the pages' setters.
    setters: AtomicUsize,
}

#[derive(Debug)]
struct MapPage {
    words: Arc<[AtomicU64; PAGE_WORDS]>,
    /// It has bits that the file may lack.
    dirty: AtomicBool,
    /// Threads that set a bit, and have not marked it as dirty yet.
    setters: AtomicUsize,
}

impl MapPage {
    fn empty() -> Self {
        Self::of(Arc::new([const { AtomicU64::new(0) }; PAGE_WORDS]))
    }

    fn of(words: Arc<[AtomicU64; PAGE_WORDS]>) -> Self {
        Self { words, dirty: AtomicBool::new(false), setters: AtomicUsize::new(0) }
    }
}

impl LayerMap {
    /// Memory for each page, whether or not it has bits, in bytes.
    pub(super) const ENTRY_BYTES: u64 = size_of::<OnceLock<MapPage>>() as u64;

    /// A map of `pages` pages without a bit.
    pub(super) fn new(pages: usize) -> Self {
        let pages = std::iter::repeat_with(OnceLock::new).take(pages).collect();
        Self { pages, dirty: AtomicUsize::new(0), setters: AtomicUsize::new(0) }
    }

    /// The same map, of which neither changes any more: they share the memory.
    pub(super) fn share(&self) -> Self {
        let share = |page: &OnceLock<MapPage>| {
            let words = page.get().map(|page| Arc::clone(&page.words));
            words.map_or_else(OnceLock::new, |words| OnceLock::from(MapPage::of(words)))
        };
        let pages = self.pages.iter().map(share).collect();
        Self { pages, dirty: AtomicUsize::new(0), setters: AtomicUsize::new(0) }
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Sets the bits of a page as the file has them, before the map is shared.
    pub(super) fn load(&self, page: usize, bytes: &[u8]) {
        let Some(page) = self.page_with_memory(page) else { return };
        let (words, _) = bytes.as_chunks();
        for (word, bytes) in page.words.iter().zip(words) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// Sets the bits of a page that `bytes` has too, and marks the page as dirty if one is new.
    pub(super) fn add(&self, page: usize, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks();
        for (index, bytes) in words.iter().enumerate() {
            let bits = u64::from_le_bytes(*bytes);
            if bits != 0 {
                self.set_word((page * PAGE_WORDS + index) as u64, bits);
            }
        }
    }

    /// The bytes of a page, as the file is to have them.
    pub(super) fn store(&self, page: usize, bytes: &mut [u8]) {
        let (chunks, _) = bytes.as_chunks_mut();
        match self.pages.get(page).and_then(OnceLock::get) {
            None => chunks.iter_mut().for_each(|chunk| *chunk = [0; 8]),
            Some(page) => {
                for (chunk, word) in chunks.iter_mut().zip(page.words.iter()) {
                    *chunk = word.load(Ordering::Acquire).to_le_bytes();
                }
            }
        }
    }

    fn page_with_memory(&self, page: usize) -> Option<&MapPage> {
        Some(self.pages.get(page)?.get_or_init(MapPage::empty))
    }

    /// The word with the bits from a multiple of 64 blocks on.
    #[inline]
    fn word(&self, index: u64) -> u64 {
        let (page, word) = place(index);
        let page = self.pages.get(page).and_then(OnceLock::get);
        let word = page.and_then(|page| page.words.get(word));
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Whether the layer answers for the block.
    #[inline]
    pub(super) fn is_set(&self, block: u64) -> bool {
        self.word(block / WORD_BLOCKS) >> (block % WORD_BLOCKS) & 1 != 0
    }

    /// Whether the layer answers for all of the blocks from `first` to `last`, or for none; `None`
    /// for a mix, and for blocks of several words.
    pub(super) fn answers(&self, first: u64, last: u64) -> Option<bool> {
        if first / WORD_BLOCKS != last / WORD_BLOCKS {
            return None;
        }
        let ones = (u64::MAX >> (WORD_BLOCKS - 1 - (last - first))) << (first % WORD_BLOCKS);
        match self.word(first / WORD_BLOCKS) & ones {
            0 => Some(false),
            bits => (bits == ones).then_some(true),
        }
    }

    /// Whether the layer answers for the first block, and up to which block, at most `end`, for no
    /// other or for all others. `first` is below `end`.
    #[inline]
    pub(super) fn run(&self, first: u64, end: u64) -> (bool, u64) {
        let is_set = self.is_set(first);
        let mut block = first;
        while block < end {
            if !is_set && let Some(next) = self.next_page_if_empty(block) {
                block = next;
                continue;
            }
            let word = self.word(block / WORD_BLOCKS);
            let other = if is_set { !word } else { word } >> (block % WORD_BLOCKS);
            if other != 0 {
                return (is_set, end.min(block + u64::from(other.trailing_zeros())));
            }
            block = (block / WORD_BLOCKS + 1) * WORD_BLOCKS;
        }
        (is_set, end)
    }

    /// The first block of the next page, if the block's page has no bit.
    fn next_page_if_empty(&self, block: u64) -> Option<u64> {
        let page = block / PAGE_BLOCKS;
        let found = usize::try_from(page).ok().and_then(|page| self.pages.get(page)?.get());
        found.is_none().then(|| (page + 1) * PAGE_BLOCKS)
    }

    /// Sets the bits of the blocks from `first` to `end`. Returns whether one was not set.
    pub(super) fn set(&self, first: u64, end: u64) -> bool {
        let mut changed = false;
        let mut block = first;
        while block < end {
            let next = ((block / WORD_BLOCKS + 1) * WORD_BLOCKS).min(end);
            let ones = u64::MAX >> (WORD_BLOCKS - (next - block));
            changed |= self.set_word(block / WORD_BLOCKS, ones << (block % WORD_BLOCKS));
            block = next;
        }
        changed
    }

    fn set_word(&self, index: u64, bits: u64) -> bool {
        let (page, word) = place(index);
        let Some(page) = self.page_with_memory(page) else { return false };
        let Some(word) = page.words.get(word) else { return false };
        // Another engine that sees the bit has to see that the file lacks it, also between the two
        // steps.
        for setters in [&self.setters, &page.setters] {
            setters.fetch_add(1, Ordering::AcqRel);
        }
        let before = word.fetch_or(bits, Ordering::AcqRel);
        let changed = before & bits != bits;
        if changed {
            self.mark(page);
        }
        for setters in [&self.setters, &page.setters] {
            setters.fetch_sub(1, Ordering::AcqRel);
        }
        changed
    }

    /// Marks a page as dirty, after its bits have changed.
    fn mark(&self, page: &MapPage) {
        if !page.dirty.swap(true, Ordering::AcqRel) {
            self.dirty.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether any page is dirty, or a thread is about to mark one.
    #[inline]
    pub(super) fn has_dirty(&self) -> bool {
        let counts = [&self.setters, &self.dirty];
        counts.into_iter().any(|count| count.load(Ordering::Acquire) != 0)
    }

    /// Whether a page that has bits of these blocks is dirty.
    pub(super) fn is_dirty(&self, first: u64, end: u64) -> bool {
        self.has_dirty() && pages_of(first, end).any(|page| self.is_page_dirty(page))
    }

    fn is_page_dirty(&self, page: usize) -> bool {
        let page = self.pages.get(page).and_then(OnceLock::get);
        page.is_some_and(|page| {
            page.setters.load(Ordering::Acquire) != 0 || page.dirty.load(Ordering::Acquire)
        })
    }

    /// The first dirty page from `from` on.
    pub(super) fn next_dirty(&self, from: usize) -> Option<usize> {
        let mut pages = from..if self.has_dirty() { self.pages.len() } else { from };
        pages.find(|page| self.is_page_dirty(*page))
    }

    /// Takes the mark of a page. Its bits that are set later mark it again.
    pub(super) fn clean(&self, page: usize) {
        if let Some(page) = self.pages.get(page).and_then(OnceLock::get)
            && page.dirty.swap(false, Ordering::AcqRel)
        {
            self.dirty.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Marks a page whose write failed.
    pub(super) fn soil(&self, page: usize) {
        if let Some(page) = self.pages.get(page).and_then(OnceLock::get) {
            self.mark(page);
        }
    }

    /// Number of bits that are set.
    pub(super) fn count(&self) -> u64 {
        let pages = self.pages.iter().filter_map(OnceLock::get);
        let words = pages.flat_map(|page| page.words.iter());
        words.map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Memory of its pages, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.pages.iter().filter_map(OnceLock::get).count() as u64 * BLOCK
    }
}

/// The page of a word, and its place there.
#[inline]
fn place(word: u64) -> (usize, usize) {
    let word = usize::try_from(word).unwrap_or(usize::MAX);
    (word / PAGE_WORDS, word % PAGE_WORDS)
}

fn pages_of(first: u64, end: u64) -> std::ops::Range<usize> {
    let page = |block: u64| usize::try_from(block / PAGE_BLOCKS).unwrap_or(usize::MAX);
    page(first)..page(end.saturating_sub(1)).saturating_add(1)
}

/// The blocks that a range touches, as the first one and the end.
#[inline]
pub(super) fn touched(range: ByteRange) -> (u64, u64) {
    (range.start.0 / BLOCK, (range.start.0 + range.len).div_ceil(BLOCK))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_stored() {
        let map = LayerMap::new(2);
        assert_eq!(map.memory(), 0);
        assert!(map.set(PAGE_BLOCKS + 3, PAGE_BLOCKS + 70));
        assert!(!map.set(PAGE_BLOCKS + 3, PAGE_BLOCKS + 4));
        assert_eq!((map.count(), map.memory()), (67, BLOCK));
        let mut bytes = [0; BLOCK_BYTES];
        map.store(1, &mut bytes);
        assert_eq!(bytes[..10], [0xf8, 255, 255, 255, 255, 255, 255, 255, 0x3f, 0]);
        let other = LayerMap::new(2);
        other.load(1, &bytes);
        assert!(other.is_set(PAGE_BLOCKS + 3) && !other.is_set(PAGE_BLOCKS + 2));
        assert_eq!(other.next_dirty(0), None);
        map.store(0, &mut bytes);
        assert_eq!(bytes, [0; BLOCK_BYTES]);
    }

    #[test]
    fn pages_are_dirty_until_they_are_cleaned() {
        let map = LayerMap::new(3);
        assert!(map.set(PAGE_BLOCKS - 1, PAGE_BLOCKS + 1));
        assert_eq!(
            (map.next_dirty(0), map.next_dirty(1), map.next_dirty(2)),
            (Some(0), Some(1), None)
        );
        assert!(map.is_dirty(0, 1) && map.is_dirty(0, PAGE_BLOCKS + 5));
        map.clean(0);
        assert!(!map.is_dirty(0, PAGE_BLOCKS) && map.is_dirty(0, PAGE_BLOCKS + 1));
        assert!(!map.set(0, 0) && !map.set(PAGE_BLOCKS - 1, PAGE_BLOCKS));
        assert_eq!(map.next_dirty(0), Some(1), "no bit was set");
        map.soil(0);
        assert_eq!(map.next_dirty(0), Some(0));
    }

    /// The state between the two steps of another thread.
    #[test]
    fn a_bit_that_is_not_marked_yet_counts_as_dirty() {
        let map = LayerMap::new(2);
        map.set(PAGE_BLOCKS, PAGE_BLOCKS + 1);
        map.clean(1);
        assert!(!map.has_dirty());
        for setters in [&map.setters, &map.pages[1].get().unwrap().setters] {
            setters.fetch_add(1, Ordering::AcqRel);
        }
        assert!(map.has_dirty() && map.is_dirty(PAGE_BLOCKS, PAGE_BLOCKS + 1));
        assert_eq!(map.next_dirty(0), Some(1));
    }

    /// A thread that sees a bit sees that it is not clean.
    #[test]
    fn a_bit_is_never_seen_as_clean() {
        const ROUNDS: u64 = 20_000;
        let map = LayerMap::new(1);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..ROUNDS).for_each(|block| _ = map.set(block, block + 1)));
            let mut block = 0;
            while block < ROUNDS {
                if map.is_set(block) {
                    assert!(map.is_dirty(block, block + 1) && map.has_dirty());
                    block += 1;
                }
            }
        });
    }

    #[test]
    fn blocks_beyond_the_map_are_not_set() {
        let map = LayerMap::new(1);
        assert!(!map.set(PAGE_BLOCKS, PAGE_BLOCKS + 1));
        assert!(!map.is_set(u64::MAX));
        assert_eq!(map.run(PAGE_BLOCKS - 1, PAGE_BLOCKS + 9), (false, PAGE_BLOCKS + 9));
    }

    proptest! {
        #[test]
        fn runs_are_those_of_a_set(
            ranges in proptest::collection::vec((0..400u64, 1..90u64), 0..8),
            first in 0..490u64,
            len in 1..300u64,
        ) {
            let map = LayerMap::new(1);
            let mut set = BTreeSet::new();
            for (start, len) in ranges {
                let is_new = (start..start + len).any(|block| !set.contains(&block));
                prop_assert_eq!(map.set(start, start + len), is_new);
                set.extend(start..start + len);
            }
            prop_assert_eq!(map.count(), set.len() as u64);
            let is_set = set.contains(&first);
            let other = (first..first + len).find(|block| set.contains(block) != is_set);
            prop_assert_eq!(map.run(first, first + len), (is_set, other.unwrap_or(first + len)));
            let is_one_word = first / WORD_BLOCKS == (first + len - 1) / WORD_BLOCKS;
            let expected = (is_one_word && other.is_none()).then_some(is_set);
            prop_assert_eq!(map.answers(first, first + len - 1), expected);
        }
    }
}
