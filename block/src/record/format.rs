//! The layout of a log: dm-log-writes version 1, and what this program adds to each entry. Pure.
//!
//! Linux, drivers/md/dm-log-writes.c; docs/record-log.md has the whole format.

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::base::BaseSamples;

/// Unit of the log and of the fields of its entries, in bytes.
pub const LOG_SECTOR: usize = 512;
/// Bytes of an entry's own fields. The text of a mark follows them in the same sector.
const ENTRY: usize = 32;
/// Where the stamp of an entry is, counted from the end of its sector.
const STAMP: usize = 64;
/// Longest text of a mark in bytes: what fits between the fields of an entry and its stamp.
pub const MARK_MAX: usize = LOG_SECTOR - ENTRY - STAMP;

/// `WRITE_LOG_MAGIC` of dm-log-writes.
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// `WRITE_LOG_VERSION` of dm-log-writes.
const VERSION: u64 = 1;
/// The signature of a stamp.
const STAMP_MAGIC: [u8; 8] = *b"BLKHDREC";

/// The entry is a flush, or a write with one before it.
const FLUSH: u64 = 1;
/// The write was durable when it completed.
const FUA: u64 = 2;
/// The range was discarded; no data follows.
const DISCARD: u64 = 4;
/// The entry is a mark; its text is in its sector.
const MARK: u64 = 8;

/// The first sector of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSuper {
    /// Number of entries. A log that was not closed may have more.
    pub entries: u64,
    /// Unit of the log in bytes: a power of two, 512 to 65536.
    pub sector: u32,
    /// Samples of the base; `None` in the logs of others.
    pub base: Option<BaseSamples>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSuper {
    magic: U64,
    version: U64,
    entries: U64,
    sector: U32,
}

/// Why a file is not a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogSuperError {
    /// It has not the signature.
    #[error("it is not a log of writes: it has not the signature of dm-log-writes")]
    Signature,
    /// It is of another version.
    #[error("its format is version {0} of dm-log-writes; this program knows version 1")]
    Version(u64),
    /// Its unit is impossible.
    #[error("it is damaged: its sectors have {0} bytes")]
    Sector(u32),
    /// The checksum of its samples of the base is wrong.
    #[error("it is damaged: the checksum of its samples of the base is wrong")]
    Base,
}

impl LogSuper {
    /// That of a log whose unit is [`LOG_SECTOR`].
    #[must_use]
    pub fn new(entries: u64, base: Option<BaseSamples>) -> Self {
        Self { entries, sector: 512, base }
    }

    /// Its bytes. Those that follow in a log of larger sectors are zero.
    #[must_use]
    pub fn encode(&self) -> [u8; LOG_SECTOR] {
        let raw = RawSuper {
            magic: U64::new(MAGIC),
            version: U64::new(VERSION),
            entries: U64::new(self.entries),
            sector: U32::new(self.sector),
        };
        let mut bytes = [0; LOG_SECTOR];
        let _ = raw.write_to_prefix(&mut bytes);
        if let Some(base) = &self.base {
            base.encode(&mut bytes);
        }
        bytes
    }

    /// Reads the first sector of a log.
    ///
    /// # Errors
    ///
    /// See [`LogSuperError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LogSuperError> {
        let (raw, _) = RawSuper::read_from_prefix(bytes).map_err(|_| LogSuperError::Signature)?;
        if raw.magic.get() != MAGIC {
            return Err(LogSuperError::Signature);
        }
        if raw.version.get() != VERSION {
            return Err(LogSuperError::Version(raw.version.get()));
        }
        let sector = raw.sector.get();
        if !sector.is_power_of_two() || !(512..=65536).contains(&sector) {
            return Err(LogSuperError::Sector(sector));
        }
        let base = BaseSamples::decode(bytes).map_err(|_| LogSuperError::Base)?;
        Ok(Self { entries: raw.entries.get(), sector, base })
    }
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogKind {
    /// A write; its data follows.
    Write = 0,
    /// A flush.
    Flush = 1,
    /// A discard: the range is deallocated.
    Discard = 2,
    /// A zeroing, with or without deallocation. dm-log-writes has no such entry: other tools see a
    /// discard, as both leave zeroes on a device that reads so after a discard.
    Zero = 3,
    /// A mark.
    Mark = 4,
    /// The last entry of a log, a mark to other tools, whose text says why the log ends.
    End = 5,
}

