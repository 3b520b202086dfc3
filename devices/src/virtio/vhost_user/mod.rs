//! A block device whose driver is in the guest of another monitor: the vhost-user protocol, back-end side.
//!
//! The crate `vhost` reads and writes the messages; [`Disk`] does what they ask. Each ring has a [`QueueWorker`] and an
//! engine of its own, as in a machine of ours: the frontend's kick is polled in the engine's ring, its
//! call event is the interrupt. A ring that stops hands over its position, so that it can go on later, with another memory
//! table, or in another process ([`inflight`]).
//!
//! The frontend may send anything. What cannot be is a [`Fault`], which ends the connection and nothing else.
//!
//! [`QueueWorker`]: super::queue_worker::QueueWorker

mod connection;
mod disk;
mod handler;
mod inflight;
mod line;
mod memory;
mod ring;

use std::io;

pub use connection::{Connection, Left};
pub use disk::Disk;

use super::{ActivateError, QueueError};

/// What a frontend asked that cannot be, or the host refused on the way.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A ring that the device does not have.
    #[error("there is no ring {0}")]
    NoRing(u32),
    /// A feature that was not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// A number out of its range.
    #[error("{what} cannot be {value}")]
    Value {
        /// Which number.
        what: &'static str,
        /// What was sent.
        value: u64,
    },
    /// A message that needs another one before it, or must not come while a ring runs.
    #[error("ring {ring}: {what}")]
    Order {
        /// Which ring.
        ring: usize,
        /// What is out of order.
        what: &'static str,
    },
    /// A region of guest memory that cannot be used.
    #[error("guest memory at {at:#x}: {why}")]
    Memory {
        /// Guest-physical address.
        at: u64,
        /// What is wrong with it.
        why: String,
    },
    /// An address of a ring that is in no region.
    #[error("the address {0:#x} lies outside of guest memory")]
    Address(u64),
    /// The ring cannot be started.
    #[error("ring {ring} cannot start: {source}")]
    Queue {
        /// Which ring.
        ring: usize,
        /// What is wrong with it.
        source: QueueError,
    },
    /// The device cannot be started.
    #[error(transparent)]
    Activate(#[from] ActivateError),
    /// The record of requests in flight cannot be used.
    #[error("the memory for requests in flight cannot be used: {0}")]
    Inflight(String),
    /// The host refused.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// The host's refusal of `what`.
fn host(what: &'static str) -> impl FnOnce(io::Error) -> Fault {
    move |source| Fault::Host { what, source }
}
