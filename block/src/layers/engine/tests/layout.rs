//! The files of the disk of a schedule, and their content without an engine.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::super::super::header::Header;
use super::super::super::identity::BaseIdentity;
use super::super::super::levels::{Answerer, Level, LevelMap, Levels, Top};
use super::super::super::map::LayerMap;
use super::super::super::map_file::load_map;
use super::super::super::unflushed::UnflushedMap;
use super::super::super::unit::{BLOCK, BLOCK_BYTES, BLOCK_SIZE};
use super::super::super::uuid::Uuid;
use super::SECTOR;
use super::store::Medium;
use crate::DiscardLimits;

pub(super) const BLOCKS: usize = 12;
pub(super) const SECTORS: usize = BLOCKS * BLOCK_BYTES / SECTOR;
/// Where the map of a layer starts in its file.
pub(super) const MAP_AT: usize = 2 * BLOCK_BYTES;
/// Where the content of a layer starts in its file: behind one page of the map, and two of the
/// unflushed map.
const DATA_AT: usize = 5 * BLOCK_BYTES;
/// Size of the base: it ends within a block.
pub(super) const BASE_SECTORS: usize = SECTORS - 12;
/// Granules of the disk: those of the file start at multiples of their size.
const GRANULE: u32 = 2 * BLOCK_SIZE;
const ALIGNMENT: u32 = BLOCK_SIZE;

/// The content of a sector with a value.
pub(super) fn sector(value: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// The value of a sector, whose parts must agree.
pub(super) fn value(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks();
    let value = u64::from_le_bytes(words[0]);
    assert!(words.iter().all(|word| u64::from_le_bytes(*word) == value), "a sector is torn");
    value
}

/// A new layer. It has data of lost writes, where the map has no bits.
pub(super) fn empty_layer(next_value: &mut u64) -> Vec<u8> {
    content(DATA_AT + SECTORS * SECTOR, SECTORS, DATA_AT, next_value)
}

/// `sectors` sectors of values of their own, from `start` on.
pub(super) fn content(len: usize, sectors: usize, start: usize, next_value: &mut u64) -> Vec<u8> {
    let mut content = vec![0; len];
    for index in 0..sectors {
        content[start + index * SECTOR..][..SECTOR].copy_from_slice(&sector(*next_value));
        *next_value += 1;
    }
    content
}

/// The header of a layer, as far as its maps depend on it.
fn header(is_frozen: bool) -> Header {
    let (uuid, size) = (Uuid([1; 16]), (SECTORS * SECTOR) as u64);
    let base = BaseIdentity::of_layer(uuid, size);
    let header = Header::new(uuid, size, base, Path::new("base"));
    Header { map_bytes: BLOCK, frozen: is_frozen.then_some(uuid), ..header }
}

/// The map of a layer as a program finds it.
fn map(medium: &Rc<RefCell<Medium>>, is_frozen: bool) -> LayerMap {
    let load = |file: &File| load_map(file, Path::new("layer"), &header(is_frozen)).unwrap();
    medium.borrow_mut().with_file(DATA_AT, load)
}

/// A top in its file. `is_served` to a guest that survives a kill.
pub(super) fn top(medium: &Rc<RefCell<Medium>>, is_served: bool) -> Top {
    let discard =
        Some(DiscardLimits { granularity: GRANULE, alignment: ALIGNMENT, reads_zero: true });
    let map = map(medium, false);
    let begin = |file: &File| UnflushedMap::open(file, Path::new("top"), &header(false)).unwrap();
    let unflushed = is_served.then(|| medium.borrow_mut().with_file(DATA_AT, begin));
    Top {
        data_at: DATA_AT as u64,
        map,
        logical_block: u32::try_from(SECTOR).unwrap(),
        is_read_only: false,
        ignores_flushes: false,
        discard,
        budget: None,
        unflushed,
    }
}

/// Opens the disk.
pub(super) fn levels(media: &[Rc<RefCell<Medium>>], is_served: bool) -> Arc<Levels> {
    let (data_at, size) = (DATA_AT as u64, (SECTORS * SECTOR) as u64);
    let layers = media[1..media.len() - 1].iter();
    let layers =
        layers.map(|medium| Level { data_at, size, map: LevelMap::Layer(map(medium, true)) });
    let size_of_base = (BASE_SECTORS * SECTOR) as u64;
    let base = Level { data_at: 0, size: size_of_base, map: LevelMap::Raw };
    let below = layers.chain(std::iter::once(base)).collect();
    Arc::new(Levels::new(top(&media[0], is_served), below, size))
}

/// The value of a sector, read without an engine.
pub(super) fn read(levels: &Levels, media: &[Rc<RefCell<Medium>>], index: usize) -> u64 {
    read_from(levels, media, 0, index)
}

/// The value of a sector of the disk that has this level on top.
pub(super) fn read_from(
    levels: &Levels,
    media: &[Rc<RefCell<Medium>>],
    level: usize,
    index: usize,
) -> u64 {
    let at = (index * SECTOR) as u64;
    match levels.piece(level, at, at + SECTOR as u64) {
        (Answerer::Zeroes, _) => 0,
        (Answerer::Level(level), _) => {
            let place = usize::try_from(levels.place(level, at)).unwrap();
            value(&media[level].borrow().read(place, SECTOR))
        }
    }
}
