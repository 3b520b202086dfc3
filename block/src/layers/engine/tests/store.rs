//! The file of a level as an adversary: requests complete in any order, a power cut keeps any
//! version of each sector since the last flush, and a flush covers no more than it has to.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Instant;

use fixtures::Random;
use rustix::fs::{MemfdFlags, memfd_create};

use super::SECTOR;
use crate::segment::{gather, scatter};
use crate::{
    ByteOffset, ByteRange, Completion, Durability, IoEngine, Miscompare, Operation, Request,
    Segment, Segments, Wake, total_len,
};

/// Granules of a file, in bytes: it deallocates no parts of them.
const GRANULE: usize = 8192;

/// The content of a file, by sector: its versions since the last flush that covered one. The last
/// one is what reads return.
#[derive(Debug)]
pub(super) struct Medium {
    sectors: Vec<Vec<[u8; SECTOR]>>,
    /// Versions that were dropped, by sector.
    dropped: Vec<usize>,
    /// The file that the control thread sees, as far as it reads the content.
    file: File,
}

impl Medium {
    pub(super) fn new(content: &[u8]) -> Rc<RefCell<Self>> {
        let (sectors, _) = content.as_chunks();
        let sectors: Vec<_> = sectors.iter().map(|sector| vec![*sector]).collect();
        let dropped = vec![0; sectors.len()];
        let file = File::from(memfd_create("medium", MemfdFlags::CLOEXEC).unwrap());
        Rc::new(RefCell::new(Self { sectors, dropped, file }))
    }

    pub(super) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let sectors = &self.sectors[at / SECTOR..(at + len) / SECTOR];
        sectors.iter().flat_map(|versions| *versions.last().unwrap()).collect()
    }

    pub(super) fn write(&mut self, at: usize, data: &[u8], durability: Durability) {
        let (data, _) = data.as_chunks();
        for (index, data) in
            data.iter().enumerate().map(|(index, data)| (at / SECTOR + index, data))
        {
            let versions = &mut self.sectors[index];
            versions.push(*data);
            if durability == Durability::Durable {
                self.dropped[index] += versions.len() - 1;
                versions.drain(..versions.len() - 1);
            }
        }
    }

    /// Lets the control thread read and write the first `len` bytes.
    pub(super) fn with_file<T>(&mut self, len: usize, work: impl FnOnce(&File) -> T) -> T {
        let before = self.read(0, len);
        self.file.write_all_at(&before, 0).unwrap();
        let result = work(&self.file);
        let mut after = vec![0; len];
        self.file.read_exact_at(&mut after, 0).unwrap();
        for (at, (before, after)) in before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate() {
            if before != after {
                self.write(at * SECTOR, after, Durability::Volatile);
            }
        }
        result
    }

    /// The last version of each sector now.
    fn mark(&self) -> Vec<usize> {
        let pairs = self.sectors.iter().zip(&self.dropped);
        pairs.map(|(versions, dropped)| dropped + versions.len() - 1).collect()
    }

    /// Makes all versions durable.
    pub(super) fn flush_all(&mut self) {
        let mark = self.mark();
        self.flush(&mark);
    }

    /// Makes the versions of a mark durable.
    fn flush(&mut self, mark: &[usize]) {
        for (index, mark) in mark.iter().enumerate() {
            let covered = mark.saturating_sub(self.dropped[index]);
            self.sectors[index].drain(..covered);
            self.dropped[index] += covered;
        }
    }

    /// Keeps one version of each sector.
    pub(super) fn cut_power(&mut self, random: &mut Random) {
        for (versions, dropped) in self.sectors.iter_mut().zip(&mut self.dropped) {
            let kept = versions[random.below(versions.len())];
            (*versions, *dropped) = (vec![kept], 0);
        }
    }
}

struct Pending {
    tag: u16,
    op: Operation,
    segments: Segments,
    /// Of a flush: the versions that it covers.
    mark: Vec<usize>,
}

/// The requests of one engine of a file.
pub(super) struct Store {
    medium: Rc<RefCell<Medium>>,
    pending: Vec<Pending>,
    completed: Vec<Completion>,
}

