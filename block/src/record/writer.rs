//! The log thread of a recorded disk: takes completed requests from the queues in the order of
//! their completion, and appends them to the log.
//!
//! It sleeps while there are none. A queue waits for it only if all its chunks are in use.

use std::io;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::channel::Completed;
use super::chunk::{CHUNK, Chunk};
use super::format::{LOG_SECTOR, LogEntry, LogKind, LogStamp};
use super::log_file::Log;
use super::recorder::{Lane, PendingMark, Recorder, is_mark_text};

/// How long it lets requests gather before it looks for the next ones, unless there were enough for
/// a large write. A queue makes no system call to wake it meanwhile.
const NAP: Duration = Duration::from_millis(1);
/// The start of data that is a mark, at a step of a chunk.
const MARK_PREFIX: &[u8] = b"bulkhead-mark: ";

/// The size at which a recording ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum SizeLimit {
    /// Most bytes of the log.
    Bytes(u64),
    /// Least bytes that are free in its file system, which other files fill as well.
    Reserve(u64),
}

/// The end of a recording without a limit.
const NEARLY_FULL: &str =
    "the file system of the log has only a tenth left of its space; give it more, or another one";

/// Why no more is appended.
enum Ending {
    /// The log has as many bytes as it may. The recording was stopped.
    Limit,
    /// The host's error.
    Host(io::Error),
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// See the module's documentation.
pub(super) struct Writer {
    recorder: Arc<Recorder>,
    log: Log,
    limit: SizeLimit,
    /// Most bytes of the log, as of now.
    most: u64,
    lanes: Vec<Arc<Lane>>,
    /// The number of the next completion.
    next: u64,
    /// Marks that the log has, and its file not yet.
    marks: Vec<PendingMark>,
    chunks: Vec<Chunk>,
}

impl Writer {
    pub(super) fn new(recorder: Arc<Recorder>, log: Log, limit: SizeLimit) -> Self {
        recorder.set_progress(log.written());
        let (lanes, marks, chunks) = (Vec::new(), Vec::new(), Vec::new());
        Self { recorder, log, limit, most: 0, lanes, next: 0, marks, chunks }
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
        let recorder = Arc::clone(&self.recorder);
        recorder.set_progress(self.log.written());
        // With the lock of its file: who waits for the end may use it.
        drop(self);
        recorder.set_finished();
    }

    fn record(&mut self) -> io::Result<()> {
        self.find_most()?;
        match self.follow() {
            Ok(()) => Ok(()),
            Err(Ending::Limit) => self.write(),
            Err(Ending::Host(error)) => Err(error),
        }
    }

    /// Writes what the queues send, until the recording is stopped.
    fn follow(&mut self) -> Result<(), Ending> {
        loop {
            // Before the requests are collected: those from before the end are all recorded.
            let is_ended = self.recorder.end().is_some();
            if let Some(lanes) = self.recorder.changed_lanes() {
                self.lanes = lanes;
            }
            self.collect()?;
            self.remove_lanes();
            if self.log.is_behind() {
                let has_enough = self.log.has_enough();
                self.write()?;
                self.find_most()?;
                if !has_enough && !is_ended {
                    thread::sleep(NAP);
                }
            } else if is_ended {
                return Ok(());
            } else {
                thread::park();
            }
        }
    }

    /// Takes what the queues have, in order, until there is enough for a write. Gives their chunks
    /// back, and wakes the queues that wait for some.
    fn collect(&mut self) -> Result<(), Ending> {
        let lanes = mem::take(&mut self.lanes);
        let collected = self.collect_from(&lanes);
        for lane in &lanes {
            if lane.channel.take_starved() {
                lane.kick.signal();
            }
        }
        self.lanes = lanes;
        collected
    }

    fn collect_from(&mut self, lanes: &[Arc<Lane>]) -> Result<(), Ending> {
        let mut current = 0;
        while !self.log.has_enough() {
            for mark in self.recorder.take_marks(self.next) {
                self.add_made_mark(mark)?;
            }
            let is_next = |lane: &Arc<Lane>| lane.channel.next_completion() == Some(self.next);
            if !lanes.get(current).is_some_and(is_next) {
                let Some(found) = lanes.iter().position(is_next) else { break };
                current = found;
            }
            let Some(lane) = lanes.get(current) else { break };
            self.take_request(lane)?;
        }
        Ok(())
    }

