//! The log thread of a recorded disk: takes completed requests from the queues in the order of
//! their completion, and appends them to the log.
//!
//! It sleeps while there are none. A queue waits for it only if all its chunks are in use.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::channel::Completed;
use super::chunk::{CHUNK, Chunk};
use super::format::{LOG_SECTOR, LogEntry, LogKind, LogStamp};
use super::log_file::Log;
use super::recorder::{Lane, PendingMark, Recorder, is_mark_text};

/// Parts of a batch after which no request is added. The chunks of a batch are given back when all
/// of it is written, so that a queue may wait for as long.
const BATCH_PARTS: usize = 256;
/// How long it lets requests gather before it looks for the next ones. A queue makes no system call
/// to wake it meanwhile.
const NAP: Duration = Duration::from_micros(250);
/// The start of data that is a mark, at a step of a chunk.
const MARK_PREFIX: &[u8] = b"bulkhead-mark: ";

/// A part of the log, in order.
enum Part {
    /// An entry, by its index in [`Writer::sectors`].
    Entry(usize),
    /// Data of the entry before.
    Data { lane: usize, chunk: Chunk, len: usize },
}

impl Part {
    fn bytes<'p>(&'p self, sectors: &'p [[u8; LOG_SECTOR]], lanes: &'p [Arc<Lane>]) -> &'p [u8] {
        match self {
            Self::Entry(index) => {
                sectors.get(*index).map(<[u8; 512]>::as_slice).unwrap_or_default()
            }
            Self::Data { lane, chunk, len } => lanes
                .get(*lane)
                .and_then(|lane| lane.channel.memory.bytes(chunk).get(..*len))
                .unwrap_or_default(),
        }
    }
}

/// See the module's documentation.
pub(super) struct Writer {
    recorder: Arc<Recorder>,
    log: Log,
    lanes: Vec<Arc<Lane>>,
    /// The number of the next completion.
    next: u64,
    /// The same, after the requests that the log has.
    written: u64,
    parts: Vec<Part>,
    /// The entries in `parts`.
    sectors: Vec<[u8; LOG_SECTOR]>,
    /// Those of the marks in `parts`.
    marks: Vec<PendingMark>,
    chunks: Vec<Chunk>,
}

impl Writer {
    pub(super) fn new(recorder: Arc<Recorder>, log: Log) -> Self {
        recorder.set_progress(log.length, log.entries);
        Self {
            recorder,
            log,
            lanes: Vec::new(),
            next: 0,
            written: 0,
            parts: Vec::with_capacity(2 * BATCH_PARTS),
            sectors: Vec::with_capacity(BATCH_PARTS),
            marks: Vec::new(),
            chunks: Vec::new(),
        }
    }

    /// Records until the recording is stopped, then closes the log.
    pub(super) fn run(mut self) {
        let failure = self.record().err();
        if let Some(error) = &failure {
            self.recorder.stop(&format!("cannot write the log: {error}"), true);
        }
        let closed = self.close();
        if let (None, Err(error)) = (failure, closed) {
            let (disk, log) = (&self.recorder.disk, self.recorder.path.display());
            tracing::error!(disk, %log, "cannot close the log, whose entries can be read: {error}");
        }
        self.recorder.set_progress(self.log.length, self.log.entries);
        self.recorder.set_finished();
    }

    fn record(&mut self) -> io::Result<()> {
        loop {
            // Before the requests are collected: those from before the end are all recorded.
            let is_ended = self.recorder.end().is_some();
            if let Some(lanes) = self.recorder.changed_lanes() {
                self.lanes = lanes;
            }
            self.collect();
            if !self.parts.is_empty() {
                let is_full = self.parts.len() >= BATCH_PARTS;
                self.write()?;
                self.remove_lanes();
                if !is_full && !is_ended {
                    thread::sleep(NAP);
                }
            } else if is_ended {
                return Ok(());
            } else {
                self.remove_lanes();
                thread::park();
            }
        }
    }

