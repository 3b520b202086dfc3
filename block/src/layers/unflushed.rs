//! The unflushed map of a layer: bits of completed writes that no flush has covered, for a guest
//! that outlives a kill of this program.
//!
//! A write that has completed is in the page cache or in the cache of the device, and survives a
//! kill; the bit of a block that was written first is in the memory of this program, and does not.
//! So it goes to the unflushed map in the file before the write completes, without a flush. Its
//! bits count only as long as the file has the page cache that they were written with. After a
//! power cut, when the data may be gone although its bit is there, they are ignored.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

#[cfg(test)]
use self::tests::present_boot;
use super::file::{buffered, host_error, read_pages};
use super::header::Header;
use super::map::LayerMap;
use super::map_sync::MapSync;
use super::unit::{BLOCK, BLOCK_BYTES};
use crate::page::PageBuffer;
use crate::shell::shell_path;
use crate::{DiskOptions, OpenError, RawFile};

/// Signature of the first page.
const MAGIC: [u8; 8] = *b"BLKHUNFL";
/// Identity of the boot of the host, a UUID (Linux `random.c`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Bytes of the first page that are used.
const FIRST_BYTES: usize = 48;

/// The unflushed map of a top.
#[derive(Debug)]
pub(super) struct UnflushedMap {
    /// Position of its bits in the file.
    pub(super) at: u64,
    /// Its bits; dirty where the file lacks some.
    pub(super) map: LayerMap,
    /// Its writes: one at a time.
    pub(super) sync: MapSync,
}

impl UnflushedMap {
    /// That of the top in a file; `None` for a disk that needs none. Bits that do not count any
    /// more are removed from the file.
    ///
    /// # Errors
    ///
    /// The layer has no room for one, or the host's error.
    pub(super) fn of(
        file: &RawFile,
        path: &Path,
        header: &Header,
        options: &DiskOptions,
    ) -> Result<Option<Self>, OpenError> {
        let is_needed = options.survives_kill && !options.read_only;
        is_needed.then(|| Self::open(file.file(), path, header)).transpose()
    }

    /// As [`Self::of`], of a disk that needs one.
    pub(super) fn open(file: &File, path: &Path, header: &Header) -> Result<Self, OpenError> {
        let at = header.unflushed_at().ok_or_else(|| without_room(path))?;
        let own = PageCache::of(file, path)?;
        let reader = buffered(file).map_err(host_error(path, "open it again"))?;
        let bits_at = at + BLOCK;
        if PageCache::recorded(&reader, path, at)? != Some(own) {
            // Before the page that lets them count.
            let cleared = clear(file, bits_at, header.map_bytes);
            cleared.map_err(host_error(path, "clear its unflushed map"))?;
            let begun = own.record(file, at);
            begun.map_err(host_error(path, "begin its unflushed map"))?;
        }
        let map = LayerMap::new(header.map_pages());
        read_pages(&reader, path, header, bits_at, |page, bytes| map.load(page, bytes))?;
        Ok(Self { at: bits_at, map, sync: MapSync::default() })
    }
}

impl UnflushedMap {
    /// The same one, with the same memory, of levels that succeed its own, which are held. A page
    /// whose write has failed is still dirty: its bits are not in the file, although the memory has
    /// them.
    pub(super) fn share(&self) -> Self {
        let map = self.map.share();
        let mut from = 0;
        while let Some(page) = self.map.next_dirty(from) {
            map.soil(page);
            from = page + 1;
        }
        Self { at: self.at, map, sync: MapSync::default() }
    }
}

fn without_room(path: &Path) -> OpenError {
    let why = format!(
        "it was made by an early version, and has no room to note the writes of a served disk; \
         make a new layer over it with `bulkhead layer create --base {} NEW_LAYER`",
        shell_path(path)
    );
    OpenError::Unsuitable { path: path.into(), why }
}

/// Adds the bits that count to those of the layer's map, which is dirty where it has lacked some.
///
/// # Errors
///
/// The host's error.
pub(super) fn add_bits(
    file: &File,
    path: &Path,
    header: &Header,
    map: &LayerMap,
) -> Result<(), OpenError> {
    match bits_that_count(file, path, header)? {
        Some(at) => read_pages(file, path, header, at, |page, bytes| map.add(page, bytes)),
        None => Ok(()),
    }
}

