//! Random layers over a random base, and a model of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::create_layer;
use fixtures::{Random, scratch};
use tempfile::TempDir;

use super::format::{BLOCK, LayerFile};

/// A block of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// The level does not answer for it; a layer may have data there without meaning.
    Inherited,
    Hole,
    /// Filled with the byte.
    Data(u8),
}

/// A chain of layers in a folder, with its model.
pub(crate) struct Chain {
    pub(crate) folder: TempDir,
    /// From the top down; the last one is the base.
    pub(crate) levels: Vec<Vec<Block>>,
    /// Size of the base in bytes.
    base_size: u64,
}

impl Chain {
    /// A chain of `depth` layers over a base of `blocks` blocks or a part of the last one.
    pub(crate) fn new(random: &mut Random, depth: usize, blocks: usize) -> Self {
        let folder = TempDir::new_in(scratch()).unwrap();
        let cut = 512 * random.below(8) as u64;
        let base_size = (blocks * BLOCK) as u64 - cut;
        let base = File::create(folder.path().join("base.img")).unwrap();
        base.set_len(base_size).unwrap();
        let content = draw(random, blocks, true);
        for (index, block) in content.iter().enumerate() {
            if let Block::Data(byte) = block {
                let len = (base_size as usize - index * BLOCK).min(BLOCK);
                base.write_all_at(&vec![*byte; len], (index * BLOCK) as u64).unwrap();
            }
        }
        base.sync_all().unwrap();
        drop(base);
        let mut chain = Self { folder, levels: vec![content], base_size };
        for _ in 0..depth {
            chain.add_layer(random);
        }
        chain
    }

    /// Adds a layer, which may be larger than the one below.
    fn add_layer(&mut self, random: &mut Random) {
        let blocks = self.levels[0].len() + if random.coin() { random.below(20) } else { 0 };
        let size = Some((blocks * BLOCK) as u64);
        let below = self.path(0);
        let path = self.folder.path().join(format!("{}.layer", self.levels.len()));
        create_layer(&path, &below, size).unwrap();
        let file = LayerFile::open(&path);
        let content = draw(random, blocks, false);
        for (index, block) in (0..).zip(&content) {
            if *block != Block::Inherited {
                file.set_bit(index);
            }
            if let Block::Data(byte) = block {
                file.write_data(index, &[*byte; BLOCK]);
            } else if *block == Block::Inherited && random.chance(100) {
                file.write_data(index, &[0xee; BLOCK]);
            }
        }
        file.file.sync_all().unwrap();
        self.levels.insert(0, content);
    }

    /// The file of a level.
    pub(crate) fn path(&self, level: usize) -> PathBuf {
        let name = match self.levels.len() - 1 - level {
            0 => "base.img".to_owned(),
            number => format!("{number}.layer"),
        };
        self.folder.path().join(name)
    }

    pub(crate) fn base(&self) -> usize {
        self.levels.len() - 1
    }

    pub(crate) fn blocks(&self) -> usize {
        self.levels[0].len()
    }

    /// The level from `from` on that answers for a block, and its content.
    pub(crate) fn answer(&self, from: usize, block: usize) -> (Option<usize>, Block) {
        let levels = self.levels.iter().enumerate().skip(from);
        let found = levels
            .map(|(level, blocks)| (level, blocks.get(block).copied()))
            .find(|(_, block)| !matches!(block, Some(Block::Inherited) | None));
        found.map_or((None, Block::Hole), |(level, block)| (Some(level), block.unwrap()))
    }

    /// The content of a block of the disk that the levels from `from` on are.
    pub(crate) fn content(&self, from: usize, block: usize) -> Vec<u8> {
        let (level, content) = self.answer(from, block);
        let Block::Data(byte) = content else { return vec![0; BLOCK] };
        let mut bytes = vec![byte; BLOCK];
        if level == Some(self.base()) {
            let end = (self.base_size as usize - block * BLOCK).min(BLOCK);
            bytes[end..].fill(0);
        }
        bytes
    }

    /// The content of the disk.
    pub(crate) fn disk(&self) -> Vec<u8> {
        (0..self.blocks()).flat_map(|block| self.content(0, block)).collect()
    }

    /// A folder with a copy of the base that is older.
    pub(crate) fn copy_base(&self) -> (TempDir, PathBuf) {
        let folder = TempDir::new_in(scratch()).unwrap();
        let copy = folder.path().join("copy.img");
        std::fs::copy(self.path(self.base()), &copy).unwrap();
        let older = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::options().write(true).open(&copy).unwrap().set_modified(older).unwrap();
        (folder, copy)
    }
}

/// Runs of blocks of each kind, with few contents, so that levels often have the same.
fn draw(random: &mut Random, blocks: usize, is_base: bool) -> Vec<Block> {
    let mut content = Vec::new();
    while content.len() < blocks {
        let run = 1 + random.below(9);
        let inherited = if is_base { Block::Hole } else { Block::Inherited };
        let block = match random.below(4) {
            0 => Block::Hole,
            1 | 2 => Block::Data(random.below(3) as u8),
            _ => inherited,
        };
        content.extend(std::iter::repeat_n(block, run));
    }
    content.truncate(blocks);
    content
}

/// Files in the folder, without the ones of `known`.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}
