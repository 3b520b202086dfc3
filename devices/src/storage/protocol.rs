//! The contract between a queue worker and a storage protocol: chains to requests, results to
//! answers in guest memory.

use std::convert::Infallible;
use std::io;

use ::block::{Operation, Segments};

use super::engines::Engines;
use super::stats::{OperationKind, Round};
use crate::GuestMap;
use crate::virtqueue::{Chain, QueueError};

/// The result of parsing a chain. `Q` is a query of the engines ([`Engines::Query`]).
#[derive(Debug)]
pub enum Parsed<P, Q = Infallible> {
    /// A request for the engine. Its data buffers are in `segments`.
    Io {
        /// Number of the disk among those of the queue; 0 if there is one disk.
        unit: u16,
        /// The operation.
        op: Operation,
        /// State that the protocol needs to complete the request.
        pending: P,
    },
    /// A request that depends on the host but is no I/O.
    Query {
        /// The query for the engines.
        query: Q,
        /// State that the protocol needs to complete the request.
        pending: P,
    },
    /// The chain is answered.
    Done {
        /// Bytes written to its device-writable buffers.
        written: u32,
    },
    /// The chain has no buffer for an answer. The device needs a reset.
    Fatal(QueueError),
}

/// The result of completing an engine request.
#[derive(Clone, Copy, Debug)]
pub enum Completed {
    /// The chain is answered.
    Done {
        /// Bytes written to its device-writable buffers.
        written: u32,
    },
    /// The chain needs another engine request. Its data buffers are in `segments`.
    Again {
        /// Number of the disk among those of the queue.
        unit: u16,
        /// The operation.
        op: Operation,
    },
}

/// A storage protocol on one queue. Runs on the thread of the queue's worker and does no I/O.
pub trait Protocol: Send + 'static {
    /// State of a request until it completes.
    type Pending;

    /// The engines that serve the queue.
    type Engines: Engines;

    /// Reads the request in a chain, once, and checks it. `segments` is empty and receives the data
    /// buffers.
    fn parse(
        &mut self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<Self::Pending, <Self::Engines as Engines>::Query>;

    /// Writes the result of a request, or continues it with another operation. `segments` is empty
    /// and receives the data buffers of that operation. `pending` is unused after
    /// [`Completed::Done`].
    fn complete(
        &mut self,
        pending: &mut Self::Pending,
        map: &GuestMap,
        result: io::Result<()>,
        segments: &mut Segments,
    ) -> Completed;

    /// Writes the result of a query that is done or cancelled. Returns the bytes written to the
    /// device-writable buffers.
    fn complete_query(&mut self, _pending: &mut Self::Pending, _map: &GuestMap) -> u32 {
        0
    }

    /// Counts a completion of the engine. `bytes` is `None` if the operation failed.
    #[inline]
    fn count(
        &mut self,
        _pending: &Self::Pending,
        _kind: OperationKind,
        _bytes: Option<u64>,
        _took_ns: u64,
    ) {
    }

    /// Records the age of a request in flight; `None` begins a scan of all of them.
    fn record_age(&mut self, _pending: Option<&Self::Pending>, _age_ns: u64) {}

    /// Counts a round of the worker.
    #[inline]
    fn count_round(&mut self, _round: &Round) {}

    /// Whether requests in flight may have to be cancelled. The worker then accepts what the driver
    /// has made available so far and calls [`Protocol::review`] for each request in flight.
    #[inline]
    fn wants_review(&mut self) -> bool {
        false
    }

    /// Reviews a request in flight. Returns the number of its disk if it is to be cancelled.
    fn review(&mut self, _pending: &mut Self::Pending) -> Option<u16> {
        None
    }

    /// All completions so far are visible to the driver.
    #[inline]
    fn published(&mut self) {}
}