/// Where the file has bits that count; `None` if it has none.
pub(super) fn bits_that_count(
    file: &File,
    path: &Path,
    header: &Header,
) -> Result<Option<u64>, OpenError> {
    // All writes of a frozen layer were flushed, unless a snapshot was killed before its end. Bits
    // of writes that failed are not to change it.
    let is_settled = header.frozen.is_some() && header.pending_name.is_none();
    let Some(at) = header.unflushed_at().filter(|_| !is_settled) else { return Ok(None) };
    let Some(recorded) = PageCache::recorded(file, path, at)? else { return Ok(None) };
    Ok((recorded == PageCache::of(file, path)?).then_some(at + BLOCK))
}

/// The page cache of a file: which boot of the host it belongs to, and which file. A copy of the
/// file has another one, such as one that was taken from its device without a freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageCache {
    boot: [u8; 16],
    device: u64,
    inode: u64,
}

impl PageCache {
    /// The present one.
    fn of(file: &File, path: &Path) -> Result<Self, OpenError> {
        let metadata = file.metadata().map_err(host_error(path, "query it"))?;
        let boot = present_boot()
            .map_err(host_error(Path::new(BOOT_ID), "read the identity of the boot"))?;
        Ok(Self { boot, device: metadata.dev(), inode: metadata.ino() })
    }

    /// The one that the page at `at` names; `None` if it is no such page, or damaged.
    fn recorded(file: &File, path: &Path, at: u64) -> Result<Option<Self>, OpenError> {
        let mut first = [0; FIRST_BYTES];
        match file.read_exact_at(&mut first, at) {
            Ok(()) => Ok(Self::decode(&first)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(host_error(path, "read its unflushed map")(error)),
        }
    }

    fn record(self, file: &File, at: u64) -> io::Result<()> {
        let mut page = PageBuffer::zeroed(BLOCK_BYTES);
        if let Some(first) = page.as_mut_slice().first_chunk_mut() {
            *first = self.encode();
        }
        file.write_all_at(page.as_slice(), at)
    }

    fn encode(self) -> [u8; FIRST_BYTES] {
        let mut first = [0; FIRST_BYTES];
        let fields: [&[u8]; 5] =
            [&MAGIC, &[0; 8], &self.boot, &self.device.to_le_bytes(), &self.inode.to_le_bytes()];
        first.iter_mut().zip(fields.concat()).for_each(|(byte, field)| *byte = field);
        let checksum = crc32fast::hash(&first).to_le_bytes();
        first.iter_mut().skip(8).zip(checksum).for_each(|(byte, field)| *byte = field);
        first
    }

    fn decode(first: &[u8; FIRST_BYTES]) -> Option<Self> {
        let (boot, rest) = first.get(16..)?.split_first_chunk()?;
        let (device, inode) = rest.split_first_chunk()?;
        let cache = Self {
            boot: *boot,
            device: u64::from_le_bytes(*device),
            inode: u64::from_le_bytes(*inode.first_chunk()?),
        };
        // Each byte has one value.
        (cache.encode() == *first).then_some(cache)
    }
}

#[cfg(not(test))]
fn present_boot() -> io::Result<[u8; 16]> {
    boot_of_host()
}

/// The identity of this boot of the host.
fn boot_of_host() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID)?;
    boot_id(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The bytes of a UUID in its textual form.
fn boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.trim_end().bytes().filter(|byte| *byte != b'-').collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = digits.as_chunks();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    (rest.is_empty() && bytes != [0; 16]).then_some(bytes)
}

/// Zeroes a part of the file.
fn clear(file: &File, at: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, at, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeroes(file, at, len),
        result => Ok(result?),
    }
}