    /// Takes what the queues have, in order, up to a batch.
    fn collect(&mut self) {
        let mut current = 0;
        while self.parts.len() < BATCH_PARTS {
            for mark in self.recorder.take_marks(self.next) {
                self.add_made_mark(mark);
            }
            let is_next = |lane: &Arc<Lane>| lane.channel.next_completion() == Some(self.next);
            if !self.lanes.get(current).is_some_and(is_next) {
                let Some(found) = self.lanes.iter().position(is_next) else { return };
                current = found;
            }
            self.take_request(current);
        }
    }

    fn take_request(&mut self, index: usize) {
        let Some(lane) = self.lanes.get(index).map(Arc::clone) else { return };
        let Some(request) = lane.channel.receive(&mut self.chunks) else { return };
        let queue = lane.channel.queue;
        self.next = request.completion + 1;
        self.add_entry(&entry_of(&request, queue), b"");
        let mut left = usize::try_from(request.sectors).unwrap_or(0).saturating_mul(LOG_SECTOR);
        let first = self.parts.len();
        let chunks = std::mem::take(&mut self.chunks);
        self.chunks = self.add_data(index, chunks, &mut left);
        if request.errno == 0 && request.kind == LogKind::Write {
            self.add_found_marks(&lane, first, &request);
        }
    }

    /// Adds the data of a request; returns the list of its chunks, empty.
    fn add_data(&mut self, lane: usize, mut chunks: Vec<Chunk>, left: &mut usize) -> Vec<Chunk> {
        for chunk in chunks.drain(..) {
            let len = (*left).min(CHUNK);
            *left -= len;
            self.parts.push(Part::Data { lane, chunk, len });
        }
        chunks
    }

    /// Adds the marks in the data of a write, which is in the parts from `first` on. They follow
    /// the write, as the disk has it.
    fn add_found_marks(&mut self, lane: &Lane, first: usize, request: &Completed) {
        let data = self.parts.get(first..).unwrap_or_default();
        let text = |part: &Part| match part {
            Part::Data { chunk, len, .. } => {
                mark_in(lane.channel.memory.bytes(chunk).get(..*len)?).map(str::to_owned)
            }
            Part::Entry(_) => None,
        };
        let texts: Vec<_> = data.iter().filter_map(text).collect();
        for text in texts {
            let write = Completed { completion: self.next, ..*request };
            self.add_mark(&write, lane.channel.queue, text.as_bytes());
        }
    }

    /// Adds a mark that was made with [`Recorder::mark`].
    fn add_made_mark(&mut self, mark: PendingMark) {
        let made = Completed {
            issue: mark.issue,
            issued_after: mark.after,
            completion: self.next,
            issued_ns: mark.made_ns,
            completed_ns: self.recorder.now_ns(),
            ..Completed::BLANK
        };
        self.add_mark(&made, 0, mark.text.as_bytes());
        self.marks.push(mark);
    }

    fn add_mark(&mut self, stamp: &Completed, queue: u16, text: &[u8]) {
        let mark = Completed { kind: LogKind::Mark, fua: false, sector: 0, sectors: 0, ..*stamp };
        let entry = LogEntry { text: text.len() as u64, ..entry_of(&mark, queue) };
        self.add_entry(&entry, text);
    }

    fn add_entry(&mut self, entry: &LogEntry, text: &[u8]) {
        let mut sector = [0; LOG_SECTOR];
        entry.encode(text, &mut sector);
        self.parts.push(Part::Entry(self.sectors.len()));
        self.sectors.push(sector);
    }

