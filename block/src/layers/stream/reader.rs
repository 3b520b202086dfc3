//! Reads a stream, which may have any bytes: a record is passed on when its checksum is
//! right.

use std::io::{self, Read};

use super::super::unit::BLOCK;
use super::format::{
    DATA_MAX, HEAD, HEADER, RecordHead, RecordKind, StreamError, StreamHeader, record_checksum,
};
use super::writer::StreamTotals;

/// A stream that is being read.
pub(super) struct StreamReader<R> {
    input: R,
    pub(super) header: StreamHeader,
    /// Of the header and the heads so far.
    heads: crc32fast::Hasher,
    totals: StreamTotals,
    /// Bytes read.
    at: u64,
    /// Where the next range may start.
    next_start: u64,
    data: Vec<u8>,
}

/// A record of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamChange<'d> {
    /// A range with its data.
    Data { start: u64, data: &'d [u8] },
    /// A range of zeroes.
    Zeroes { start: u64, len: u64 },
}

impl<R: Read> StreamReader<R> {
    /// Reads the header.
    pub(super) fn new(mut input: R) -> Result<Self, StreamError> {
        let (mut bytes, mut at) = ([0; HEADER], 0);
        read_whole(&mut input, &mut bytes, &mut at)?;
        let header = StreamHeader::decode(&bytes)?;
        let mut heads = crc32fast::Hasher::new();
        heads.update(&bytes);
        let totals = StreamTotals { changed: 0, data: 0, records: 0 };
        Ok(Self { input, header, heads, totals, at, next_start: 0, data: Vec::new() })
    }

    /// The next change, or `None` when the end record was read and is right.
    pub(super) fn next(&mut self) -> Result<Option<StreamChange<'_>>, StreamError> {
        let start_of_record = self.at;
        let damaged = |what| StreamError::Damaged { at: start_of_record, what };
        let mut bytes = [0; HEAD];
        read_whole(&mut self.input, &mut bytes, &mut self.at)?;
        let (head, checksum) = RecordHead::decode(&bytes);
        let head = head.ok_or(damaged("a record of an unknown kind"))?;
        if head.kind == RecordKind::End {
            if record_checksum(&bytes, self.heads.clone(), &[]) != checksum {
                return Err(damaged("the checksum of its end"));
            }
            if (head.start, head.len) != (self.totals.records, self.totals.changed) {
                return Err(damaged("the counts of its end"));
            }
            return self.require_end().map(|()| None);
        }
        self.require_range(&head).map_err(damaged)?;
        let data_len = if head.kind == RecordKind::Data { head.len } else { 0 };
        // At most `DATA_MAX`, as was checked.
        self.data.resize(usize::try_from(data_len).unwrap_or(0), 0);
        read_whole(&mut self.input, &mut self.data, &mut self.at)?;
        if record_checksum(&bytes, crc32fast::Hasher::new(), &self.data) != checksum {
            return Err(damaged("the checksum of a record"));
        }
        self.heads.update(&bytes);
        self.totals.records += 1;
        self.totals.changed += head.len;
        self.totals.data += data_len;
        self.next_start = head.start + head.len;
        Ok(Some(match head.kind {
            RecordKind::Data => StreamChange::Data { start: head.start, data: &self.data },
            RecordKind::Zeroes | RecordKind::End => {
                StreamChange::Zeroes { start: head.start, len: head.len }
            }
        }))
    }

    fn require_range(&self, head: &RecordHead) -> Result<(), &'static str> {
        let RecordHead { kind, start, len } = *head;
        if len == 0 || !len.is_multiple_of(BLOCK) || !start.is_multiple_of(BLOCK) {
            return Err("a range that is not of whole blocks");
        }
        if start.checked_add(len).is_none_or(|end| end > self.header.size) {
            return Err("a range beyond the end of the disk");
        }
        if start < self.next_start {
            return Err("a range that is not behind the one before it");
        }
        if kind == RecordKind::Data && len > DATA_MAX as u64 {
            return Err("a record with more data than the format allows");
        }
        Ok(())
    }

    fn require_end(&mut self) -> Result<(), StreamError> {
        let mut at = self.at;
        match read_whole(&mut self.input, &mut [0], &mut at) {
            Ok(()) => Err(StreamError::Trailing(self.at)),
            Err(StreamError::Truncated(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The sums of the records so far.
    pub(super) fn totals(&self) -> StreamTotals {
        self.totals
    }
}

/// Fills the buffer, and advances `at`.
fn read_whole(input: &mut impl Read, buffer: &mut [u8], at: &mut u64) -> Result<(), StreamError> {
    let mut rest = buffer;
    while !rest.is_empty() {
        match input.read(rest) {
            Ok(0) => return Err(StreamError::Truncated(*at)),
            Ok(bytes) => {
                *at += bytes as u64;
                rest = rest.get_mut(bytes..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StreamError::Host(error)),
        }
    }
    Ok(())
}
