//! Records what passes a disk: each write, flush, discard and zeroing, with its data and its place
//! in the order of issue and completion, in a log (docs/record-log.md).
//!
//! [`RecordedDisk`] wraps a disk that is recorded. Others have no part of this.

mod base;
mod channel;
mod chunk;
mod disk;
mod engine;
mod format;
mod log_file;
mod queue;
mod recorder;
mod recording;
#[cfg(test)]
mod tests;
mod writer;

pub use self::base::{BASE_SAMPLE, BaseSamples};
pub use self::disk::RecordedDisk;
pub use self::format::{
    LOG_SECTOR, LogEntry, LogEntryError, LogKind, LogStamp, LogSuper, LogSuperError, MARK_MAX,
};
pub use self::log_file::RECORD_LOG_BYTES;
pub use self::recorder::{MarkError, RecordEnd, RecordStatus};
pub use self::recording::{RECORD_QUEUE_BYTES, RecordOptions, Recording};
