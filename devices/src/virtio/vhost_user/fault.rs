//! Why a message of the frontend failed.

use std::io;

use crate::virtqueue::QueueError;
use crate::worker::StartError;

/// An invalid message, or an error of the host while executing one.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The device does not have the ring.
    #[error("ring {0} does not exist")]
    NoRing(u32),
    /// The frontend selected features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// A value is out of range.
    #[error("{what} cannot be {value}")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value in the message.
        value: u64,
    },
    /// A message requires another one before it, or a stopped ring.
    #[error("ring {ring}: {what}")]
    Order {
        /// Number of the ring.
        ring: usize,
        /// The violated requirement.
        what: &'static str,
    },
    /// A region of guest memory cannot be used.
    #[error("guest memory at {at:#x}: {why}")]
    Memory {
        /// Guest-physical address.
        at: u64,
        /// The reason.
        why: String,
    },
    /// The address of a ring is in no region.
    #[error("address {0:#x} is outside of guest memory")]
    Address(u64),
    /// The layout of a ring is invalid.
    #[error("ring {ring} cannot start: {source}")]
    Queue {
        /// Number of the ring.
        ring: usize,
        /// The queue's error.
        source: QueueError,
    },
    /// The worker of a ring cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The inflight memory cannot be used.
    #[error("the inflight memory cannot be used: {0}")]
    Inflight(String),
    /// The host refused a resource.
    #[error("cannot {what}: {source}")]
    Host {
        /// The operation that failed, as "cannot ...".
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// An error of the host in the operation `what`.
pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Fault {
    move |source| Fault::Host { what, source }
}
