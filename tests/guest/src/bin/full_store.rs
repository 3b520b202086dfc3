//! `full-store PATH CACHE ON_ENOSPC FIRST BYTES GROW`: fills a disk whose store has less space than
//! the disk, lets the store grow, and reads what it has written.
//!
//! Writes BYTES from the byte FIRST on. When they have completed, or nothing has for seconds, it
//! flushes, runs the shell command GROW, waits for the rest, flushes, and repeats the writes that
//! failed. Then it reads all acknowledged data past the page cache. Prints a line for each step.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use block::{
    Backend, ByteOffset, CacheMode, Completion, DiskOptions, EngineSetup, IoEngine, Named,
    OnEnospc, Operation, RawFile, Request, Segment,
};
use rustix::event::EventfdFlags;

/// Writes in flight. The next tag is that of the flush.
const DEPTH: u16 = 8;
const WRITE: usize = 256 << 10;
/// Without a completion for this long, the store is full.
const IDLE: Duration = Duration::from_secs(3);
const GROWN: Duration = Duration::from_secs(300);

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

struct Disk {
    disk: RawFile,
    engine: Box<dyn IoEngine>,
    memory: Vec<Page>,
    /// The work of each tag.
    busy: [Option<Work>; DEPTH as usize + 1],
    completed: Vec<Completion>,
    done: Vec<(Work, io::Result<()>)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Write(u64),
    Read(u64),
    Flush,
}

impl Disk {
    fn open(path: &str, options: &DiskOptions, kick: impl AsFd) -> Result<Self> {
        let disk = RawFile::open(Path::new(path), options)?;
        let setup = EngineSetup { depth: DEPTH + 1, memory: &[], kick: kick.as_fd() };
        let engine = disk.engine(&setup)?;
        let memory = vec![Page([0; 4096]); usize::from(DEPTH) * WRITE / 4096];
        let (completed, done) = (Vec::new(), Vec::new());
        Ok(Self { disk, engine, memory, busy: [None; DEPTH as usize + 1], completed, done })
    }

    fn buffer(&mut self, tag: u16) -> &mut [Page] {
        let pages = WRITE / 4096;
        let start = usize::from(tag) * pages;
        self.memory.get_mut(start..start + pages).unwrap_or_default()
    }

    /// Starts `work` if a tag is free.
    fn start(&mut self, work: Work) -> bool {
        let is_flush = |tag: usize| tag == usize::from(DEPTH);
        let mut free = (0..self.busy.len())
            .filter(|tag| self.busy.get(*tag).is_some_and(Option::is_none))
            .filter(|tag| is_flush(*tag) == (work == Work::Flush));
        let Some(tag) = free.next() else { return false };
        if let Some(slot) = self.busy.get_mut(tag) {
            *slot = Some(work);
        }
        let tag = u16::try_from(tag).unwrap_or_default();
        let durability = self.disk.cache_mode().write_durability();
        let op = match work {
            Work::Write(at) => Operation::Write { at: ByteOffset(at), durability },
            Work::Read(at) => Operation::Read { at: ByteOffset(at) },
            Work::Flush => Operation::Flush,
        };
        let mut segments = Vec::new();
        if work != Work::Flush {
            let content = if let Work::Write(at) = work { at } else { 0 };
            let buffer = self.buffer(tag);
            for (index, page) in buffer.iter_mut().enumerate() {
                page.0 = content_of(content, index);
            }
            // SAFETY: the memory of the tag, which outlives the engine.
            segments.push(unsafe { Segment::new(buffer.as_mut_ptr().cast(), WRITE) });
        }
        self.engine.push(Request { tag, op, segments: &mut segments });
        true
    }

    /// Waits for a completion or the next tick, and returns whether there was one.
    fn wait(&mut self) -> Result<bool> {
        self.engine.wait()?;
        self.engine.reap(&mut self.completed);
        let completed = std::mem::take(&mut self.completed);
        let has_progressed = !completed.is_empty();
        for Completion { tag, result } in completed {
            let slot = self.busy.get_mut(usize::from(tag)).context("a tag")?;
            let work = slot.take().context("a completion without a request")?;
            let result = match work {
                Work::Read(at) if result.is_ok() => self.verify(tag, at),
                _ => result,
            };
            self.done.push((work, result));
        }
        Ok(has_progressed)
    }

    fn verify(&mut self, tag: u16, at: u64) -> io::Result<()> {
        let mut pages = self.buffer(tag).iter().enumerate();
        let is_same = pages.all(|(index, page)| page.0 == content_of(at, index));
        if is_same { Ok(()) } else { Err(io::Error::other("damaged")) }
    }

    fn is_idle(&self) -> bool {
        self.busy.iter().all(Option::is_none)
    }

    /// Runs all of `works` until they are complete, or none has completed for `patience`.
    fn run(&mut self, works: impl IntoIterator<Item = Work>, patience: Duration) -> Result<()> {
        let mut works = works.into_iter().peekable();
        let mut last = Instant::now();
        while last.elapsed() < patience {
            while works.peek().is_some_and(|work| self.start(*work)) {
                works.next();
            }
            if works.peek().is_none() && self.is_idle() {
                break;
            }
            if self.wait()? {
                last = Instant::now();
            }
        }
        Ok(())
    }

    /// Flushes, and describes the result.
    fn flush(&mut self, patience: Duration) -> Result<String> {
        self.run([Work::Flush], patience)?;
        let done = std::mem::take(&mut self.done);
        let (flushes, others): (Vec<_>, Vec<_>) =
            done.into_iter().partition(|(work, _)| *work == Work::Flush);
        self.done = others;
        let result = flushes.into_iter().map(|(_, result)| result).next();
        Ok(result.map_or_else(|| "waits".to_owned(), |result| result_text(&result)))
    }

