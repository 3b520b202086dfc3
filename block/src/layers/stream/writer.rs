//! Writes a stream.

use std::io::{self, Write};

use super::format::{HEADER, RecordHead, RecordKind, StreamHeader};

/// A stream that is being written.
pub(super) struct StreamWriter<W> {
    out: W,
    /// Of the header and the heads so far, which the end record covers.
    heads: crc32fast::Hasher,
    /// Records so far.
    records: u64,
    /// Bytes of their ranges.
    changed: u64,
    /// Bytes of their data.
    data: u64,
}

/// The sums of the records of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamTotals {
    /// Bytes of the disk that it has, as data or zeroes.
    pub(super) changed: u64,
    /// Those that are data.
    pub(super) data: u64,
    /// Number of its records, without the last one.
    pub(super) records: u64,
}

impl<W: Write> StreamWriter<W> {
    pub(super) fn new(mut out: W, header: &StreamHeader) -> io::Result<Self> {
        let bytes: [u8; HEADER] = header.encode();
        out.write_all(&bytes)?;
        let mut heads = crc32fast::Hasher::new();
        heads.update(&bytes);
        Ok(Self { out, heads, records: 0, changed: 0, data: 0 })
    }

    /// Writes a range with its data, at most [`super::format::DATA_MAX`] bytes of whole blocks.
    pub(super) fn data(&mut self, start: u64, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u64;
        self.record(RecordHead { kind: RecordKind::Data, start, len }, data)?;
        self.data += len;
        self.out.write_all(data)
    }

    /// Writes a range of zeroes, whole blocks.
    pub(super) fn zeroes(&mut self, start: u64, len: u64) -> io::Result<()> {
        self.record(RecordHead { kind: RecordKind::Zeroes, start, len }, &[])
    }

    fn record(&mut self, head: RecordHead, data: &[u8]) -> io::Result<()> {
        let bytes = head.encode(crc32fast::Hasher::new(), data);
        self.heads.update(&bytes);
        self.records += 1;
        self.changed += head.len;
        self.out.write_all(&bytes)
    }

    /// Writes the last record.
    pub(super) fn end(mut self) -> io::Result<StreamTotals> {
        let head = RecordHead { kind: RecordKind::End, start: self.records, len: self.changed };
        self.out.write_all(&head.encode(self.heads, &[]))?;
        self.out.flush()?;
        Ok(StreamTotals { changed: self.changed, data: self.data, records: self.records })
    }
}
