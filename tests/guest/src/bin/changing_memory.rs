//! `changing-memory PATH SECONDS MODE`: writes to a disk and reads from it with direct I/O, while a
//! thread changes the memory of the requests, as a guest does. MODE is a value of `stable_copies`.
//!
//! Prints the count of requests and of those that failed, then reads all that it has written.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use block::{
    Backend, ByteOffset, CacheMode, Completion, DiskOptions, Durability, EngineSetup, IoEngine,
    Named, Operation, RawFile, Request, Segment, StableCopyMode,
};
use rustix::event::EventfdFlags;

const DEPTH: u16 = 16;
/// Two lengths: a page, and more than the records of the stores under test.
const LENGTHS: [usize; 2] = [4096, 256 << 10];
const SLOT: usize = 256 << 10;
const PAGE: usize = 4096;
/// The byte of each page that changes.
const CHANGING: usize = 100;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; PAGE]);

/// Requests and failed requests.
#[derive(Default)]
struct Count {
    requests: u64,
    failed: u64,
}

struct Stress<'a> {
    engine: Box<dyn IoEngine>,
    memory: &'a mut [Page],
    completed: Vec<Completion>,
}

impl Stress<'_> {
    fn segment(&mut self, tag: u16, len: usize) -> Segment {
        let start = usize::from(tag) * SLOT;
        let base = self.memory.as_mut_ptr().cast::<u8>().wrapping_add(start);
        // SAFETY: within the memory, which outlives the engine.
        unsafe { Segment::new(base, len) }
    }

    /// One request of `len` bytes for each tag, to its own part of the disk.
    fn round(&mut self, len: usize, is_write: bool, count: &mut Count) -> io::Result<()> {
        for tag in 0..DEPTH {
            let at = ByteOffset(u64::from(tag) * SLOT as u64);
            let op = match is_write {
                true => Operation::Write { at, durability: Durability::Volatile },
                false => Operation::Read { at },
            };
            let mut segments = vec![self.segment(tag, len)];
            self.engine.push(Request { tag, op, segments: &mut segments });
        }
        let mut left = DEPTH;
        while left > 0 {
            self.engine.wait()?;
            self.engine.reap(&mut self.completed);
            for Completion { result, .. } in self.completed.drain(..) {
                left -= 1;
                count.requests += 1;
                count.failed += u64::from(result.is_err());
            }
        }
        Ok(())
    }
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, seconds, mode] = arguments.as_slice() else {
        bail!("usage: changing-memory PATH SECONDS MODE")
    };
    let mode = StableCopyMode::from_name(mode).context("MODE is auto, on or off")?;
    let duration = Duration::from_secs(seconds.parse()?);
    let defaults = DiskOptions::new(CacheMode::None);
    let disk = RawFile::open(Path::new(path), &DiskOptions { stable_copies: mode, ..defaults })?;
    println!("copies: {:?}", disk.status().store.copied);

    let mut memory = vec![Page([7; PAGE]); usize::from(DEPTH) * SLOT / PAGE];
    let base = memory.as_mut_ptr().expose_provenance();
    let (len, is_done) = (memory.len() * PAGE, AtomicBool::new(false));
    let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let engine = disk.engine(&EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() })?;
    let mut stress = Stress { engine, memory: &mut memory, completed: Vec::new() };
    let (mut writes, mut reads, mut last) = (Count::default(), Count::default(), Count::default());
    let outcome = thread::scope(|scope| {
        scope.spawn(|| change(base, len, &is_done));
        let start = Instant::now();
        let outcome = (|| {
            while start.elapsed() < duration {
                for bytes in LENGTHS {
                    stress.round(bytes, true, &mut writes)?;
                    stress.round(bytes, false, &mut reads)?;
                }
            }
            stress.round(SLOT, true, &mut writes)
        })();
        is_done.store(true, Ordering::Relaxed);
        outcome
    });
    outcome?;
    stress.round(SLOT, false, &mut last)?;
    drop(stress);
    let is_changed = |page: &Page| page.0.iter().filter(|byte| **byte != 7).count() > 1;
    let damaged = memory.iter().filter(|page| is_changed(page)).count();
    for (name, count) in [("writes", writes), ("reads", reads), ("last reads", last)] {
        println!("{name}: {} of {} failed", count.failed, count.requests);
    }
    println!("damaged pages: {damaged}");
    Ok(ExitCode::SUCCESS)
}

/// Changes a byte of each page until the requests are over.
fn change(base: usize, len: usize, is_done: &AtomicBool) {
    let mut value = 0_u8;
    while !is_done.load(Ordering::Relaxed) {
        value = value.wrapping_add(1);
        for page in (base..base + len).step_by(PAGE) {
            let byte = std::ptr::with_exposed_provenance_mut::<u8>(page + CHANGING);
            // SAFETY: within the memory of the requests, which outlives this thread.
            unsafe { byte.write_volatile(value) };
        }
    }
}
