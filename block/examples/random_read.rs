//! Random 4 KiB reads at queue depth 32 through one engine: IOPS and CPU time per read.
//!
//!     cargo run --release -p block --example random_read -- FILE [MODE] [SECONDS [READS]]
//!
//! Stops after SECONDS or READS, whichever comes first. For the instructions per read, run it
//! under `valgrind --tool=callgrind` with two values of READS and divide the differences. For a
//! comparison with `fio --ioengine=io_uring`, pin both to one CPU (`taskset -c 0`) and alternate
//! them on one file.

use std::env;
use std::error::Error;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use block::{
    Backend, ByteOffset, CacheMode, DiskOptions, EngineSetup, IoEngine, Named, Operation, RawFile,
    Request, Segment,
};
use rustix::event::EventfdFlags;
use rustix::time::ClockId;

const DEPTH: u16 = 32;
const BLOCK: usize = 4096;

#[repr(C, align(4096))]
struct Page([u8; BLOCK]);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let path = args.next().ok_or("usage: random_read FILE [MODE] [SECONDS [READS]]")?;
    let mode = args.next().unwrap_or_else(|| "writeback".into());
    let mode = CacheMode::from_name(&mode).ok_or("unknown cache mode")?;
    let seconds: u64 = args.next().as_deref().unwrap_or("1").parse()?;
    let max_reads: u64 = args.next().as_deref().unwrap_or("18446744073709551615").parse()?;

    let disk = RawFile::open(Path::new(&path), &DiskOptions::new(mode).read_only())?;
    let blocks = disk.geometry().capacity / BLOCK as u64;
    let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let mut pages: Vec<_> = (0..DEPTH).map(|_| Page([0; BLOCK])).collect();
    let bases: Vec<*mut u8> = pages.iter_mut().map(|page| page.0.as_mut_ptr()).collect();
    let setup = EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() };
    let mut engine = disk.engine(&setup)?;

    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut segments = Vec::with_capacity(1);
    let mut read = |engine: &mut dyn IoEngine, tag: u16| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = ByteOffset(random % blocks * BLOCK as u64);
        segments.clear();
        if let Some(&base) = bases.get(usize::from(tag)) {
            // SAFETY: a page of its own for each tag; the pages outlive the engine.
            segments.push(unsafe { Segment::new(base, BLOCK) });
        }
        engine.push(Request { tag, op: Operation::Read { at }, segments: &mut segments });
    };

    let (start, cpu) = (Instant::now(), cpu_time());
    let mut reads = 0u64;
    let mut completed = Vec::with_capacity(usize::from(DEPTH));
    for tag in 0..DEPTH {
        read(&mut *engine, tag);
    }
    while reads < max_reads && start.elapsed() < Duration::from_secs(seconds) {
        engine.wait()?;
        engine.reap(&mut completed);
        for done in completed.drain(..) {
            done.result?;
            reads += 1;
            read(&mut *engine, done.tag);
        }
    }
    let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu);
    drop(engine);
    println!(
        "{} IOPS, {} ns of CPU per read",
        u128::from(reads) * 1_000_000_000 / elapsed.as_nanos(),
        cpu.as_nanos() / u128::from(reads.max(1)),
    );
    Ok(())
}

/// CPU time of all threads of this process, including the workers of io_uring.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