    /// Appends the batch, gives its chunks back and wakes the queues that wait for some.
    fn write(&mut self) -> io::Result<()> {
        let (sectors, lanes) = (&self.sectors, &self.lanes);
        let mut slices: Vec<_> =
            self.parts.iter().map(|part| IoSlice::new(part.bytes(sectors, lanes))).collect();
        self.log.append(&mut slices, self.sectors.len() as u64)?;
        self.sectors.clear();
        self.written = self.next;
        self.recorder.set_progress(self.log.length, self.log.entries);
        for part in self.parts.drain(..) {
            if let Part::Data { lane, chunk, .. } = part
                && let Some(lane) = self.lanes.get(lane)
            {
                lane.channel.give_back(std::iter::once(chunk));
            }
        }
        for lane in &self.lanes {
            if lane.channel.take_starved() {
                lane.kick.signal();
            }
        }
        for mark in self.marks.drain(..) {
            // Fails if the client does not wait any more.
            let _ = mark.written.send(());
        }
        Ok(())
    }

    fn remove_lanes(&mut self) {
        let recorder = &self.recorder;
        self.lanes.retain(|lane| {
            let is_over = lane.channel.is_over();
            if is_over {
                recorder.remove_lane(lane);
            }
            !is_over
        });
    }

    fn close(&mut self) -> io::Result<()> {
        let end = self.recorder.end();
        let is_failure = end.is_some_and(|end| end.is_failure);
        let mut reason = end.map_or("", |end| end.reason.as_str());
        while !is_mark_text(reason) && !reason.is_empty() {
            let mut letters = reason.chars();
            letters.next_back();
            reason = letters.as_str();
        }
        let now_ns = self.recorder.now_ns();
        let stamp = Completed {
            kind: LogKind::End,
            completion: self.written,
            issued_after: self.written,
            issued_ns: now_ns,
            completed_ns: now_ns,
            errno: if is_failure { EARLY_END } else { 0 },
            ..Completed::BLANK
        };
        let entry = LogEntry { text: reason.len() as u64, ..entry_of(&stamp, 0) };
        let mut sector = [0; LOG_SECTOR];
        entry.encode(reason.as_bytes(), &mut sector);
        self.log.finish(&sector)
    }
}

/// EIO: the errno of the end of a recording that failed.
const EARLY_END: u16 = 5;

fn entry_of(request: &Completed, queue: u16) -> LogEntry {
    LogEntry {
        kind: request.kind,
        sector: request.sector,
        sectors: request.sectors,
        fua: request.fua,
        preflush: false,
        text: 0,
        stamp: Some(LogStamp {
            issue: request.issue,
            issued_after: request.issued_after,
            completion: request.completion,
            issued_ns: request.issued_ns,
            completed_ns: request.completed_ns,
            queue,
            errno: request.errno.into(),
        }),
    }
}

/// The text of the mark that data begins with.
fn mark_in(data: &[u8]) -> Option<&str> {
    let line = data.strip_prefix(MARK_PREFIX)?.split(|byte| *byte == b'\n');
    let after = data.len() - MARK_PREFIX.len();
    let text = line.take(1).find(|text| text.len() < after)?;
    std::str::from_utf8(text).ok().filter(|text| is_mark_text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_a_mark_if_its_line_is_one() {
        let longest = "x".repeat(super::super::MARK_MAX);
        let marked = |text: &str| [MARK_PREFIX, text.as_bytes(), b"\n\0\0"].concat();
        assert_eq!(mark_in(&marked("step 1: \u{e9}")), Some("step 1: \u{e9}"));
        assert_eq!(mark_in(&marked(&longest)), Some(longest.as_str()));
        assert_eq!(mark_in(&marked(&format!("{longest}x"))), None);
        for hostile in ["", "a\tb", "\u{1b}[2J", "a\r", "\u{85}"] {
            assert_eq!(mark_in(&marked(hostile)), None, "{hostile:?}");
        }
        assert_eq!(mark_in(b"bulkhead-mark: \xff\xfe\n"), None);
        assert_eq!(mark_in(b"bulkhead-mark: no end"), None);
        assert_eq!(mark_in(b"bulkhead-mark:"), None);
        assert_eq!(mark_in(b" bulkhead-mark: a\n"), None);
    }
}
