//! Shared by the tests of this crate: aligned memory, scratch disks, a driver of one engine.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod log;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use block::{
    Backend, ByteOffset, ByteRange, CacheMode, Completion, DiskOptions, Durability, EngineSetup,
    IoEngine, OpenError, Operation, RawFile, Request, Segment, Wake,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use tempfile::NamedTempFile;

pub(crate) const DEPTH: u16 = 32;
pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Page-aligned bytes.
pub(crate) struct Memory {
    pages: Vec<Page>,
    len: usize,
}

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

impl Memory {
    pub(crate) fn filled(byte: u8, len: u64) -> Self {
        let len = usize::try_from(len).unwrap();
        Self { pages: vec![Page([byte; 4096]); len.div_ceil(4096)], len }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let bytes = self.pages.iter().flat_map(|page| page.0);
        bytes.take(self.len).collect()
    }

    pub(crate) fn set(&mut self, at: usize, byte: u8) {
        self.pages[at / 4096].0[at % 4096] = byte;
    }

    /// `len` bytes from `start` on.
    pub(crate) fn segment(&mut self, start: usize, len: usize) -> Segment {
        assert!(start + len <= self.pages.len() * 4096);
        let base = self.pages.as_mut_ptr().cast::<u8>().wrapping_add(start);
        // SAFETY: within the pages, which the caller keeps until the request has completed.
        unsafe { Segment::new(base, len) }
    }

    pub(crate) fn whole(&mut self) -> Vec<Segment> {
        vec![self.segment(0, self.len)]
    }
}

/// A directory on the repository's file system; `/tmp` may be a tmpfs.
pub(crate) fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// A file of `size` bytes in which each byte is one more than the number of its 512-byte sector,
/// modulo 255.
pub(crate) fn numbered_file(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new_in(scratch()).unwrap();
    std::fs::write(file.path(), numbered(0, size)).unwrap();
    File::open(file.path()).unwrap().sync_all().unwrap();
    file
}

/// `len` bytes of a [`numbered_file`] from `start` on.
pub(crate) fn numbered(start: u64, len: u64) -> Vec<u8> {
    (start..start + len).map(|at| u8::try_from((at / 512) % 255).unwrap() + 1).collect()
}

pub(crate) fn open(path: &Path, mode: CacheMode) -> RawFile {
    RawFile::open(path, &DiskOptions::new(mode)).unwrap()
}

/// One engine and its kick descriptor.
pub(crate) struct Rig {
    pub(crate) engine: Box<dyn IoEngine>,
    reaped: Vec<Completion>,
    pub(crate) kick: OwnedFd,
}

impl Rig {
    pub(crate) fn new(disk: &dyn Backend) -> Self {
        Self::try_new(disk).unwrap()
    }

    pub(crate) fn try_new(disk: &dyn Backend) -> Result<Self, OpenError> {
        let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let setup = EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() };
        Ok(Self { engine: disk.engine(&setup)?, reaped: Vec::new(), kick })
    }

    pub(crate) fn push(&mut self, tag: u16, op: Operation, mut segments: Vec<Segment>) {
        self.engine.push(Request { tag, op, segments: &mut segments });
    }

    pub(crate) fn submit(&mut self) {
        self.engine.submit().unwrap();
    }

    pub(crate) fn reap(&mut self) -> Option<Completion> {
        self.engine.reap(&mut self.reaped);
        if self.reaped.is_empty() { None } else { Some(self.reaped.remove(0)) }
    }

    pub(crate) fn cancel(&mut self, tag: u16) -> bool {
        self.engine.cancel(tag)
    }

    /// Polls the engine's descriptor instead of waiting in the engine; `false` after `millis`
    /// milliseconds without an event.
    pub(crate) fn poll(&mut self, millis: i64) -> bool {
        let timeout = Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 };
        let descriptor = self.engine.poll_fd().unwrap();
        let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
        let is_ready = poll(&mut fds, Some(&timeout)).unwrap() > 0;
        self.engine.clear_poll_fd();
        is_ready
    }

    pub(crate) fn wait(&mut self) -> Wake {
        self.engine.wait().unwrap()
    }

    /// Waits for the next completion.
    pub(crate) fn complete(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.reap() {
                return completion;
            }
            self.wait();
        }
    }

    /// Waits until requests 0 to `count`, exclusive, have completed without an error.
    pub(crate) fn complete_all(&mut self, count: u16) {
        let mut tags: Vec<_> = (0..count)
            .map(|_| {
                let done = self.complete();
                done.result.unwrap();
                done.tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..count).collect::<Vec<_>>());
    }

    /// Pushes one request and waits for its completion.
    pub(crate) fn run(&mut self, op: Operation, segments: Vec<Segment>) -> io::Result<()> {
        self.push(0, op, segments);
        let completion = self.complete();
        assert_eq!(completion.tag, 0);
        assert!(self.reap().is_none(), "one request, one completion");
        completion.result
    }

    pub(crate) fn read(&mut self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut memory = Memory::filled(0xee, len);
        self.run(read(at), memory.whole())?;
        Ok(memory.bytes())
    }

    pub(crate) fn fill(
        &mut self,
        at: u64,
        len: u64,
        byte: u8,
        durability: Durability,
    ) -> io::Result<()> {
        let mut memory = Memory::filled(byte, len);
        self.run(write(at, durability), memory.whole())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.run(Operation::Flush, vec![])
    }
}

pub(crate) fn read(at: u64) -> Operation {
    Operation::Read { at: ByteOffset(at) }
}

pub(crate) fn write(at: u64, durability: Durability) -> Operation {
    Operation::Write { at: ByteOffset(at), durability }
}

pub(crate) fn discard(start: u64, len: u64, durability: Durability) -> Operation {
    let range = ByteRange { start: ByteOffset(start), len };
    Operation::Discard { range, durability, more_follows: false }
}

pub(crate) fn zero(start: u64, len: u64, unmap: bool, durability: Durability) -> Operation {
    let range = ByteRange { start: ByteOffset(start), len };
    Operation::WriteZeroes { range, unmap, durability }
}

/// The errno of a failed request.
pub(crate) fn errno(result: io::Result<()>) -> Option<i32> {
    result.expect_err("the request fails").raw_os_error()
}
