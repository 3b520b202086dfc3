//! Contents of blocks: read from the log and the base, and identified by their hash.

use std::collections::HashMap;
use std::fs::File;
use std::hash::DefaultHasher;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use block::LogKind;

use crate::block_index::{BLOCK, BLOCK_BYTES};
use crate::cells::{BlockValue, SECTOR_BYTES};
use crate::history::History;

/// The content of a block.
pub(crate) type BlockBytes = [u8; BLOCK_BYTES];

/// Hashes that are remembered: some 50 MB.
const REMEMBERED: usize = 500_000;

/// Where the data of a recording is.
pub(crate) struct Store {
    log: File,
    base: File,
    size: u64,
    hashes: Mutex<HashMap<(u64, BlockValue), u128>>,
}

impl Store {
    pub(crate) fn new(log: File, base: File, size: u64) -> Self {
        Self { log, base, size, hashes: Mutex::default() }
    }

    /// The same data for another history of the requests.
    ///
    /// # Errors
    ///
    /// The host is out of descriptors.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.log.try_clone()?, self.base.try_clone()?, self.size))
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads the base from byte `at`. What is beyond its end is zero.
    pub(crate) fn read_base(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        read_or_zero(&self.base, at, buffer)
    }

    /// The content of block `block` whose sectors have `value`.
    pub(crate) fn read(
        &self,
        history: &History,
        block: u64,
        value: &BlockValue,
    ) -> io::Result<BlockBytes> {
        let mut bytes = [0; BLOCK_BYTES];
        let mut rest = bytes.as_mut_slice();
        let mut at = block * BLOCK;
        for run in value.chunk_by(|one, other| one == other) {
            let (part, after) = rest.split_at_mut(run.len() * SECTOR_BYTES);
            rest = after;
            match run.first().copied().flatten() {
                None => self.read_base(at, part)?,
                Some(number) => self.read_write(history, number, at, part)?,
            }
            at += part.len() as u64;
        }
        Ok(bytes)
    }

    /// Reads the data of a write for the disk's byte `at`, which it covers.
    fn read_write(
        &self,
        history: &History,
        number: u32,
        at: u64,
        part: &mut [u8],
    ) -> io::Result<()> {
        let write = history.request(number.into()).ok_or(io::ErrorKind::InvalidInput)?;
        if write.kind != LogKind::Write {
            return Ok(());
        }
        let skip = at.checked_sub(write.at).ok_or(io::ErrorKind::InvalidInput)?;
        self.log.read_exact_at(part, write.data + skip)
    }

    /// The hash of the content of block `block` whose sectors have `value`.
    pub(crate) fn hash(
        &self,
        history: &History,
        block: u64,
        value: &BlockValue,
    ) -> io::Result<u128> {
        let key = (block, *value);
        if let Some(hash) = self.hashes.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*hash);
        }
        let hash = hash(&self.read(history, block, value)?);
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if hashes.len() >= REMEMBERED {
            hashes.clear();
        }
        hashes.insert(key, hash);
        Ok(hash)
    }
}

/// 128 bits of two hashes with different keys.
pub(crate) fn hash(bytes: &[u8]) -> u128 {
    let half = |key: &[u8]| {
        let mut hasher = DefaultHasher::new();
        hasher.write(key);
        hasher.write(bytes);
        hasher.finish()
    };
    u128::from(half(b"one")) << 64 | u128::from(half(b"the other"))
}

fn read_or_zero(file: &File, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(count) => {
                at += count as u64;
                buffer = buffer.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
