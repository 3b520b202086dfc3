//! State of a queue that another worker served before.

use std::collections::VecDeque;

use super::inflight_record::InflightRecord;

/// State of a resumed queue.
#[derive(Debug)]
pub(super) struct Resumed {
    /// Heads that an earlier worker took and did not return, oldest first.
    pub(super) owed: VecDeque<u16>,
    /// The record of chains in flight, if a frontend keeps one.
    pub(super) record: Option<InflightRecord>,
}
