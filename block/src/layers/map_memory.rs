//! The memory of the maps of a disk before it is opened, from the headers and the allocated parts
//! of its files. May block.

use std::iter::Sum;
use std::ops::Add;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::file::read_header;
use super::header::{Header, PAGE_COVERS};
use super::identity::BaseIdentity;
use super::info::{level_paths, open};
use super::map::LayerMap;
use super::unit::BLOCK;
use super::uuid::Uuid;
use crate::allocation::Extents;
use crate::{ByteRange, Extent};

/// Memory for maps, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapMemory {
    /// Once the disk is open.
    pub now: u64,
    /// Once its top answers for all of it.
    pub most: u64,
}

impl MapMemory {
    /// That of the layer at `path` and those below it. A file that is no layer, or cannot be read,
    /// has no map.
    #[must_use]
    pub fn of_layer(path: &Path) -> Self {
        let paths = level_paths(path);
        let [top, below @ ..] = paths.as_slice() else { return Self::default() };
        let Some((header, now)) = map_of(top) else { return Self::default() };
        Self { now, most: most(&header, header.size) } + Self::of_bases(below)
    }

    /// That of a new layer over `base` and those below it. The layer answers for `limit` bytes at
    /// most.
    #[must_use]
    pub fn over_base(base: &Path, limit: Option<u64>) -> Self {
        let Some(size) = size_of_base(base) else { return Self::default() };
        let identity = BaseIdentity::of_layer(Uuid::default(), size);
        let header = Header::new(Uuid::default(), size, identity, base);
        // Each block may be on a page of its own.
        let blocks =
            limit.map_or(size, |limit| size.min((limit / BLOCK).saturating_mul(PAGE_COVERS)));
        let new = Self { now: table(&header), most: most(&header, blocks) };
        new + Self::of_bases(&level_paths(base))
    }

    /// Bases are never written.
    fn of_bases(paths: &[PathBuf]) -> Self {
        let maps = paths.iter().filter_map(|path| map_of(path));
        maps.map(|(_, now)| Self { now, most: now }).sum()
    }
}

/// The size of a new layer over a base.
fn size_of_base(base: &Path) -> Option<u64> {
    let file = open(base).ok()?;
    let of_file = || rustix::fs::seek(&file, SeekFrom::End(0)).ok();
    read_header(&file, base).ok().map(|header| header.size).or_else(of_file)
}

/// The header of a layer, and the memory of its map at this moment.
fn map_of(path: &Path) -> Option<(Header, u64)> {
    let file = open(path).ok()?;
    let header = read_header(&file, path).ok()?;
    let (start, end) = (Header::map_at(), Header::map_at() + header.map_bytes);
    let extents = Extents::new(&file, start, end).map_while(Result::ok);
    let allocated = extents.filter(|extent| extent.data).map(|Extent { range, .. }| {
        let ByteRange { start, len } = range;
        (start.0 + len).next_multiple_of(BLOCK) - start.0 / BLOCK * BLOCK
    });
    let pages = allocated.sum::<u64>().min(header.map_bytes);
    let now = table(&header) + pages;
    Some((header, now))
}

/// The table of the pages.
fn table(header: &Header) -> u64 {
    header.map_bytes / BLOCK * LayerMap::ENTRY_BYTES
}

/// The memory of a map whose layer answers for `bytes`.
fn most(header: &Header, bytes: u64) -> u64 {
    table(header) + bytes.div_ceil(PAGE_COVERS) * BLOCK
}

impl Add for MapMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let sum = |one: u64, other: u64| one.saturating_add(other);
        Self { now: sum(self.now, other.now), most: sum(self.most, other.most) }
    }
}

impl Sum for MapMemory {
    fn sum<I: Iterator<Item = Self>>(maps: I) -> Self {
        maps.fold(Self::default(), |sum, map| sum + map)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::create_layer;

    #[test]
    fn a_map_has_memory_for_its_allocated_pages() {
        let folder = tempfile::tempdir_in(fixtures::scratch()).unwrap();
        let path = |name: &str| folder.path().join(name);
        File::create(path("base")).unwrap().set_len(10 << 30).unwrap();
        // Room for 1 TiB: 8,192 pages. The disk has 80.
        let (table, page) = (8192 * LayerMap::ENTRY_BYTES, BLOCK);
        let map = |now: u64, most: u64| MapMemory { now: now * page, most: most * page };
        let tables = |count: u64| MapMemory { now: count * table, most: count * table };
        assert_eq!(MapMemory::of_layer(&path("base")), MapMemory::default());
        assert_eq!(MapMemory::over_base(&path("base"), None), tables(1) + map(0, 80));
        let limit = Some(3 * BLOCK);
        assert_eq!(MapMemory::over_base(&path("base"), limit), tables(1) + map(0, 3));
        create_layer(&path("a"), &path("base"), None).unwrap();
        assert_eq!(MapMemory::of_layer(&path("a")), tables(1) + map(0, 80));
        let file = File::options().write(true).open(path("a")).unwrap();
        for page in [0, 79] {
            file.write_all_at(&[1; 4096], Header::map_at() + page * BLOCK).unwrap();
        }
        assert_eq!(MapMemory::of_layer(&path("a")), tables(1) + map(2, 80));
        create_layer(&path("b"), &path("a"), None).unwrap();
        assert_eq!(MapMemory::of_layer(&path("b")), tables(2) + map(2, 82));
    }
}
