//! Logs and bases that tests make up.

use std::fs;
use std::path::PathBuf;

use block::{LOG_SECTOR, LogEntry, LogKind, LogStamp, LogSuper};
use crash::Recording;
use tempfile::TempDir;

pub(crate) const SECTOR: usize = 512;

/// A request. Its number is its place among others.
#[derive(Clone, Debug)]
pub(crate) struct TestRequest {
    pub(crate) kind: LogKind,
    pub(crate) sector: u64,
    /// The content for each sector; none for a flush.
    pub(crate) data: Vec<[u8; SECTOR]>,
    pub(crate) issued_after: u64,
    pub(crate) fua: bool,
    pub(crate) errno: i32,
}

impl TestRequest {
    pub(crate) fn is_write(&self) -> bool {
        !self.data.is_empty()
    }

    pub(crate) fn end(&self) -> u64 {
        self.sector + self.data.len() as u64
    }

    pub(crate) fn touches(&self, sector: u64) -> bool {
        (self.sector..self.end()).contains(&sector)
    }

    pub(crate) fn at(&self, sector: u64) -> [u8; SECTOR] {
        self.data[usize::try_from(sector - self.sector).unwrap()]
    }
}

/// A recording to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestLog {
    pub(crate) base: Vec<[u8; SECTOR]>,
    pub(crate) requests: Vec<TestRequest>,
    /// The completions before each mark, and its text.
    pub(crate) marks: Vec<(u64, String)>,
}

/// A sector that says what wrote it.
pub(crate) fn content(writer: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for chunk in bytes.chunks_mut(16) {
        chunk[..8].copy_from_slice(&writer.to_le_bytes());
        chunk[8..].copy_from_slice(&sector.to_le_bytes());
    }
    bytes
}

impl TestLog {
    /// A log over a base of `sectors` sectors with content.
    pub(crate) fn new(sectors: u64) -> Self {
        let base = (0..sectors).map(|sector| content(0, sector)).collect();
        Self { base, ..Self::default() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.requests.len() as u64
    }

    /// Adds a request that was issued after `issued_after` completions, and returns its number.
    pub(crate) fn add(&mut self, request: TestRequest) -> u64 {
        assert!(request.issued_after <= self.len());
        self.requests.push(request);
        self.len() - 1
    }

    /// Adds a write of the sectors, issued when all before it had completed.
    pub(crate) fn write(&mut self, sector: u64, data: Vec<[u8; SECTOR]>, fua: bool) -> u64 {
        let issued_after = self.len();
        let kind = LogKind::Write;
        self.add(TestRequest { kind, sector, data, issued_after, fua, errno: 0 })
    }

    /// Adds a flush, issued when all before it had completed.
    pub(crate) fn flush(&mut self) -> u64 {
        let (kind, issued_after) = (LogKind::Flush, self.len());
        let data = Vec::new();
        self.add(TestRequest { kind, sector: 0, data, issued_after, fua: false, errno: 0 })
    }

    pub(crate) fn mark(&mut self, text: &str) {
        self.marks.push((self.len(), text.to_string()));
    }

    /// The bytes of the log. It was closed, unless it was `killed`: then it counts no entry.
    pub(crate) fn encode(&self, killed: bool) -> Vec<u8> {
        let mut entries: Vec<u8> = Vec::new();
        let mut count = 0;
        let mut marks = self.marks.iter().peekable();
        for number in 0..=self.len() {
            while let Some((after, text)) = marks.next_if(|(after, _)| *after == number) {
                entries.extend(self.entry(LogKind::Mark, *after, text));
                count += 1;
            }
            let Some(request) = self.requests.get(usize::try_from(number).unwrap()) else { break };
            entries.extend(self.entry(request.kind, number, ""));
            if request.kind == LogKind::Write {
                entries.extend(request.data.iter().flatten());
            }
            count += 1;
        }
        if !killed {
            entries.extend(self.entry(LogKind::End, self.len(), "closed"));
            count += 1;
        }
        let mut log = LogSuper::new(if killed { 0 } else { count }, None).encode().to_vec();
        log.extend(entries);
        log
    }

    fn entry(&self, kind: LogKind, number: u64, text: &str) -> [u8; LOG_SECTOR] {
        let request = self.requests.get(usize::try_from(number).unwrap());
        let request = request.filter(|_| !matches!(kind, LogKind::Mark | LogKind::End));
        let stamp = LogStamp {
            issue: number,
            issued_after: request.map_or(number, |request| request.issued_after),
            completion: number,
            issued_ns: number * 1000,
            completed_ns: number * 1000 + 500,
            queue: 0,
            errno: request.map_or(0, |request| request.errno),
        };
        let entry = LogEntry {
            kind,
            sector: request.map_or(0, |request| request.sector),
            sectors: request.map_or(0, |request| request.data.len() as u64),
            fua: request.is_some_and(|request| request.fua),
            preflush: false,
            text: text.len() as u64,
            stamp: Some(stamp),
        };
        let mut sector = [0; LOG_SECTOR];
        entry.encode(text.as_bytes(), &mut sector);
        sector
    }

    /// The recording, in files that last as long as the folder.
    pub(crate) fn open(&self) -> (TempDir, Recording) {
        let (folder, log, base) = self.files(&self.encode(false));
        let recording = Recording::open(&log, &base).expect("the log is valid");
        (folder, recording)
    }

    /// Files with these bytes of a log and the base.
    pub(crate) fn files(&self, log_bytes: &[u8]) -> (TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (log, base) = (folder.path().join("log"), folder.path().join("base"));
        fs::write(&log, log_bytes).unwrap();
        fs::write(&base, self.base.concat()).unwrap();
        (folder, log, base)
    }
}