    fn held(&self) -> u32 {
        self.disk.status().enospc_hold.map_or(0, |hold| hold.requests)
    }

    /// The writes that were started: those of `taken`, and those that have completed since or are
    /// in flight.
    fn started(&self, taken: &Writes) -> HashSet<u64> {
        let done = self.done.iter().map(|(work, _)| *work);
        let later = done.chain(self.busy.iter().flatten().copied());
        let later =
            later.filter_map(|work| if let Work::Write(at) = work { Some(at) } else { None });
        let failed = taken.failed.iter().map(|(at, _)| *at);
        taken.acknowledged.iter().copied().chain(failed).chain(later).collect()
    }

    fn take_writes(&mut self) -> Writes {
        let mut writes = Writes::default();
        for (work, result) in self.done.drain(..) {
            match (work, result) {
                (Work::Write(at), Ok(())) => writes.acknowledged.push(at),
                (Work::Write(at), Err(error)) => writes.failed.push((at, error)),
                _ => {}
            }
        }
        writes
    }
}

#[derive(Default)]
struct Writes {
    acknowledged: Vec<u64>,
    failed: Vec<(u64, io::Error)>,
}

impl Writes {
    fn text(&self) -> String {
        let mut text = format!("{} acknowledged", self.acknowledged.len());
        if let Some((_, error)) = self.failed.first() {
            let error = result_text(&Err(io::Error::other(error.to_string())));
            text += &format!(", {} failed: {error}", self.failed.len());
        }
        text
    }
}

fn result_text(result: &io::Result<()>) -> String {
    result.as_ref().map_or_else(ToString::to_string, |()| "done".to_owned())
}

fn content_of(at: u64, index: usize) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (word, value) in page.chunks_mut(8).zip(1..) {
        let value: u64 = value + ((at + index as u64 * 4096) << 16);
        word.copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// The writes and the growth of the store.
struct Plan<'a> {
    path: &'a str,
    options: DiskOptions,
    all: Vec<u64>,
    /// The command that lets the store grow.
    grow: &'a str,
}

impl Plan<'_> {
    /// Fills the store, lets it grow, and returns all that was acknowledged; `None` if the disk
    /// does not open.
    fn fill(&self, kick: impl AsFd) -> Result<Option<Vec<u64>>> {
        let mut disk = match Disk::open(self.path, &self.options, kick) {
            Ok(disk) => disk,
            Err(error) => {
                println!("refused: {error:#}");
                return Ok(None);
            }
        };
        disk.run(self.all.iter().copied().map(Work::Write), IDLE)?;
        let mut before = disk.take_writes();
        println!("of {} writes: {}", self.all.len(), before.text());
        println!("held: {}", disk.held());
        println!("flush while full: {}", disk.flush(IDLE)?);
        println!("lost while full: {}", disk.disk.status().lost_writes.is_some());

        let grown = Command::new("sh").args(["-c", self.grow]).status()?;
        ensure!(grown.success(), "{:?} failed: {grown}", self.grow);
        let started = disk.started(&before);
        let rest: Vec<_> = self.all.iter().filter(|at| !started.contains(at)).copied().collect();
        disk.run(rest.into_iter().map(Work::Write), GROWN)?;
        let mut after = disk.take_writes();
        println!("after growth: {}", after.text());
        println!("held: {}", disk.held());
        println!("flush: {}", disk.flush(GROWN)?);
        before.failed.append(&mut after.failed);
        let failed: Vec<_> = before.failed.iter().map(|(at, _)| Work::Write(*at)).collect();
        disk.run(failed, GROWN)?;
        let mut repeated = disk.take_writes();
        println!("repeated: {}", repeated.text());
        println!("flush: {}", disk.flush(GROWN)?);
        println!("lost: {}", disk.disk.status().lost_writes.is_some());

        before.acknowledged.append(&mut after.acknowledged);
        before.acknowledged.append(&mut repeated.acknowledged);
        Ok(Some(before.acknowledged))
    }
}

/// Signals `kick` from time to time, so that no wait is endless.
fn tick(kick: &OwnedFd) -> Result<()> {
    let ticks = kick.try_clone()?;
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(50));
            let _ = rustix::io::write(&ticks, &1_u64.to_ne_bytes());
        }
    });
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, cache, policy, first, bytes, grow] = arguments.as_slice() else {
        bail!("usage: full-store PATH CACHE ON_ENOSPC FIRST BYTES GROW")
    };
    let cache = CacheMode::from_name(cache).context("CACHE is a cache mode")?;
    let on_enospc = match policy.as_str() {
        "report" => OnEnospc::Report,
        "hold" => OnEnospc::Hold { deadline: Duration::from_secs(600) },
        _ => bail!("ON_ENOSPC is report or hold"),
    };
    let (first, bytes): (u64, u64) = (first.parse()?, bytes.parse()?);
    let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    tick(&kick)?;
    let options = DiskOptions { on_enospc, ..DiskOptions::new(cache) };
    let all = (first..first + bytes).step_by(WRITE).collect();
    let Some(acknowledged) = (Plan { path, options, all, grow }).fill(&kick)? else {
        return Ok(());
    };
    let count = acknowledged.len();
    let options = DiskOptions::new(CacheMode::None).read_only();
    let mut disk = Disk::open(path, &options, &kick)?;
    disk.run(acknowledged.into_iter().map(Work::Read), GROWN)?;
    let damaged = disk.done.iter().filter(|(_, result)| result.is_err()).count();
    ensure!(disk.done.len() == count, "reads do not complete");
    println!("damaged: {damaged} of {count}");
    Ok(())
}
