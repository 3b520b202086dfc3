//! The small database on a recorded disk in memory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use block::{
    Backend, ByteOffset, ByteRange, CacheMode, Durability, EngineSetup, Geometry, IoEngine,
    MemoryDisk, Operation, RecordOptions, RecordedDisk, Recording, Request, Segment,
};
use rustix::event::{EventfdFlags, eventfd};

use super::mini_db::{BLOCK, DISK, Device, DiskOp};

/// Most requests in flight.
const DEPTH: u16 = 64;

/// Records what `workload` does to a disk of zeroes. Makes the image `base` and the log `log`.
///
/// # Errors
///
/// The host's error.
pub fn record_in_memory(
    base: &Path,
    log: &Path,
    workload: impl FnOnce(&mut dyn Device),
) -> Result<()> {
    File::create(base)?.set_len(DISK)?;
    let geometry = Geometry {
        capacity: DISK,
        logical_block: 512,
        physical_block: 4096,
        optimal_io: 0,
        discard: None,
    };
    let disk = MemoryDisk::new(geometry, CacheMode::WriteBack, false);
    let recording = Recording::start("disk", &disk, &RecordOptions::new(log))?;
    let disk = RecordedDisk::new(Arc::new(disk), Arc::clone(&recording));
    let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let engine = disk.engine(&EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() })?;
    let mut device = Direct { engine, recording: Arc::clone(&recording), _kick: kick };
    workload(&mut device);
    drop(device);
    recording.stop("the workload ended");
    ensure!(has_whole_log(&recording), "the log is not complete");
    Ok(())
}

/// Whether a recording has ended without a failure.
pub(crate) fn has_whole_log(recording: &Recording) -> bool {
    recording.status().end.is_some_and(|end| !end.is_failure)
}

struct Direct {
    engine: Box<dyn IoEngine>,
    recording: Arc<Recording>,
    _kick: OwnedFd,
}

impl Device for Direct {
    fn batch(&mut self, ops: Vec<DiskOp>) {
        let mut open = ops.len();
        // The buffers stay in place until their requests have completed.
        let mut buffers: Vec<_> = ops.iter().map(data_of).collect();
        for ((tag, op), buffer) in (0..).zip(&ops).zip(&mut buffers) {
            let mut segments = Vec::new();
            if !buffer.is_empty() {
                // SAFETY: the buffer is dropped after its request has completed, below, and the
                // engine alone uses it meanwhile.
                segments.push(unsafe { Segment::new(buffer.as_mut_ptr(), buffer.len()) });
            }
            self.engine.push(Request { tag, op: operation(op), segments: &mut segments });
        }
        let mut completed = Vec::new();
        while open > 0 {
            self.engine.wait().expect("a disk in memory answers");
            self.engine.reap(&mut completed);
            open -= completed.len();
            for completion in completed.drain(..) {
                completion.result.expect("a disk in memory does not fail");
            }
        }
    }

    fn mark(&mut self, text: &str) {
        self.recording.mark(text).expect("the recording continues");
    }
}

fn data_of(op: &DiskOp) -> Vec<u8> {
    match op {
        DiskOp::Write(_, data) | DiskOp::WriteFua(_, data) => data.clone(),
        DiskOp::Discard(..) | DiskOp::Flush => Vec::new(),
    }
}

fn operation(op: &DiskOp) -> Operation {
    let at = |block: u64| ByteOffset(block * BLOCK as u64);
    match *op {
        DiskOp::Write(block, _) => {
            Operation::Write { at: at(block), durability: Durability::Volatile }
        }
        DiskOp::WriteFua(block, _) => {
            Operation::Write { at: at(block), durability: Durability::Durable }
        }
        DiskOp::Discard(block, count) => Operation::Discard {
            range: ByteRange { start: at(block), len: count * BLOCK as u64 },
            durability: Durability::Volatile,
            more_follows: false,
        },
        DiskOp::Flush => Operation::Flush,
    }
}
