//! The back-end side of the vhost-user protocol: a block device whose driver runs in the guest of
//! another monitor (the frontend).
//!
//! The crate `vhost` encodes and decodes the messages; [`VhostUserBlock`] executes them. Each ring
//! has a queue worker with its own engine, as in a machine of ours: the engine polls the frontend's
//! kick, the call event is the interrupt. A stopped ring reports its position, so that it can
//! resume later, with another memory table or in another process (`inflight_memory.rs`).
//!
//! The frontend may send anything. An invalid message is a [`Fault`], which ends the connection and
//! nothing else.

mod connection;
mod device;
mod fault;
mod frontend_event;
mod handler;
mod inflight_memory;
mod memory_table;
mod ring;

pub use connection::{Connection, Disconnect};
pub use device::VhostUserBlock;
pub use fault::Fault;