impl LogKind {
    pub(super) fn of(number: u8) -> Option<Self> {
        let all = [Self::Write, Self::Flush, Self::Discard, Self::Zero, Self::Mark, Self::End];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// An entry of a log, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its kind.
    pub kind: LogKind,
    /// First sector of the range, in units of the log.
    pub sector: u64,
    /// Sectors of the range. As many sectors of data follow a write.
    pub sectors: u64,
    /// The request was durable when it completed.
    pub fua: bool,
    /// A flush comes before the write. Only in logs of others.
    pub preflush: bool,
    /// Bytes of the text of a mark.
    pub text: u64,
    /// Its place among the others; `None` in logs of others.
    pub stamp: Option<LogStamp>,
}

/// The place of a request among those of its disk.
///
/// The completions of a disk are numbered from 0. A request with the number `c` completed before
/// another was issued if, and only if, `c` is below the other's `issued_after`. A flush makes all
/// writes durable that completed before it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStamp {
    /// Its number in the order of issue, from 0.
    pub issue: u64,
    /// How many requests had completed when it was issued.
    pub issued_after: u64,
    /// Its number in the order of completion. A mark and an end have that of the next request.
    pub completion: u64,
    /// When it was issued, in nanoseconds from the start of the log.
    pub issued_ns: u64,
    /// When it completed, in the same unit.
    pub completed_ns: u64,
    /// The queue of the disk that it came through, in the order of their engines.
    pub queue: u16,
    /// The errno of its failure, or 0. An end has one if the recording failed. A request that
    /// failed may have done a part of its work, and promises nothing.
    pub errno: i32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawEntry {
    sector: U64,
    sectors: U64,
    flags: U64,
    data_len: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawStamp {
    magic: [u8; 8],
    issue: U64,
    issued_after: U64,
    completion: U64,
    issued_ns: U64,
    completed_ns: U64,
    kind: u8,
    reserved: u8,
    queue: U16,
    errno: I32,
    entry_crc: U32,
    stamp_crc: U32,
}

const _: () = assert!(size_of::<RawEntry>() == ENTRY && size_of::<RawStamp>() == STAMP);

/// Bytes of a stamp that its checksum covers: all before it.
const STAMP_CHECKED: usize = STAMP - 4;

/// Why an entry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogEntryError {
    /// Its checksum is wrong.
    #[error("the checksum of an entry is wrong")]
    Checksum,
    /// Its stamp has a kind that this program does not know.
    #[error("an entry is of an unknown kind ({0}); use a newer program")]
    Kind(u8),
    /// It has flags that dm-log-writes does not define.
    #[error("an entry has unknown flags ({0:#x})")]
    Flags(u64),
    /// Its fields contradict each other.
    #[error("the fields of an entry contradict each other")]
    Contradiction,
}

impl LogEntry {
    /// Writes the entry, which has a stamp, with the text of a mark to a sector.
    pub fn encode(&self, text: &[u8], sector: &mut [u8; LOG_SECTOR]) {
        sector.fill(0);
        let is_mark = matches!(self.kind, LogKind::Mark | LogKind::End);
        let flags = match self.kind {
            LogKind::Write => 0,
            LogKind::Flush => FLUSH,
            LogKind::Discard | LogKind::Zero => DISCARD,
            LogKind::Mark | LogKind::End => MARK,
        };
        let flags = flags | if self.fua { FUA } else { 0 } | if self.preflush { FLUSH } else { 0 };
        let text =
            if is_mark { text.get(..text.len().min(MARK_MAX)).unwrap_or_default() } else { &[] };
        let raw = RawEntry {
            sector: U64::new(self.sector),
            sectors: U64::new(self.sectors),
            flags: U64::new(flags),
            data_len: U64::new(text.len() as u64),
        };
        let (head, stamp_at) = sector.split_at_mut(LOG_SECTOR - STAMP);
        let _ = raw.write_to_prefix(head);
        if let Some(place) = head.get_mut(ENTRY..ENTRY + text.len()) {
            place.copy_from_slice(text);
        }
        let Some(stamp) = self.stamp else { return };
        let mut raw = RawStamp {
            magic: STAMP_MAGIC,
            issue: U64::new(stamp.issue),
            issued_after: U64::new(stamp.issued_after),
            completion: U64::new(stamp.completion),
            issued_ns: U64::new(stamp.issued_ns),
            completed_ns: U64::new(stamp.completed_ns),
            kind: self.kind as u8,
            reserved: 0,
            queue: U16::new(stamp.queue),
            errno: I32::new(stamp.errno),
            entry_crc: U32::new(entry_checksum(head, text.len())),
            stamp_crc: U32::ZERO,
        };
        raw.stamp_crc = U32::new(raw.checksum());
        let _ = raw.write_to_prefix(stamp_at);
    }

