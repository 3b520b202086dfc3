//! The channel from a queue's worker to the log thread: completed requests, with the chunks of
//! their data. One thread sends, one receives; neither waits, and nothing is allocated.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::chunk::{CHUNK, Chunk, ChunkMemory};
use super::format::{LOG_SECTOR, LogKind};

/// Words of a row: the fields of a request, with the number of its first chunk.
const WORDS: usize = 8;
/// Numbers of further chunks in a row.
const NUMBERS: usize = 2 * WORDS;
/// Requests without data that fit besides those with data.
const DATALESS: usize = 8192;

/// A completed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completed {
    pub(super) kind: LogKind,
    pub(super) fua: bool,
    pub(super) sector: u64,
    pub(super) sectors: u64,
    pub(super) issue: u64,
    pub(super) issued_after: u64,
    pub(super) completion: u64,
    pub(super) issued_ns: u64,
    pub(super) completed_ns: u64,
    pub(super) errno: u16,
}

impl Completed {
    /// To be filled in: that of a request, or the stamp of a mark, which is none.
    pub(super) const BLANK: Self = Self {
        kind: LogKind::Mark,
        fua: false,
        sector: 0,
        sectors: 0,
        issue: 0,
        issued_after: 0,
        completion: 0,
        issued_ns: 0,
        completed_ns: 0,
        errno: 0,
    };

