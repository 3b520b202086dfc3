//! A disk as a power cut could have left it.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block_index::{BLOCK, BLOCK_BYTES};
use crate::check::CheckedDisk;
use crate::name::StateName;
use crate::overlay::{Overlaid, Overlay};
use crate::source::{MARKS, Source};

/// Most memory that a check may write to, in blocks: 1 GiB.
const OVERLAY_MAX: usize = (1 << 30) / BLOCK_BYTES;

/// A disk as a power cut could have left it. What is written to it stays in memory.
pub struct StateDisk {
    source: Arc<Source>,
    name: StateName,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    overlay: Overlay,
    reads: Vec<(u64, u128)>,
    seen: HashSet<u64>,
    fault: Option<io::Error>,
}

impl StateDisk {
    pub(crate) fn new(source: Arc<Source>, name: StateName) -> Self {
        Self { source, name, inner: Mutex::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &StateName {
        &self.name
    }

    /// The blocks that were read so far, with what they have, in the order of their first reads.
    /// Those that no write of the recording touches are the same in all states, and are not among
    /// them; nor are those that the check had overwritten.
    pub(crate) fn reads(&self) -> Vec<(u64, u128)> {
        self.lock().reads.clone()
    }

    /// The first error of the host, if there was one: the check saw what no state has.
    pub(crate) fn take_fault(&self) -> Option<io::Error> {
        self.lock().fault.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_range(&self, at: u64, len: u64) -> io::Result<()> {
        let within = at.checked_add(len).is_some_and(|end| end <= self.size());
        if within { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }

    /// Keeps an error of the host, for the search to know of it.
    fn noted<T>(&self, inner: &mut Inner, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let copy = error.raw_os_error().map_or_else(
                || io::Error::new(error.kind(), error.to_string()),
                io::Error::from_raw_os_error,
            );
            inner.fault.get_or_insert(copy);
        }
        result
    }

    /// Remembers that the check read what a block of the recording has.
    fn track(&self, inner: &mut Inner, block: u64) -> io::Result<()> {
        if inner.seen.contains(&block) {
            return Ok(());
        }
        let identity = self.noted(inner, self.source.identity(block, &self.name))?;
        inner.seen.insert(block);
        inner.reads.push((block, identity));
        Ok(())
    }

    fn read_part(&self, inner: &mut Inner, at: u64, part: &mut [u8]) -> io::Result<()> {
        let (block, offset) = (at / BLOCK, offset_in_block(at));
        let copy = |from: &[u8; BLOCK_BYTES], part: &mut [u8]| {
            part.copy_from_slice(from.get(offset..offset + part.len()).unwrap_or_default());
        };
        match inner.overlay.block(block) {
            Overlaid::Zeroed => part.fill(0),
            Overlaid::Written(written) => {
                let below = written.shows_below(offset, part.len());
                copy(&written.bytes, part);
                if below && self.source.index.touches(block) {
                    self.track(inner, block)?;
                }
            }
            Overlaid::Nothing if self.source.index.touches(block) => {
                self.track(inner, block)?;
                let bytes = self.noted(inner, self.source.block(block, &self.name))?;
                copy(&bytes, part);
            }
            Overlaid::Nothing => {
                let read = self.source.store.read_base(at, part);
                self.noted(inner, read)?;
            }
        }
        Ok(())
    }

    fn write_part(&self, inner: &mut Inner, at: u64, part: &[u8]) -> io::Result<()> {
        let (block, offset) = (at / BLOCK, offset_in_block(at));
        if inner.overlay.blocks() >= OVERLAY_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let below = match inner.overlay.block(block) {
            Overlaid::Nothing if part.len() < BLOCK_BYTES => {
                self.noted(inner, self.source.block(block, &self.name))?
            }
            _ => [0; BLOCK_BYTES],
        };
        inner.overlay.write(block, offset, part, &below);
        Ok(())
    }
}

fn offset_in_block(at: u64) -> usize {
    usize::try_from(at % BLOCK).unwrap_or_default()
}

/// The length of the part from byte `at` that is within one block.
fn within_block(at: u64, len: usize) -> usize {
    len.min(BLOCK_BYTES - offset_in_block(at))
}

impl CheckedDisk for StateDisk {
    fn size(&self) -> u64 {
        self.source.store.size()
    }

    fn read(&self, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        self.check_range(at, buffer.len() as u64)?;
        let mut inner = self.lock();
        while !buffer.is_empty() {
            let (part, rest) = buffer.split_at_mut(within_block(at, buffer.len()));
            self.read_part(&mut inner, at, part)?;
            at += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn read_same(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        let is_same = |block: &u64| {
            matches!(inner.overlay.block(*block), Overlaid::Nothing)
                && !self.source.index.touches(*block)
        };
        let end = at.saturating_add(buffer.len() as u64).min(self.size());
        let blocks = at / BLOCK..end / BLOCK;
        if !at.is_multiple_of(BLOCK) {
            return Ok(0);
        }
        let count = blocks.take_while(is_same).count() * BLOCK_BYTES;
        let read = self.source.store.read_base(at, buffer.get_mut(..count).unwrap_or_default());
        self.noted(&mut inner, read)?;
        Ok(count)
    }

    fn write(&self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        self.check_range(at, data.len() as u64)?;
        let mut inner = self.lock();
        while !data.is_empty() {
            let (part, rest) = data.split_at(within_block(at, data.len()));
            self.write_part(&mut inner, at, part)?;
            at += part.len() as u64;
            data = rest;
        }
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.check_range(at, len)?;
        let zeroes = [0; BLOCK_BYTES];
        let (end, mut from) = (at + len, at);
        let mut inner = self.lock();
        let whole = at.div_ceil(BLOCK)..end / BLOCK;
        while from < end {
            if whole.contains(&(from / BLOCK)) && from % BLOCK == 0 {
                inner.overlay.zero(whole.start, whole.end);
                from = whole.end * BLOCK;
                continue;
            }
            let len = within_block(from, usize::try_from(end - from).unwrap_or(usize::MAX));
            self.write_part(&mut inner, from, zeroes.get(..len).unwrap_or_default())?;
            from += len as u64;
        }
        Ok(())
    }

    fn marks(&self) -> String {
        if !self.source.history.marks().is_empty() {
            // The identity of marks is computed without the host, and does not fail.
            let _ = self.track(&mut self.lock(), MARKS);
        }
        self.source.marks(self.name.point)
    }
}
