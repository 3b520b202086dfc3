//! A recording: the log of a disk and the base that it started from.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use block::{BaseSamples, OpenError, ProbedFormat, lock_unchanged};

use crate::content::Store;
use crate::explain::{Explanation, explain};
use crate::log_reader::{LogEnd, RecordingError, read_log};
use crate::losses::{Loss, Losses};
use crate::name::StateName;
use crate::source::Source;
use crate::state::StateDisk;

/// A recording: the log of a disk, and the base, which is what the disk had before the first entry.
/// Neither is changed, and neither may change. Memory grows with the number of requests; data stays
/// in the files.
#[derive(Clone)]
pub struct Recording {
    source: Arc<Source>,
    end: LogEnd,
    samples: Option<BaseSamples>,
}

/// A name is not that of a state of this recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// There are fewer requests.
    #[error("there is no state after {point} completions: the recording has {requests} requests")]
    Point {
        /// The completions of the name.
        point: u64,
        /// The requests of the recording.
        requests: u64,
    },
    /// The request is no write that was issued before the power cut.
    #[error("request {0} is no write, discard or zeroing that was issued before the power cut")]
    NoWrite(u64),
    /// The write has fewer sectors.
    #[error("write {write} has {sectors} sectors only")]
    Sectors {
        /// The write.
        write: u64,
        /// Its sectors of 512 bytes.
        sectors: u64,
    },
    /// The power cut cannot have taken the write.
    #[error(
        "a power cut after {point} completions cannot take write {write}: it was durable by then, \
         and no write of its place overlapped it in time"
    )]
    Durable {
        /// The write.
        write: u64,
        /// The completions of the name.
        point: u64,
    },
    /// The name says that discards were lost.
    #[error("no discard was followed by a flush within {0} completions")]
    NoDiscards(u64),
}

impl Recording {
    /// Reads the entries of a log. The disk has the size of the base, a raw image or a device. Both
    /// are locked as images that no process may write to, for as long as the recording is in use.
    ///
    /// # Errors
    ///
    /// See [`RecordingError`].
    pub fn open(log: &Path, base: &Path) -> Result<Self, RecordingError> {
        let (log_path, base_path) = (log, base);
        let (log, log_bytes) = open_sized(log).map_err(RecordingError::Log)?;
        lock(&log, log_path, RecordingError::LogInUse, RecordingError::Log)?;
        let (base, size) = open_sized(base).map_err(RecordingError::Base)?;
        lock(&base, base_path, RecordingError::BaseInUse, RecordingError::Base)?;
        require_raw(&base)?;
        let read = read_log(&log, log_bytes, size)?;
        let source = Source::new(read.history, Store::new(log, base, size));
        Ok(Self { source: Arc::new(source), end: read.end, samples: read.samples })
    }

    /// The recording of the same requests on a disk that ignores flushes and FUA: a check that
    /// accepts all of its states proves nothing.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn without_flushes(&self) -> io::Result<Self> {
        let store = self.source.store.try_clone()?;
        let source = Source::new(self.source.history.without_flushes(), store);
        Ok(Self { source: Arc::new(source), ..self.clone() })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.source.store.size()
    }

    /// Number of requests. Power cuts are after 0 to this many completions.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.source.history.len()
    }

    /// Number of marks.
    #[must_use]
    pub fn marks(&self) -> u64 {
        self.source.history.marks().len() as u64
    }

    /// How the log ends.
    #[must_use]
    pub fn end(&self) -> &LogEnd {
        &self.end
    }

    /// The disk in a state.
    ///
    /// # Errors
    ///
    /// The name is not that of a state of this recording.
    pub fn state(&self, name: &StateName) -> Result<Arc<StateDisk>, StateError> {
        Ok(self.unverified(self.verified(name)?))
    }

    /// The disk in a state that the search made: a durable write that it lost, and that nothing can
    /// hide, is there nevertheless.
    pub(crate) fn unverified(&self, name: StateName) -> Arc<StateDisk> {
        Arc::new(StateDisk::new(Arc::clone(&self.source), name))
    }

    /// The writes that a state lost, and the flushes and marks around the power cut.
    ///
    /// # Errors
    ///
    /// As [`Recording::state`].
    pub fn explain(&self, name: &StateName) -> Result<Explanation, StateError> {
        Ok(explain(&self.source, &self.verified(name)?))
    }

    /// Samples of the disk from when its recording began, if the log has some.
    pub(crate) fn samples(&self) -> Option<&BaseSamples> {
        self.samples.as_ref()
    }

    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The name in its one form: a write all of whose sectors are lost is lost as a whole.
    fn verified(&self, name: &StateName) -> Result<StateName, StateError> {
        let history = &self.source.history;
        let point = name.point;
        if point > history.len() {
            return Err(StateError::Point { point, requests: history.len() });
        }
        if name.discards && history.discards_from() > point {
            return Err(StateError::NoDiscards(point));
        }
        let mut name = name.clone();
        let Losses::These(these) = &mut name.losses else { return Ok(name) };
        for (number, loss) in &mut *these {
            let write = history.request(*number).filter(|write| write.is_write());
            let write = write.filter(|write| write.issued_after <= point);
            let sectors = write.ok_or(StateError::NoWrite(*number))?.sectors();
            let Loss::Sectors(ranges) = loss else { continue };
            if ranges.last().is_some_and(|(first, count)| first.saturating_add(*count) > sectors) {
                return Err(StateError::Sectors { write: *number, sectors });
            }
            if *ranges == [(0, sectors)] {
                *loss = Loss::Whole;
            }
        }
        for (number, loss) in these {
            let is_durable = history.durable_at(*number) <= point;
            if is_durable && !history.may_be_hidden(*number, loss, point) {
                return Err(StateError::Durable { write: *number, point });
            }
        }
        Ok(name)
    }
}

/// Keeps off those who would write to the file.
fn lock(
    file: &File,
    path: &Path,
    in_use: impl FnOnce(Option<u32>) -> RecordingError,
    cannot: impl FnOnce(io::Error) -> RecordingError,
) -> Result<(), RecordingError> {
    lock_unchanged(file, path).map_err(|error| match error {
        OpenError::InUse { pid, .. } => in_use(pid),
        OpenError::Host { source, .. } => cannot(source),
        error => cannot(io::Error::other(error)),
    })
}

/// Refuses a base whose bytes are not those of the disk. A device or an image that a disk served as
/// raw has what its guest wrote.
fn require_raw(base: &File) -> Result<(), RecordingError> {
    let probed = ProbedFormat::of(base).map_err(RecordingError::Base)?;
    let foreign = probed.found.filter(|format| !format.is_content());
    match foreign.filter(|_| !probed.is_known_raw()) {
        Some(format) => Err(RecordingError::BaseFormat { format }),
        None => Ok(()),
    }
}

/// A file and its bytes. A block device has the size that its end is at.
fn open_sized(path: &Path) -> io::Result<(File, u64)> {
    // The open of a pipe would wait for a writer; it has no end to seek, and is refused.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size))
}
