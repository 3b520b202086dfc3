//! The split virtqueue (Virtio 1.2 §2.7).

mod chain;
mod inflight_record;
mod queue;
mod ring_memory;

pub use chain::{Buffer, Chain, Framed, OutOfMemoryRange, Span};
pub use inflight_record::{Position, RecordError, RecordPlace};
#[cfg(test)]
pub(crate) use queue::tests;
pub use queue::{Head, Queue, QueueError, QueueLayout};
