//! The queries of one request queue that run on the threads of their disks. Used on the worker's
//! thread, which the end of a query kicks.

use std::sync::Arc;

use crate::scsi::{AllocationQuery, LogicalUnit};

/// A query of a disk.
pub(super) struct UnitQuery {
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) query: Arc<AllocationQuery>,
}

/// The queries in flight.
#[derive(Default)]
pub(super) struct QueueQueries {
    /// With the tags of their requests.
    running: Vec<(u16, UnitQuery)>,
    /// Tags of cancelled queries.
    cancelled: Vec<u16>,
}

impl QueueQueries {
    pub(super) fn start(&mut self, tag: u16, query: UnitQuery) {
        query.unit.start_query(Arc::clone(&query.query));
        self.running.push((tag, query));
    }

    /// Whether a query is done or cancelled.
    pub(super) fn has_answered(&self) -> bool {
        !self.cancelled.is_empty() || self.running.iter().any(|(_, query)| query.query.is_done())
    }

    /// Takes the tags of the queries that are done or cancelled.
    #[inline]
    pub(super) fn take_answered(&mut self) -> Vec<u16> {
        let mut answered = std::mem::take(&mut self.cancelled);
        if !self.running.is_empty() {
            let done = self.running.extract_if(.., |(_, query)| query.query.is_done());
            answered.extend(done.map(|(tag, _)| tag));
        }
        answered
    }

    /// Cancels a query; `false` if no query has the tag. The answer of a host that works on it is
    /// dropped.
    pub(super) fn cancel(&mut self, tag: u16) -> bool {
        let Some(at) = self.running.iter().position(|(running, _)| *running == tag) else {
            return false;
        };
        let (_, UnitQuery { unit, query }) = self.running.swap_remove(at);
        unit.abandon_query(&query);
        self.cancelled.push(tag);
        true
    }
}

impl Drop for QueueQueries {
    /// Requests end with their queue: it does not wait for the host.
    fn drop(&mut self) {
        for (_, UnitQuery { unit, query }) in &self.running {
            unit.abandon_query(query);
        }
    }
}