    fn take_request(&mut self, lane: &Lane) -> Result<(), Ending> {
        let mut chunks = mem::take(&mut self.chunks);
        let Some(request) = lane.channel.receive(&mut chunks) else { return Ok(()) };
        self.next = request.completion + 1;
        let added = self.add_request(lane, &request, &chunks);
        lane.channel.give_back(chunks.drain(..));
        self.chunks = chunks;
        added
    }

    fn add_request(
        &mut self,
        lane: &Lane,
        request: &Completed,
        chunks: &[Chunk],
    ) -> Result<(), Ending> {
        let data = if request.kind == LogKind::Write { request.sectors } else { 0 };
        let data = usize::try_from(data).unwrap_or(usize::MAX).saturating_mul(LOG_SECTOR);
        self.add_sector(&entry_of(request, lane.channel.queue), b"", data)?;
        let mut left = data;
        for chunk in chunks {
            let bytes = lane.channel.memory.bytes(chunk);
            let part = bytes.get(..left.min(CHUNK)).unwrap_or_default();
            left -= part.len();
            self.log.append(part)?;
        }
        self.log.end_entry((LOG_SECTOR + data) as u64, self.next);
        if request.errno != 0 || request.kind != LogKind::Write {
            return Ok(());
        }
        self.add_found_marks(lane, request, chunks, data)
    }

    /// Adds the marks in the data of a write. They follow the write, as the disk has it.
    fn add_found_marks(
        &mut self,
        lane: &Lane,
        request: &Completed,
        chunks: &[Chunk],
        data: usize,
    ) -> Result<(), Ending> {
        for (at, chunk) in (0..data).step_by(CHUNK).zip(chunks) {
            let bytes = lane.channel.memory.bytes(chunk).get(..(data - at).min(CHUNK));
            let Some(text) = mark_in(bytes.unwrap_or_default()) else { continue };
            let write = Completed { completion: self.next, ..*request };
            self.add_mark(&write, lane.channel.queue, text.as_bytes())?;
        }
        Ok(())
    }

    /// Adds a mark that was made with [`Recorder::mark`].
    fn add_made_mark(&mut self, mark: PendingMark) -> Result<(), Ending> {
        let made = Completed {
            issue: mark.issue,
            issued_after: mark.after,
            completion: self.next,
            issued_ns: mark.made_ns,
            completed_ns: self.recorder.now_ns(),
            ..Completed::BLANK
        };
        self.add_mark(&made, 0, mark.text.as_bytes())?;
        self.marks.push(mark);
        Ok(())
    }

    fn add_mark(&mut self, stamp: &Completed, queue: u16, text: &[u8]) -> Result<(), Ending> {
        let mark = Completed { kind: LogKind::Mark, fua: false, sector: 0, sectors: 0, ..*stamp };
        let entry = LogEntry { text: text.len() as u64, ..entry_of(&mark, queue) };
        self.add_sector(&entry, text, 0)?;
        self.log.end_entry(LOG_SECTOR as u64, self.next);
        Ok(())
    }

    /// Adds the sector of an entry, whose `data` bytes follow. Ends the recording if there is
    /// no room for both and for the last entry of the log.
    fn add_sector(&mut self, entry: &LogEntry, text: &[u8], data: usize) -> Result<(), Ending> {
        let bytes = data.saturating_add(2 * LOG_SECTOR) as u64;
        if self.log.bytes().saturating_add(bytes) > self.most {
            let reason = match self.limit {
                SizeLimit::Bytes(most) => format!("the log has reached its limit of {most} bytes"),
                SizeLimit::Reserve(_) => NEARLY_FULL.to_owned(),
            };
            self.recorder.stop(&reason, true);
            return Err(Ending::Limit);
        }
        let mut sector = [0; LOG_SECTOR];
        entry.encode(text, &mut sector);
        Ok(self.log.append(&sector)?)
    }

    /// Asks how large the log may become, after a write: others take space of its file system.
    fn find_most(&mut self) -> io::Result<()> {
        self.most = match self.limit {
            SizeLimit::Bytes(most) => most,
            SizeLimit::Reserve(reserve) => {
                let free = self.log.free_bytes()?.saturating_sub(reserve);
                self.log.written().bytes.saturating_add(free)
            }
        };
        Ok(())
    }

    /// Writes what the file of the log lacks.
    fn write(&mut self) -> io::Result<()> {
        self.log.flush()?;
        self.recorder.set_progress(self.log.written());
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
        let (now_ns, next) = (self.recorder.now_ns(), self.log.written().next);
        let stamp = Completed {
            kind: LogKind::End,
            completion: next,
            issued_after: next,
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
