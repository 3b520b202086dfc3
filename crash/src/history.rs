//! The requests of a recording, and from which power cut on each is durable. Pure.

use block::LogKind;

use crate::losses::Loss;

/// A request of a recording. Its number is its index in [`History::requests`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded {
    /// A write, a flush, a discard or a zeroing.
    pub(crate) kind: LogKind,
    /// First byte of the range.
    pub(crate) at: u64,
    /// Bytes of the range; 0 for a flush.
    pub(crate) len: u64,
    /// Where the data of a write is in the log, in bytes.
    pub(crate) data: u64,
    /// How many requests had completed when it was issued.
    pub(crate) issued_after: u64,
    /// It was durable when it completed.
    pub(crate) fua: bool,
    /// A flush was made before it.
    pub(crate) preflush: bool,
    /// The errno of its failure, or 0.
    pub(crate) errno: i32,
    /// The queue that it came through.
    pub(crate) queue: u16,
    /// When it was issued and when it completed, in nanoseconds from the start; `None` in logs of
    /// others.
    pub(crate) times: Option<(u64, u64)>,
}

impl Recorded {
    /// Whether it changes the disk.
    pub(crate) fn is_write(&self) -> bool {
        self.len > 0
    }

    /// Sectors of 512 bytes of its range.
    pub(crate) fn sectors(&self) -> u64 {
        self.len / 512
    }

    /// Whether it makes others durable.
    pub(crate) fn is_flush(&self) -> bool {
        self.kind == LogKind::Flush || self.preflush
    }
}

/// A mark of a recording.
#[derive(Clone, Debug)]
pub(crate) struct MarkMade {
    /// How many requests had completed when it was made.
    pub(crate) after: u64,
    /// Its text.
    pub(crate) text: String,
    /// When it was made, in nanoseconds from the start; `None` in logs of others.
    pub(crate) ns: Option<u64>,
}

/// The requests of a recording in the order of completion, and its marks.
#[derive(Debug, Default)]
pub(crate) struct History {
    requests: Vec<Recorded>,
    marks: Vec<MarkMade>,
    /// For each request the first power cut, in completions, that finds it durable.
    durable_at: Vec<u64>,
    /// The discards, ascending, each with the first power cut after a flush that would have made a
    /// write durable.
    discards: Vec<(u64, u64)>,
    /// The first power cut that finds a flushed discard.
    discards_from: u64,
    /// For each number of completions, the last request that was issued by then, plus one.
    issued_end: Vec<u64>,
}

/// Never, as a number of completions.
const NEVER: u64 = u64::MAX;

impl History {
    /// A history of these. The requests have consecutive numbers, and none was issued after its
    /// own completion.
    pub(crate) fn new(requests: Vec<Recorded>, marks: Vec<MarkMade>) -> Self {
        let flushes = Flushes::new(&requests);
        let durable_at = flushes.durable_from(&requests);
        let numbered = (0u64..).zip(&requests);
        let discards = numbered.filter(|(_, request)| request.kind == LogKind::Discard);
        let discards: Vec<(u64, u64)> =
            discards.map(|(number, _)| (number, flushes.first_after(number))).collect();
        let discards_from = discards.iter().map(|(_, from)| *from).min().unwrap_or(NEVER);
        let mut issued_end = vec![0; requests.len() + 1];
        for (number, request) in (0u64..).zip(&requests) {
            let after = usize::try_from(request.issued_after).unwrap_or(usize::MAX);
            if let Some(end) = issued_end.get_mut(after) {
                *end = number + 1;
            }
        }
        let mut last = 0;
        for end in &mut issued_end {
            last = last.max(*end);
            *end = last;
        }
        Self { requests, marks, durable_at, discards, discards_from, issued_end }
    }

    /// The same history of a disk that ignores flushes and FUA, so that all writes stay open.
    pub(crate) fn without_flushes(&self) -> Self {
        let durable_at = vec![NEVER; self.requests.len()];
        let discards = self.discards.iter().map(|(number, _)| (*number, NEVER)).collect();
        let (requests, marks) = (self.requests.clone(), self.marks.clone());
        let issued_end = self.issued_end.clone();
        Self { requests, marks, durable_at, discards, discards_from: NEVER, issued_end }
    }

    /// Number of requests, which is also the last power cut.
    pub(crate) fn len(&self) -> u64 {
        self.requests.len() as u64
    }

    pub(crate) fn requests(&self) -> &[Recorded] {
        &self.requests
    }

    pub(crate) fn request(&self, number: u64) -> Option<&Recorded> {
        self.requests.get(usize::try_from(number).ok()?)
    }

    pub(crate) fn marks(&self) -> &[MarkMade] {
        &self.marks
    }

