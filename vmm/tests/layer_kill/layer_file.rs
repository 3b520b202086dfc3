//! An independent reader and writer of layer files, by `docs/layer-format.md` alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) const BLOCK: usize = 4096;
const MAP_AT: u64 = 8192;

/// The slot of a layer that counts.
pub(crate) struct Slot(Vec<u8>);

impl Slot {
    /// That of the layer at `path`; `None` if it is no layer.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = File::open(path).unwrap();
        let slots = [0, 4096].map(|at| {
            let mut slot = vec![0; 4096];
            let _ = file.read_exact_at(&mut slot, at);
            Self(slot)
        });
        let valid = slots.into_iter().filter(|slot| slot.0.starts_with(b"BLKHLAYR"));
        valid.max_by_key(|slot| slot.number(32))
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    pub(crate) fn size(&self) -> u64 {
        self.number(56)
    }

    fn data_at(&self) -> u64 {
        let map_bytes = self.number(72);
        let unflushed = if self.0[16] & 2 == 0 { 0 } else { 4096 + map_bytes };
        (MAP_AT + map_bytes + unflushed).next_multiple_of(1 << 20)
    }

    pub(crate) fn uuid(&self) -> &[u8] {
        &self.0[40..56]
    }

    pub(crate) fn base(&self, layer: &Path) -> PathBuf {
        let length = usize::try_from(self.number(80) >> 32).unwrap();
        let path = std::str::from_utf8(&self.0[256..256 + length]).unwrap();
        layer.parent().unwrap().join(path)
    }
}

/// The content of a disk; `None` if a file is missing.
pub(crate) fn read_disk(path: &Path) -> Option<Vec<u8>> {
    if !path.exists() {
        return None;
    }
    let Some(slot) = Slot::of(path) else { return Some(fs::read(path).unwrap()) };
    let mut disk = read_disk(&slot.base(path))?;
    // A base answers beyond its end with zeroes.
    disk.resize(usize::try_from(slot.size()).unwrap(), 0);
    let file = File::open(path).unwrap();
    let mut bits = vec![0; disk.len().div_ceil(BLOCK * 8)];
    file.read_exact_at(&mut bits, MAP_AT).unwrap();
    for (index, block) in disk.chunks_mut(BLOCK).enumerate() {
        if bits[index / 8] >> (index % 8) & 1 != 0 {
            file.read_exact_at(block, slot.data_at() + (index * BLOCK) as u64).unwrap();
        }
    }
    Some(disk)
}

/// Number of blocks that a layer answers for.
pub(crate) fn answered(path: &Path) -> u32 {
    let mut bits = [0; BLOCK];
    File::open(path).unwrap().read_exact_at(&mut bits, MAP_AT).unwrap();
    bits.iter().map(|byte| byte.count_ones()).sum()
}

/// Lets a layer answer for blocks, each full of a byte; a hole for 0.
pub(crate) fn answer(path: &Path, blocks: &[(u64, u8)]) {
    let slot = Slot::of(path).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    for &(block, byte) in blocks {
        if byte != 0 {
            let at = slot.data_at() + block * BLOCK as u64;
            file.write_all_at(&[byte; BLOCK], at).unwrap();
        }
        let mut bits = [0];
        file.read_exact_at(&mut bits, MAP_AT + block / 8).unwrap();
        bits[0] |= 1 << (block % 8);
        file.write_all_at(&bits, MAP_AT + block / 8).unwrap();
    }
    file.sync_all().unwrap();
}
