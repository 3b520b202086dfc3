//! The files of layers as `docs/layer-format.md` has them: a reader and a writer that share no code
//! with the program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Size of a block in bytes.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const SLOT: usize = 4096;

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The file of a layer.
pub(crate) struct LayerFile {
    path: PathBuf,
    pub(crate) file: File,
    /// The slot that counts.
    pub(crate) slot: Vec<u8>,
}

impl LayerFile {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut slots = vec![0; 2 * SLOT];
        file.read_exact_at(&mut slots, 0).unwrap();
        let valid = slots.chunks(SLOT).filter(|slot| slot[..8] == *b"BLKHLAYR");
        let slot = valid.max_by_key(|slot| u64_at(slot, 32)).unwrap().to_vec();
        Self { path: path.to_owned(), file, slot }
    }

    pub(crate) fn size(&self) -> u64 {
        u64_at(&self.slot, 56)
    }

    pub(crate) fn frozen(&self) -> [u8; 16] {
        self.slot[128..144].try_into().unwrap()
    }

    pub(crate) fn data_at(&self) -> u64 {
        let map_bytes = u64_at(&self.slot, 72);
        let unflushed = if self.slot[16] & 2 == 0 { 0 } else { 4096 + map_bytes };
        (8192 + map_bytes + unflushed).next_multiple_of(1 << 20)
    }

    /// Where the unflushed map starts, with a page that tells whether its bits count.
    pub(crate) fn unflushed_at(&self) -> u64 {
        8192 + u64_at(&self.slot, 72)
    }

    /// The first page of the unflushed map.
    pub(crate) fn first_page(&self) -> [u8; BLOCK] {
        let mut page = [0; BLOCK];
        self.file.read_exact_at(&mut page, self.unflushed_at()).unwrap();
        page
    }

    /// Sets the bit of a block in the unflushed map.
    pub(crate) fn note(&self, block: u64) {
        let at = self.unflushed_at() + BLOCK as u64 + block / 8;
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at).unwrap();
        self.file.write_all_at(&[byte[0] | 1 << (block % 8)], at).unwrap();
    }

    fn base(&self) -> PathBuf {
        let len = u32_at(&self.slot, 84) as usize;
        let base = std::str::from_utf8(&self.slot[256..256 + len]).unwrap();
        self.path.parent().unwrap().join(base)
    }

    fn answers(&self, block: u64) -> bool {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, 8192 + block / 8).unwrap();
        byte[0] >> (block % 8) & 1 == 1
    }

    pub(crate) fn set_bit(&self, block: u64) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, 8192 + block / 8).unwrap();
        self.file.write_all_at(&[byte[0] | 1 << (block % 8)], 8192 + block / 8).unwrap();
    }

    pub(crate) fn write_data(&self, block: u64, data: &[u8]) {
        self.file.write_all_at(data, self.data_at() + block * BLOCK as u64).unwrap();
    }

    /// Writes a slot, with its checksum.
    pub(crate) fn write_slot(&self, index: usize, slot: &[u8]) {
        let mut slot = slot.to_vec();
        slot[12..16].fill(0);
        let checksum = crc32fast::hash(&slot);
        slot[12..16].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all_at(&slot, (index * SLOT) as u64).unwrap();
    }
}

/// The content of the disk at `path`, a layer if `is_layer`.
pub(crate) fn read_disk(path: &Path, is_layer: bool) -> Vec<u8> {
    if !is_layer {
        return std::fs::read(path).unwrap();
    }
    let layer = LayerFile::open(path);
    let mut disk = read_disk(&layer.base(), u32_at(&layer.slot, 80) == 3);
    disk.resize(usize::try_from(layer.size()).unwrap(), 0);
    for (block, bytes) in (0..).zip(disk.chunks_mut(BLOCK)) {
        if layer.answers(block) {
            let at = layer.data_at() + block * BLOCK as u64;
            layer.file.read_exact_at(bytes, at).unwrap();
        }
    }
    disk
}
