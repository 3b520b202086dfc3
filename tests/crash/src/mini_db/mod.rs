//! A small database over a disk, with a write-ahead log and checkpoints, and copies of it that each
//! have one fault.
//!
//! It has 16 pages. A transaction gives four of them a new version. Its log blocks are written, a
//! flush commits it, and after a few transactions a checkpoint writes the pages in place, names the
//! transaction in a superblock, and begins the log from its start. Recovery applies the log to the
//! pages.

mod block;
mod recover;
mod write;

pub use recover::{Recovery, recover};
pub use write::{Device, DiskOp, run};

/// Size of a block in bytes.
pub const BLOCK: usize = 4096;
/// Size of the disk in bytes.
pub const DISK: u64 = 16 << 20;

/// Blocks of the two superblocks, of the pages and of the log.
const SUPERBLOCKS: [u64; 2] = [0, 1];
const PAGES: u64 = 8;
const PAGE_COUNT: u64 = PAGE_SLOTS as u64;
const PAGE_SLOTS: usize = 16;
const LOG: u64 = 32;
/// Pages that a transaction changes.
const CHANGED: u64 = CHANGED_SLOTS as u64;
const CHANGED_SLOTS: usize = 4;
/// Log blocks of a transaction: its pages, and the commit.
const RECORD: u64 = CHANGED + 1;
/// Transactions between two checkpoints.
const LAP: u64 = 3;
/// The last transaction of the lap in which a fault of the writer shows, if there are as many.
const FAULTY: u64 = 27;
/// Blocks of other writers on the disk, which recovery does not read.
const OTHERS: std::ops::Range<u64> = 1024..4096;

/// The faults, of which a database has at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A transaction is reported as committed without a flush.
    NoFlushAtCommit,
    /// A transaction is reported while its flush is in progress.
    ReportedBeforeFlush,
    /// The flush of a commit is issued together with the log blocks, before they complete.
    FlushTooEarly,
    /// The superblock is written without a flush after the pages.
    NoFlushBeforeSuperblock,
    /// The log is overwritten without a flush after the superblock.
    NoFlushAfterSuperblock,
    /// The log is discarded before the superblock is durable.
    DiscardTooEarly,
    /// A checkpoint overwrites the newest superblock in place.
    OneSuperblock,
    /// The checksum of a superblock is not compared.
    SuperblockUnchecked,
    /// A commit has no checksum of the pages in the log.
    LogUnchecked,
    /// A commit is written with FUA, together with the pages in the log, and not flushed.
    FuaWithoutFlush,
    /// Pages are written in place before their transaction is committed.
    PagesBeforeCommit,
    /// Recovery keeps a page whose first sector has the version that the log has for it.
    TornPageKept,
    /// A checkpoint does not flush at all.
    NoFlushInCheckpoint,
    /// A commit that a checkpoint follows is not flushed, as the checkpoint flushes.
    LastCommitUnflushed,
    /// A checkpoint writes a page together with the superblock.
    LatePage,
    /// The superblock is written with FUA, together with the pages.
    FuaSuperblockWithPages,
    /// The log is discarded together with the write of the superblock.
    DiscardWithSuperblock,
    /// The first record of the log is cleared together with the pages of the checkpoint.
    LogClearedTooEarly,
    /// A commit has a checksum of the first half of its pages.
    HalfOfLogChecked,
    /// Recovery takes each record of the log for a new one, as the log was discarded.
    StaleRecordAccepted,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 20] = [
        Self::NoFlushAtCommit,
        Self::ReportedBeforeFlush,
        Self::FlushTooEarly,
        Self::NoFlushBeforeSuperblock,
        Self::NoFlushAfterSuperblock,
        Self::DiscardTooEarly,
        Self::OneSuperblock,
        Self::SuperblockUnchecked,
        Self::LogUnchecked,
        Self::FuaWithoutFlush,
        Self::PagesBeforeCommit,
        Self::TornPageKept,
        Self::NoFlushInCheckpoint,
        Self::LastCommitUnflushed,
        Self::LatePage,
        Self::FuaSuperblockWithPages,
        Self::DiscardWithSuperblock,
        Self::LogClearedTooEarly,
        Self::HalfOfLogChecked,
        Self::StaleRecordAccepted,
    ];
}

/// The pages that a transaction changes, from 1.
fn changed(transaction: u64) -> [u64; CHANGED_SLOTS] {
    let first = transaction * 5;
    [0, 1, 2, 3].map(|index| (first + index * 3) % PAGE_COUNT)
}

/// The version of a page after a transaction: the last one that has changed it, or 0.
fn version_after(page: u64, transaction: u64) -> u64 {
    (1..=transaction).rev().find(|earlier| changed(*earlier).contains(&page)).unwrap_or(0)
}
