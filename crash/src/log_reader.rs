//! Reads the entries of a log (docs/record-log.md). Data stays in the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use block::{
    BaseSamples, ImageFormat, LOG_SECTOR, LogEntry, LogEntryError, LogKind, LogSuper, LogSuperError,
};

use crate::history::{History, MarkMade, Recorded};

/// Why a recording cannot be explored.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The log cannot be read.
    #[error("cannot read the log: {0}")]
    Log(io::Error),
    /// The base cannot be read.
    #[error("cannot read the base: {0}")]
    Base(io::Error),
    /// A machine records to the log, or another process has it.
    #[error(
        "the log is in use by {}: a recording is explored once it was stopped", process(*.0)
    )]
    LogInUse(Option<u32>),
    /// A machine writes to the base, or another process has it.
    #[error(
        "the base is in use by {}: it must stay as it was when the recording began",
        process(*.0)
    )]
    BaseInUse(Option<u32>),
    /// The base is no raw image.
    #[error("the base is not a raw image but {format}; {}", raw_remedy(*.format))]
    BaseFormat {
        /// Its format.
        format: ImageFormat,
    },
    /// The file is not a log.
    #[error(transparent)]
    Super(#[from] LogSuperError),
    /// An entry is wrong.
    #[error("entry {entry} of the log, at byte {at}: {source}")]
    Entry {
        /// Its place, from 0.
        entry: u64,
        /// Where it is in the log, in bytes.
        at: u64,
        /// The error.
        source: EntryError,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn raw_remedy(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Layer => "`bulkhead layer flatten` makes one of a layer and its bases",
        _ => "name a raw one with the same content",
    }
}

/// An error in an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// It cannot be decoded.
    #[error(transparent)]
    Entry(#[from] LogEntryError),
    /// The log ends before it, or in it.
    #[error("the log ends here, and should have {0} entries")]
    Truncated(u64),
    /// Its data is not there.
    #[error("the log ends within its data")]
    NoData,
    /// Its range is not within the disk.
    #[error("its range of {sectors} sectors from {sector} is not within the base of {size} bytes")]
    Range {
        /// First sector, in units of the log.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
        /// Bytes of the base.
        size: u64,
    },
    /// It changes nothing, and is no flush.
    #[error("it has no sectors")]
    Empty,
    /// It has not the number that follows.
    #[error("it has number {found}, and {expected} follows")]
    Number {
        /// The number that it should have.
        expected: u64,
        /// The number that it has.
        found: u64,
    },
    /// It was issued after its own completion.
    #[error("it was issued after {0} completions, later than it completed")]
    IssuedLate(u64),
    /// It has no stamp, and others have one.
    #[error("it has no stamp, unlike those before it")]
    NoStamp,
    /// It has a stamp, and others have none.
    #[error("it has a stamp, unlike those before it")]
    Stamp,
    /// Entries follow the end of the log.
    #[error("it follows the end of the log")]
    AfterEnd,
    /// There are too many.
    #[error("there are more than {} requests", u32::MAX)]
    TooMany,
}

impl EntryError {
    /// Whether it is found where a recording was killed: the entry was not written as a whole, or
    /// is the rest of another recording. Other errors are those of a whole entry.
    fn ends_tail(&self) -> bool {
        match self {
            Self::Entry(_) | Self::Truncated(_) | Self::NoData | Self::Number { .. } => true,
            Self::NoStamp | Self::Stamp | Self::AfterEnd => true,
            Self::Range { .. } | Self::Empty | Self::IssuedLate(_) | Self::TooMany => false,
        }
    }
}

/// How a log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// It was closed; the text says why.
    Closed(String),
    /// The recording failed, for which the text is the reason: what the guest did later is missing.
    Failed(String),
    /// It was not closed, as the recording was killed or its space was used up. What was in flight
    /// is missing.
    Unclean,
    /// It is a log of dm-log-writes or another program, which has no end.
    Foreign,
}

/// A log that was read.
pub(crate) struct ReadLog {
    pub(crate) history: History,
    pub(crate) end: LogEnd,
    pub(crate) samples: Option<BaseSamples>,
}

/// Reads a log of a disk of `size` bytes.
pub(crate) fn read_log(log: &File, log_bytes: u64, size: u64) -> Result<ReadLog, RecordingError> {
    let mut first = [0; LOG_SECTOR];
    if log_bytes < LOG_SECTOR as u64 {
        return Err(LogSuperError::Signature.into());
    }
    log.read_exact_at(&mut first, 0).map_err(RecordingError::Log)?;
    let head = LogSuper::decode(&first)?;
    let unit = u64::from(head.sector);
    let mut reader = Reader {
        unit,
        size,
        log_bytes,
        requests: Vec::new(),
        marks: Vec::new(),
        stamped: None,
        end: None,
    };
    let mut sector = vec![0; head.sector as usize];
    let (mut at, mut entry) = (unit, 0);
    loop {
        let counted = entry < head.entries;
        match reader.entry(log, at, &mut sector, counted) {
            Ok(Some(next)) => at = next,
            Ok(None) if counted => {
                return Err(wrong(entry, at, EntryError::Truncated(head.entries)));
            }
            Err(ReadError::Log(source)) => return Err(RecordingError::Log(source)),
            Err(ReadError::Entry(source)) if counted || !source.ends_tail() => {
                return Err(wrong(entry, at, source));
            }
            Ok(None) | Err(ReadError::Entry(_)) => break,
        }
        entry += 1;
    }
    Ok(reader.finish(head.base))
}

fn wrong(entry: u64, at: u64, source: EntryError) -> RecordingError {
    RecordingError::Entry { entry, at, source }
}

