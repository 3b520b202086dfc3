//! Whether a base is the disk as it was before its recording: over another one the states are not
//! those that a power cut could have left. Over the disk as it was afterwards no lost write is
//! noticed at all.

use std::collections::BTreeSet;
use std::io;

use block::{BASE_SAMPLE, BaseSamples, LogKind};

use crate::block_index::{BLOCK, BLOCK_BYTES};
use crate::cells::SECTOR_BYTES;
use crate::losses::Losses;
use crate::name::StateName;
use crate::recording::Recording;
use crate::source::Source;

/// Most blocks whose content is compared with the base.
const COMPARED: usize = 1024;
/// The part of them that has to be equal for a base from after the recording, as a fraction: its
/// guest may have written a little more when the log had ended.
const EQUAL: (usize, usize) = (9, 10);

const _: () = assert!(BASE_SAMPLE == BLOCK_BYTES);

/// Why a base is refused.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The log or the base cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has another size.
    #[error("it has {base} bytes, and the disk had {disk} when its recording began")]
    Size {
        /// Bytes of the base.
        base: u64,
        /// Bytes of the disk.
        disk: u64,
    },
    /// It has another content.
    #[error("the block at byte {at} is not the one that the disk had when its recording began")]
    Other {
        /// First byte of the block of 4096.
        at: u64,
    },
    /// It has what was recorded.
    #[error(
        "it is the disk as it was after its recording, over which no lost write is noticed: it has \
         what was written, in {equal} of {compared} blocks"
    )]
    After {
        /// Blocks that have it.
        equal: usize,
        /// Blocks that were compared.
        compared: usize,
    },
}

impl Recording {
    /// Whether the base can be the disk as it was when its recording began, by the samples in the
    /// log, and by the data of the recording if they do not prove it. Changes elsewhere are not
    /// noticed.
    ///
    /// # Errors
    ///
    /// It is not, or it cannot be read.
    pub fn check_base(&self) -> Result<(), BaseError> {
        let source = self.source();
        let end =
            StateName { point: source.history.len(), losses: Losses::none(), discards: false };
        if let Some(samples) = self.samples()
            && is_proven(source, &end, samples)?
        {
            return Ok(());
        }
        let (equal, compared) = compare_end(source, &end)?;
        if compared > 0 && equal * EQUAL.1 >= compared * EQUAL.0 {
            return Err(BaseError::After { equal, compared });
        }
        Ok(())
    }
}

/// Compares the base with samples of the disk. Returns whether one of them is of a block that the
/// disk had otherwise at the end: then it is no base from after the recording.
fn is_proven(source: &Source, end: &StateName, samples: &BaseSamples) -> Result<bool, BaseError> {
    if samples.size != source.store.size() {
        return Err(BaseError::Size { base: source.store.size(), disk: samples.size });
    }
    let mut proven = false;
    for (at, checksum) in samples.read() {
        let mut bytes = [0; BLOCK_BYTES];
        source.store.read_base(at, &mut bytes)?;
        if BaseSamples::checksum(&bytes) != checksum {
            return Err(BaseError::Other { at });
        }
        let block = at / BLOCK;
        proven |= source.index.touches(block) && source.block(block, end)? != bytes;
    }
    Ok(proven)
}

/// How many blocks of the base have what the recording left there, of how many that were compared:
/// those whose data is not zero, of writes that are spread over the recording.
fn compare_end(source: &Source, end: &StateName) -> io::Result<(usize, usize)> {
    let requests = source.history.requests();
    let writes = requests.iter().filter(|request| request.kind == LogKind::Write);
    let step = writes.clone().count().div_ceil(COMPARED).max(1);
    let middle = |at: u64, len: u64| (at + len / 2) / BLOCK;
    let blocks: BTreeSet<_> = writes
        .filter(|write| write.is_write())
        .step_by(step)
        .map(|write| middle(write.at, write.len))
        .collect();
    let (mut equal, mut compared) = (0, 0);
    for block in blocks {
        let value = source.cells(block, end).value;
        let left = source.block(block, end)?;
        let mut base = [0; BLOCK_BYTES];
        source.store.read_base(block * BLOCK, &mut base)?;
        let sectors = left.chunks(SECTOR_BYTES).zip(base.chunks(SECTOR_BYTES)).zip(value);
        let written: Vec<_> =
            sectors.filter(|(_, writer)| writer.is_some()).map(|(both, _)| both).collect();
        if written.iter().all(|(left, _)| left.iter().all(|byte| *byte == 0)) {
            continue;
        }
        compared += 1;
        equal += usize::from(written.iter().all(|(left, base)| left == base));
    }
    Ok((equal, compared))
}