/// The same on a file system that cannot make holes.
fn write_zeroes(file: &File, at: u64, len: u64) -> io::Result<()> {
    let zeroes = PageBuffer::zeroed(BLOCK_BYTES);
    for extent in crate::Extents::new(file, at, at + len) {
        let crate::Extent { range, data } = extent?;
        let first = range.start.0 / BLOCK * BLOCK;
        let pages = (first..range.start.0 + range.len).step_by(BLOCK_BYTES);
        for page in pages.filter(|_| data) {
            file.write_all_at(zeroes.as_slice(), page)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::super::identity::BaseIdentity;
    use super::super::uuid::Uuid;
    use super::*;

    thread_local! {
        /// A boot that this thread believes to be in.
        pub(in super::super) static BOOT: Cell<Option<u8>> = const { Cell::new(None) };
    }

    pub(super) fn present_boot() -> io::Result<[u8; 16]> {
        BOOT.get().map_or_else(boot_of_host, |boot| Ok([boot; 16]))
    }

    fn host() -> [u8; 16] {
        boot_of_host().unwrap()
    }

    #[test]
    fn the_identity_of_a_boot_is_a_uuid() {
        let text = "00112233-4455-6677-8899-aabbccddeeff\n";
        let bytes: [u8; 16] = std::array::from_fn(|index| u8::try_from(index * 17).unwrap());
        assert_eq!(boot_id(text), Some(bytes));
        for text in ["", "\n", "0", &text[2..], &format!("0{text}"), &text.replace('a', "x")] {
            assert_eq!(boot_id(text), None, "{text:?}");
        }
        assert_eq!(boot_id("00000000-0000-0000-0000-000000000000"), None);
        assert_eq!(host(), host());
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let cache = PageCache { boot: host(), device: 0x1234_5678_9abc_def0, inode: 77 };
        let first = cache.encode();
        assert_eq!(PageCache::decode(&first), Some(cache));
        for at in 0..FIRST_BYTES {
            let mut changed = first;
            changed[at] ^= 1;
            assert_eq!(PageCache::decode(&changed), None, "byte {at}");
        }
        assert_eq!(PageCache::decode(&[0; FIRST_BYTES]), None);
    }

    fn count(file: &File, header: &Header) -> u64 {
        let map = LayerMap::new(header.map_pages());
        add_bits(file, Path::new("layer"), header, &map).unwrap();
        map.count()
    }

    #[test]
    fn bits_count_in_the_boot_that_wrote_them() {
        let (path, base) = (Path::new("layer"), BaseIdentity::of_layer(Uuid([1; 16]), 1 << 30));
        let header = Header::new(Uuid([2; 16]), 1 << 30, base, Path::new("base"));
        let file = tempfile::tempfile_in(fixtures::scratch()).unwrap();
        file.set_len(header.data_at() + header.size).unwrap();
        let bits_at = header.unflushed_at().unwrap() + BLOCK;
        BOOT.set(Some(1));
        let opened = UnflushedMap::open(&file, path, &header).unwrap();
        assert_eq!((opened.at, opened.map.count()), (bits_at, 0));
        file.write_all_at(&[7], bits_at + 3 * BLOCK).unwrap();
        assert_eq!(count(&file, &header), 3);
        let pending_name = Some("monday.layer".into());
        let pending = Header { frozen: Some(Uuid([3; 16])), pending_name, ..header.clone() };
        assert_eq!(count(&file, &pending), 3, "a snapshot was killed");
        assert_eq!(UnflushedMap::open(&file, path, &header).unwrap().map.count(), 3);
        let frozen = Header { frozen: Some(Uuid([3; 16])), ..header.clone() };
        assert_eq!(count(&file, &frozen), 0, "a frozen layer was flushed");
        BOOT.set(Some(2));
        assert_eq!(count(&file, &header), 0, "of another boot");
        BOOT.set(Some(1));
        assert_eq!(count(&file, &header), 3, "a reader clears nothing");
        BOOT.set(Some(2));
        assert_eq!(UnflushedMap::open(&file, path, &header).unwrap().map.count(), 0);
        BOOT.set(Some(1));
        assert_eq!(UnflushedMap::open(&file, path, &header).unwrap().map.count(), 0, "cleared");
    }

    #[test]
    fn levels_that_succeed_have_the_dirty_pages() {
        let covered = BLOCK * 8;
        let unflushed = UnflushedMap { at: 0, map: LayerMap::new(4), sync: MapSync::default() };
        for page in [0, 1, 3] {
            unflushed.map.set(page * covered, page * covered + 1);
        }
        unflushed.map.clean(1);
        let shared = unflushed.share();
        let dirty = |map: &LayerMap| -> Vec<usize> {
            (0..4).filter(|page| map.next_dirty(*page) == Some(*page)).collect()
        };
        assert_eq!(dirty(&shared.map), [0, 3]);
        assert_eq!(shared.map.count(), 3);
        // The memory is one, the marks are not.
        shared.map.clean(0);
        assert_eq!(dirty(&unflushed.map), [0, 3]);
        assert!(
            shared.map.is_set(3 * covered) && shared.map.is_dirty(3 * covered, 3 * covered + 1)
        );
    }

    /// As on a file system that cannot make holes.
    #[test]
    fn a_part_is_zeroed_and_no_more() {
        for zero in [clear, write_zeroes] {
            let file = tempfile::tempfile_in(fixtures::scratch()).unwrap();
            file.write_all_at(&vec![1; 5 * BLOCK_BYTES], 0).unwrap();
            file.set_len(9 * BLOCK).unwrap();
            zero(&file, BLOCK, 6 * BLOCK).unwrap();
            let mut bytes = vec![0; 9 * BLOCK_BYTES];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let (ones, zeroes) = bytes.split_at(BLOCK_BYTES);
            assert!(ones.iter().all(|byte| *byte == 1) && zeroes.iter().all(|byte| *byte == 0));
        }
    }
}