    /// Reads an entry from its sector, of at least [`LOG_SECTOR`] bytes.
    ///
    /// # Errors
    ///
    /// See [`LogEntryError`].
    pub fn decode(sector: &[u8]) -> Result<Self, LogEntryError> {
        let (head, rest) =
            sector.split_at_checked(sector.len().saturating_sub(STAMP)).unwrap_or_default();
        let (raw, _) =
            RawEntry::read_from_prefix(head).map_err(|_| LogEntryError::Contradiction)?;
        let stamp = RawStamp::read_from_bytes(rest).map_err(|_| LogEntryError::Contradiction)?;
        let (flags, text) = (raw.flags.get(), raw.data_len.get());
        let entry = |kind, stamp| Self {
            kind,
            sector: raw.sector.get(),
            sectors: raw.sectors.get(),
            fua: flags & FUA != 0,
            preflush: flags & FLUSH != 0 && kind != LogKind::Flush,
            text: if flags & MARK != 0 { text } else { 0 },
            stamp,
        };
        let of_flags = kind_of(flags, raw.sectors.get())?;
        if raw.sector.get().checked_add(raw.sectors.get()).is_none() {
            return Err(LogEntryError::Contradiction);
        }
        if stamp.magic != STAMP_MAGIC {
            return Ok(entry(of_flags, None));
        }
        let text = usize::try_from(text).ok().filter(|text| *text <= MARK_MAX);
        let text = text.ok_or(LogEntryError::Contradiction)?;
        if stamp.stamp_crc.get() != stamp.checksum()
            || stamp.entry_crc.get() != entry_checksum(head, text)
        {
            return Err(LogEntryError::Checksum);
        }
        let kind = LogKind::of(stamp.kind).ok_or(LogEntryError::Kind(stamp.kind))?;
        let base = match kind {
            LogKind::Zero => LogKind::Discard,
            LogKind::End => LogKind::Mark,
            other => other,
        };
        if base != of_flags {
            return Err(LogEntryError::Contradiction);
        }
        Ok(entry(kind, Some(stamp.decode())))
    }

    /// Sectors of data that follow the entry in the log.
    #[must_use]
    pub fn data_sectors(&self) -> u64 {
        if self.kind == LogKind::Write { self.sectors } else { 0 }
    }

    /// The text of a mark, from the sector of its entry; empty if it is none.
    #[must_use]
    pub fn text<'s>(&self, sector: &'s [u8]) -> &'s [u8] {
        let len = usize::try_from(self.text).unwrap_or(usize::MAX);
        let after = sector.get(ENTRY..).unwrap_or_default();
        after.get(..len.min(after.len())).unwrap_or_default()
    }
}

/// The kind of an entry without a stamp.
fn kind_of(flags: u64, sectors: u64) -> Result<LogKind, LogEntryError> {
    /// `LOG_METADATA_FLAG`: the write has metadata of a file system. It changes nothing here.
    const METADATA: u64 = 16;
    if flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) != 0 {
        return Err(LogEntryError::Flags(flags));
    }
    Ok(match flags {
        _ if flags & MARK != 0 => LogKind::Mark,
        _ if flags & DISCARD != 0 => LogKind::Discard,
        _ if flags & FLUSH != 0 && sectors == 0 => LogKind::Flush,
        _ => LogKind::Write,
    })
}

/// The checksum of an entry's own fields and the text of a mark.
fn entry_checksum(sector: &[u8], text: usize) -> u32 {
    crc32fast::hash(sector.get(..ENTRY + text).unwrap_or_default())
}

impl RawStamp {
    fn checksum(&self) -> u32 {
        crc32fast::hash(self.as_bytes().get(..STAMP_CHECKED).unwrap_or_default())
    }