    /// Chunks that its data needs.
    pub(super) fn chunks(&self) -> usize {
        let sectors = if self.kind == LogKind::Write { self.sectors } else { 0 };
        usize::try_from(sectors.div_ceil((CHUNK / LOG_SECTOR) as u64)).unwrap_or(usize::MAX)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Channel {
    /// The number of the queue.
    pub(super) queue: u16,
    pub(super) memory: ChunkMemory,
    /// Completed requests: a row each, and rows for their further chunks. A write of n sectors has
    /// the chunks that they need, others none.
    rows: Box<[[AtomicU64; WORDS]]>,
    /// Rows sent since the start. Changed by the worker.
    sent: AtomicUsize,
    /// Rows received since the start. Changed by the log thread.
    received: AtomicUsize,
    /// Bytes of the data of one request that fit.
    pub(super) max_bytes: usize,
    /// Chunks whose data was written, for the worker. At least as many as there are chunks, and a
    /// power of two, as are the rows.
    freed: Box<[AtomicU32]>,
    /// Chunks given back since the start. Changed by the log thread.
    given: AtomicUsize,
    /// Chunks taken back since the start. Changed by the worker.
    taken: AtomicUsize,
    /// The worker holds requests until chunks are free.
    starved: AtomicBool,
    /// The worker is gone and sends nothing more.
    closed: AtomicBool,
}

impl Channel {
    /// A channel with memory for `chunks` chunks, and the chunks.
    pub(super) fn new(queue: u16, chunks: u32) -> (Self, Vec<Chunk>) {
        let (memory, free) = ChunkMemory::new(chunks);
        let rows = (DATALESS + free.len()).next_power_of_two();
        let places = free.len().next_power_of_two();
        let channel = Self {
            queue,
            memory,
            rows: (0..rows).map(|_| Default::default()).collect(),
            sent: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            freed: (0..places).map(|_| AtomicU32::new(0)).collect(),
            max_bytes: free.len() * CHUNK,
            given: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        (channel, free)
    }

    /// Rows of a request with this number of chunks.
    pub(super) fn rows_of(chunks: usize) -> usize {
        1 + chunks.saturating_sub(1).div_ceil(NUMBERS)
    }

    /// The worker: rows that are free, of which it has promised some to requests in flight.
    pub(super) fn free_rows(&self) -> usize {
        let used = self.sent.load(Ordering::Relaxed) - self.received.load(Ordering::Acquire);
        self.rows.len().saturating_sub(used)
    }

    /// The worker: whether the log thread has received all.
    pub(super) fn is_empty(&self) -> bool {
        self.free_rows() == self.rows.len()
    }

    /// The worker: sends requests, with [`Sender::push`].
    pub(super) fn sender(&self) -> Sender<'_> {
        Sender { channel: self, at: self.sent.load(Ordering::Relaxed) }
    }

    /// The worker: takes the chunks back that are free again.
    pub(super) fn take_freed(&self, free: &mut Vec<Chunk>) {
        let taken = self.taken.load(Ordering::Relaxed);
        // Acquire: the log thread has read the data.
        let given = self.given.load(Ordering::Acquire);
        if taken == given {
            return;
        }
        for at in taken..given {
            let number = self.freed.get(at & (self.freed.len() - 1));
            free.extend(number.map(|number| Chunk::from_number(number.load(Ordering::Relaxed))));
        }
        self.taken.store(given, Ordering::Release);
    }

    /// The worker: asks for a kick when chunks or rows become free. It looks for them again
    /// afterwards, before it sleeps.
    pub(super) fn starve(&self) {
        self.starved.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// The log thread: whether the worker has asked for a kick. It is asked after each change that
    /// the worker may wait for.
    pub(super) fn take_starved(&self) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        self.starved.load(Ordering::Relaxed) && self.starved.swap(false, Ordering::SeqCst)
    }

    /// The worker: sends nothing more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the worker is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The log thread: whether the worker is gone, and all that it sent was received.
    pub(super) fn is_over(&self) -> bool {
        self.is_closed() && self.next_completion().is_none()
    }

    fn row(&self, at: usize) -> [u64; WORDS] {
        let row = self.rows.get(at & (self.rows.len() - 1));
        row.map_or([0; WORDS], |row| row.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// The log thread: the completion of the next request.
    pub(super) fn next_completion(&self) -> Option<u64> {
        let at = self.received.load(Ordering::Relaxed);
        let [completion, ..] = self.rows.get(at & (self.rows.len() - 1))?;
        (at != self.sent.load(Ordering::Acquire)).then(|| completion.load(Ordering::Relaxed))
    }

    /// The log thread: takes the next request, and its chunks.
    pub(super) fn receive(&self, chunks: &mut Vec<Chunk>) -> Option<Completed> {
        let at = self.received.load(Ordering::Relaxed);
        self.next_completion()?;
        let [completion, issue, issued_after, issued_ns, completed_ns, sector, sectors, packed] =
            self.row(at);
        let completed = Completed {
            completion,
            issue,
            issued_after,
            issued_ns,
            completed_ns,
            sector,
            sectors,
            kind: LogKind::of((packed & 0xff) as u8)?,
            fua: packed >> 8 & 1 != 0,
            errno: (packed >> 16 & 0xffff) as u16,
        };
        let count = completed.chunks();
        if count > 0 {
            chunks.push(Chunk::from_number((packed >> 32) as u32));
        }
        let further = (1..count).step_by(NUMBERS).zip(at + 1..);
        for (first, at) in further {
            let numbers =
                self.row(at).into_iter().flat_map(|word| [word & 0xffff_ffff, word >> 32]);
            let numbers = numbers.map(|number| Chunk::from_number((number & 0xffff_ffff) as u32));
            chunks.extend(numbers.take(count - first));
        }
        self.received.store(at + Self::rows_of(count), Ordering::Release);
        Some(completed)
    }

    /// The log thread: gives chunks back.
    pub(super) fn give_back(&self, chunks: impl Iterator<Item = Chunk>) {
        let mut given = self.given.load(Ordering::Relaxed);
        for chunk in chunks {
            if let Some(place) = self.freed.get(given & (self.freed.len() - 1)) {
                place.store(chunk.into_number(), Ordering::Relaxed);
            }
            given += 1;
        }
        self.given.store(given, Ordering::Release);
    }
}

/// Requests that are being sent. The log thread sees them when they are [published](Self::publish).
pub(super) struct Sender<'c> {
    channel: &'c Channel,
    at: usize,
}

impl Sender<'_> {
    fn put(&mut self, words: [u64; WORDS]) {
        let rows = &self.channel.rows;
        if let Some(row) = rows.get(self.at & (rows.len() - 1)) {
            row.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
        }
        self.at += 1;
    }

    /// Adds a request, for which rows are free.
    pub(super) fn push(&mut self, request: &Completed, chunks: &mut Vec<Chunk>) {
        debug_assert_eq!(chunks.len(), request.chunks());
        let mut numbers = chunks.drain(..).map(|chunk| u64::from(chunk.into_number()));
        let packed = request.kind as u64
            | u64::from(request.fua) << 8
            | u64::from(request.errno) << 16
            | numbers.next().unwrap_or(0) << 32;
        self.put([
            request.completion,
            request.issue,
            request.issued_after,
            request.issued_ns,
            request.completed_ns,
            request.sector,
            request.sectors,
            packed,
        ]);
        while numbers.len() > 0 {
            let mut pair = || numbers.next().unwrap_or(0) | numbers.next().unwrap_or(0) << 32;
            self.put([(); WORDS].map(|()| pair()));
        }
    }

    /// Shows the requests to the log thread.
    pub(super) fn publish(self) {
        // Release: the words, and the data in the chunks.
        self.channel.sent.store(self.at, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(completion: u64, chunks: u64) -> Completed {
        Completed {
            kind: LogKind::Write,
            fua: completion % 2 == 1,
            sector: completion * 3,
            sectors: chunks * 8,
            issue: completion + 1,
            issued_after: completion,
            completion,
            issued_ns: 5,
            completed_ns: 6,
            errno: 28,
        }
    }

    #[test]
    fn requests_and_chunks_pass_through_and_back_many_times() {
        let (channel, mut free) = Channel::new(0, 40);
        for round in 0..100_000 {
            let mut chunks = Vec::new();
            for byte in 0..(round % 41) as u8 {
                let mut chunk = free.pop().unwrap();
                channel.memory.bytes_mut(&mut chunk).fill(byte);
                chunks.push(chunk);
            }
            let count = chunks.len();
            let mut sender = channel.sender();
            sender.push(&request(round, round % 41), &mut chunks);
            assert_eq!(channel.next_completion(), (round == u64::MAX).then_some(0));
            sender.publish();
            assert_eq!(channel.next_completion(), Some(round));
            assert_eq!(channel.receive(&mut chunks), Some(request(round, round % 41)));
            assert_eq!(chunks.len(), count);
            for (chunk, byte) in chunks.iter().zip(0..) {
                assert_eq!(channel.memory.bytes(chunk)[17], byte);
            }
            channel.give_back(chunks.into_iter());
            channel.take_freed(&mut free);
            assert_eq!(free.len(), 40);
            assert_eq!(channel.receive(&mut Vec::new()), None);
        }
        assert_eq!(channel.free_rows(), channel.rows.len());
    }

    #[test]
    fn a_closed_channel_is_over_when_it_is_empty() {
        let (channel, _) = Channel::new(0, 1);
        let mut sender = channel.sender();
        sender.push(&request(0, 0), &mut Vec::new());
        sender.publish();
        assert!(!channel.is_over());
        channel.close();
        assert!(!channel.is_over());
        channel.receive(&mut Vec::new());
        assert!(channel.is_over());
    }
}
