//! What one request queue has to do with each disk: what is in flight for it, and what it is counted.
//!
//! A disk that was detached stays here until nothing of it is in flight.

use std::sync::Arc;

use super::disk::Disk;
use super::shared::Map;
use crate::storage::stats::{Kind, QueueStats, Round};

/// See the module's documentation. By the disks' numbers.
pub(super) struct Books {
    queue: usize,
    books: Vec<Book>,
    /// Those with something to count for this round.
    touched: Vec<u16>,
    /// Whether something is in flight for disks that are on the map no more.
    owes: bool,
}

#[derive(Default)]
struct Book {
    disk: Option<Arc<Disk>>,
    in_flight: u16,
    /// In this round.
    taken: u64,
    settled: u64,
    touched: bool,
}

impl Books {
    pub(super) fn new(queue: u16) -> Self {
        Self { queue: queue.into(), books: Vec::new(), touched: Vec::new(), owes: false }
    }

    /// The disk, if anything of it is or was in flight.
    pub(super) fn disk(&self, number: u16) -> Option<&Arc<Disk>> {
        self.books.get(usize::from(number))?.disk.as_ref()
    }

    /// Lets go of disks that are on the map no more, as far as nothing of them is in flight.
    pub(super) fn follow(&mut self, map: &Map) {
        self.owes = false;
        for (number, book) in (0..).zip(&mut self.books) {
            if map.disk(number).is_some() {
                continue;
            }
            if book.in_flight == 0 {
                book.disk = None;
            }
            self.owes |= book.disk.is_some();
        }
    }

    /// Whether to [follow](Self::follow) the same map once more after this round.
    pub(super) fn owes(&self) -> bool {
        self.owes
    }

    /// A request goes to an engine.
    pub(super) fn taken(&mut self, number: u16, map: &Map) {
        let Some(book) = self.touch(number, map) else { return };
        book.taken += 1;
        book.in_flight = book.in_flight.saturating_add(1);
    }

    /// A request has ended that was in flight.
    pub(super) fn settled(&mut self, number: u16, map: &Map) {
        let Some(book) = self.touch(number, map) else { return };
        book.settled += 1;
        book.in_flight = book.in_flight.saturating_sub(1);
    }

    /// A request was answered without the medium.
    pub(super) fn answered(&mut self, number: u16, map: &Map) {
        self.touch(number, map);
        if let Some(stats) = self.stats(number) {
            stats.answered();
        }
    }

    /// An engine has completed something.
    pub(super) fn completed(&mut self, number: u16, kind: Kind, bytes: Option<u64>, took_ns: u64) {
        if let Some(stats) = self.stats(number) {
            stats.completed_one(kind, bytes, took_ns);
        }
    }

    /// Counts a round for each disk that had part in it.
    pub(super) fn round(&mut self, round: &Round) {
        for number in self.touched.drain(..) {
            let Some(book) = self.books.get_mut(usize::from(number)) else { continue };
            let (taken, settled) =
                (std::mem::take(&mut book.taken), std::mem::take(&mut book.settled));
            book.touched = false;
            let Some(disk) = &book.disk else { continue };
            if let Some(stats) = disk.stats.get(self.queue) {
                stats.in_flight(book.in_flight);
                stats.round(&round.part(taken, settled));
            }
        }
    }

    fn stats(&self, number: u16) -> Option<&QueueStats> {
        self.disk(number)?.stats.get(self.queue).map(|stats| &**stats)
    }

    fn touch(&mut self, number: u16, map: &Map) -> Option<&mut Book> {
        let index = usize::from(number);
        if self.books.len() <= index {
            self.books.resize_with(index + 1, Book::default);
        }
        let book = self.books.get_mut(index)?;
        if book.disk.is_none() {
            book.disk = map.disk(number).cloned();
        }
        if !book.touched {
            book.touched = true;
            self.touched.push(number);
        }
        Some(book)
    }
}

impl Drop for Books {
    /// What the engines still held ended with them, uncounted.
    fn drop(&mut self) {
        for disk in self.books.iter().filter_map(|book| book.disk.as_ref()) {
            if let Some(stats) = disk.stats.get(self.queue) {
                stats.in_flight(0);
            }
        }
    }
}