    fn decode(&self) -> LogStamp {
        LogStamp {
            issue: self.issue.get(),
            issued_after: self.issued_after.get(),
            completion: self.completion.get(),
            issued_ns: self.issued_ns.get(),
            completed_ns: self.completed_ns.get(),
            queue: self.queue.get(),
            errno: self.errno.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [LogKind; 6] = [
        LogKind::Write,
        LogKind::Flush,
        LogKind::Discard,
        LogKind::Zero,
        LogKind::Mark,
        LogKind::End,
    ];

    fn entry(kind: LogKind) -> LogEntry {
        let is_mark = matches!(kind, LogKind::Mark | LogKind::End);
        let stamp = LogStamp {
            issue: 7,
            issued_after: 5,
            completion: 9,
            issued_ns: 1_000,
            completed_ns: 2_000,
            queue: 3,
            errno: 5,
        };
        LogEntry {
            kind,
            sector: if is_mark { 0 } else { 1 << 40 },
            sectors: if is_mark || kind == LogKind::Flush { 0 } else { 8 },
            fua: kind == LogKind::Write,
            preflush: false,
            text: if is_mark { 5 } else { 0 },
            stamp: Some(stamp),
        }
    }

    #[test]
    fn entries_of_each_kind_are_read_as_written() {
        for kind in KINDS {
            let mut sector = [0xee; LOG_SECTOR];
            entry(kind).encode(b"hello", &mut sector);
            let read = LogEntry::decode(&sector).unwrap();
            assert_eq!(read, entry(kind));
            let text: &[u8] = if read.text == 5 { b"hello" } else { b"" };
            assert_eq!(read.text(&sector), text);
        }
    }

    #[test]
    fn each_changed_bit_of_a_stamped_entry_is_noticed() {
        let mut sector = [0; LOG_SECTOR];
        entry(LogKind::Write).encode(b"", &mut sector);
        let checked = (0..ENTRY).chain(LOG_SECTOR - STAMP..LOG_SECTOR);
        for bit in checked.flat_map(|byte| byte * 8..byte * 8 + 8) {
            let mut damaged = sector;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = LogEntry::decode(&damaged);
            // Without its signature a stamp is the unused rest of an entry of dm-log-writes.
            let lost_stamp = read.is_ok_and(|read| read.stamp.is_none());
            let is_signature = (LOG_SECTOR - STAMP..LOG_SECTOR - STAMP + 8).contains(&(bit / 8));
            assert_eq!(lost_stamp, is_signature, "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn entries_of_dm_log_writes_are_read_without_a_stamp() {
        let sector = |sectors: u64, flags: u64| {
            let mut sector = [0; LOG_SECTOR];
            sector[..8].copy_from_slice(&64u64.to_le_bytes());
            sector[8..16].copy_from_slice(&sectors.to_le_bytes());
            sector[16..24].copy_from_slice(&flags.to_le_bytes());
            sector
        };
        let read = |sectors, flags| {
            let entry = LogEntry::decode(&sector(sectors, flags))?;
            Ok((entry.kind, entry.preflush, entry.fua))
        };
        assert_eq!(read(8, 16), Ok((LogKind::Write, false, false)));
        assert_eq!(read(8, FLUSH | FUA), Ok((LogKind::Write, true, true)));
        assert_eq!(read(0, FLUSH), Ok((LogKind::Flush, false, false)));
        assert_eq!(read(8, DISCARD), Ok((LogKind::Discard, false, false)));
        assert_eq!(read(0, MARK), Ok((LogKind::Mark, false, false)));
        assert_eq!(read(8, 32), Err(LogEntryError::Flags(32)));
        let mut endless = sector(u64::MAX, 0);
        endless[..8].copy_from_slice(&1u64.to_le_bytes());
        assert_eq!(LogEntry::decode(&endless), Err(LogEntryError::Contradiction));
        assert_eq!(LogEntry::decode(&[]), Err(LogEntryError::Contradiction));
    }

    #[test]
    fn the_first_sector_is_that_of_dm_log_writes() {
        let log = LogSuper::new(77, None);
        let sector = log.encode();
        assert_eq!(sector[28..], [0; 512 - 28]);
        assert_eq!(sector[..8], [0x72, 0x68, 0x73, 0x77, 0x66, 0x73, 0x6a, 0]);
        assert_eq!(LogSuper::decode(&sector), Ok(log));
        assert_eq!(LogSuper::decode(&[0; 512]), Err(LogSuperError::Signature));
        let mut other = sector;
        other[8] = 2;
        assert_eq!(LogSuper::decode(&other), Err(LogSuperError::Version(2)));
        let mut odd = sector;
        odd[24] = 1;
        assert_eq!(LogSuper::decode(&odd), Err(LogSuperError::Sector(513)));
    }
}