    /// Number of the marks that were made before a power cut after `point` completions.
    pub(crate) fn marks_at(&self, point: u64) -> usize {
        self.marks.partition_point(|mark| mark.after <= point)
    }

    /// The first power cut, in completions, that finds the request durable.
    pub(crate) fn durable_at(&self, number: u64) -> u64 {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        self.durable_at.get(index).copied().unwrap_or(NEVER)
    }

    /// Whether a power cut after `point` completions finds the write, or a part of it, perhaps.
    pub(crate) fn is_open(&self, number: u64, point: u64) -> bool {
        self.request(number)
            .is_some_and(|request| request.is_write() && request.issued_after <= point)
            && self.durable_at(number) > point
    }

    /// The first power cut, in completions, after a flush that the request would have been durable
    /// by if it were a write; `None` if it is no discard.
    pub(crate) fn discard_flushed_at(&self, number: u64) -> Option<u64> {
        let at = self.discards.binary_search_by_key(&number, |(discard, _)| *discard).ok()?;
        self.discards.get(at).map(|(_, from)| *from)
    }

    /// Whether a power cut after `point` completions finds a discard that a flush followed. The
    /// disk may have it, or lack it, as no content was promised.
    pub(crate) fn is_flushed_discard(&self, number: u64, point: u64) -> bool {
        self.discards_from <= point
            && self.discard_flushed_at(number).is_some_and(|from| from <= point)
    }

    /// The first power cut that finds a flushed discard.
    pub(crate) fn discards_from(&self) -> u64 {
        self.discards_from
    }

    /// The flushed discards at a power cut, the last first.
    pub(crate) fn flushed_discards(&self, point: u64) -> impl Iterator<Item = u64> {
        let flushed = self.discards.iter().rev().filter(move |(_, from)| *from <= point);
        flushed.map(|(number, _)| *number)
    }

    /// Whether a write and another of the same place may have reached the disk in either order, and
    /// both were issued by the power cut: a write that was made durable may be lost to the other.
    pub(crate) fn may_be_hidden(&self, number: u64, loss: &Loss, point: u64) -> bool {
        let Some(write) = self.request(number) else { return false };
        let sectors = |request: &Recorded| (request.at / 512, (request.at + request.len) / 512);
        let (start, end) = sectors(write);
        let touches = |from: u64, to: u64| match loss {
            Loss::Whole => from < end && start < to,
            Loss::Sectors(ranges) => ranges
                .iter()
                .any(|(first, count)| from < start + first + count && start + first < to),
        };
        (write.issued_after..self.issued_end(point.min(number))).any(|other| {
            self.request(other).is_some_and(|request| {
                let (from, to) = sectors(request);
                other != number && request.issued_after <= point.min(number) && touches(from, to)
            })
        })
    }

    /// A number above those of all requests that were issued after at most `point` completions.
    pub(crate) fn issued_end(&self, point: u64) -> u64 {
        let index = usize::try_from(point).unwrap_or(usize::MAX);
        self.issued_end.get(index).copied().unwrap_or(self.len())
    }
}

/// The flushes that succeeded: up to which request each of them and those before it covered, and
/// the first power cut that finds it complete.
struct Flushes(Vec<(u64, u64)>);

impl Flushes {
    /// A flush covers a write that completed before the flush was issued, and counts once it has
    /// completed.
    fn new(requests: &[Recorded]) -> Self {
        let mut flushes: Vec<(u64, u64)> = Vec::new();
        for (number, request) in (0u64..).zip(requests) {
            if request.is_flush() && request.errno == 0 {
                let before = flushes.last().map_or(0, |(covered, _)| *covered);
                flushes.push((before.max(request.issued_after), number + 1));
            }
        }
        Self(flushes)
    }

    /// The first power cut after a flush that covers the request. It is found by bisection, as the
    /// highest "issued after" of the flushes so far only grows.
    fn first_after(&self, number: u64) -> u64 {
        let first = self.0.partition_point(|(covered, _)| *covered <= number);
        self.0.get(first).map_or(NEVER, |(_, counts_from)| *counts_from)
    }

    /// For each request the first power cut that finds it durable. No discard is ever.
    fn durable_from(&self, requests: &[Recorded]) -> Vec<u64> {
        let durable = |(number, request): (u64, &Recorded)| {
            let is_lasting = request.is_write() && request.kind != LogKind::Discard;
            match (is_lasting && request.errno == 0, request.fua) {
                (false, _) => NEVER,
                (true, true) => number + 1,
                (true, false) => self.first_after(number),
            }
        };
        (0u64..).zip(requests).map(durable).collect()
    }
}