impl Store {
    pub(super) fn new(medium: &Rc<RefCell<Medium>>) -> Rc<RefCell<Self>> {
        let medium = Rc::clone(medium);
        Rc::new(RefCell::new(Self { medium, pending: Vec::new(), completed: Vec::new() }))
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Executes one of the requests, or fails it.
    pub(super) fn execute(&mut self, index: usize, error: Option<i32>) {
        let Pending { tag, op, segments, mark } = self.pending.swap_remove(index);
        let result = match error {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => execute(&mut self.medium.borrow_mut(), op, &segments, &mark),
        };
        self.completed.push(Completion { tag, result });
    }

    /// Applies a part of the writes that are pending, as a power cut may.
    pub(super) fn tear(&mut self, random: &mut Random) {
        for Pending { op, segments, .. } in self.pending.drain(..) {
            let mut medium = self.medium.borrow_mut();
            let (start, data) = match op {
                Operation::Write { at, .. } => {
                    let mut data = vec![0; total_len(&segments)];
                    gather(&segments, &mut data);
                    (at, data)
                }
                Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => {
                    (range.start, vec![0; usize::try_from(range.len).unwrap()])
                }
                _ => continue,
            };
            let start = usize::try_from(start.0).unwrap();
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if random.below(2) == 0 {
                    medium.write(start + index * SECTOR, sector, Durability::Volatile);
                }
            }
        }
    }
}

fn execute(
    medium: &mut Medium,
    op: Operation,
    segments: &Segments,
    mark: &[usize],
) -> io::Result<()> {
    let place = |at: ByteOffset| usize::try_from(at.0).unwrap();
    let len = total_len(segments);
    let mut data = vec![0; len];
    gather(segments, &mut data);
    match op {
        Operation::Read { at } => {
            scatter(&medium.read(place(at), len), segments);
        }
        Operation::Write { at, durability } => medium.write(place(at), &data, durability),
        Operation::CompareAndWrite { at, durability } => {
            let (expected, new) = data.split_at(len / 2);
            if medium.read(place(at), len / 2) != expected {
                return Err(io::Error::other(Miscompare { offset: 0 }));
            }
            medium.write(place(at), new, durability);
        }
        Operation::Flush => medium.flush(mark),
        Operation::Discard { range: ByteRange { start, len }, durability, .. } => {
            let end = place(ByteOffset(start.0 + len)) / GRANULE * GRANULE;
            let start = place(start).next_multiple_of(GRANULE);
            medium.write(start, &vec![0; end.saturating_sub(start)], durability);
        }
        Operation::WriteZeroes { range: ByteRange { start, len }, durability, .. } => {
            medium.write(place(start), &vec![0; usize::try_from(len).unwrap()], durability);
        }
    }
    Ok(())
}

/// The engine of a store. Dropping it executes what is pending.
pub(super) struct StoreEngine(pub(super) Rc<RefCell<Store>>);

impl IoEngine for StoreEngine {
    fn push(&mut self, request: Request<'_>) {
        let mut store = self.0.borrow_mut();
        let is_flush = matches!(request.op, Operation::Flush);
        let mark = if is_flush { store.medium.borrow().mark() } else { Vec::new() };
        let segments = std::mem::take(request.segments);
        store.pending.push(Pending { tag: request.tag, op: request.op, segments, mark });
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        let op = Operation::volatile_transfer(at, is_write);
        self.push(Request { tag, op, segments: &mut vec![segment] });
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        completed.append(&mut self.0.borrow_mut().completed);
    }

    fn parked(&self) -> usize {
        // The host works on none before the test executes it.
        self.0.borrow().pending()
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn cancel(&mut self, tag: u16) -> bool {
        let mut store = self.0.borrow_mut();
        let found = store.pending.iter().position(|pending| pending.tag == tag);
        found.map(|index| store.execute(index, Some(libc::ECANCELED))).is_some()
    }

    fn is_ready(&self) -> bool {
        !self.0.borrow().completed.is_empty()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        unreachable!("the test polls nothing")
    }

    fn clear_poll_fd(&mut self) {}

    fn wait(&mut self) -> io::Result<Wake> {
        unreachable!("the test waits for nothing")
    }
}

impl Drop for StoreEngine {
    fn drop(&mut self) {
        let mut store = self.0.borrow_mut();
        while store.pending() > 0 {
            store.execute(0, None);
        }
    }
}
