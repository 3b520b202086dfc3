//! A log whose requests come one after the other.

use std::fs;
use std::path::Path;

use block::{LOG_SECTOR, LogEntry, LogKind, LogStamp, LogSuper};

/// Nanoseconds from one request to the next.
const STEP: u64 = 1_000_000;

pub(crate) struct LogFile {
    bytes: Vec<u8>,
    entries: u64,
    requests: u64,
}

impl LogFile {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), entries: 0, requests: 0 }
    }

    fn add(&mut self, kind: LogKind, sector: u64, sectors: u64, text: &str) {
        self.add_result(kind, sector, sectors, text, 0);
    }

    fn add_result(&mut self, kind: LogKind, sector: u64, sectors: u64, text: &str, errno: i32) {
        let number = self.requests;
        let stamp = LogStamp {
            issue: number,
            issued_after: number,
            completion: number,
            issued_ns: number * STEP,
            completed_ns: number * STEP + STEP / 2,
            queue: 0,
            errno,
        };
        let entry = LogEntry {
            kind,
            sector,
            sectors,
            fua: false,
            preflush: false,
            text: text.len() as u64,
            stamp: Some(stamp),
        };
        let mut bytes = [0; LOG_SECTOR];
        entry.encode(text.as_bytes(), &mut bytes);
        self.bytes.extend_from_slice(&bytes);
        self.entries += 1;
        self.requests += u64::from(!matches!(kind, LogKind::Mark | LogKind::End));
    }

    /// A write of `data`, with zeroes up to the end of its sector.
    pub(crate) fn write(&mut self, at: u64, data: &[u8]) {
        let sectors = data.len().div_ceil(LOG_SECTOR);
        self.add(LogKind::Write, at / LOG_SECTOR as u64, sectors as u64, "");
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(LOG_SECTOR), 0);
    }

    pub(crate) fn flush(&mut self) {
        self.add(LogKind::Flush, 0, 0, "");
    }

    pub(crate) fn discard(&mut self, at: u64, len: u64) {
        let unit = LOG_SECTOR as u64;
        self.add(LogKind::Discard, at / unit, len / unit, "");
    }

    pub(crate) fn mark(&mut self, text: &str) {
        self.add(LogKind::Mark, 0, 0, text);
    }

    pub(crate) fn end(&mut self, text: &str) {
        self.add(LogKind::End, 0, 0, text);
    }

    /// The end of a recording that failed.
    pub(crate) fn failed_end(&mut self, text: &str) {
        self.add_result(LogKind::End, 0, 0, text, 5);
    }

    pub(crate) fn save(&self, path: &Path) {
        let head = LogSuper::new(self.entries, None).encode();
        fs::write(path, [&head[..], &self.bytes].concat()).unwrap();
    }
}