enum ReadError {
    Log(io::Error),
    Entry(EntryError),
}

impl<E: Into<EntryError>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Entry(error.into())
    }
}

struct Reader {
    /// Bytes of a sector of the log.
    unit: u64,
    /// Bytes of the disk.
    size: u64,
    log_bytes: u64,
    requests: Vec<Recorded>,
    marks: Vec<MarkMade>,
    /// Whether entries have stamps; `None` before the first.
    stamped: Option<bool>,
    /// The last entry, if the log was closed.
    end: Option<LogEnd>,
}

impl Reader {
    /// Reads the entry at byte `at`, and returns where the next one is; `None` if the log ends.
    /// Entries beyond the counted ones are part of the log only if they have a stamp.
    fn entry(
        &mut self,
        log: &File,
        at: u64,
        sector: &mut [u8],
        counted: bool,
    ) -> Result<Option<u64>, ReadError> {
        let data = at.checked_add(self.unit).filter(|data| *data <= self.log_bytes);
        let Some(data) = data else { return Ok(None) };
        log.read_exact_at(sector, at).map_err(ReadError::Log)?;
        let entry = LogEntry::decode(sector)?;
        match (self.stamped, entry.stamp.is_some()) {
            (Some(true), false) => return Err(EntryError::NoStamp.into()),
            (_, false) if !counted => return Err(EntryError::NoStamp.into()),
            (Some(false), true) => return Err(EntryError::Stamp.into()),
            _ => {}
        }
        if self.end.is_some() {
            return Err(EntryError::AfterEnd.into());
        }
        let next = self.number(&entry)?;
        match entry.kind {
            LogKind::Mark | LogKind::End => {
                self.stamped = Some(entry.stamp.is_some());
                self.mark(&entry, entry.text(sector));
                Ok(Some(data))
            }
            _ => {
                let request = self.request(&entry, next, data)?;
                // `request` has found that the data is within the log.
                let after = data + entry.data_sectors() * self.unit;
                self.stamped = Some(entry.stamp.is_some());
                self.requests.push(request);
                Ok(Some(after))
            }
        }
    }

    /// The number of the entry, which its stamp must have.
    fn number(&self, entry: &LogEntry) -> Result<u64, EntryError> {
        let expected = self.requests.len() as u64;
        if expected >= u64::from(u32::MAX) {
            return Err(EntryError::TooMany);
        }
        let Some(stamp) = entry.stamp else { return Ok(expected) };
        if stamp.completion != expected {
            return Err(EntryError::Number { expected, found: stamp.completion });
        }
        if stamp.issued_after > expected {
            return Err(EntryError::IssuedLate(stamp.issued_after));
        }
        Ok(expected)
    }

    fn mark(&mut self, entry: &LogEntry, text: &[u8]) {
        let text: String = String::from_utf8_lossy(text)
            .chars()
            .map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter })
            .collect();
        if entry.kind == LogKind::End {
            let has_failed = entry.stamp.is_some_and(|stamp| stamp.errno != 0);
            self.end = Some(if has_failed { LogEnd::Failed(text) } else { LogEnd::Closed(text) });
            return;
        }
        let ns = entry.stamp.map(|stamp| stamp.completed_ns);
        self.marks.push(MarkMade { after: self.requests.len() as u64, text, ns });
    }

    /// The request of an entry whose data is at byte `data`. In a log of others each request was
    /// issued after all before it had completed: such a log has the order of completion only.
    fn request(&self, entry: &LogEntry, number: u64, data: u64) -> Result<Recorded, EntryError> {
        let stamp = entry.stamp;
        let (at, len) = match self.range(entry) {
            // The disk refused a request beyond its end, which changed nothing.
            Err(EntryError::Range { .. }) if stamp.is_some_and(|stamp| stamp.errno != 0) => (0, 0),
            range => range?,
        };
        let data_len = entry.data_sectors().checked_mul(self.unit);
        if data_len.and_then(|len| data.checked_add(len)).is_none_or(|end| end > self.log_bytes) {
            return Err(EntryError::NoData);
        }
        Ok(Recorded {
            kind: entry.kind,
            at,
            len,
            data,
            issued_after: stamp.map_or(number, |stamp| stamp.issued_after),
            fua: entry.fua,
            preflush: entry.preflush,
            errno: stamp.map_or(0, |stamp| stamp.errno),
            queue: stamp.map_or(0, |stamp| stamp.queue),
            times: stamp.map(|stamp| (stamp.issued_ns, stamp.completed_ns)),
        })
    }

    /// The range of an entry in bytes: within the disk, and empty for flushes only.
    fn range(&self, entry: &LogEntry) -> Result<(u64, u64), EntryError> {
        if entry.kind == LogKind::Flush {
            return Ok((0, 0));
        }
        if entry.sectors == 0 {
            return Err(EntryError::Empty);
        }
        let bytes = |sectors: u64| sectors.checked_mul(self.unit);
        let range = bytes(entry.sector).zip(bytes(entry.sectors));
        let within =
            range.filter(|(at, len)| at.checked_add(*len).is_some_and(|end| end <= self.size));
        within.ok_or(EntryError::Range {
            sector: entry.sector,
            sectors: entry.sectors,
            size: self.size,
        })
    }

    fn finish(self, samples: Option<BaseSamples>) -> ReadLog {
        let end = match (self.end, self.stamped) {
            (Some(end), _) => end,
            (None, Some(false)) => LogEnd::Foreign,
            (None, _) => LogEnd::Unclean,
        };
        ReadLog { history: History::new(self.requests, self.marks), end, samples }
    }
}
