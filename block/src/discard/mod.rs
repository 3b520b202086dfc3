//! How a guest's discards reach the host: partial granules merged, large ranges chunked, chunks
//! paced so that they do not delay transfers.
//!
//! Pure, except for the counters: the requests of an engine call in and report results.

mod chunk_size;
mod cooldown;
mod granules;
mod io_load;
mod merge;
mod queue;
mod stats;

pub(crate) use self::granules::Granules;
pub(crate) use self::io_load::{IoLoad, TransferCount};
pub(crate) use self::merge::{MergeQueue, MergedRange};
pub(crate) use self::queue::DiscardQueue;
pub(crate) use self::stats::DiscardCounters;
pub use self::stats::DiscardStats;
